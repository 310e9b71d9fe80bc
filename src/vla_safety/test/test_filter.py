import numpy as np
import pytest
from rig import HOME, LIMITS, MS, ROBOT, START, Controller, Rig, check_envelope, proposal, smooth_chunk

from vla_safety.core.findings import Verdict
from vla_safety.core.modes import Mode

N = len(HOME)


def away(rad, joint=0):
    q = HOME.copy()
    q[joint] += rad
    q[-1] = 0.03
    return q


def test_a_safe_chunk_arrives_at_its_goal():
    rig = Rig()
    decision = rig.propose(smooth_chunk(rig, away(0.3)))
    assert decision.verdict == Verdict.ACCEPTED, decision
    rig.run(1.6)
    assert np.allclose(rig.controller.state[0], away(0.3), atol=1e-6)
    assert rig.filter.mode == Mode.ARMED
    check_envelope(rig.controller)


def test_i09_a_continuous_chunk_passes_bit_by_bit():
    rig = Rig()
    p = smooth_chunk(rig, away(0.3))
    decision = rig.propose(p)
    assert decision.verdict == Verdict.ACCEPTED and decision.finding is None
    rig.run(1.5)
    sent = {
        (int(t), tuple(q), tuple(v), tuple(a))
        for _, m in rig.controller.messages
        for t, q, v, a in zip(m.times, m.positions, m.velocities, m.accelerations, strict=True)
    }
    passed = 0
    for t, q, v, a in zip(p.times_ns, p.positions, p.velocities, p.accelerations, strict=True):
        passed += (p.stamp_ns + t, tuple(q), tuple(v), tuple(a)) in sent
    assert passed >= decision.points_accepted >= 18


def test_i02_seams_between_chunks_keep_the_envelope():
    rig = Rig()
    rng = np.random.default_rng(3)
    for k in range(60):
        goal = HOME + rng.normal(0, 0.25, N) * np.array([1] * 7 + [0])
        goal[-1] = rng.uniform(0.01, 0.03)
        rig.propose(smooth_chunk(rig, goal, duration=rng.uniform(0.3, 1.2), sequence=k))
        rig.run(rng.uniform(0.04, 0.5))
    rig.run(1.5)
    check_envelope(rig.controller)
    assert {d.verdict for d in rig.decisions} >= {Verdict.ACCEPTED}


def test_a_discontinuous_chunk_is_bridged():
    rig = Rig()
    t = np.arange(1, 17) * 0.1
    q = HOME + 0.05 + np.outer(t, np.full(N, 0.1))
    q[:, -1] = 0.02
    decision = rig.propose(proposal(rig.now, t, q))
    assert decision.verdict == Verdict.ACCEPTED and decision.finding.reason == "bridge"
    rig.run(2.5)
    check_envelope(rig.controller)


def test_a_chunk_that_is_too_fast_is_slowed_along_its_path():
    rig = Rig()
    decision = rig.propose(smooth_chunk(rig, away(1.0), duration=0.4))
    assert decision.verdict == Verdict.SLOWED and decision.finding.reason.startswith("joint_")
    assert 0.2 < decision.speed_scale < 1
    rig.run(3)
    assert np.allclose(rig.controller.state[0], away(1.0), atol=1e-6)
    check_envelope(rig.controller)


def test_r05_full_speed_towards_a_position_limit_is_trimmed_before_it():
    rig = Rig()
    t = np.linspace(0.1, 2.0, 20)
    q = np.repeat(HOME[None], 20, 0)
    q[:, 0] += np.clip(t * 2.5 - 0.3, 0, None)
    q[:, -1] = 0.03
    decision = rig.propose(proposal(rig.now, t, q))
    assert decision.verdict == Verdict.TRIMMED, decision
    assert decision.finding.reason == "joint_position" and decision.finding.subject == "fr3_joint1"
    rig.run(3)
    check_envelope(rig.controller)
    assert rig.controller.state[0][0] > 1.0
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "joint_position"


