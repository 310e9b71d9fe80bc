"""I5, I6: when a joint state is fresh and believable, to the nanosecond and to the last bit."""

import numpy as np
import pytest

from vla_safety.core.config import Watchdogs
from vla_safety.core.findings import Finding
from vla_safety.core.motion import rest
from vla_safety.core.watchdogs import Instant, StateMonitor

NAMES = ("a", "b")
SPEEDS = np.array([1.0, 2.0])
SETTINGS = Watchdogs(
    joint_state_timeout=0.1,
    joint_state_age=0.3,
    joint_state_lead=0.05,
    tracking_tolerance=0.25,
    joint_tracking_tolerance={"b": 0.5},
    rest_velocity=0.125,
)
MS = 1_000_000
T0 = 10**12
Q, V = [0.5, -0.5], [0.0, 0.0]


@pytest.fixture
def monitor():
    return StateMonitor(NAMES, SETTINGS, SPEEDS)


def at(ms: float, watch: float | None = None) -> Instant:
    return Instant(T0 + round(ms * MS), T0 + round((ms if watch is None else watch) * MS))


def receive(monitor, stamp_ms=0.0, q=Q, v=V, names=NAMES, now=None):
    return monitor.receive(T0 + round(stamp_ms * MS), names, q, v, now or at(stamp_ms))


def test_a_good_state_is_taken_in_the_robots_order(monitor):
    assert receive(monitor, q=[-0.5, 0.5], v=[2.0, 1.0], names=("b", "a"), now=at(0, 7)) is None
    newest = monitor.newest
    assert newest.position.tolist() == [0.5, -0.5] and newest.velocity.tolist() == [1.0, 2.0]
    assert (newest.stamp_ns, newest.watch_ns) == (T0, T0 + 7 * MS)


@pytest.mark.parametrize(
    ("age_ms", "taken"), [(300, True), (300.001, False), (0, True), (-50, True), (-50.001, False), (3.6e6, False)]
)
def test_i05_a_stamp_lies_in_a_window_on_both_sides(monitor, age_ms, taken):
    finding = receive(monitor, 0, now=at(age_ms))
    assert (finding is None) == taken
    if finding is not None:
        assert (finding.reason, finding.subject, finding.limit) == ("state_stamp", "joint_states", 0.3)
        assert finding.value == pytest.approx(age_ms * 1e-3)


@pytest.mark.parametrize("step", [0, -1])
def test_i06_a_state_that_is_not_newer_is_dropped(monitor, step):
    assert receive(monitor, 20, now=at(21)) is None
    finding = receive(monitor, 20 + step, now=at(25))
    age, newest = pytest.approx(0.005 - step * 1e-3), pytest.approx(0.005)
    assert finding == Finding("state_stamp", "joint_states", age, newest)
    assert monitor.newest.stamp_ns == T0 + 20 * MS


@pytest.mark.parametrize(
    ("names", "q", "subject"),
    [
        (("a",), [0.5], "b"),
        (("b",), [0.5], "a"),
        (("a", "b"), [0.5], "b"),
        (("a", "b", "a"), [0.5, -0.5, 0.5], "a"),
        (("a", "b", "c", "c"), [0.5, -0.5, 0, 0], "c"),
        (("a", "b"), [np.nan, 0.0], "a"),
        (("a", "b"), [0.0, np.nan], "b"),
        (("a", "b"), [0.0, np.inf], "b"),
        (("a", "b"), [-np.inf, 0.0], "a"),
        ((), [], "a"),
    ],
)
def test_i06_what_is_missing_or_not_finite_is_named(monitor, names, q, subject):
    finding = receive(monitor, names=names, q=q, v=[0.0] * len(names))
    assert (finding.reason, finding.subject) == ("state_invalid", subject)
    assert monitor.newest is None


def test_i06_a_speed_that_is_not_a_number_is_named(monitor):
    finding = receive(monitor, v=[0.0, np.nan])
    assert (finding.reason, finding.subject) == ("state_invalid", "b")


def test_more_joints_than_the_robot_has_are_no_fault(monitor):
    assert receive(monitor, names=("x", "a", "b"), q=[9, 0.5, -0.5], v=[9, 1, 2]) is None
    assert monitor.newest.position.tolist() == Q and monitor.newest.velocity.tolist() == [1, 2]


def test_missing_speeds_are_unknown_at_first_and_then_differences(monitor):
    assert receive(monitor, v=[]) is None
    assert np.isinf(monitor.newest.velocity).all() and monitor.at_rest() is not None
    assert receive(monitor, 10, q=[0.51, -0.5], v=[]) is None
    assert monitor.newest.velocity == pytest.approx([1.0, 0.0])
    assert receive(monitor, 20, q=[0.51, -0.52], v=[7.0]) is None, "speeds that are too few are none"
    assert monitor.newest.velocity == pytest.approx([0.0, -2.0])


