"""I2, I5: the clock jumps between two cycles, and clocks that have nothing to do with each other."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, MS, ROBOT, Rig, make_filter, proposal, smooth_chunk
from test_authority import with_deadman

from vla_safety.building import assemble, read_parts
from vla_safety.core.advice import Advice
from vla_safety.core.audit import AuditLog
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.motion import Motion
from vla_safety.core.watchdogs import Instant
from vla_safety.recording import RecordedFilter, replay

N = len(HOME)
AWAY = HOME + np.array([0.8, 0, 0, 0, 0, 0, 0, -0.01])
STEPS = [0.6, 3600.0, -0.6, -3600.0]
STOP = Finding("advice", "anomaly")


def chunk(rig, now, source="policy", stamp_age=0.15, goal=HOME):
    """To `goal`, as somebody sends it who has the clock's new time."""
    made = smooth_chunk(rig, goal, duration=1.0, source=source, sequence=9)
    shift = now.clock_ns - rig.now
    stamp = 0 if stamp_age is None else now.clock_ns - round(stamp_age * 1e9)
    offset = now.clock_ns - stamp if stamp else 0
    times = [t + made.stamp_ns + shift - now.clock_ns + offset for t in made.times_ns]
    return replace(made, stamp_ns=stamp, times_ns=times, received_ns=now.clock_ns)