def test_a_chunk_into_the_table_is_trimmed_and_names_link_and_zone():
    rig = Rig()
    down = HOME.copy()
    down[1] += 0.9
    down[-1] = 0.03
    decision = rig.propose(smooth_chunk(rig, down, duration=1.5))
    assert decision.verdict == Verdict.TRIMMED and 0 < decision.points_accepted < 20
    assert decision.finding.reason == "zone:table" and decision.finding.subject == "wrist_camera_frame"
    rig.run(3)
    assert rig.filter.verifier.clearances(rig.controller.state[0])[0][0] >= 0.004 - 1e-6
    # and out again
    assert rig.propose(smooth_chunk(rig, HOME - np.array([0] * 7 + [0.01]))).verdict == Verdict.ACCEPTED
    rig.run(1.5)
    assert rig.filter.mode == Mode.ARMED
    check_envelope(rig.controller)


def test_r10_silence_with_velocity_left_ends_at_rest():
    rig = Rig()
    t = np.arange(1, 9) * 0.1
    q = HOME + np.outer(t, [0.5, 0, 0, 0.2, 0, 0, 0, 0])
    q[:, -1] = 0.03
    rig.propose(proposal(rig.now, t, q))
    rig.run(2)
    assert not rig.controller.state[1:].any()
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "chunk_timeout"
    check_envelope(rig.controller)


def test_i04_the_controller_stops_by_itself_when_the_filter_dies():
    for cut in (0.05, 0.13, 0.3, 0.41, 0.77):
        rig = Rig()
        rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
        rig.run(cut)
        last = rig.controller.messages[-1][1]
        rig.offline.clear()
        rig.advance(1.0)
        assert not rig.controller.state[1:].any()
        assert np.allclose(rig.controller.state[0], last.positions[-1])
        assert last.end - rig.controller.messages[-1][0] <= 700 * MS
        check_envelope(rig.controller)


def test_i15_a_late_cycle_lets_the_committed_stop_play():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.3)
    sent = len(rig.controller.messages)
    rig.advance(0.35)
    rig.run(1.0)
    # Nothing of the plan is sent any more: the stop had begun.
    assert len(rig.controller.messages) - sent <= 1
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "late_cycle"
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_i15_a_message_that_took_too_long_is_not_sent():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2, sequence=7))
    rig.run(0.3)
    rig.advance(0.04)
    rig.observe()
    rig.filter.cycle(rig.instant)
    assert rig.filter.pending
    rig.advance(0.05)
    rig.filter.retract(rig.instant)
    rig.collect()
    assert (rig.decisions[-1].verdict, rig.decisions[-1].source, rig.decisions[-1].sequence) == (
        Verdict.STOPPED, "policy", 7,
    )  # fmt: skip
    rig.run(0.8)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "late_cycle"
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)
    # A stop that took too long is made again.
    rig.propose(smooth_chunk(rig, away(0.2), duration=1.2))
    rig.run(0.4)
    rig.filter.estop(rig.instant)
    rig.advance(0.05)
    rig.filter.retract(rig.instant)
    rig.collect()
    rig.run(0.6)
    assert rig.filter.mode == Mode.ESTOP and not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_messages_may_arrive_late_without_a_step():
    for delay in (0, 10, 40):
        rig = Rig(delay=delay)
        for k in range(6):
            rig.propose(smooth_chunk(rig, away(0.1 * (k + 1)), sequence=k))
            rig.run(0.4)
        check_envelope(rig.controller)


