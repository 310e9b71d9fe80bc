"""I4, I10: whoever stops the robot, and for whatever reason, the stop is watched until the robot was seen to rest."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, MS, ROBOT, Rig, smooth_chunk

from vla_safety.building import assemble, read_parts
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.watchdogs import Instant

AWAY = HOME + np.array([0.8, 0, 0, 0, 0, 0, 0, -0.01])
LOW = HOME + np.array([0, 0.9, 0, 0, 0, 0, 0, -0.01])  # into the table
PARTS = read_parts(ROBOT)
GRACE = PARTS.config.watchdogs.stop_grace


def moving(source="policy", goal=AWAY) -> Rig:
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, goal, duration=1.2, source=source)).verdict <= Verdict.TRIMMED
    rig.run(0.24)
    assert np.abs(rig.controller.state[1]).max() > 0.15
    return rig


def leave(rig, seconds=1.0):
    """Joint 3 goes its own way."""
    drift = 0.3 * (np.arange(len(HOME)) == 2)
    for _ in range(round(seconds / 0.04)):
        rig.advance(0.04)
        rig.measured_offset += 0.04 * drift
        q, v = rig.controller.state[0] + rig.measured_offset, rig.controller.state[1] + drift
        rig.filter.observe(rig.now, ROBOT.joints, q, v, rig.instant)
        rig.filter.cycle(rig.instant)
        rig.collect()


def error(rig):
    """A check errs."""

    def broken(*_):
        raise RuntimeError("bug")

    verify, rig.filter.verifier.verify_all = rig.filter.verifier.verify_all, broken
    rig.propose(smooth_chunk(rig, HOME, source="override"))
    rig.filter.verifier.verify_all = verify
    assert rig.filter.finding.reason == "internal"


def late(rig):
    """A cycle comes too late to go on."""
    rig.advance(0.2)
    rig.run(0.04)
    assert rig.filter.finding.reason == "late_cycle"


def unsent(rig):
    """A message is too late to be sent."""
    rig.advance(0.04)
    rig.observe()
    rig.filter.cycle(rig.instant)
    assert rig.filter.pending
    rig.filter.retract(rig.instant)
    rig.collect()
    assert rig.filter.finding.reason == "late_cycle"


def blocked(rig):
    """What comes next does not verify any more."""
    limits = rig.filter.verifier.limits
    tight = {n: getattr(limits, n) * 1e-3 for n in ("max_velocity", "max_acceleration", "max_jerk")}
    rig.filter.verifier.limits = replace(limits, **tight)
    while rig.filter.plan is not None:
        rig.run(0.04)
    rig.filter.verifier.limits = limits


STOPS = {"error": error, "late": late, "unsent": unsent, "blocked": blocked}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("source", ["policy", "override"])
def test_i10_a_stop_that_the_robot_leaves_is_escalated(source, stop):
    rig = moving(source)
    stop(rig)
    assert rig.filter.mode == {error: Mode.ESTOP}.get(stop, Mode.DISARMED if source == "override" else Mode.HOLD)
    assert rig.filter.committed.end > rig.now, "the robot still moves"
    leave(rig)
    assert rig.filter.escalated and rig.filter.mode == Mode.ESTOP
    assert stop != error or rig.filter.finding.reason == "internal", "the first cause is kept"


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("source", ["policy", "override"])
def test_i10_a_stop_that_the_robot_follows_is_not(source, stop):
    rig = moving(source)
    stop(rig)
    rig.run(2.0)
    assert not rig.controller.state[1:].any() and not rig.filter.escalated
    assert rig.filter.reset(rig.instant).success
    rig.measured_offset[:7] += 0.03 * np.arange(7)
    rig.run(1.0)
    assert not rig.filter.escalated, "it has arrived: who moves it by hand then is no matter of the stop"


def test_i10_a_trimmed_override_is_watched_to_its_end():
    rig = Rig()
    decision = rig.propose(smooth_chunk(rig, LOW, duration=1.5, source="override"))
    assert decision.verdict == Verdict.TRIMMED
    while rig.filter.plan is not None:
        rig.run(0.04)
        rig.propose(smooth_chunk(rig, LOW, duration=1.5, source="override", sequence=2))
    assert rig.filter.mode == Mode.DISARMED
    leave(rig)
    assert rig.filter.escalated


def test_i10_a_retreat_that_ends_is_watched():
    rig = moving()
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.run(1.2)
    assert rig.filter.retreat(rig.instant).success
    while rig.filter.led_back:
        rig.filter.retreat(rig.instant)
        rig.run(0.04)
    assert not rig.filter.escalated
    leave(rig)
    assert rig.filter.escalated


def test_i05_i06_after_a_jump_of_the_clock_a_robot_that_is_not_seen_has_not_stopped():
    """All joint states are of another clock from then on."""
    rig = moving()
    step = 3600 * 10**9
    for _ in range(40):
        rig.now += 40 * MS
        now = Instant(rig.now + step, rig.now)
        refused = rig.filter.observe(rig.now, ROBOT.joints, HOME, np.zeros(len(HOME)), now)
        assert refused.reason == "state_stamp"
        rig.filter.cycle(now)
        rig.filter.drain()
        assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "clock_jump"
    assert rig.filter.escalated


def test_i10_a_stop_is_watched_on_by_the_filter_that_takes_over():
    rig = moving()
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.advance((rig.filter.committed.end - rig.now) * 1e-9 + 0.08)
    for offset, failed in ((0.0, False), (0.1, True)):
        reloaded = assemble(PARTS)
        reloaded.inherit(rig.filter)
        for cycle in range(round(GRACE / 0.04) + 2):
            now = Instant(rig.now + cycle * 40 * MS, rig.now + cycle * 40 * MS)
            reloaded.cycle(now)
            assert not reloaded.escalated or cycle * 0.04 >= GRACE, "at first it has seen nothing yet"
            velocity = np.full(len(HOME), offset)
            reloaded.observe(now.clock_ns, ROBOT.joints, rig.controller.state[0], velocity, now)
        assert reloaded.escalated == failed
        assert not failed or reloaded.finding == Finding("stop_failed", "fr3_joint1", 0.1, 0.02)


def test_i10_who_arms_the_filter_that_took_over_has_seen_the_robot_rest():
    rig = moving()
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.advance((rig.filter.committed.end - rig.now) * 1e-9 + 0.08)
    before, rig.filter = rig.filter, assemble(PARTS)
    rig.filter.inherit(before)
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    rig.propose(smooth_chunk(rig, HOME, duration=2.0))
    rig.run(1.0)
    assert rig.filter.mode == Mode.ARMED and not rig.filter.escalated and rig.controller.state[1].any()
