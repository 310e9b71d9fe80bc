"""What the guard tells people, and what it lets them do."""

import numpy as np
from rig import HOME, Rig, proposal, smooth_chunk

from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode

AWAY = HOME + np.array([0.3, 0, 0, 0, 0, 0, 0, -0.01])


def test_i21_who_is_stopped_for_silence_hears_why_what_it_said_last_was_refused():
    rig = Rig()
    t = np.arange(1, 9) * 0.1
    q = HOME + np.outer(t, [0.5, 0, 0, 0.2, 0, 0, 0, 0])
    q[:, -1] = 0.03
    assert rig.propose(proposal(rig.now, t, q)).verdict <= Verdict.SLOWED
    assert rig.propose(proposal(rig.now, t[::-1], q)).finding.reason == "times"
    rig.run(2)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "times"


def test_i20_after_an_error_of_a_check_nobody_is_led_back_before_a_person_has_looked():
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, AWAY)).verdict == Verdict.ACCEPTED
    rig.run(1.5)
    rig.filter._guard.fail(rig.instant, RuntimeError("a bug"))
    rig.collect()
    rig.run(1.0)
    assert rig.filter.mode == Mode.ESTOP
    answer = rig.filter.retreat(rig.instant)
    assert not answer.success and "a bug" in answer.message and "before the robot can be led back" in answer.message


def test_decisions_are_counted_by_verdict():
    rig = Rig()
    for sequence, goal in enumerate((AWAY, HOME - np.array([0] * 7 + [0.01]), AWAY), 1):
        assert rig.propose(smooth_chunk(rig, goal, sequence=sequence)).verdict == Verdict.ACCEPTED
        rig.run(1.4)
    assert rig.filter.status().counts[Verdict.ACCEPTED] == 3


def test_i13_an_arm_that_leans_on_what_it_touched_is_held_where_it_is_and_its_gripper_keeps_its_grip():
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, AWAY)).verdict == Verdict.ACCEPTED
    rig.run(0.5)
    rig.filter.report("contact", Finding("contact_force", "wrench", 60.0, 40.0), rig.instant)
    rig.collect()
    stop = rig.filter.committed.positions[-1].copy()
    rig.measured_offset[1], rig.measured_offset[-1] = 0.01, -0.005
    rig.run(2.0)
    expected = stop.copy()
    expected[1] += 0.01
    np.testing.assert_allclose(rig.controller.state[0], expected, atol=1e-6)


def test_i10_after_a_stop_that_failed_and_a_reset_the_e_stop_stops_as_before():
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, AWAY)).verdict == Verdict.ACCEPTED
    rig.run(0.5)
    rig.filter.estop(rig.instant)
    rig.collect()
    rig.measured_offset[1] = 0.2  # it leaves the stop
    rig.run(0.2)
    assert rig.filter.escalated
    rig.measured_offset[1] = 0.0
    rig.arm_again()
    assert rig.propose(smooth_chunk(rig, HOME, sequence=2)).verdict <= Verdict.SLOWED
    rig.run(0.5)
    assert rig.controller.state[1].any() and rig.filter.estop(rig.instant, "button").success
    rig.collect()
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding == Finding("estop", "button")
    rig.run(1.0)
    assert not rig.controller.state[1].any()
