"""I13: the torque monitor against its limits, without a robot behind it.

The joints stand still and weigh nothing, so what is measured as effort is what pushes back. With a gain of 100 1/s and
10 ms from sample to sample the estimate comes half of the way nearer with each one.
"""

import math

import numpy as np
import pytest
from rig import Rig

from vla_safety.core.config import TorqueLimits, Watchdogs
from vla_safety.core.dynamics import Momentum
from vla_safety.core.findings import Finding
from vla_safety.core.modes import Mode
from vla_safety.core.observer import MomentumObserver, TorqueMonitor
from vla_safety.core.watchdogs import Instant

NAMES = ("grip", "a", "b")
LIMITS = TorqueLimits(limits={"a": 8.0, "b": 2.0}, gain=100.0, timeout=0.1, samples=2, max_offset=0.25)
MS = 1_000_000


class Still:
    """Joints that do not move; `weight` (2,) pulls at them."""

    def __init__(self, *weight: float):
        self._weight = np.array(weight or (0.0, 0.0))

    def momentum(self, q, v):
        return Momentum(np.zeros(2), -self._weight)


class Feed:
    """A monitor that gets a joint state every 10 ms."""

    def __init__(self, limits=LIMITS, dynamics=None):
        self.monitor, self.ms = TorqueMonitor(limits, dynamics or Still(), NAMES), 0

    def __call__(self, a=0.0, b=0.0, after=10, names=NAMES, **options):
        self.ms += after
        now = Instant(self.ms * MS, self.ms * MS)
        efforts = options.pop("efforts", [9e5, a, b])
        places, speeds = options.pop("q", [0.0] * 3), options.pop("v", [0.0] * 3)
        return self.monitor.receive(options.pop("stamp", self.ms) * MS, names, places, speeds, efforts, now)


def test_the_estimate_comes_half_of_the_way_nearer_with_each_sample():
    feed = Feed()
    assert feed(-4.0, 1.0) is None and feed.monitor.external.tolist() == [0.0, 0.0], "the first one is where it begins"
    for share in (0.5, 0.75, 0.875):
        assert feed(-4.0, 1.0) is None
        assert feed.monitor.external == pytest.approx([4.0 * share, -1.0 * share])
        assert feed.monitor.load == pytest.approx(0.5 * share)
    feed(-4.0, 1.0, after=100)
    assert feed.monitor.external[0] > 3.9, "a gap of no more than the timeout is bridged"
    feed(-4.0, 1.0, after=101)
    assert feed.monitor.external.tolist() == [0.0, 0.0], "after a longer one it begins anew"


def test_weight_is_no_push():
    feed = Feed(dynamics=Still(3.0, -1.0))
    for _ in range(5):
        assert feed(3.0, -1.0) is None and feed.monitor.external.tolist() == [0.0, 0.0]
    feed.monitor.carry(Still())
    assert feed.monitor.external.tolist() == [0.0, 0.0]
    feed(3.0, -1.0)
    assert feed.monitor.external.tolist() == [0.0, 0.0], "with another load it begins anew"
    feed(3.0, -1.0)
    assert feed.monitor.external == pytest.approx([-1.5, 0.5])


def test_the_second_sample_in_a_row_beyond_a_limit_is_a_finding_until_one_is_within():
    feed = Feed()
    feed(0.0, -4.1)
    assert feed(0.0, -4.1) is None, "2.05, for the first time"
    assert feed(0.0, -4.1) == Finding("external_torque", "b", pytest.approx(3.075), 2.0)
    assert feed(0.0, 0.0, names=("a",)) == Finding("external_torque", "b", pytest.approx(3.075), 2.0), "silence"
    for _ in range(5):
        found, felt = feed(), feed.monitor.external[1]
        assert found == (None if felt <= 2.0 else Finding("external_torque", "b", felt, 2.0))
    assert found is None


