"""Rules that change while the robot moves: the committed stop is verified under the new ones first."""

import numpy as np
from rig import HOME, ROBOT, Rig, check_envelope, smooth_chunk

from vla_safety.building import Setup, assemble, make_verifier, read_parts
from vla_safety.core.audit import AuditLog
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.planning import soonest_stop
from vla_safety.core.zones import Box, ZoneSpec
from vla_safety.recording import RecordedFilter, replay

PARTS = read_parts(ROBOT)
CHANGED = Finding("disarmed", "changed")
AWAY = HOME + np.array([0.8, 0, 0, 0, 0, 0, 0, -0.01])


def setup(center, size=(0.1, 0.1, 0.1)) -> Setup:
    return Setup(obstacles=(ZoneSpec(name="new", kind="keep_out", box=Box(center=center, size=size)),))


def change(rig, new: Setup, finding=CHANGED):
    answer = rig.filter.reconfigure(make_verifier(PARTS, new), rig.instant, finding=finding, setup=new)
    rig.collect()
    return answer


FAR = setup((-0.6, 0.0, 0.9))


def hand(q) -> tuple[float, float, float]:
    model = make_verifier(PARTS, Setup()).model
    return tuple(model.link_pose(ROBOT.tool_frame, model.place(np.asarray(q)[None]))[1][0])


def test_a_change_that_the_committed_motion_keeps_is_taken_without_a_stop():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.4)
    assert change(rig, FAR).success
    assert rig.filter.mode == Mode.ARMED and rig.filter.verifier.checks[0].zones[-1].name == "new"
    rig.run(1.6)
    assert np.allclose(rig.controller.state[0], AWAY, atol=1e-6)
    check_envelope(rig.controller)


def test_i03_a_change_in_the_way_of_the_plan_ends_the_plan_before_it():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=2.0))
    rig.run(0.3)
    assert change(rig, setup(hand(AWAY))).success, "the committed stop is far from it"
    rig.run(2.5)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "zone:new"
    assert rig.filter.verifier.clearances(rig.controller.state[0])[0][0] >= 0.004 - 1e-6
    check_envelope(rig.controller)


def test_a_change_that_the_committed_stop_breaks_is_refused_by_name_and_the_robot_held():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.5)
    before = rig.filter.verifier
    answer = change(rig, setup(hand(rig.controller.state[0]), (0.3, 0.3, 0.3)))
    assert not answer.success and "zone 'new'" in answer.message
    assert rig.filter.verifier is before and rig.filter.mode == Mode.HOLD
    assert rig.decisions[-1].verdict == Verdict.STOPPED and rig.decisions[-1].finding == CHANGED
    rig.run(0.8)
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_a_change_that_only_the_soonest_stop_keeps_is_taken_after_it():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.5)
    committed, config = rig.filter.committed, rig.filter.config.cycle
    lead = round(config.lead * 1e9)
    stop = soonest_stop(committed, rig.now, rig.now + lead, rig.filter.verifier, config.stop_fraction)
    sooner, later = (np.array(hand(motion.positions[-1])) for motion in (stop, committed))
    along = (later - sooner) / np.linalg.norm(later - sooner)
    size = np.where(np.abs(along) > 0.5, 0.01, 0.3)
    for distance in np.linspace(0.02, 0.3, 57):  # the hand has a width
        wall = setup(tuple(later + along * distance), tuple(size))
        verifier = make_verifier(PARTS, wall)
        if verifier.verify(stop).safe and not verifier.verify(committed.since(rig.now)).safe:
            break
    else:
        raise AssertionError("no wall lies between the two stops")
    assert change(rig, wall).success
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding == CHANGED
    rig.run(0.8)
    assert not rig.controller.state[1:].any() and rig.filter.verifier.verify(rig.filter.committed).safe
    check_envelope(rig.controller)


def test_while_disarmed_every_change_is_taken_and_arming_is_refused_until_the_robot_was_led_away():
    rig = Rig()
    assert rig.filter.disarm(rig.instant).success
    rig.run(0.4)
    answer = change(rig, setup(hand(HOME)))
    assert answer.success and "lead it away" in answer.message
    refused = rig.filter.arm(rig.instant)
    assert not refused.success and "zone 'new'" in refused.message
    assert change(rig, Setup()).success and rig.filter.arm(rig.instant).success


def test_i07_a_change_that_cannot_be_judged_stops_and_keeps_the_old_rules():
    rig = Rig()
    before = rig.filter.verifier
    broken = make_verifier(PARTS, Setup())
    broken.verify = None
    assert not rig.filter.reconfigure(broken, rig.instant, finding=CHANGED).success
    assert rig.filter.mode == Mode.ESTOP and rig.filter.verifier is before


