"""Laws of the chunk scheduler, on a virtual clock."""

import numpy as np
import pytest
from conftest import limit
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, ConfigError
from vla_contract.interpolation import Trajectory
from vla_contract.limits import JointLimits
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule
from vla_policy_node.core.smoothing import Pace, follow_setpoint, smooth
from vla_policy_node.core.splicing import APART, Bounds, portion

S = 10**9
T0 = 1_700_000_000 * S
JOINTS = ("j1", "j2", "grip")
# Runs of the whole scheduler take long to shrink; what fails says enough.
FAST = tuple(phase for phase in Phase if phase not in (Phase.shrink, Phase.explain))
NO_GRIPPER = np.array([0, 1])


def limits():
    rows = [limit(-2.0, 2.0, 2.0, 10.0, 5000.0)] * 2 + [limit(0.0, 0.04, 0.15, 2.0, 200.0)]
    keys = ("min_position", "max_position", "max_velocity", "max_acceleration", "max_jerk")
    return JointLimits(JOINTS, *(np.array([row[key] for row in rows]) for key in keys))


def wish(t, phase=0.0, size=0.5):
    """Where a policy wants the joints at time t (K,) s."""
    t = np.atleast_1d(t)
    grip = np.where(np.sin(2 * t + phase) > 0, 0.04, 0.0)
    return np.stack([size * np.sin(1.2 * t + phase), size * np.cos(0.9 * t + phase), grip], axis=1)


class World:
    """A policy with noise and a latency, a robot that follows the plan exactly, a clock that only tests move."""

    def __init__(self, schedule=Schedule(), noise=0.0, seed=0, horizon=16, dt=0.1, flicker=False):
        self.scheduler = ChunkScheduler(limits(), 2, schedule)
        self.rng = np.random.default_rng(seed)
        self.flicker = flicker
        self.noise, self.times = noise, dt * np.arange(1, horizon + 1)
        self.published = []
        self.start = wish(0.0)[0]

    def position(self, now_ns):
        past = [p for p in self.published if p[0] <= now_ns]
        if not past:
            return self.start
        published_ns, splice = past[-1]
        t = (now_ns - splice.chunk.stamp_ns) * 1e-9
        return splice.chunk.trajectory.sample(t).positions[0]

    def infer(self, observed_ns, latency, phase=0.0):
        self.scheduler.begin(observed_ns)
        now_ns = observed_ns + round(latency * S)
        points = wish((observed_ns - T0) * 1e-9 + self.times, phase)
        if self.flicker:
            points[:, 2] = 0.04 * self.rng.random(len(points)).round(int(self.rng.integers(3)))
        points[:, :2] += self.rng.normal(0, self.noise, (len(points), 2)) if self.noise else 0.0
        chunk = ActionChunk(observed_ns, JOINTS, Trajectory(self.times, points))
        splice = self.scheduler.splice(chunk, self.position(observed_ns), now_ns, Reality(self.position(now_ns)))
        self.published.append((now_ns, splice))
        return now_ns, splice


def run(world, latencies, period=0.4, phase=0.0):
    observed = T0
    for latency in latencies:
        now, _ = world.infer(observed, latency, phase)
        observed = max(observed + round(period * S), now)
    return world


@settings(deadline=None, max_examples=40, phases=FAST, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.floats(0.0, 0.6), min_size=2, max_size=8),
    st.floats(0.0, 0.01),
    st.floats(-0.5, 0.5),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from(["async", "ensemble", "rtc"]),
)
def test_published_motion_is_one_smooth_curve(latencies, noise, phase, seed, flicker, strategy):
    world = run(World(Schedule(strategy=strategy), noise, seed, flicker=flicker), latencies, phase=phase)
    bounds = limits()
    for (_, before), (now_ns, after) in zip(world.published, world.published[1:], strict=False):
        shift = (after.chunk.stamp_ns - before.chunk.stamp_ns) * 1e-9
        old, new = before.chunk.trajectory, after.chunk.trajectory
        now = (now_ns - after.chunk.stamp_ns) * 1e-9
        # Nothing of it has passed, and it begins at once: no gap while inference is shorter than the horizon.
        assert now - APART <= new.start <= now + 2 * APART and new.start >= 0
        assert old.end - shift > new.start
        # The frozen prefix is the old plan, exactly; the filter compares it to 1e-7, 1e-5 and 1e-3.
        frozen = np.linspace(new.start + 1e-6, now + 0.1 - APART, 30)
        a, b = old.sample(frozen + shift), new.sample(frozen)
        np.testing.assert_allclose(b.positions, a.positions, atol=1e-8)
        np.testing.assert_allclose(b.velocities, a.velocities, atol=1e-6)
        np.testing.assert_allclose(b.accelerations, a.accelerations, atol=1e-4)
        assert after.step < 1e-9 and after.base == "plan"
    for _, splice in world.published:
        curve = splice.chunk.trajectory
        states = curve.sample(np.linspace(curve.start, curve.end, 1000))
        assert (np.abs(states.velocities) <= bounds.max_velocity).all()
        assert (np.abs(states.accelerations) <= bounds.max_acceleration).all()
        assert (np.abs(states.jerks) <= bounds.max_jerk).all()
        assert (states.positions >= bounds.min_position - 1e-6).all()
        assert (states.positions <= bounds.max_position + 1e-6).all()