@pytest.mark.parametrize(("samples", "found"), [(1, True), (2, False)])
def test_exactly_at_a_limit_is_within_it_and_the_samples_that_count_are_those_of_the_limits(samples, found):
    feed = Feed(LIMITS.model_copy(update={"samples": samples}))
    feed(-16.0, 4.0)
    assert feed(-16.0, 4.0) is None and feed.monitor.external.tolist() == [8.0, -2.0]
    assert (feed(-16.0, 4.0) is not None) == found


def test_of_those_that_are_beyond_for_long_enough_the_worst_is_named():
    feed = Feed()
    feed(-18.0, 0.0)
    feed(-18.0, 0.0)
    found = feed(-18.0, 20.0)
    assert found == Finding("external_torque", "a", 13.5, 8.0), "b is further beyond, but for the first time"
    found = feed(-18.0, 20.0)
    assert (found.subject, found.limit) == ("b", 2.0)
    feed = Feed()
    for _ in range(3):
        found = feed(-1.0, 20.0)
    assert found == Finding("external_torque", "b", pytest.approx(15.0), 2.0)


@pytest.mark.parametrize(
    ("a", "b", "refused"),
    [
        (-4.0, 1.0, None),
        (-4.0, 1.25, Finding("offset", "b", 0.625, 0.5)),
        (4.5, 1.0, Finding("offset", "a", 2.25, 2.0)),
    ],
)
def test_what_is_estimated_at_arming_is_an_error_of_the_model_only_if_it_is_small(a, b, refused):
    feed = Feed()
    feed(a, b)
    feed(a, b)
    assert feed.monitor.zero() == refused
    feed(a, b)
    if refused is None:
        assert feed.monitor.external == pytest.approx([1.0, -0.25])
    else:
        assert feed.monitor.external == pytest.approx([-0.75 * a, -0.75 * b]), "nothing is taken away"


