"""Laws of the chunk scheduler, on a virtual clock: whatever the latencies, the policy's noise and the strategy."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from worlds import FAST, FRAME, JOINTS, NO_GRIPPER, T0, S, World, drive, limits, run, wish

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError
from vla_contract.interpolation import Trajectory
from vla_policy_node.core.pacing import Pacer
from vla_policy_node.core.scheduling import STRATEGIES, Reality, Schedule
from vla_policy_node.core.splicing import APART

MARGIN, TICK = 0.1, 0.01  # s
MOVING = ("async", "ensemble", "rtc")
HORIZON = 1.6  # s
LATEST = HORIZON - MARGIN - 0.11  # s: a chunk that comes later has nothing left to execute

latencies = st.lists(st.floats(0.0, 0.7), min_size=2, max_size=8)
seeds = st.integers(0, 1000)
quick = settings(deadline=None, max_examples=25, phases=FAST, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def worlds(draw, delays=latencies, strategies=STRATEGIES):
    """A task under way: any strategy or changes among them in mid-motion, any latencies, a policy that contradicts
    itself."""
    chosen = draw(st.one_of(st.sampled_from(strategies).map(lambda one: [one]), st.lists(st.sampled_from(strategies))))
    world = World(Schedule(margin=MARGIN), draw(st.floats(0.0, 0.01)), draw(seeds), flicker=draw(st.booleans()))
    world.start = wish(0.0, phase := draw(st.floats(-0.5, 0.5)))[0]
    return drive(world, draw(delays), chosen, phase=phase)


def pairs(world):
    """Each published chunk with the one before it: curves in s since the new one's stamp, and its publication."""
    for (_, before), (now_ns, after) in zip(world.published, world.published[1:], strict=False):
        shift = (after.chunk.stamp_ns - before.chunk.stamp_ns) * 1e-9
        old = before.chunk.trajectory
        old = Trajectory(old.times - shift, old.positions, old.velocities, old.accelerations)
        yield old, after, (now_ns - after.chunk.stamp_ns) * 1e-9


@quick
@given(worlds(strategies=MOVING))
def test_no_gap_while_two_inferences_fit_into_a_chunk(world):
    for old, after, now in pairs(world):
        new = after.chunk.trajectory
        assert old.end > now, "the old plan still plays when the new chunk comes"
        assert new.start <= now + 2 * APART and new.end > now + MARGIN
        assert after.base == "plan"


@settings(quick, max_examples=60)
@given(st.lists(st.floats(0.0, LATEST), min_size=2, max_size=8), st.sampled_from(MOVING), st.floats(0.05, 1.5))
@example([0.0, HORIZON - 0.4 - FRAME], "async", 0.4)
@example([0.78] * 4, "async", 0.4)
@example([0.05, 1.35, 0.05, 1.35], "async", 0.05)
@example([1.2] * 4, "rtc", 0.4)
def test_gaps_are_where_inferences_leave_no_choice(delays, strategy, wanted):
    """A chunk reaches H beyond its observation. The next one is used s later, or when that inference is done, and its
    own inference takes d: no gap while max(s, d before) + an image + d <= H. Two inferences in a row that take longer
    than H leave one whatever a scheduler does. The robot rests in it, and starts from there: nothing is made up for,
    nothing jumps."""
    world = World(Schedule(strategy=strategy, margin=MARGIN, execution_horizon=wanted), noise=0.002)
    horizons = []
    for delay in delays:
        drive(world, [delay])
        horizons.append(world.scheduler.refill.horizon)
    assert len(world.published) == len(delays)
    for k, (old, after, now) in enumerate(pairs(world)):
        length = old.end + (after.chunk.stamp_ns - world.published[k][1].chunk.stamp_ns) * 1e-9
        gap = now > old.end
        if max(horizons[k], delays[k]) + FRAME + delays[k + 1] <= HORIZON - 1e-6:
            assert not gap
        if delays[k] + delays[k + 1] > length + 1e-6:
            assert gap
        if gap:
            first = after.chunk.trajectory
            assert after.base == "rest" and first.start >= now - APART
            assert np.abs(first.velocities[0]).max() == 0.0
            np.testing.assert_allclose(first.positions[0], old.positions[-1], atol=1e-9)


