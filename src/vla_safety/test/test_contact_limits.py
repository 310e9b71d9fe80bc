"""I13: the force sensor against its limits, to the last bit; without a robot behind it."""

import math

import numpy as np
import pytest

from vla_safety.core.config import ContactLimits
from vla_safety.core.contact import ContactMonitor
from vla_safety.core.findings import Finding
from vla_safety.core.watchdogs import Instant

LIMITS = ContactLimits(max_force=13.0, max_torque=1.5, timeout=0.1, samples=2, frame="sensor")
NONE = (0.0, 0.0, 0.0)
MS = 1_000_000


class Hangs:
    """A weight behind the sensor that does not depend on the posture."""

    def __init__(self, *wrench: float):
        self._wrench = np.array(wrench)

    def wrench(self, q):
        return self._wrench * q[0]


def feel(monitor, force=NONE, torque=NONE, ms=0.0, frame="sensor"):
    return monitor.receive(force, torque, Instant(0, round(ms * MS)), frame)


def twice(monitor, force=NONE, torque=NONE):
    first = feel(monitor, force, torque)
    assert first is None or first == monitor._finding
    return feel(monitor, force, torque)


@pytest.mark.parametrize(
    ("force", "torque", "finding"),
    [
        ((3.0, 4.0, 12.0), NONE, None),
        ((3.0, 4.0, 12.0 + 1e-9), NONE, "contact_force"),
        ((10**30, 0, 0), NONE, "contact_force"),
        (NONE, (1.5, 0.0, 0.0), None),
        (NONE, (0.0, -1.5, 0.0), None),
        (NONE, (0.0, 0.0, 1.5 + 1e-9), "contact_torque"),
        (NONE, (1.0, 1.0, 1.0), "contact_torque"),
        ((13.0, 0, 0), (1.0, 1.0, 0.5), None),
        ((13.0, 0, 0), (9.0, 0, 0), "contact_torque"),
        ((13.1, 0, 0), (9.0, 0, 0), "contact_torque"),
        ((26.0, 0, 0), (2.9, 0, 0), "contact_force"),
    ],
)
def test_i13_limits_are_of_the_whole_force_and_of_the_whole_torque(force, torque, finding):
    found = twice(ContactMonitor(LIMITS), force, torque)
    assert (found.reason if found else None) == finding
    if found is not None:
        value, limit = (math.hypot(*force), 13.0) if finding == "contact_force" else (math.hypot(*torque), 1.5)
        assert found == Finding(finding, "wrench", pytest.approx(value), limit)


def test_i13_one_sample_is_none_two_are_one_and_it_stays_until_it_is_over():
    monitor = ContactMonitor(LIMITS)
    hard = (20.0, 0.0, 0.0)
    assert feel(monitor, hard) is None and feel(monitor) is None and feel(monitor, hard) is None
    found = feel(monitor, hard)
    assert found.reason == "contact_force" and feel(monitor, hard).value == 20.0
    assert feel(monitor, (math.nan, 0, 0)) == feel(monitor, hard, frame="elsewhere") == found, "silence changes nothing"
    assert feel(monitor) is None


def test_i13_with_one_sample_the_first_counts():
    assert feel(ContactMonitor(LIMITS.model_copy(update={"samples": 1})), (20.0, 0, 0)).value == 20.0


def test_what_is_felt_is_known_without_weight_and_offset():
    monitor = ContactMonitor(LIMITS.model_copy(update={"max_offset": 0.7}))
    assert math.isnan(monitor.force)
    feel(monitor, (3.0, 4.0, 0.0), (1.0, 0.0, 0.0))
    assert monitor.force == 5.0, "torque is no force"
    monitor.zero()
    assert monitor.force == 0.0
    feel(monitor, (3.0, 4.0, 2.0), (1.0, 0.0, 0.0))
    assert monitor.force == 2.0
    assert twice(monitor, (3.0, 4.0, 13.0), (2.5, 0.0, 0.0)) is None, "the limits are beyond the offset"
    feel(monitor, (30.0, 0.0, 0.0))
    monitor.zero()
    assert monitor.force > 13.0, "a contact is not taken for an offset"


@pytest.mark.parametrize("part", [0.1, 0.2, 1.0])
def test_i13_what_is_pushed_at_arming_is_no_offset_beyond_its_part_of_the_limits(part):
    limits = LIMITS.model_copy(update={"max_offset": part})
    for axis, most in enumerate((limits.max_force, limits.max_torque)):
        for push, taken in ((0.99 * part * most, True), (min(1.01 * part, 1.0) * most, part == 1.0)):
            monitor = ContactMonitor(limits)
            wrench = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
            wrench[axis] = (push, 0.0, 0.0)
            feel(monitor, *wrench)
            refused = monitor.zero()
            assert (refused is None) == taken, "who is pushed is not armed"
            if refused is not None:
                assert refused == Finding("offset", "wrench", pytest.approx(push), pytest.approx(part * most))
            wrench[axis] = (1.01 * most, 0.0, 0.0)
            found = twice(monitor, *wrench)
            assert (found is None) == taken, (axis, push)