SPOILT = {
    "short": {"efforts": [0.0, 0.0]},
    "without speeds": {"v": []},
    "without places": {"q": []},
    "twice": {"names": ("a", "a", "b")},
    "missing": {"names": ("x", "a", "b")},
    "NaN": {"efforts": [0.0, math.nan, 0.0]},
    "place": {"q": [0.0, 0.0, math.inf]},
    "speed": {"v": [1.1e6, 0.0, 0.0]},
    "absurd": {"efforts": [0.0, 0.0, -1.1e6]},
    "not newer": {"stamp": 10},
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_i06_what_is_spoilt_is_silence(spoilt):
    feed = Feed()
    feed(-4.0, 1.0)
    assert feed(**spoilt) is None
    assert feed.monitor.check(Instant(0, 110 * MS)) is None
    late = Instant(0, 111 * MS)
    assert feed.monitor.check(late) == Finding("stale_effort", "joint_states", 0.101, 0.1)
    feed(-4.0, 1.0)
    assert feed.monitor.external == pytest.approx([4.0 * 2 / 3, -2 / 3]), "the gap is 20 ms long"


@pytest.mark.parametrize("good", [{"efforts": [0.0, 1e6, 0.0]}, {"v": [-1e6, 0.0, 0.0]}, {"q": [0.0, 1e6, 0.0]}])
def test_what_is_large_but_not_absurd_is_a_measurement(good):
    feed = Feed()
    feed(**good)
    assert feed.monitor.check(Instant(0, 10 * MS)) is None


def test_i06_before_the_first_sample_the_silence_is_infinite_and_a_watch_that_goes_back_is_silence():
    feed = Feed()
    assert feed.monitor.check(Instant(0, 0)) == Finding("stale_effort", "joint_states", math.inf, 0.1)
    feed(after=500)
    assert feed.monitor.check(Instant(0, 400 * MS)) is None
    assert feed.monitor.check(Instant(0, 399 * MS)) == Finding("stale_effort", "joint_states", -0.101, 0.1)


def test_an_observer_that_begins_anew_has_no_past():
    observer = MomentumObserver(2, 100.0)
    for _ in range(3):
        observer.update(Momentum(np.zeros(2), np.zeros(2)), np.array([-4.0, 1.0]), 0.01)
    observer.restart()
    assert observer.residual.tolist() == [0.0, 0.0]
    found = observer.update(Momentum(np.array([7.0, 7.0]), np.zeros(2)), np.array([-4.0, 1.0]), 0.01)
    assert found.tolist() == [0.0, 0.0], "momentum counts from here"
    found = observer.update(Momentum(np.array([7.0, 7.0]), np.zeros(2)), np.array([-4.0, 1.0]), 0.01)
    assert found == pytest.approx([2.0, -0.5])


# ------------------------------------------------------------------ stamps

LEAD, OLDEST = 125, 500  # ms
WINDOW = Watchdogs(joint_state_lead=LEAD / 1e3, joint_state_age=OLDEST / 1e3)
STILL = [0.0, 0.0, 0.0]


def taken(monitor, stamp_ms, clock_ms, watch_ms) -> bool:
    """Whether a joint state counts: whether efforts are fresh after it."""
    now = Instant(round(clock_ms * MS), watch_ms * MS)
    assert monitor.receive(round(stamp_ms * MS), NAMES, STILL, STILL, STILL, now) is None
    return monitor.check(now) is None


@pytest.mark.parametrize(
    ("age", "counts"),
    [
        (0, True),
        (OLDEST, True),
        (OLDEST + 0.001, False),
        (3.6e6, False),
        (-LEAD, True),
        (-LEAD - 0.001, False),
        (-3.6e6, False),
    ],
)
def test_i05_the_stamp_of_an_effort_lies_in_a_window_on_both_sides(age, counts):
    monitor = TorqueMonitor(LIMITS, Still(), NAMES, WINDOW)
    assert taken(monitor, 10**8 - age, 10**8, 1000) == counts
    assert taken(monitor, 10**8 + LEAD + 1, 10**8 + LEAD + 1, 2000), "what was refused is in nobody's way"


@pytest.mark.parametrize("step", [-3.6e6, -1000, -LEAD - 11, 200, 3.6e6])
def test_i05_after_a_clock_that_jumped_efforts_count_again_at_once(step):
    monitor = TorqueMonitor(LIMITS, Still(2.0, 0.5), NAMES, WINDOW)
    for k in range(20):
        assert taken(monitor, 10**8 + 10 * k, 10**8 + 10 * k, 10 * k)
    push, now = monitor.external[0], 10**8 + 200 + step
    assert push > 0.0
    assert taken(monitor, now, now, 1000)
    assert monitor.external.tolist() == [0.0, 0.0], "the estimate begins anew"


@pytest.mark.parametrize("odd", ["a joint state of the future", "the clock is set back"])
def test_i20_who_lost_its_efforts_by_a_clock_comes_back_by_a_reset(odd):
    """What the reason promises: end the cause, reset, arm."""
    rig, monitor = Rig(), TorqueMonitor(LIMITS, Still(), NAMES)
    shift, hour = 0, 3600 * 10**9

    def step(stamp=None):
        rig.now += 20 * MS
        now = Instant(rig.now + shift, rig.now)
        q = rig.controller.state[0]
        seen = now.clock_ns if stamp is None else stamp
        rig.filter.observe(seen, rig.filter.verifier.limits.names, q, np.zeros(len(q)), now)
        rig.filter.report("external_torque", monitor.receive(seen, NAMES, STILL, STILL, STILL, now), now)
        rig.filter.report("effort", monitor.check(now), now)
        rig.filter.cycle(now)
        rig.filter.drain()
        return now

    for _ in range(10):
        step()
    if odd == "the clock is set back":
        shift = -hour
        step()
    else:
        step(rig.now + hour)
        for _ in range(10):
            step(rig.now + hour)  # and nothing else for a while: the watchdog sees it
    assert rig.filter.mode == Mode.ESTOP
    for _ in range(50):
        now = step()
    answer = rig.filter.reset(now)
    assert answer.success and rig.filter.arm(now).success, answer.message