@quick
@given(worlds(st.lists(st.floats(0.0, HORIZON), min_size=2, max_size=8)))
def test_never_executes_an_action_whose_time_has_passed(world):
    """Nothing that is published lies in the past, and what lies ahead is the action that is meant for then."""
    for now_ns, splice in world.published:
        curve, now = splice.chunk.trajectory, (now_ns - splice.chunk.stamp_ns) * 1e-9
        assert curve.start >= 0 and curve.start >= now - APART


@quick
@given(st.floats(0.0, 0.7), st.sampled_from(MOVING))
def test_actions_keep_their_time(latency, strategy):
    """Whatever the latency, once the fade is over the robot is where the policy wanted it at that very time."""
    world = run(World(Schedule(strategy=strategy)), [latency] * 4)
    now_ns, splice = world.published[-1]
    curve = splice.chunk.trajectory
    times = np.arange(curve.start + MARGIN + 0.4, curve.end - 0.3, 0.05)
    if len(times) and splice.stretch == 1.0:
        wanted = wish((splice.chunk.stamp_ns - T0) * 1e-9 + times)
        assert np.abs(curve.sample(times).positions - wanted)[:, NO_GRIPPER].max() < 0.02


@quick
@given(worlds())
def test_the_jump_at_a_splice_is_no_larger_than_the_step_of_the_chunk(world):
    """Position and velocity do not jump at all; the step of the tick that holds the splice is one among others."""
    for old, after, now in pairs(world):
        new, at = after.chunk.trajectory, now + MARGIN
        left, right = old.sample(at - 1e-6), new.sample(at + 1e-6)
        assert after.step < 1e-9
        assert np.abs(right.positions - left.positions).max() < 1e-5
        assert np.abs(right.velocities - left.velocities).max() < 1e-3
        ticks = new.sample(np.arange(new.start, new.end, TICK)).positions[:, NO_GRIPPER]
        before = old.sample(np.arange(max(old.start, now - 0.5), at, TICK)).positions[:, NO_GRIPPER]
        across = np.abs(new.sample(at + TICK / 2).positions - old.sample(at - TICK / 2).positions)[:, NO_GRIPPER].max()
        steps = np.concatenate([np.abs(np.diff(part, axis=0)).max(axis=1) for part in (before, ticks)])
        assert across <= 1.05 * steps.max() + 1e-9


@quick
@given(worlds())
def test_the_frozen_part_is_the_old_plan_exactly(world):
    """The filter compares what it has committed to 1e-7, 1e-5 and 1e-3."""
    for old, after, now in pairs(world):
        new = after.chunk.trajectory
        frozen = np.linspace(new.start + 1e-6, now + MARGIN - APART, 30)
        a, b = old.sample(frozen), new.sample(frozen)
        np.testing.assert_allclose(b.positions, a.positions, atol=1e-8)
        np.testing.assert_allclose(b.velocities, a.velocities, atol=1e-6)
        np.testing.assert_allclose(b.accelerations, a.accelerations, atol=1e-4)


@quick
@given(worlds())
def test_published_motion_keeps_the_limits(world):
    bounds = limits()
    for _, splice in world.published:
        curve = splice.chunk.trajectory
        states = curve.sample(np.linspace(curve.start, curve.end, 1000))
        assert (np.abs(states.velocities) <= bounds.max_velocity).all()
        assert (np.abs(states.accelerations) <= bounds.max_acceleration).all()
        assert (np.abs(states.jerks) <= bounds.max_jerk).all()
        assert (states.positions >= bounds.min_position - 1e-6).all()
        assert (states.positions <= bounds.max_position + 1e-6).all()


