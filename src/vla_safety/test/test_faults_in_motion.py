"""I6, I10, R15: what goes wrong while the robot moves: a button that bounces, joint states that lie."""

import numpy as np
import pytest
from rig import HOME, ROBOT, Rig, check_envelope, smooth_chunk

from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode

N = len(HOME)
AWAY = HOME + np.array([0.9, 0, 0, 0, 0, 0, 0, -0.01])


def moving() -> Rig:
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, AWAY, duration=1.4)).verdict == Verdict.ACCEPTED
    rig.run(0.6)
    assert rig.controller.state[1, 0] > 0.8
    return rig


@pytest.mark.parametrize("by", ["service", "button"])
def test_r15_an_estop_that_is_toggled_at_50_hz_in_motion_stops_and_never_moves(by):
    """Pressed for 10 ms, let go for 10 ms; somebody asks for a reset each time, and the policy goes on sending."""
    rig = moving()
    speed = rig.controller.state[1, 0]
    rest, modes = [], set()
    for k in range(100):
        if by == "service":
            rig.filter.estop(rig.instant)
        else:
            rig.filter.report("button", Finding("estop_input", "button"), rig.instant)
        rig.collect()
        assert rig.filter.mode == Mode.ESTOP
        rig.advance(0.01)
        rig.observe()
        if by == "button":
            assert not rig.filter.reset(rig.instant).success
            rig.filter.report("button", None, rig.instant)
        was_moving = bool((np.abs(rig.controller.state[1]) > 1e-9).any())
        assert not (rig.filter.reset(rig.instant).success and was_moving)
        assert rig.propose(smooth_chunk(rig, AWAY, sequence=k)).verdict == Verdict.REFUSED
        rig.collect()
        modes.add(rig.filter.mode)
        rig.advance(0.01)
        rig.observe()
        if k % 2:
            rig.filter.cycle(rig.instant)
            rig.collect()
        begun = (k + 1) * 20 > 1e3 * rig.filter.config.cycle.lead + rig.delay
        assert not begun or rig.controller.state[1, 0] <= max(0.0, speed), "from the stop's begin on it only slows down"
        speed = rig.controller.state[1, 0]
        if not rig.controller.state[1:].any():
            rest.append(rig.controller.state[0].copy())
    check_envelope(rig.controller)
    assert len(rest) > 70 and not np.ptp(rest, axis=0).any(), "it rests within half a second, and stays there"
    assert modes == {Mode.ESTOP, Mode.DISARMED}, "at rest it can be reset, and is latched again"


def lying(rig, seconds, say):
    """Joint states every 10 ms as `say` (position, velocity) makes them; s until the filter stopped it."""
    began = rig.now
    for k in range(round(seconds / 0.01)):
        rig.advance(0.01)
        names, q, v = say(rig.controller.state[0], rig.controller.state[1])
        rig.filter.observe(rig.now, names, q, v, rig.instant)
        if k % 4 == 3:
            rig.filter.cycle(rig.instant)
            rig.collect()
            if rig.filter.mode == Mode.ESTOP:
                return (rig.now - began) / 1e9
    return None


@pytest.mark.parametrize("speeds", ["of the robot", "zero", "none"])
def test_i06_joint_states_that_are_stuck_while_their_stamps_go_on_stop_the_robot(speeds):
    rig = moving()
    stuck = rig.controller.state[0].copy()

    def say(_, v):
        return ROBOT.joints, stuck, {"of the robot": v, "zero": np.zeros(N), "none": []}[speeds]

    tolerance = rig.filter.config.watchdogs.tracking_tolerance
    took = lying(rig, 1.0, say)
    assert rig.filter.finding == Finding("tracking_error", "fr3_joint1", rig.filter.finding.value, tolerance)
    assert took <= tolerance / 0.8 + 0.08, "as soon as it must have got further than the tolerance, within two cycles"
    lying_still(rig)


@pytest.mark.parametrize("pair", [(0, 2), (1, 3), (0, 6), (4, 5)])
def test_i06_joint_states_under_the_names_of_other_joints_stop_the_robot(pair):
    """The values of two joints are swapped, from one message to the next."""
    rig = moving()
    names = list(ROBOT.joints)
    names[pair[0]], names[pair[1]] = names[pair[1]], names[pair[0]]
    took = lying(rig, 1.0, lambda q, v: (names, q, v))
    assert rig.filter.finding.reason == "tracking_error"
    assert rig.filter.finding.subject in {ROBOT.joints[j] for j in pair}
    assert took <= 0.12
    lying_still(rig)


def lying_still(rig):
    rig.advance(1.0)
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_i06_a_joint_state_that_overflows_is_a_tracking_error_and_no_error_of_a_check():
    """Else a person would look for the cause in the filter. What else is in the process may have numpy raise."""
    rig = moving()
    rig.measured_offset[2] = 1.7e308
    for _ in range(2):  # the first is doubted, the second agrees with it
        rig.advance(0.04)
        rig.observe()
        with np.errstate(all="raise"):
            rig.filter.cycle(rig.instant)
    assert rig.filter.mode == Mode.ESTOP
    assert (rig.filter.finding.reason, rig.filter.finding.subject) == ("tracking_error", "fr3_joint3")
