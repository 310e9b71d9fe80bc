"""I20: a way out of every stop: slow, verified, human-confirmed. Wedge scenarios, and the laws of the way back."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, ROBOT, START, Rig, check_envelope, smooth_chunk

from vla_safety.building import Setup, assemble, make_verifier, read_parts
from vla_safety.core.audit import AuditLog
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.tools import ToolShape, ToolSpec
from vla_safety.core.zones import Box, Sphere, ZoneSpec
from vla_safety.recording import RecordedFilter, replay

PARTS = read_parts(ROBOT)
MODEL = make_verifier(PARTS, Setup()).model
AWAY = HOME + np.array([0.8, 0.1, 0, 0, 0, 0, 0, 0])
STEP = 0.2  # s between two confirmations


def hand(q) -> np.ndarray:
    return MODEL.link_pose(ROBOT.tool_frame, MODEL.place(np.asarray(q)[None]))[1][0]


def travelled(fraction=1.0, duration=1.5) -> Rig:
    """A robot in the middle of its way to AWAY, or at its end."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=duration))
    rig.run(0.1 + duration * fraction)
    return rig


def stop(rig, finding=None):
    if finding is None:
        rig.filter.estop(rig.instant)
    else:
        rig.filter.report("cause", finding, rig.instant)
    rig.collect()
    rig.run(0.8)
    assert rig.filter.mode == Mode.ESTOP and not rig.controller.state[1:].any()


def confirm(rig):
    answer = rig.filter.retreat(rig.instant)
    rig.collect()
    return answer


def go_back(rig, duration=60.0, mode=Mode.ESTOP):
    """Holds the confirmation until the robot is back; the clearances on the way (m, C)."""
    answer = confirm(rig)
    assert answer.success, answer.message
    began, said = (rig.now - START) * 1e-9, len(rig.decisions)
    for _ in range(round(duration / STEP)):
        rig.run(STEP)
        assert rig.filter.mode == mode
        if any(decision.source == "retreat" for decision in rig.decisions[said:]):
            break
        assert confirm(rig).success
    rig.run(0.4)
    assert rig.decisions[-1].finding.reason == "retreat_end", rig.decisions[-1]
    assert not rig.controller.state[1:].any()
    times, q, v, *_ = rig.controller.trace.arrays()
    since = times >= began
    assert (np.abs(v[since]) @ MODEL.reach.T).max() <= 0.25, "250 mm/s on every link"
    return np.array([rig.filter.verifier.distances(place) for place in q[since][::20]])


def ready(rig):
    """Reset, arm, and a motion: not wedged."""
    rig.filter.report("cause", None, rig.instant)
    answer = rig.filter.reset(rig.instant)
    assert answer.success, answer.message
    answer = rig.filter.arm(rig.instant)
    assert answer.success, answer.message
    rig.collect()
    rig.run(0.4)
    goal = rig.controller.state[0].copy()
    goal[6] -= 0.2
    assert rig.propose(smooth_chunk(rig, goal)).verdict <= Verdict.SLOWED
    rig.run(1.3)
    assert np.allclose(rig.controller.state[0], goal, atol=1e-6)


def test_i20_after_an_estop_in_mid_motion_the_robot_goes_back_the_way_it_came():
    rig = travelled(0.5)
    stop(rig)
    there = rig.controller.state[0].copy()
    assert np.abs(there - HOME).max() > 0.2
    go_back(rig)
    assert np.allclose(rig.controller.state[0], HOME, atol=1e-4)
    check_envelope(rig.controller)
    ready(rig)


def test_i20_a_robot_that_was_pushed_off_its_path_goes_back_to_it():
    rig = travelled(0.6)
    rig.measured_offset[0] = 0.08  # above the tracking tolerance: an obstacle holds it
    rig.run(0.8)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "tracking_error"
    rig.controller.state[0] += rig.measured_offset
    rig.measured_offset[:] = 0
    rig.controller.curve = None
    rig.run(0.1)
    assert rig.filter.escalated and not confirm(rig).success
    assert not rig.filter.pending, "who does not stop is sent no motion before a person has reset that"
    assert rig.filter.reset(rig.instant).success
    go_back(rig, mode=Mode.DISARMED)
    assert np.allclose(rig.controller.state[0], HOME, atol=1e-4) and not rig.filter.escalated
    ready(rig)