@settings(quick, max_examples=60)
@given(latencies, st.sampled_from(STRATEGIES), st.floats(0.3, 2.0), st.floats(-2.2, 2.2), seeds)
@example([0.44, 0.63, 0.54, 0.16, 0.21], "rtc", 1.8, -2.2, 0)
@example([0.45, 0.19, 0.03, 0.01, 0.57], "sync", 1.9, 0.5, 0)
def test_a_policy_that_asks_for_what_is_beyond_the_position_limits_is_kept_inside(delays, strategy, size, offset, seed):
    """And where a motion that was already on its way cannot be, its excess says so; the filter refuses it."""
    world = drive(World(Schedule(strategy=strategy, margin=MARGIN), 0.005, seed, size=size, offset=offset), delays)
    for _, splice in world.published:
        curve = splice.chunk.trajectory
        positions = curve.sample(np.linspace(curve.start, curve.end, 500)).positions[:, NO_GRIPPER]
        # Bounds of positions are looked at every 0.05 s.
        assert splice.excess > 1.0 or np.abs(positions).max() <= 2.0 + 2e-3


@quick
@given(st.floats(-3.0, 3.0))
def test_at_delay_0_every_strategy_is_the_synchronous_one(phase):
    """An inference that takes no time is not rested for, nothing is frozen, and all chunks agree."""

    def motion(strategy):
        world = World(Schedule(strategy=strategy))
        world.start = wish(0.0, phase)[0]
        run(world, [0.0] * 8, phase=phase)
        return np.stack([world.position(T0 + round(t * S)) for t in np.arange(0.0, 3.5, 0.05)])

    synchronous = motion("sync")
    for strategy in ("async", "rtc"):
        np.testing.assert_array_equal(motion(strategy), synchronous)
    # The average of chunks that agree is each of them, but for what smoothing rounds off at a chunk's ends.
    np.testing.assert_allclose(motion("ensemble"), synchronous, atol=5e-3)


class Obedient(World):
    """Its policy does what real-time chunking asks for: the first rows are the prefix, then it goes its own way."""

    def infer(self, observed_ns, latency, phase=0.0):
        self.scheduler.begin(observed_ns)
        prefix = self.scheduler.prefix(observed_ns, self.position(observed_ns))
        points = wish((observed_ns - T0) * 1e-9 + self.times, phase)
        if prefix is not None:
            frozen = self.times <= prefix.end + 1e-9
            points[frozen] = prefix.sample(self.times[frozen]).positions
        now_ns = observed_ns + round(latency * S)
        chunk = ActionChunk(observed_ns, JOINTS, Trajectory(self.times, points))
        splice = self.scheduler.splice(chunk, self.position(observed_ns), now_ns, Reality(self.position(now_ns)))
        self.published.append((now_ns, splice))
        self.prefixes = [*getattr(self, "prefixes", []), (observed_ns, prefix)]
        return now_ns, splice


@quick
@given(latencies, st.floats(-0.5, 0.5))
def test_rtc_keeps_the_frozen_prefix_exactly(delays, phase):
    """What the policy was told will be executed is what is executed, from the observation to the splice."""
    world = Obedient(Schedule(strategy="rtc", margin=MARGIN))
    run(world, delays, phase=phase)
    for (observed_ns, prefix), (now_ns, _) in zip(world.prefixes[1:], world.published[1:], strict=True):
        assert prefix is not None and prefix.start == 0.0
        executed = min(prefix.end, (now_ns - observed_ns) * 1e-9 + MARGIN) - APART
        for t in np.linspace(0, max(executed, 0), 9):
            told = prefix.sample(t).positions[0]
            np.testing.assert_allclose(world.position(observed_ns + round(t * S)), told, atol=1e-6)


# Starvation


@given(
    st.floats(0.4, 4.0), st.floats(0.01, 4.0), st.lists(st.floats(0, 1), min_size=0, max_size=30), st.floats(0.0, 0.5)
)
def test_half_a_chunk_is_always_in_reserve(length, wanted, shares, margin):
    """d <= s <= H - d for every d up to half the horizon, whatever was measured before."""
    pacer = Pacer(wanted, margin, 0.25)
    for share in shares:
        pacer.measured(share * length / 2)
    refill = pacer.refill(length)
    assert 0.0 <= refill.horizon <= length / 2 + 1e-9 and length / 2 <= refill.threshold <= length
    assert refill.horizon + length / 2 <= length + 1e-9
    assert refill.horizon == pytest.approx(min(max(wanted, pacer.expected), length - refill.threshold))