def test_follows_what_the_policy_wants():
    world = run(World(noise=0.003), [0.1] * 8)
    for _, splice in world.published[3:]:
        curve = splice.chunk.trajectory
        times = np.linspace(curve.start + 0.5, curve.end - 0.2, 20)
        wanted = wish((splice.chunk.stamp_ns - T0) * 1e-9 + times)
        assert np.abs(curve.sample(times).positions - wanted)[:, NO_GRIPPER].max() < 0.012
        assert splice.stretch == 1.0 and splice.excess <= 1.0


def test_delay_changes_nothing_once_the_policy_agrees_with_itself():
    """With a policy whose chunks agree, the motion is the same whatever the latency."""
    fast, slow = run(World(), [0.0] * 8), run(World(), [0.3] * 8)
    t = T0 + round(3.0 * S)
    np.testing.assert_allclose(fast.position(t)[:2], slow.position(t)[:2], atol=5e-3)


def test_a_chunk_that_has_passed_is_refused():
    world = World()
    with pytest.raises(ChunkError, match="inference takes longer than the horizon"):
        world.infer(T0, 1.55)


@pytest.mark.parametrize(
    ("names", "times", "words"),
    [
        (("j2", "j1", "grip"), [0.1, 0.2], "chunk is for joints"),
        (JOINTS, [0.0, 0.1], "expected >= 2 after its observation"),
        (JOINTS, [0.1], "chunk has 1 points"),
    ],
)
def test_chunks_of_another_robot_or_time(names, times, words):
    chunk = ActionChunk(T0, names, Trajectory(times, np.zeros((len(times), 3))))
    with pytest.raises(ChunkError, match=words):
        ChunkScheduler(limits(), 2).splice(chunk, np.zeros(3), T0, Reality(np.zeros(3)))


def test_targets_beyond_the_limits_are_held_there_and_named():
    world = World(horizon=40)
    points = wish(world.times)
    points[:, 0] = np.linspace(0.1, 3.5, 40)
    chunk = ActionChunk(T0, JOINTS, Trajectory(world.times, points))
    splice = world.scheduler.splice(chunk, world.start, T0, Reality(world.start))
    assert splice.clipped == ("j1",)
    states = splice.chunk.trajectory.sample(np.linspace(0, 4, 1000))
    assert states.positions[:, 0].max() <= 2.0 and splice.excess <= 1.0


def test_a_policy_in_too_much_of_a_hurry_is_slowed():
    world = World()
    points = np.stack([np.minimum(3.0 * world.times, 1.8), 0 * world.times, 0 * world.times + 0.04], axis=1)
    chunk = ActionChunk(T0, JOINTS, Trajectory(world.times, points))
    at_rest = np.array([0.0, 0.0, 0.04])
    splice = world.scheduler.splice(chunk, at_rest, T0 + round(0.1 * S), Reality(at_rest))
    assert splice.stretch > 1.0 and splice.excess <= 1.0
    assert np.abs(splice.chunk.trajectory.velocities[:, 0]).max() <= 0.8 * 2.0


def test_when_the_next_inference_starts():
    world = World(Schedule(execution_horizon=0.4))
    scheduler = world.scheduler
    assert scheduler.due(T0, T0) and not scheduler.due(T0, -1)
    now, _ = world.infer(T0, 0.1)
    assert not scheduler.due(now, T0), "the same observation again"
    assert not scheduler.due(now, T0 + round(0.333 * S))
    assert scheduler.due(now, T0 + round(0.3996 * S)), "camera stamps jitter"
    late = T0 + round(1.3 * S)
    assert scheduler.due(late, T0 + 1), "the plan is about to end"