def ahead() -> np.ndarray:
    """(3,): where the hand was going when it came to AWAY."""
    way = hand(AWAY) - hand(HOME + (AWAY - HOME) * 0.9)
    return way / np.linalg.norm(way)


def put_zone(rig, center, size=0.1) -> None:
    box = ZoneSpec(name="new", kind="keep_out", box=Box(center=tuple(center), size=(size,) * 3))
    setup = Setup(obstacles=(box,))
    answer = rig.filter.reconfigure(make_verifier(PARTS, setup), rig.instant, finding=Finding("disarmed"), setup=setup)
    assert answer.success and "lead it away" in answer.message


def test_i20_a_zone_that_was_added_around_the_arm_is_left_and_never_entered_deeper():
    rig = travelled(1.0)
    stop(rig)
    put_zone(rig, hand(AWAY) + ahead() * 0.06)
    depth = rig.filter.verifier.distances(rig.controller.state[0])
    assert depth.min() < -0.01
    assert rig.filter.reset(rig.instant).success and not rig.filter.arm(rig.instant).success
    clearances = go_back(rig, mode=Mode.DISARMED)
    worst, best = np.minimum(clearances, rig.filter.verifier.margins), None
    for row in worst:
        best = row if best is None else np.maximum(best, row)
        assert (row >= best - 1.2e-3).all(), "what is violated may only get better"
    assert (clearances[-1] >= rig.filter.verifier.margins).all()
    check_envelope(rig.controller)
    ready(rig)


def test_i20_a_way_back_that_would_go_deeper_ends_before_it():
    rig = travelled(1.0)
    stop(rig)
    put_zone(rig, hand(AWAY) - ahead() * 0.06)
    depth = np.minimum(rig.filter.verifier.distances(rig.controller.state[0]), rig.filter.verifier.margins)
    assert confirm(rig).success
    for _ in range(200):
        rig.run(STEP)
        if rig.decisions[-1].source == "retreat":
            break
        confirm(rig)
    rig.run(0.6)
    assert rig.decisions[-1].finding.reason == "zone:new"
    assert (rig.filter.verifier.distances(rig.controller.state[0]) >= depth - 1.2e-3).all()
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)
    # The way out of a zone that is not there in truth: correct the file, reload it.
    rig.filter.reconfigure(make_verifier(PARTS, Setup()), rig.instant, finding=Finding("disarmed"), setup=Setup())
    ready(rig)


def test_i20_out_of_one_zone_is_no_way_into_another():
    """What it is led out of is allowed for that zone only: a second one near the same link keeps its margin."""
    rig = travelled(1.0)
    stop(rig)
    first = ZoneSpec(name="first", kind="keep_out", box=Box(center=tuple(hand(AWAY) + ahead() * 0.15), size=(0.3,) * 3))
    back = tuple(hand(HOME + (AWAY - HOME) * 0.5))
    second = ZoneSpec(name="second", kind="keep_out", box=Box(center=back, size=(0.05,) * 3))
    setup, alone = Setup(obstacles=(first, second)), make_verifier(PARTS, Setup(obstacles=(second,)))
    begin = rig.controller.state[0].copy()
    both = make_verifier(PARTS, setup)
    assert both.distances(begin).min() < -0.05 and alone.distances(begin).min() > both.margins.min()
    assert rig.filter.reconfigure(both, rig.instant, finding=Finding("obstacles"), setup=setup).success
    for _ in range(40):
        confirm(rig)
        rig.run(STEP)
    since = rig.controller.trace.arrays()[1]
    ahead_of_second = [alone.distances(place).min() for place in since[-8000::20]]
    assert min(ahead_of_second) >= 0, "the second zone was entered on the way out of the first"
    assert np.abs(rig.controller.state[0] - begin).max() > 0.05, "and yet it was led back as far as that"