def test_estop_stops_at_once_and_latches():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.4)
    where = rig.controller.state[0].copy()
    assert rig.filter.estop(rig.instant).success
    rig.collect()
    rig.run(0.5)
    assert rig.filter.mode == Mode.ESTOP
    assert not rig.controller.state[1:].any()
    assert 0 < np.abs(rig.controller.state[0] - where).max() < 0.15
    assert rig.decisions[-1].verdict == Verdict.STOPPED and rig.decisions[-1].finding.reason == "estop"
    assert rig.propose(smooth_chunk(rig, HOME)).finding.reason == "mode"
    assert not rig.filter.arm(rig.instant).success
    check_envelope(rig.controller)
    assert rig.filter.reset(rig.instant).success and rig.filter.mode == Mode.DISARMED
    assert rig.propose(smooth_chunk(rig, HOME)).finding.reason == "mode"
    assert rig.filter.arm(rig.instant).success


def test_r14_reset_is_refused_while_joint_states_are_missing():
    rig = Rig()
    rig.filter.estop(rig.instant)
    rig.collect()
    rig.silent = True
    rig.run(0.5)
    answer = rig.filter.reset(rig.instant)
    assert not answer.success and "old" in answer.message
    rig.silent = False
    rig.observe()
    assert rig.filter.reset(rig.instant).success


def test_disarm_stops():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.4)
    assert rig.filter.disarm(rig.instant).success
    rig.collect()
    rig.run(0.6)
    assert rig.filter.mode == Mode.DISARMED and not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_i06_silent_joint_states_stop_the_robot():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.3)
    rig.silent = True
    rig.run(0.6)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "stale_state"
    assert not rig.controller.state[1:].any()
    assert rig.controller.state[0][0] < 0.5
    assert rig.propose(smooth_chunk(rig, away(0.8))).finding.reason == "stale_state"
    rig.silent = False
    rig.observe()
    assert rig.propose(smooth_chunk(rig, HOME)).verdict == Verdict.ACCEPTED
    check_envelope(rig.controller)


def test_tracking_error_latches():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.3)
    rig.measured_offset[2] = 0.06
    rig.run(0.6)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "tracking_error"
    assert rig.filter.finding.subject == "fr3_joint3" and rig.filter.finding.limit == 0.05
    assert not rig.controller.state[1:].any()


def test_a_gripper_that_holds_an_object_is_no_tracking_error():
    rig = Rig()
    rig.measured_offset[-1] = 0.02
    rig.run(0.2)
    assert rig.filter.mode == Mode.ARMED


def test_arming_is_refused_with_the_reason():
    rig = Rig(arm=False)
    assert "joint state is inf s old" in rig.filter.arm(rig.instant).message
    velocity = np.zeros(N)
    velocity[4] = 0.1
    rig.filter.observe(rig.now, ROBOT.joints, HOME, velocity, rig.instant)
    assert "fr3_joint5 moves at 0.1" in rig.filter.arm(rig.instant).message
    rig.now += MS
    beyond = HOME.copy()
    beyond[0] = LIMITS.max_position[0] + 0.01
    rig.filter.monitor.forget()  # else it is a jump
    rig.filter.observe(rig.now, ROBOT.joints, beyond, np.zeros(N), rig.instant)
    assert "fr3_joint1 would reach" in rig.filter.arm(rig.instant).message
    rig.now += MS
    low = HOME.copy()
    low[1] += 0.9
    rig.filter.monitor.forget()
    rig.filter.observe(rig.now, ROBOT.joints, low, np.zeros(N), rig.instant)
    assert "zone 'table'" in rig.filter.arm(rig.instant).message
    assert rig.filter.mode == Mode.DISARMED


def test_i05_stamps_outside_the_window_are_refused():
    rig = Rig()
    for age, reason in ((1.2, "stale_stamp"), (3600, "stale_stamp"), (-0.2, "future_stamp"), (-3600, "future_stamp")):
        decision = rig.propose(smooth_chunk(rig, away(0.2), stamp_age=age))
        assert decision.verdict == Verdict.REFUSED and decision.finding.reason == reason
        assert decision.finding.value == pytest.approx(abs(age))