CALLS = {
    "policy": lambda f, rig, now: f.propose(chunk(rig, now), now),
    "unstamped": lambda f, rig, now: f.propose(chunk(rig, now, "override", None), now),
    "arm": lambda f, rig, now: f.arm(now),
    "retreat": lambda f, rig, now: f.retreat(now),
    "estop": lambda f, rig, now: f.estop(now),
    "disarm": lambda f, rig, now: f.disarm(now),
    "reset": lambda f, rig, now: f.reset(now),
    "button": lambda f, rig, now: f.report("button", Finding("estop_input", "button"), now),
    "advise": lambda f, rig, now: f.advise(Advice("anomaly", stop=STOP), now),
    "reconfigure": lambda f, rig, now: f.reconfigure(make_filter().verifier, now, finding=Finding("tool", "x")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("step", STEPS)
def test_i05_i02_a_clock_that_jumped_stops_before_anything_is_made_on_it(step, call):
    """The stop goes on from where the robot is commanded to be, now on the new clock, whoever is the first to ask."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.4)
    rig.advance(0.02)
    before, old = rig.filter.committed, rig.now
    now = Instant(old + round(step * 1e9), old)
    call(rig.filter, rig, now)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "clock_jump"
    sent = rig.filter.drain().motions
    assert sent and not rig.filter.plan
    for motion in sent:
        follows(motion, now, before, old)
    cycle = Instant(now.clock_ns + 20 * MS, now.watch_ns + 20 * MS)
    rig.filter.cycle(cycle)
    assert not rig.filter.pending and rig.filter.finding.value == pytest.approx(step)


def follows(motion, now, before, old):
    """`motion` at `now` is a stop that begins where `before` was at `old`."""
    for ahead in range(0, 30 * MS, MS):
        is_, was = motion.state(now.clock_ns + ahead), before.state(old + ahead)
        assert np.allclose(is_.position, was.position, atol=1e-9)
        assert np.allclose(is_.velocity, was.velocity, atol=1e-7)
    assert motion.knot(len(motion) - 1).at_rest
    assert 0 < motion.end - now.clock_ns < 10**9, "on the new clock, and soon over"


@pytest.mark.parametrize("step", STEPS)
def test_i05_i11_who_lets_go_after_a_jump_stops_on_the_new_clock(step):
    rig = with_deadman()
    rig.filter.deadman(True, rig.instant)
    assert rig.propose(smooth_chunk(rig, AWAY, duration=1.5, source="override")).verdict <= Verdict.SLOWED
    for _ in range(6):
        rig.run(0.04)
        rig.filter.deadman(True, rig.instant)
    rig.advance(0.02)
    before, old = rig.filter.committed, rig.now
    now = Instant(old + round(step * 1e9), old)
    rig.filter.deadman(True, now)
    assert rig.filter.mode == Mode.OVERRIDE, "a word that stops nothing is no matter of the clock"
    rig.filter.deadman(False, now)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "clock_jump"
    (stop,) = rig.filter.drain().motions
    follows(stop, now, before, old)


def test_i05_a_message_that_was_not_sent_is_no_motion_to_be_stopped():
    """The clock jumps while a message is made, and that takes so long that what was sent before has come to its stop:
    the stop that is made then begins there, and not on the motion that was not sent."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.4)
    rig.advance(0.04)
    rig.observe()
    before, old = rig.filter.committed, rig.now
    rig.filter.cycle(rig.instant)
    assert rig.filter.pending
    unsent = rig.filter.committed
    elapsed = 240 * MS
    now = Instant(old + elapsed + 3600 * 10**9, old + elapsed)
    gap = before.state(old + elapsed).velocity - unsent.state(old + elapsed).velocity
    assert np.abs(gap).max() > 0.01
    rig.filter.retract(now)
    sent = rig.filter.drain().motions
    assert sent and all(motion.start > unsent.end for motion in sent)
    for motion in sent:
        follows(motion, now, before, old + elapsed)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("astray", [0.0, 0.5])
def test_i05_i10_the_stop_after_a_jump_is_due_when_it_is_over(step, astray):
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.4)
    shift = round(step * 1e9)
    old = rig.now
    rig.filter.propose(chunk(rig, Instant(old + shift, old)), Instant(old + shift, old))
    (stop,) = rig.filter.drain().motions
    for _ in range(40):
        rig.now += 40 * MS
        now = Instant(rig.now + shift, rig.now)
        q, v = stop.state(now.clock_ns).position + astray * (np.arange(N) == 2), stop.state(now.clock_ns).velocity
        rig.filter.observe(now.clock_ns, ROBOT.joints, q, v, now)
        rig.filter.cycle(now)
    assert rig.filter.escalated == bool(astray)


def test_i05_what_is_told_between_two_cycles_need_not_be_told_in_order():
    """A message was heard at 10 ms, another at 12 ms; the cycle's own time was taken at 11 ms."""
    rig = Rig()
    for ms in (12, 10, 11):
        now = Instant(rig.now + ms * MS, rig.now + ms * MS)
        if ms == 11:
            rig.filter.cycle(now)
        else:
            rig.filter.report("button", None, now)
    assert rig.filter.mode == Mode.ARMED


def test_i05_a_rule_that_waits_for_rest_does_not_take_a_jump_for_it():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.4)
    stricter = make_filter().verifier
    rig.filter._pending = stricter, Finding("reduced", "on")
    rig.filter.cycle(Instant(rig.now + 3600 * 10**9, rig.now))
    assert rig.filter.verifier is not stricter, "it still moves"


# ------------------------------------------------------------------ clocks that have nothing to do with each other

WALL, SIMULATED = 1_700_000_000 * 10**9, 12 * 10**9


def simulated_rig(ours) -> Rig:
    """A filter whose clock is `ours` now."""
    rig = Rig(arm=False)
    rig.shift = ours - rig.now
    return rig


def at(rig) -> Instant:
    return Instant(rig.now + rig.shift, rig.now + rig.shift)


def see(rig, stamp=None):
    rig.now += 20 * MS
    now = at(rig)
    return rig.filter.observe(now.clock_ns if stamp is None else stamp, ROBOT.joints, HOME, np.zeros(N), now)