def test_i20_beyond_a_joint_limit_it_goes_back_and_no_further_out():
    rig = travelled(1.0)
    stop(rig)
    limits = rig.filter.verifier.limits
    tight = replace(limits, max_position=np.where(np.arange(len(HOME)) == 0, AWAY[0] - 0.05, limits.max_position))
    verifier = rig.filter.verifier.loosened(rig.filter.verifier.margins, tight)
    assert rig.filter.reconfigure(verifier, rig.instant, finding=Finding("disarmed")).success
    assert rig.filter.reset(rig.instant).success and "joint1" in rig.filter.arm(rig.instant).message
    began = (rig.now - START) * 1e-9
    go_back(rig, mode=Mode.DISARMED)
    times, q, *_ = rig.controller.trace.arrays()
    assert q[times >= began, 0].max() <= AWAY[0] + 1e-3
    ready(rig)


def test_i20_stopped_at_a_zone_nothing_is_wedged():
    rig = Rig()
    far = HOME.copy()
    far[1] = 1.2  # into the table
    assert rig.propose(smooth_chunk(rig, far, duration=2.5)).verdict == Verdict.TRIMMED
    rig.run(3.2)
    assert rig.filter.mode == Mode.HOLD
    assert confirm(rig).success and rig.filter.mode == Mode.DISARMED
    go_back(rig, mode=Mode.DISARMED)
    assert np.allclose(rig.controller.state[0], HOME, atol=1e-4)
    check_envelope(rig.controller)
    ready(rig)


def test_i20_a_tool_that_has_no_room_where_it_was_mounted_is_led_away():
    low = HOME.copy()
    low[1], low[3] = HOME[1] + 0.35, HOME[3] - 0.1
    for length in np.linspace(0.05, 0.6, 56):
        tip = ToolSpec(
            parent="fr3_hand", shapes=(ToolShape(sphere=Sphere(center=(0, 0, length), radius=0.01)),), mass=0.2
        )
        parts = replace(PARTS, config=PARTS.config.model_copy(update={"tools": {"rod": tip}}))
        mounted = make_verifier(parts, Setup(tool="rod"))
        if (mounted.distances(low) - mounted.margins).min() < -0.005:
            break
    assert (mounted.distances(HOME) >= mounted.margins).all()
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, low, duration=2.0)).verdict <= Verdict.SLOWED
    rig.run(2.2)
    assert np.allclose(rig.controller.state[0], low, atol=1e-6)
    refused = rig.filter.reconfigure(mounted, rig.instant, finding=Finding("tool", "rod/none"))
    rig.collect()
    assert not refused.success and rig.filter.mode == Mode.HOLD, "armed, what has no room is refused"
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.run(0.4)
    assert rig.filter.reconfigure(mounted, rig.instant, finding=Finding("tool", "rod/none")).success
    assert not rig.filter.arm(rig.instant).success
    began = (rig.now - START) * 1e-9
    clearances = go_back(rig, mode=Mode.DISARMED)
    assert (clearances.min(axis=1) >= clearances[0].min() - 1.2e-3).all()
    times, q, *_ = rig.controller.trace.arrays()
    assert np.allclose(q[times >= began][-1], HOME, atol=1e-4)
    ready(rig)


# ------------------------------------------------------------------ laws


def test_i20_letting_go_stops_within_the_confirmation_and_going_on_is_possible():
    rig = travelled(1.0)
    stop(rig)
    assert confirm(rig).success
    rig.run(0.44)
    confirm(rig)
    rig.run(0.44)
    confirm(rig)
    released = rig.now
    rig.run(1.6)
    assert rig.decisions[-1].finding.reason == "retreat_released" and not rig.controller.state[1:].any()
    limit = rig.filter.config.retreat.confirmation
    assert rig.decisions[-1].stamp_ns - released <= (limit + rig.filter.config.cycle.period) * 1e9
    there = rig.controller.state[0].copy()
    assert 0.01 < np.abs(there - AWAY).max() < 0.5
    go_back(rig)
    assert np.allclose(rig.controller.state[0], HOME, atol=1e-4)
    check_envelope(rig.controller)
    ready(rig)