def test_i05_a_clock_jump_stops_and_latches():
    for jump in (3600, -3600):
        rig = Rig()
        rig.propose(smooth_chunk(rig, away(0.8)))
        rig.run(0.2)
        from vla_safety.core.watchdogs import Instant

        rig.filter.cycle(Instant(rig.now + jump * 10**9, rig.now + 40 * MS))
        assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "clock_jump"
        (stop,) = rig.filter.drain().motions
        now = rig.now + jump * 10**9
        # On the new clock, from where the robot is commanded to be, to rest at once.
        assert abs(stop.start - now) < 10**8 and stop.end - now < 10**9
        assert np.allclose(stop.state(now).position, rig.controller.state[0], atol=0.05)
        assert stop.knot(len(stop) - 1).at_rest


@pytest.mark.parametrize("left", [2, 7, 15, 28, 40, 52, 59])
@pytest.mark.parametrize("delay", [0, 7, 15])
def test_i02_a_stop_that_is_nearly_over_is_not_replaced(left, delay):
    """Stopped again in the last milliseconds of a motion, the arm stays on the curve that was verified."""
    rig = Rig(delay=delay)
    goal = away(0.5)
    rig.propose(smooth_chunk(rig, goal, duration=0.4))
    while rig.filter.committed.end - rig.now > 100 * MS:
        rig.run(0.04)
    stop = rig.filter.committed
    rig.advance((stop.end - rig.now) * 1e-9 - left * 1e-3)
    rig.observe()
    rig.filter.estop(rig.instant)
    rig.collect()
    rig.run(0.6)
    check_envelope(rig.controller)
    times, q, _, _, _ = rig.controller.trace.arrays()
    tail = times > (stop.end - START) * 1e-9 - 0.06
    expected = np.array([stop.state(START + round(t * 1e9)).position for t in times[tail]])
    assert np.abs(q[tail] - expected).max() < 1e-9


def test_a_stop_at_rest_holds_the_robot_where_it_is():
    """Whatever a stranger plays is replaced, and a filter that woke from a freeze does not move the robot."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.3)))
    rig.run(3.0)
    elsewhere = rig.filter.monitor.newest.position.copy()
    elsewhere[0] += 0.2
    for _ in range(2):  # a single one is not believed
        rig.now += MS
        rig.filter.observe(rig.now, ROBOT.joints, elsewhere, np.zeros(N), rig.instant)
    rig.filter.drain()
    assert rig.filter.estop(rig.instant).success and rig.filter.mode == Mode.ESTOP
    (hold,) = rig.filter.drain().motions
    assert hold.knot(0).at_rest and np.allclose(hold.positions[-1][:7], elsewhere[:7])


def test_i11_an_override_takes_over_and_the_policy_does_not_come_back():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.3)
    decision = rig.propose(smooth_chunk(rig, HOME + np.array([0] * 7 + [-0.01]), source="override", duration=0.8))
    assert decision.verdict == Verdict.ACCEPTED and rig.filter.mode == Mode.OVERRIDE
    assert rig.propose(smooth_chunk(rig, away(0.5))).finding.reason == "authority"
    rig.run(1.5)
    assert rig.filter.mode == Mode.DISARMED and rig.filter.finding.reason == "override_lost"
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_i07_a_check_that_errs_stops():
    rig = Rig()
    rig.propose(smooth_chunk(rig, away(0.8), duration=1.2))
    rig.run(0.3)

    def broken(*_):
        raise RuntimeError("bug")

    verify, rig.filter.verifier.verify_all = rig.filter.verifier.verify_all, broken
    assert rig.propose(smooth_chunk(rig, away(0.3))).verdict == Verdict.REFUSED
    rig.run(0.6)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "internal"
    assert not rig.controller.state[1:].any()
    rig.filter.verifier.verify_all = verify
    check_envelope(rig.controller)


def test_the_controller_of_these_tests_notices_a_step():
    """The oracle itself: a jump is seen."""
    controller = Controller(HOME)
    controller.play(0, 10 * MS)
    controller.state = controller.state + 0.1
    controller.play(10 * MS, 20 * MS)
    with pytest.raises(AssertionError):
        check_envelope(controller)