@pytest.mark.parametrize(("ours", "theirs"), [(SIMULATED, WALL), (WALL, SIMULATED)], ids=["simulated", "wall"])
def test_i05_stamps_of_another_clock_move_nothing(ours, theirs):
    """One node has use_sim_time and the other has not: whichever it is, its chunks and joint states are refused, and a
    robot that moves is stopped."""
    rig = simulated_rig(ours)
    assert see(rig, theirs).reason == "state_stamp"
    assert not rig.filter.arm(at(rig)).success
    assert see(rig) is None and rig.filter.arm(at(rig)).success
    rig.filter.drain()
    for _ in range(20):
        see(rig)
        rig.filter.cycle(at(rig))
    for source in ("policy", "planner", "override"):
        mixed = replace(go(rig, source), stamp_ns=theirs)
        decision = rig.filter.propose(mixed, at(rig))
        assert decision.verdict == Verdict.REFUSED
        assert decision.finding.reason == ("future_stamp" if theirs > ours else "stale_stamp")
    assert not rig.filter.pending
    assert rig.filter.propose(go(rig), at(rig)).verdict <= Verdict.SLOWED
    rig.filter.drain()
    plan = rig.filter.committed
    for k in range(1, 40):  # the joint states go over to the other clock
        rig.now += 20 * MS
        now = at(rig)
        rig.filter.observe(theirs + k * 20 * MS, ROBOT.joints, plan.state(now.clock_ns).position, np.zeros(N), now)
        rig.filter.cycle(now)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.escalated, "nobody has seen it stop"
    last: Motion = rig.filter.committed
    assert last.end < at(rig).clock_ns and last.knot(len(last) - 1).at_rest


def go(rig, source="policy"):
    now = at(rig).clock_ns
    t = np.linspace(0.1, 1.5, 15)
    s = (t - t[0]) / (t[-1] - t[0])
    rows = HOME + np.outer(10 * s**3 - 15 * s**4 + 6 * s**5, AWAY - HOME)
    return proposal(now, t, rows, source=source)


def test_i05_a_filter_that_goes_over_to_the_simulators_clock_stops():
    """/clock comes for the first time after it has used the machine's clock: time goes back by half a century."""
    rig = simulated_rig(WALL)
    for _ in range(20):
        see(rig)
        rig.filter.cycle(at(rig))
        rig.filter.arm(at(rig))
    assert rig.filter.propose(go(rig), at(rig)).verdict <= Verdict.SLOWED
    rig.filter.drain()
    rig.shift = SIMULATED - rig.now
    decision = rig.filter.propose(go(rig), at(rig))
    assert decision.verdict == Verdict.REFUSED and rig.filter.mode == Mode.ESTOP
    assert rig.filter.finding.reason == "clock_jump"


def test_i19_a_record_in_which_the_clock_jumped_replays_bit_for_bit(tmp_path):
    parts = read_parts(ROBOT)
    rig = Rig(arm=False)
    rig.filter = safety = assemble(parts)
    recorded = RecordedFilter(safety, AuditLog(tmp_path / "jump.jsonl"), parts)
    shift = 0
    for cycle in range(80):
        rig.now += 40 * MS
        now = Instant(rig.now + shift, rig.now)
        committed = safety.committed
        q = HOME if committed is None else committed.state(now.clock_ns).position
        recorded.observe(now.clock_ns, ROBOT.joints, q, np.zeros(N), now)
        if cycle in (1, 60):
            assert cycle == 1 or recorded.reset(now).success
            assert recorded.arm(now).success
        if cycle in (20, 79):
            assert recorded.propose(chunk(rig, now, goal=AWAY), now).verdict <= Verdict.TRIMMED
        if cycle == 27:
            assert safety.committed.state(now.clock_ns).velocity.any()
            shift = -3600 * 10**9
            recorded.disarm(Instant(rig.now + shift + 10 * MS, rig.now + 10 * MS))
            assert safety.finding.reason == "clock_jump"
        else:
            recorded.cycle(now)
        recorded.drain()
    recorded.log.close()
    again = replay(tmp_path / "jump.jsonl")
    assert again.different is None and again.decisions >= 3