def test_starvation_is_counted_once_for_each_gap():
    world = World()
    now, splice = world.infer(T0, 0.1)
    assert not world.scheduler.watch(now)
    end = splice.chunk.stamp_ns + round((splice.chunk.trajectory.end + 0.01) * S)
    assert world.scheduler.watch(end) and not world.scheduler.watch(end + S) and world.scheduler.starved == 1
    assert world.scheduler.queue(end) < 0 < world.scheduler.queue(now)
    world.infer(end, 0.1)
    assert not world.scheduler.watch(end + round(0.1 * S))
    assert world.scheduler.watch(end + 5 * S) and world.scheduler.starved == 2


def test_starts_again_from_rest_after_a_gap():
    world = World()
    world.infer(T0, 0.1)
    still = np.array([0.3, 0.1, 0.02])
    late = T0 + 10 * S
    chunk = ActionChunk(late, JOINTS, Trajectory(world.times, wish(world.times)))
    splice = world.scheduler.splice(chunk, still, late + round(0.1 * S), Reality(still))
    assert splice.base == "rest"
    np.testing.assert_allclose(splice.chunk.positions[0], still)
    assert np.abs(splice.chunk.trajectory.velocities[0]).max() == 0


class TestReality:
    """What the controller plays is the truth; the plan is only what was hoped for."""

    def held(self, world, at, positions, reality):
        world.scheduler.begin(at)
        chunk = ActionChunk(at, JOINTS, Trajectory(world.times, wish(world.times)))
        return world.scheduler.splice(chunk, positions, at + round(0.1 * S), reality)

    def test_the_command_is_the_plan(self):
        world = World()
        now, splice = world.infer(T0, 0.1)
        command = splice.chunk.trajectory
        at = T0 + round(0.5 * S)
        here = world.position(at + round(0.1 * S))
        assert self.held(world, at, here, Reality(here, command, splice.chunk.stamp_ns)).base == "plan"

    def test_the_filter_holds(self):
        world = World()
        world.infer(T0, 0.1)
        at = T0 + round(0.5 * S)
        rest = np.array([0.1, 0.45, 0.02])
        stop = Trajectory([0.0, 0.05], np.stack([rest, rest]), np.zeros((2, 3)), np.zeros((2, 3)))
        measured = rest + [0.01, 0, 0.015]  # the gripper holds something
        splice = self.held(world, at, measured, Reality(measured, stop, T0 + round(0.45 * S)))
        assert splice.base == "command"
        np.testing.assert_allclose(splice.chunk.positions[0], rest)

    def test_the_robot_was_put_elsewhere(self):
        world = World()
        now, splice = world.infer(T0, 0.1)
        at = T0 + round(0.5 * S)
        elsewhere = np.array([-1.0, 0.0, 0.04])
        moved = self.held(world, at, elsewhere, Reality(elsewhere, splice.chunk.trajectory, splice.chunk.stamp_ns))
        assert moved.base == "rest"
        np.testing.assert_allclose(moved.chunk.positions[0], elsewhere)

    def test_a_slowed_command_is_continued_where_it_is(self):
        world = World()
        now, splice = world.infer(T0, 0.1)
        fast = splice.chunk.trajectory
        times = np.linspace(fast.start, fast.end, 60)
        samples = fast.sample(times)
        slow = Trajectory(fast.start + 2 * (times - fast.start), samples.positions, samples.velocities / 2,
                          samples.accelerations / 4)  # fmt: skip
        at = T0 + round(0.5 * S)
        t = (at + round(0.1 * S) - splice.chunk.stamp_ns) * 1e-9
        here = slow.sample(t)
        moved = self.held(world, at, here.positions[0], Reality(here.positions[0], slow, splice.chunk.stamp_ns))
        assert moved.base == "command"
        first = moved.chunk.trajectory.sample(moved.chunk.trajectory.start)
        np.testing.assert_allclose(first.positions, here.positions, atol=1e-6)
        np.testing.assert_allclose(first.velocities, here.velocities, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "until"), [("async", 100_000), ("ensemble", 5_000), ("rtc", 5_000)])