def test_i19_changes_are_replayed_bit_for_bit(tmp_path):
    path = tmp_path / "audit.jsonl"
    rig = Rig(arm=False)
    rig.filter = RecordedFilter(assemble(PARTS), AuditLog(path), PARTS)
    rig.filter.config, inner = rig.filter.inner.config, rig.filter.inner
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.run(0.4)
    for goal, new in ((AWAY, setup(hand(AWAY))), (HOME, FAR), (AWAY, setup(hand(HOME)))):
        object.__setattr__(rig.filter, "committed", inner.committed)
        rig.propose(smooth_chunk(rig, goal, duration=1.0))
        rig.run(0.3)
        change(rig, new)
        rig.run(0.9)
    rig.filter.log.close()
    result = replay(path)
    assert result.different is None and result.decisions == len(rig.decisions) >= 4


def test_i12_a_refused_change_does_not_take_back_a_reduced_speed_that_waits_for_rest():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.6)
    slow = Setup(reduced=True)
    assert change(rig, slow, Finding("reduced", "on")).success, "it waits for the end of the stop"
    here = setup(hand(rig.filter.committed.positions[-1]))
    both = here.model_copy(update={"reduced": True})
    assert not change(rig, both).success, "the stop would end inside"
    rig.run(1.0)
    assert rig.filter.verifier.caps is not None and not rig.controller.state[1].any()
    assert rig.propose(smooth_chunk(rig, HOME, duration=1.0)).verdict == Verdict.SLOWED


def test_i12_rules_that_wait_for_rest_hold_when_the_robot_is_armed_again():
    """Before the next cycle as well."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.6)
    answer = change(rig, Setup(reduced=True), Finding("reduced", "on"))
    assert answer.message == "taken; it holds from the end of the stop that has begun on"
    assert rig.filter.verifier.caps is None
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.advance(1.0)
    rig.observe()
    assert rig.filter.arm(rig.instant).success and rig.filter.verifier.caps.everywhere == 0.25


def test_i03_what_is_commanded_must_be_over_before_the_filter_begins_anew():
    """A measurement of before the motion says that the robot rests."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.08)
    rig.silent = True
    rig.run(0.04)
    rig.filter.disarm(rig.instant)
    rig.collect()
    assert rig.filter.monitor.check(rig.instant) is None and rig.filter.monitor.at_rest() is None
    assert "the commanded stop" in rig.filter.arm(rig.instant).message
    rig.silent = False
    rig.run(1.0)
    assert rig.filter.arm(rig.instant).success


def test_i15_a_stop_that_came_too_late_is_made_again():
    """In HOLD as well: nothing of the plan is left to be ended, but the stop was not sent."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.6)
    rig.silent = True
    while rig.filter.mode != Mode.HOLD:
        rig.advance(0.04)
        rig.filter.cycle(rig.instant)
        if rig.filter.mode != Mode.HOLD:
            rig.collect()
    sent = rig.filter.committed
    rig.filter.retract(rig.instant)
    motions = rig.collect().motions
    assert len(motions) == 1 and motions[0].end <= sent.end
    rig.run(0.8)
    assert not rig.controller.state[1].any()
    check_envelope(rig.controller)


def beside(q, other) -> Setup:
    """A post that the hand would be in at `q`, but not at `other`, where joint 1 is turned a little."""
    there, here = (np.array(hand(x)) for x in (q, other))
    away = (there - here) / np.linalg.norm(there - here)
    for distance in np.arange(0.05, 0.3, 0.005):  # the hand has a width
        post = setup(tuple(there + away * distance), (0.02, 0.02, 0.3))
        verifier = make_verifier(PARTS, post)
        if verifier.clearances(q)[0][0] < 0.0 and verifier.clearances(other)[0][0] > 0.01:
            return post
    raise AssertionError("no post lies beside the hand")


LEANT = HOME + 0.045 * (np.arange(len(HOME)) == 0)


def test_i12_new_rules_judge_where_an_armed_robot_is_commanded_and_not_how_it_leans():
    rig = Rig()
    rig.measured_offset = LEANT - HOME
    rig.run(0.08)
    assert change(rig, beside(LEANT, HOME)).message == "taken" and rig.filter.mode == Mode.ARMED


def test_i12_new_rules_that_forbid_where_a_robot_is_held_are_refused_wherever_it_was_seen_last():
    """Nothing is sent to a robot that is not seen: the controller goes on holding what it has."""
    rig = Rig()
    rig.measured_offset = LEANT - HOME
    rig.run(0.08)
    rig.silent = True
    rig.run(0.2)
    before = rig.filter.verifier
    answer = change(rig, beside(HOME, LEANT))
    assert not answer.success and "the robot is held" in answer.message
    assert rig.filter.verifier is before and rig.filter.mode == Mode.HOLD


def test_i12_who_switches_reduced_speed_off_while_armed_hears_what_was_loosened():
    rig = Rig()
    assert change(rig, Setup(reduced=True), Finding("reduced", "on")).success
    answer = change(rig, Setup(), Finding("reduced", "off"))
    assert answer.message == "taken; stopped and disarmed first" and rig.filter.mode == Mode.DISARMED
    assert rig.filter.finding == Finding("loosened", "reduced speed")