def test_i06_a_jump_is_believed_when_the_next_state_agrees(monitor):
    receive(monitor, 0)
    allowed = 0.25 + 1.0 * 0.010
    assert receive(monitor, 10, q=[0.5 + allowed, -0.5]) is None, "just as far as it can have come"
    finding = receive(monitor, 20, q=[0.5 + 2 * allowed + 1e-9, -0.5])
    assert (finding.reason, finding.subject) == ("state_jump", "a")
    assert finding.value == pytest.approx(allowed) and finding.limit == pytest.approx(allowed)
    assert monitor.newest.position[0] == 0.5 + allowed, "the old one stays"
    assert monitor.check(at(25)) is None and monitor.check(at(111)) == finding, "the watchdog goes on counting"
    assert receive(monitor, 30, q=[0.5 + 2 * allowed, -0.5]) is None
    assert monitor.newest.position[0] == 0.5 + 2 * allowed


def test_i06_a_glitch_between_good_states_changes_nothing(monitor):
    receive(monitor, 0)
    assert receive(monitor, 10, q=[3.0, -0.5]).reason == "state_jump"
    assert receive(monitor, 20) is None and monitor.newest.position.tolist() == Q
    assert receive(monitor, 30, q=[3.0, -0.5]).reason == "state_jump", "the first one is forgotten"
    assert receive(monitor, 40, q=[-3.0, -0.5]).reason == "state_jump", "two that do not agree"
    assert receive(monitor, 50, q=[-3.0, 2.5]).reason == "state_jump"
    assert receive(monitor, 50, q=[-3.0, 2.5]).reason == "state_jump", "the same one again is no second one"


def test_i06_the_joint_that_jumped_furthest_is_named(monitor):
    receive(monitor, 0)
    assert receive(monitor, 10, q=[1.5, 4.5]).subject == "b"
    assert receive(monitor, 20, q=[9.5, -4.5]).subject == "a"


def test_i06_what_is_forgotten_is_no_witness(monitor):
    receive(monitor, 0)
    receive(monitor, 10, q=[3.0, -0.5])
    monitor.forget()
    assert monitor.newest is None and monitor.check(at(10)).reason == "state_jump", "what was wrong is told"
    assert receive(monitor, 20, q=[-3.0, 0.5]) is None, "there is nothing that it could have jumped from"


@pytest.mark.parametrize(("silence", "fresh"), [(100, True), (100.001, False), (-100, True), (-100.001, False)])
def test_i06_silence_is_noticed_within_the_timeout_on_the_steady_clock(monitor, silence, fresh):
    receive(monitor, 0, now=at(0, 50))
    finding = monitor.check(at(3_600_000, 50 + silence))
    assert (finding is None) == fresh
    if finding is not None:
        assert (finding.reason, finding.subject, finding.limit) == ("stale_state", "joint_states", 0.1)
        assert finding.value == pytest.approx(silence * 1e-3)


def test_before_the_first_state_the_age_is_infinite_and_what_was_wrong_is_told(monitor):
    assert monitor.check(at(0)) == Finding("stale_state", "joint_states", np.inf, 0.1)
    receive(monitor, names=("a",), q=[0.5], v=[0.0])
    assert monitor.check(at(0)).reason == "state_invalid"
    receive(monitor)
    assert monitor.check(at(0)) is None


def test_tracking_is_judged_joint_by_joint(monitor):
    receive(monitor)
    error, finding = monitor.tracking(rest(np.array([0.25, 0.0])))
    assert error.tolist() == [0.25, 0.5] and finding is None, "exactly at both tolerances"
    error, finding = monitor.tracking(rest(np.array([0.5 + 0.3, 0.5])))
    assert error == pytest.approx([0.3, 1.0])
    assert (finding.reason, finding.subject) == ("tracking_error", "b"), "twice its tolerance, the other 1.2 times"
    assert (finding.value, finding.limit) == (1.0, 0.5)


def test_whole_numbers_are_numbers_however_large(monitor):
    assert receive(monitor, q=[0, 0], v=[-(2**63), 0]) is None
    assert monitor.at_rest() == Finding("not_at_rest", "a", 2.0**63, 0.125)


def test_at_rest_is_below_one_speed_for_all(monitor):
    receive(monitor, v=[0.125, -0.125])
    assert monitor.at_rest() is None
    receive(monitor, 1, v=[0.125, -0.25])
    assert monitor.at_rest() == Finding("not_at_rest", "b", 0.25, 0.125)