def test_no_control_tick_without_a_setpoint(strategy, until):
    """10 Hz images, inferences that jitter, with spikes up to half the horizon, ticks of 10 ms."""
    rng = np.random.default_rng(7)
    world = World(Schedule(strategy=strategy), noise=0.002)
    ticks, now, observed, ends = 0, T0, T0, T0 + S
    while ticks < until:
        latency = min(0.8, rng.lognormal(np.log(0.12), 0.5) + (0.6 if rng.random() < 0.05 else 0.0))
        if ticks and not world.scheduler.due(now, observed):
            observed += S // 10
            now = max(now, observed)
            continue
        published, splice = world.infer(observed, latency)
        curve = splice.chunk.trajectory
        assert ends >= published, "the old plan ended before the new chunk came"
        ends = splice.chunk.stamp_ns + round(curve.end * S)
        world.published = world.published[-2:]
        ticks += (published - now) // (S // 100) + 1
        now = published
        observed = max(observed + S // 10, (now // (S // 10)) * (S // 10))
    assert world.scheduler.starved == 0


class TestStrategies:
    def motion(self, strategy, latency=0.0, until=2.0):
        world = run(World(Schedule(strategy=strategy)), [latency] * 8)
        return np.stack([world.position(T0 + round(t * S)) for t in np.arange(0.5, until, 0.05)])

    def test_without_delay_a_consistent_policy_moves_the_same_whatever_the_strategy(self):
        expected = self.motion("async")
        for strategy in ("ensemble", "rtc"):
            np.testing.assert_allclose(self.motion(strategy)[:, :2], expected[:, :2], atol=4e-3)
            np.testing.assert_allclose(self.motion(strategy)[:, 2], expected[:, 2], atol=4e-3)

    def test_an_ensemble_is_calmer(self):
        def mismatch(strategy):
            world = World(Schedule(strategy=strategy, execution_horizon=0.1), noise=0.01, seed=1)
            run(world, [0.1] * 20, period=0.1)
            return np.mean([splice.mismatch for _, splice in world.published[8:]])

        assert mismatch("ensemble") < 0.7 * mismatch("async")

    def test_sync_rests_observes_infers(self):
        schedule = Schedule(strategy="sync", execution_horizon=0.5)
        world = World(schedule)
        scheduler = world.scheduler
        observed, total = T0, 0
        for _ in range(4):
            now, splice = world.infer(observed, 0.3)
            curve = splice.chunk.trajectory
            assert np.abs(curve.velocities[-1])[:2].max() < 1e-12 and abs(curve.velocities[-1, 2]) < 1e-2
            assert splice.step < 1e-9
            # From rest at the observation it plays the chunk from its beginning, whatever the inference took.
            end = curve.sample(curve.end).positions[0]
            wanted = wish((observed - T0) * 1e-9 + 0.5)[0]
            assert np.abs(end - wanted)[:2].max() < 0.03
            assert 0.5 < curve.end - (curve.start + 0.1) < 2.0
            ended = splice.chunk.stamp_ns + round(curve.end * S)
            assert not scheduler.due(ended, ended - S // 100) and scheduler.due(ended, ended + 1)
            assert not scheduler.watch(ended + S)
            observed, total = ended + S // 20, total + 1
        assert scheduler.starved == 0

    def test_only_real_time_chunking_tells_the_policy(self):
        for strategy in ("sync", "async", "ensemble", "rtc"):
            world = World(Schedule(strategy=strategy))
            now, _ = world.infer(T0, 0.1)
            assert (world.scheduler.prefix(now) is not None) == (strategy == "rtc")

    def test_strategies_change_while_running(self):
        world = run(World(), [0.1] * 2)
        world.scheduler.choose("ensemble")
        world.infer(world.published[-1][0] + S // 5, 0.1)
        with pytest.raises(ConfigError, match="unknown strategy 'rtx'; known: async, ensemble, rtc, sync"):
            world.scheduler.choose("rtx")


def test_the_prefix_is_what_will_be_executed():
    world = run(World(Schedule(strategy="rtc")), [0.1] * 3)
    observed = world.published[-1][0] + round(0.2 * S)
    prefix = world.scheduler.prefix(observed)
    assert prefix.start == 0.0 and prefix.end == pytest.approx(world.scheduler.latency + 0.1, abs=1e-6)
    for t in np.linspace(0, prefix.end, 7):
        np.testing.assert_allclose(prefix.sample(t).positions[0], world.position(observed + round(t * S)), atol=1e-6)
    assert ChunkScheduler(limits(), 2).prefix(T0) is None


def test_stop_comes_to_rest_inside_the_bounds():
    world = run(World(), [0.1] * 4)
    now = world.published[-1][0] + round(0.15 * S)
    motion = world.scheduler.stop(now, Reality(world.position(now)))
    assert motion is not None and motion.end - motion.start < 1.0
    np.testing.assert_array_equal(motion.velocities[-1], 0)
    states = motion.sample(np.linspace(motion.start, motion.end, 500))
    assert (np.abs(states.accelerations) <= limits().max_acceleration).all()
    observed = world.scheduler.observed_ns
    np.testing.assert_allclose(motion.positions[0], world.position(observed + round(motion.start * S)), atol=1e-6)
    world.scheduler.reset()
    assert world.scheduler.stop(now, Reality(world.position(now))) is None


@given(st.integers(2, 30), st.integers(0, 10_000), st.floats(0.0, 0.05))
def test_smoothing_keeps_what_is_smooth(points, seed, noise):
    """A straight line passes unchanged, constants stay constants, and noise does not make acceleration."""
    times = 0.1 * np.arange(points)
    line = np.stack([0.5 * times, np.full(points, 0.3)], axis=1)
    curve = smooth(times, line, np.array([5.0, 5.0]))
    np.testing.assert_allclose(curve.positions, line, atol=1e-9)
    np.testing.assert_allclose(curve.velocities, np.broadcast_to([0.5, 0.0], line.shape), atol=1e-7)
    noisy = line + np.random.default_rng(seed).normal(0, noise, line.shape)
    rough = smooth(times, noisy, np.array([np.inf, np.inf]), stiffness=0.0)
    calm = smooth(times, noisy, np.array([5.0, 5.0]))
    assert np.abs(calm.accelerations).max() <= np.abs(rough.accelerations).max() + 1e-9


def test_smoothed_curve_is_a_cubic_spline():
    times = np.array([0.0, 0.07, 0.2, 0.31, 0.5])
    points = np.random.default_rng(1).normal(0, 0.1, (5, 2))
    from scipy.interpolate import CubicSpline

    expected = CubicSpline(times, points, bc_type="natural")
    curve = smooth(times, points, np.full(2, np.inf), stiffness=0.0)
    grid = np.linspace(0, 0.5, 100)
    np.testing.assert_allclose(curve.sample(grid).positions, expected(grid), atol=1e-10)
    np.testing.assert_allclose(curve.sample(grid).accelerations, expected(grid, 2), atol=1e-8)


PACE = Pace(velocity=0.12, acceleration=0.8, jerk=40.0)


@given(st.lists(st.floats(0.0004, 0.0396), min_size=1, max_size=6), st.integers(1, 60), st.floats(0.0004, 0.0396))
def test_a_gripper_never_overshoots_nor_looks_ahead(goals, hold, position):
    steps = np.repeat(goals, hold)
    p, v, a = follow_setpoint((position, 0.0, 0.0), steps, 0.01, PACE)
    assert np.abs(v).max() <= 0.121 and np.abs(a).max() <= 0.8 + 1e-9 and np.abs(np.diff(a)).max() <= 0.4 + 1e-9
    same, _, _ = follow_setpoint((position, 0.0, 0.0), np.append(steps, 0.0), 0.01, PACE)
    np.testing.assert_array_equal(same[: len(p)], p)
    assert p.min() >= 0.0 and p.max() <= 0.04
    if len(goals) == 1:
        assert p.max() <= max(goals[0], position) + 2e-4 and p.min() >= min(goals[0], position) - 2e-4


def test_a_gripper_arrives():
    p, v, _ = follow_setpoint((0.0396, 0.0, 0.0), np.full(100, 0.0004), 0.01, PACE)
    assert np.argmax(p < 0.02) * 0.01 < 0.3 and p[-1] == pytest.approx(0.0004, abs=2e-4) and abs(v[-1]) < 1e-3


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_portion_is_the_same_curve(a, b):
    start, end = sorted((a, b))
    rng = np.random.default_rng(3)
    curve = Trajectory(np.linspace(0, 1, 6), *(rng.normal(size=(6, 2)) for _ in range(3)))
    part = portion(curve, start, end)
    grid = np.linspace(start, end, 20)
    if len(part) > 1:
        np.testing.assert_allclose(part.sample(grid).positions, curve.sample(grid).positions, atol=1e-7)


def test_bounds_are_checked_between_the_knots():
    bounds = Bounds(np.array([1.0]), np.array([100.0]), np.array([1e6]))
    zero = np.zeros((2, 1))
    # At rest at both ends; in the middle it moves at 15/8 of the mean speed.
    curve = Trajectory([0.0, 1.0], [[0.0], [0.8]], zero, zero)
    assert bounds.excess(curve) == pytest.approx(1.5, rel=1e-6)