def test_an_offset_before_the_first_reading_is_none():
    monitor = ContactMonitor(LIMITS)
    monitor.zero()
    feel(monitor, (1.0, 0.0, 0.0))
    assert monitor.force == 1.0


def test_a_weight_is_taken_out_as_soon_as_the_posture_is_known():
    monitor = ContactMonitor(LIMITS, Hangs(0, 0, -20.0, 0.5, 0, 0))
    assert twice(monitor, (0.0, 0.0, -20.0)) is None and math.isnan(monitor.force), "unknown: not judged"
    monitor.pose(np.array([1.0]))
    assert twice(monitor, (0.0, 0.0, -20.0), (0.5, 0, 0)) is None and monitor.force == 0.0
    assert twice(monitor, (0.0, 0.0, 0.0)).reason == "contact_force"
    monitor.pose(np.array([0.5]))
    assert twice(monitor, (0.0, 0.0, -10.0)) is None


def test_another_weight_is_known_from_the_next_posture_on():
    monitor = ContactMonitor(LIMITS)
    monitor.pose(np.array([1.0]))
    monitor.carry(Hangs(0, 0, -40.0, 0, 0, 0))
    assert twice(monitor, (0.0, 0.0, 40.0)) is None, "not judged before the posture is known"
    monitor.pose(np.array([1.0]))
    assert twice(monitor, (0.0, 0.0, -40.0)) is None and monitor.force == 0.0
    monitor.carry(None)
    assert twice(monitor, (0.0, 0.0, -40.0)).reason == "contact_force", "nothing hangs there any more"


@pytest.mark.parametrize(("silence", "alive"), [(100, True), (100.001, False), (-100, True), (-100.001, False)])
def test_i06_a_silent_sensor_is_noticed_within_its_timeout(silence, alive):
    monitor = ContactMonitor(LIMITS)
    feel(monitor, ms=500)
    finding = monitor.check(Instant(0, round((500 + silence) * MS)))
    assert (finding is None) == alive
    if finding is not None:
        assert finding == Finding("stale_wrench", "wrench", pytest.approx(silence * 1e-3), 0.1)


def test_i06_before_the_first_reading_the_silence_is_infinite():
    monitor = ContactMonitor(LIMITS)
    assert monitor.check(Instant(0, 0)) == Finding("stale_wrench", "wrench", math.inf, 0.1)
    feel(monitor, (math.inf, 0, 0))
    feel(monitor, frame="elsewhere")
    assert monitor.check(Instant(0, 0)).value == math.inf, "what is unusable is silence"
    feel(monitor, frame="")
    assert monitor.check(Instant(0, 0)) is None, "a driver that names no frame is believed"


@pytest.mark.parametrize(("age", "usable"), [(0, True), (100, True), (101, False), (-100, True), (-101, False)])
def test_i06_a_wrench_is_as_old_as_its_stamp(age, usable):
    monitor, now = ContactMonitor(LIMITS), Instant(5000 * MS, 9000 * MS)
    monitor.receive((3.0, 0.0, 0.0), NONE, now, "sensor", (5000 - age) * MS)
    assert (monitor.force == 3.0) == usable
    finding = monitor.check(now)
    assert (finding is None) == usable
    left = 100 - max(0, age) if usable else 0
    later = [monitor.check(Instant(0, (9000 + left) * MS + extra)) is None for extra in (0, 1)]
    assert later == [usable, False], "silence counts from the stamp"


def test_i06_the_last_message_sent_again_is_silence_and_lets_no_contact_go():
    monitor, hard = ContactMonitor(LIMITS), (20.0, 0.0, 0.0)
    for ms in (0, 10):
        found = monitor.receive(hard, NONE, Instant(ms * MS, ms * MS), "sensor", ms * MS)
    assert found.reason == "contact_force"
    for ms, stamp in ((20, 10), (30, 9), (40, 10)):
        assert monitor.receive(NONE, NONE, Instant(ms * MS, ms * MS), "sensor", stamp * MS) == found
    assert monitor.check(Instant(0, 110 * MS)) is None and monitor.check(Instant(0, 111 * MS)) is not None
    assert monitor.receive(NONE, NONE, Instant(50 * MS, 50 * MS), "sensor", 50 * MS) is None


def test_a_clock_that_goes_back_does_not_silence_the_sensor_for_ever():
    monitor = ContactMonitor(LIMITS)
    monitor.receive(NONE, NONE, Instant(10**18, 0), "sensor", 10**18)
    earlier = 10**18 - 3600 * 1000 * MS
    monitor.receive((3.0, 0.0, 0.0), NONE, Instant(earlier, 10 * MS), "sensor", earlier)
    assert monitor.force == 3.0
    monitor.receive((4.0, 0.0, 0.0), NONE, Instant(earlier, 20 * MS), "sensor", earlier)
    assert monitor.force == 3.0, "and is watched from there on"


def test_without_a_frame_in_the_limits_any_will_do():
    monitor = ContactMonitor(LIMITS.model_copy(update={"frame": ""}))
    assert twice(monitor, (20.0, 0, 0)).value == 20.0