def test_i20_with_a_dead_man_signal_that_one_counts():
    rig = Rig(arm=False)
    watchdogs = PARTS.config.watchdogs.model_copy(update={"deadman": 0.2})
    rig.filter = assemble(replace(PARTS, config=PARTS.config.model_copy(update={"watchdogs": watchdogs})))
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.8)
    stop(rig)
    assert "no dead-man signal" in confirm(rig).message
    rig.filter.deadman(True, rig.instant)
    assert confirm(rig).success
    for _ in range(10):
        rig.run(0.16)
        rig.filter.deadman(True, rig.instant)
    assert rig.controller.state[1].any()
    rig.filter.deadman(False, rig.instant)
    rig.collect()
    assert rig.decisions[-1].finding.reason == "deadman_released"
    rig.run(0.6)
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


@pytest.mark.parametrize(
    "finding", [Finding("estop_input", "button"), Finding("bypass", "rogue"), Finding("stale_wrench", "wrench")]
)
def test_i20_no_retreat_while_another_cause_is_there_and_a_new_one_ends_it(finding):
    rig = travelled(0.6)
    stop(rig, finding)
    assert finding.sentence in confirm(rig).message
    rig.filter.report("cause", None, rig.instant)
    assert confirm(rig).success
    rig.run(0.4)
    confirm(rig)
    rig.run(0.4)
    rig.filter.report("cause", finding, rig.instant)
    rig.collect()
    assert rig.decisions[-1].finding == finding and rig.decisions[-1].source == "retreat"
    rig.run(0.6)
    assert not rig.controller.state[1:].any() and not confirm(rig).success


def test_i20_nothing_else_moves_the_robot_meanwhile_and_every_stop_stops_it():
    rig = travelled(0.6)
    assert "disarm first" in confirm(rig).message
    stop(rig)
    assert confirm(rig).success
    rig.run(0.4)
    for source in ("policy", "planner", "override"):
        assert rig.propose(smooth_chunk(rig, HOME, source=source)).finding.reason == "mode"
    assert not rig.filter.reset(rig.instant).success and not rig.filter.arm(rig.instant).success
    for end in (rig.filter.estop, rig.filter.disarm):
        confirm(rig)
        rig.run(0.8)
        confirm(rig)
        end(rig.instant)
        rig.collect()
        assert rig.decisions[-1].source == "retreat" and rig.decisions[-1].verdict == Verdict.STOPPED
        rig.run(0.6)
        assert rig.filter.mode == Mode.ESTOP and not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_i20_without_a_path_the_answer_says_what_to_do():
    rig = Rig(arm=False)
    rig.observe()
    answer = rig.filter.retreat(rig.instant)
    assert not answer.success and "by hand" in answer.message
    rig = travelled(0.6)
    stop(rig)
    rig.measured_offset[0] = 0.5  # somebody led it away
    rig.run(0.1)
    assert "by hand" in confirm(rig).message


def test_i20_lost_joint_states_end_a_retreat():
    rig = travelled(0.6)
    stop(rig)
    confirm(rig)
    rig.run(0.4)
    confirm(rig)
    rig.silent = True
    rig.run(0.2)
    assert rig.decisions[-1].finding.reason == "stale_state"
    rig.run(0.6)
    assert not rig.controller.state[1:].any()


def test_i19_a_retreat_is_replayed_bit_for_bit(tmp_path):
    path = tmp_path / "audit.jsonl"
    rig = Rig(arm=False)
    rig.filter = RecordedFilter(assemble(PARTS), AuditLog(path), PARTS)
    rig.filter.config = rig.filter.inner.config
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    object.__setattr__(rig.filter, "committed", rig.filter.inner.committed)
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.6)
    rig.filter.estop(rig.instant)
    rig.collect()
    rig.run(0.6)
    for _ in range(8):
        assert confirm(rig).success
        rig.run(STEP)
    rig.filter.deadman(True, rig.instant)
    rig.run(1.0)
    rig.filter.log.close()
    assert rig.decisions[-1].finding.reason == "retreat_released"
    result = replay(path)
    assert result.different is None and result.decisions == len(rig.decisions)


# ------------------------------------------------------------------ the path