def test_the_refill_adapts_to_what_inferences_take():
    pacer = Pacer(0.4, margin=0.1, blend=0.25)
    assert pacer.expected == pacer.longest == 0.0 and pacer.refill(1.6).horizon == 0.4
    for _ in range(20):
        pacer.measured(0.6)
    slow = pacer.refill(1.6)
    assert pacer.expected == 0.6 and slow.threshold == pytest.approx(0.95) and slow.horizon == pytest.approx(0.6)
    pacer.measured(0.9)
    assert pacer.refill(1.6).horizon == pytest.approx(0.35), "a spike is prepared for"
    for _ in range(20):
        pacer.measured(0.02)
    assert pacer.refill(1.6).horizon == 0.4, "and forgotten"


DELAYS = {
    "half the horizon": lambda rng: HORIZON / 2,
    "lognormal": lambda rng: rng.lognormal(np.log(0.2), 0.6),
    "spiky": lambda rng: rng.lognormal(np.log(0.08), 0.3) + (0.75 if rng.random() < 0.1 else 0.0),
}


def starve(strategy, delay, ticks, seed=7, **schedule):
    """Ticks without a set-point, of `ticks`: 15 Hz images whose stamps jitter, delays up to half the horizon."""
    rng = np.random.default_rng(seed)
    world = World(Schedule(strategy=strategy, margin=MARGIN, **schedule), noise=0.002, seed=seed)
    scheduler, starved, tick = world.scheduler, 0, 0
    frame, newest, used, next_frame, arrival = 0, -1, -1, T0, None
    while tick < ticks:
        tick_ns = T0 + tick * S // 100
        now = min(tick_ns, next_frame, arrival or tick_ns)
        if now == arrival:
            world.infer(used, (arrival - used) * 1e-9)
            world.published, arrival = world.published[-2:], None
        elif now == next_frame:
            newest, frame = now, frame + 1
            next_frame = T0 + round((frame / 15 + rng.uniform(0, 0.003)) * S)
        else:
            starved += bool(world.published) and scheduler.queue(now) <= 0
            scheduler.watch(now)
            tick += 1
        if arrival is None and newest > 0 and scheduler.due(now, newest):
            used = newest
            arrival = max(now, newest + round(min(HORIZON / 2, delay(rng)) * S))
            scheduler.begin(newest)
    assert (scheduler.starved > 0) == (starved > 0)
    return starved


@pytest.mark.parametrize("strategy", MOVING)
@pytest.mark.parametrize("delay", DELAYS)
def test_no_control_tick_starves(strategy, delay, request):
    """P4. 100 Hz ticks; 1e6 of them for each case with `--long`."""
    ticks = 1_000_000 if request.config.getoption("--long") else 11_200  # 9 cases: 1e5 in all
    assert starve(strategy, DELAYS[delay], ticks) == 0


def test_a_wish_for_longer_chunks_does_not_starve_either():
    assert starve("async", DELAYS["spiky"], 5_000, execution_horizon=1.5) == 0


def test_a_chunk_that_comes_at_the_last_moment_goes_on_smoothly():
    """Published less than the margin before the plan ends: the robot brakes for that moment, and nothing jumps."""
    world = World(Schedule(margin=MARGIN))
    world.infer(T0, 0.1)
    plan = world.published[0][1].chunk
    now_ns = plan.stamp_ns + round((plan.trajectory.end - 0.03) * S)
    observed = now_ns - S // 10
    now, splice = world.infer(observed, 0.1)
    assert now == now_ns and splice.base == "plan" and splice.step < 1e-9 and splice.excess <= 1.0
    for old, after, at in pairs(world):
        a, b = old.sample(at + 0.01), after.chunk.trajectory.sample(at + 0.01)
        np.testing.assert_allclose(b.positions, a.positions, atol=1e-8)
        np.testing.assert_allclose(b.velocities, a.velocities, atol=1e-6)


def test_beyond_the_horizon_there_is_nothing_to_execute():
    with pytest.raises(ChunkError, match="inference takes longer than the horizon"):
        World().infer(T0, 1.55)
