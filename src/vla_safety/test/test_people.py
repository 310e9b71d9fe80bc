"""What people see and are told: answers, decisions, the status, whole."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, LIMITS, MS, ROBOT, Rig, proposal, smooth_chunk

from vla_safety.core.advice import Advice
from vla_safety.core.findings import Decision, Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.records import Answer, Status

N = len(HOME)
AWAY = HOME + np.array([0.8, 0.1, 0, 0, 0, 0, 0, -0.01])


def told(finding: Finding) -> Answer:
    return Answer(False, f"{finding.sentence}; {finding.remedy}")


def moving(duration=1.5, seconds=0.4) -> Rig:
    rig = Rig()
    assert rig.propose(smooth_chunk(rig, AWAY, duration=duration)).verdict == Verdict.ACCEPTED
    rig.run(seconds)
    return rig


# ------------------------------------------------------------------ answers


def test_i21_who_may_not_arm_is_told_why_and_what_to_do():
    rig = Rig(arm=False)
    stale = Finding("stale_state", "joint_states", np.inf, 0.1)
    assert rig.filter.arm(rig.instant) == told(stale)
    velocity = 0.5 * (np.arange(N) == 4)
    rig.filter.observe(rig.now, ROBOT.joints, HOME, velocity, rig.instant)
    assert rig.filter.arm(rig.instant) == told(Finding("not_at_rest", "fr3_joint5", 0.5, 0.02))
    beyond = HOME.copy()
    beyond[0] = LIMITS.max_position[0] + 0.25
    rig.filter.monitor.forget()  # else it is a jump
    rig.filter.observe(rig.now, ROBOT.joints, beyond, np.zeros(N), rig.instant)
    assert rig.filter.arm(rig.instant) == told(
        Finding("joint_position", "fr3_joint1", beyond[0], LIMITS.max_position[0])
    )
    rig.filter.estop(rig.instant)
    assert rig.filter.arm(rig.instant) == Answer(False, "not from mode ESTOP; reset first")
    assert rig.filter.disarm(rig.instant) == Answer(False, "the e-stop is latched; reset first")
    rig.filter.report("button", Finding("estop_input", "button"), rig.instant)
    assert rig.filter.reset(rig.instant) == told(Finding("estop_input", "button"))


def test_who_asks_for_what_is_there_already_is_told_so():
    rig = Rig()
    assert rig.filter.arm(rig.instant) == Answer(True, "armed already")
    assert rig.filter.reset(rig.instant) == Answer(True, "nothing to reset in mode ARMED")
    assert rig.filter.retreat(rig.instant) == Answer(False, "disarm first")
    assert rig.filter.estop(rig.instant) == Answer(True, "e-stop latched")
    rig.run(0.2)
    assert rig.filter.reset(rig.instant) == Answer(True, "reset; arm to go on")
    assert rig.filter.arm(rig.instant) == Answer(True, "armed")
    for _ in range(2):
        assert rig.filter.disarm(rig.instant) == Answer(True, "disarmed")
    assert rig.filter.mode == Mode.DISARMED


def test_i10_what_one_monitor_takes_back_another_may_still_say():
    rig = Rig()
    for monitor in ("anomaly", "instruction"):
        rig.filter.advise(Advice(monitor, stop=Finding("estop", monitor)), rig.instant)
    rig.run(0.2)
    rig.filter.advise(Advice("anomaly"), rig.instant)
    assert rig.filter.reset(rig.instant) == told(Finding("estop", "instruction"))
    rig.filter.advise(Advice("instruction"), rig.instant)
    assert rig.filter.reset(rig.instant).success


def test_i01_an_input_that_cannot_even_be_read_is_named():
    class Broken(list):
        def __len__(self):
            raise ValueError("x" * 200)

    rig = Rig(arm=False)
    finding = rig.filter.observe(rig.now, ROBOT.joints, Broken(), [], rig.instant)
    assert repr(finding) == repr(Finding("state_invalid", repr(ValueError("x" * 200))[:80]))


# ------------------------------------------------------------------ decisions


def test_a_decision_says_what_becomes_of_a_proposal():
    rig = Rig()
    p = smooth_chunk(rig, AWAY, duration=1.5, sequence=7)
    decision = rig.propose(p)
    assert decision == Decision(Verdict.ACCEPTED, "policy", 7, None, 20, decision.points_accepted, 1.0, rig.now)
    assert 19 <= decision.points_accepted <= 20
    rig = Rig()
    decision = rig.propose(smooth_chunk(rig, AWAY, duration=0.4, sequence=8))
    assert 0.2 < decision.speed_scale < 1.0 and decision.finding.reason.startswith("joint_")
    assert decision == Decision(Verdict.SLOWED, "policy", 8, decision.finding, 20, 0, decision.speed_scale, rig.now)
    assert rig.filter.status().speed_scale == decision.speed_scale, "of what is played"
    rig.run(4.0)
    assert rig.filter.status().speed_scale == 1.0
    decision = rig.propose(replace(p, frame="map"))
    assert decision == Decision(Verdict.REFUSED, "policy", 7, Finding("frame", "map"), 20, 0, 1.0, rig.now)


def test_a_refusal_that_was_followed_by_a_good_proposal_is_not_blamed():
    """The last good one has no end: silence is what stops."""
    rig = Rig()
    t = np.arange(1, 9) * 0.1
    q = HOME + np.outer(t, [0.5, 0, 0, 0.2, 0, 0, 0, 0])
    q[:, -1] = 0.03
    good = proposal(rig.now, t, q)
    assert rig.propose(replace(good, frame="map")).finding == Finding("frame", "map")
    assert rig.propose(good).points_accepted
    taken = rig.now
    while rig.filter.mode == Mode.ARMED:
        rig.run(0.04)
    silence = (rig.now - taken) * 1e-9
    expected = Finding("chunk_timeout", "policy", pytest.approx(silence))
    found = rig.filter.finding
    assert (found.reason, found.subject, found.value) == (expected.reason, expected.subject, expected.value)
    assert rig.decisions[-1] == Decision(Verdict.STOPPED, "policy", 1, found, stamp_ns=rig.now)


# ------------------------------------------------------------------ the status


def test_the_status_is_a_picture_of_the_robot():
    rig = Rig()
    rig.measured_offset[1] = 0.01
    rig.advance(0.01)
    rig.observe()
    q = rig.controller.state[0] + rig.measured_offset
    room = np.minimum(LIMITS.max_position - q, q - LIMITS.min_position)[:7].min()
    zone, own = rig.filter.verifier.clearances(q)[0][:2]
    counts = [0] * len(Verdict)
    status = rig.filter.status()
    assert status == Status(Mode.ARMED, None, 1.0, pytest.approx(room), zone, own, pytest.approx(0.01), tuple(counts))
    assert 0.01 < zone < 1.0 and 0.01 < own < 1.0 and zone != own
    rig.filter.disarm(rig.instant, "nobody")
    status = rig.filter.status()
    assert np.isnan(status.tracking_error), "nothing is commanded"
    counts[Verdict.STOPPED] = 1
    assert (status.mode, status.finding, status.counts) == (Mode.DISARMED, Finding("disarmed", "nobody"), tuple(counts))


def test_a_share_of_a_limit_that_is_none_is_none():
    assert Finding("x", "y", 3.0, 4.0).share == 0.75
    assert np.isnan(Finding("x", "y", 3.0, 0.0).share) and np.isnan(Finding("x").share)


# ------------------------------------------------------------------ stops


def test_i15_a_stop_that_was_made_again_has_its_own_time_to_arrive():
    """The first one was too late to be sent. At rest in time by the second one, by the first too late."""
    rig = moving()
    rig.filter.estop(rig.instant)
    first = rig.filter.committed.end
    rig.advance(0.04)
    rig.filter.retract(rig.instant)
    (motion,) = rig.filter.drain().motions
    assert motion.end - first >= 30 * MS
    grace = round(rig.filter.config.watchdogs.stop_grace * 1e9)
    for now in (rig.now, first + grace + 10 * MS, motion.end + grace - MS, motion.end + grace):
        rig.now = now
        speed = np.full(N, 0.0 if now == motion.end + grace else 0.1)
        rig.filter.observe(now, ROBOT.joints, motion.state(now).position, speed, rig.instant)
        rig.filter.observe(now + 1, ROBOT.joints, motion.state(now).position, speed, rig.instant)
        rig.filter.cycle(rig.instant)
        assert rig.filter.mode == Mode.ESTOP and rig.filter.finding == Finding("estop", "operator")
        assert not rig.filter.escalated, "it may still arrive"


def test_i07_after_an_error_of_a_check_everything_can_still_be_asked_for():
    rig = moving()

    def broken(*_):
        raise RuntimeError("bug")

    verify, rig.filter.verifier.verify_all = rig.filter.verifier.verify_all, broken
    decision = rig.propose(smooth_chunk(rig, HOME))
    rig.filter.verifier.verify_all = verify
    error = Finding("internal", "RuntimeError('bug')")
    assert decision.verdict == Verdict.REFUSED and rig.filter.finding == error
    assert rig.filter.estop(rig.instant) == Answer(True, "e-stop latched") and rig.filter.finding == error
    rig.filter.report("contact", Finding("contact_force", "wrench", 80.0, 50.0), rig.instant)
    rig.run(1.0)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding == error and not rig.controller.state[1].any()


def test_i13_a_robot_that_is_disarmed_does_not_give_way_to_a_touch():
    """Whoever moves it then is not the filter."""
    rig = moving()
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.run(1.0)
    held = rig.filter.committed
    rig.measured_offset[0] = 0.03
    rig.run(0.1)
    rig.filter.report("contact", Finding("contact_force", "wrench", 80.0, 50.0), rig.instant)
    assert not rig.filter.pending
    rig.run(1.0)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.committed is held
