"""The chunk scheduler, case by case, on a virtual clock. Its laws: test_scheduling_laws.py."""

import numpy as np
import pytest
from worlds import JOINTS, NO_GRIPPER, T0, S, World, limits, run, wish

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, ConfigError
from vla_contract.interpolation import Trajectory
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule


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


@pytest.mark.parametrize(("asked", "named"), [(1.955, ()), (-1.955, ()), (1.965, ("j1",)), (-1.999, ("j1",))])
def test_targets_in_the_margin_inside_a_limit_are_held_at_it_and_named(asked, named):
    """Plans keep 1 % of the joint's range from its ends: of -2 to 2 rad, 0.04 rad."""
    world = World(horizon=40)
    points = wish(world.times)
    points[:, 0] = asked * np.linspace(0.1, 1.0, 40)
    points[:, 2] = 0.0  # a gripper is asked for its very ends, always
    chunk = ActionChunk(T0, JOINTS, Trajectory(world.times, points))
    splice = world.scheduler.splice(chunk, world.start, T0, Reality(world.start))
    assert splice.clipped == named
    assert abs(splice.chunk.positions[-1, 0]) == pytest.approx(min(abs(asked), 1.96), abs=0.01)


def test_a_gripper_beyond_its_limits_is_named():
    world = World()
    points = wish(world.times)
    points[:, 2] = 0.05
    chunk = ActionChunk(T0, JOINTS, Trajectory(world.times, points))
    assert world.scheduler.splice(chunk, world.start, T0, Reality(world.start)).clipped == ("grip",)


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


class TestStrategies:
    def test_an_ensemble_is_calmer(self):
        def mismatch(strategy):
            world = World(Schedule(strategy=strategy, execution_horizon=0.1, ensemble_decay=0.01), noise=0.01, seed=1)
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

    def test_a_change_to_sync_in_mid_motion_drops_what_has_passed(self):
        """Only who has rested since the observation may play a chunk from its beginning."""
        world = run(World(), [0.3] * 4)
        world.scheduler.choose("sync")
        observed = world.published[-1][0]
        _, splice = world.infer(observed, 0.3)
        curve = splice.chunk.trajectory
        times = np.arange(0.3 + 0.1 + 0.3, curve.end - 0.65, 0.05)
        wanted = wish((observed - T0) * 1e-9 + times)
        assert len(times) and np.abs(curve.sample(times).positions - wanted)[:, NO_GRIPPER].max() < 0.04
        assert splice.base == "plan" and np.abs(curve.velocities[-1])[:2].max() < 1e-12
        ended = splice.chunk.stamp_ns + round(curve.end * S)
        assert not world.scheduler.due(ended, ended - 1) and world.scheduler.due(ended, ended + 1)

    def test_only_real_time_chunking_tells_the_policy(self):
        for strategy in ("sync", "async", "ensemble", "rtc"):
            world = World(Schedule(strategy=strategy))
            now, _ = world.infer(T0, 0.1)
            assert (world.scheduler.prefix(now, world.position(now)) is not None) == (strategy == "rtc")

    def test_an_ensemble_that_begins_again_forgets_the_old_one(self):
        world = run(World(Schedule(strategy="ensemble")), [0.1] * 3)
        world.scheduler.choose("async")
        world.scheduler.choose("ensemble")
        observed = world.published[-1][0] + S // 5
        _, splice = world.infer(observed, 0.1, phase=0.3)
        curve = splice.chunk.trajectory
        times = np.arange(0.7, 1.2, 0.05)
        wanted = wish((observed - T0) * 1e-9 + times, 0.3)
        assert np.abs(curve.sample(times).positions - wanted)[:, NO_GRIPPER].max() < 0.02

    def test_strategies_change_while_running(self):
        world = run(World(), [0.1] * 2)
        world.scheduler.choose("ensemble")
        world.infer(world.published[-1][0] + S // 5, 0.1)
        with pytest.raises(ConfigError, match="unknown strategy 'rtx'; known: async, ensemble, rtc, sync"):
            world.scheduler.choose("rtx")


def test_the_prefix_is_what_will_be_executed():
    world = run(World(Schedule(strategy="rtc")), [0.1] * 3)
    observed = world.published[-1][0] + round(0.2 * S)
    prefix = world.scheduler.prefix(observed, world.position(observed))
    assert prefix.start == 0.0 and prefix.end == pytest.approx(world.scheduler.latency + 0.1, abs=1e-6)
    for t in np.linspace(0, prefix.end, 7):
        np.testing.assert_allclose(prefix.sample(t).positions[0], world.position(observed + round(t * S)), atol=1e-6)
    assert ChunkScheduler(limits(), 2).prefix(T0, world.position(T0)) is None


def test_the_step_is_what_the_controller_is_asked_to_leap():
    world = run(World(), [0.1] * 3)
    observed = world.published[-1][0] + S // 5
    now, played = observed + S // 10, world.published[-1][1].chunk
    off = played.trajectory.positions + [5e-4, 0.0, 0.0]
    command = Trajectory(played.trajectory.times, off, played.trajectory.velocities, played.trajectory.accelerations)
    chunk = ActionChunk(observed, JOINTS, Trajectory(world.times, wish((observed - T0) * 1e-9 + world.times)))
    world.scheduler.begin(observed)
    reality = Reality(world.position(now), command, played.stamp_ns)
    splice = world.scheduler.splice(chunk, world.position(observed), now, reality)
    assert splice.base == "plan" and splice.step == pytest.approx(5e-4, abs=1e-9)


def test_of_many_points_some_are_looked_at_from_the_first_second_to_the_last():
    times = 1e-3 * np.arange(1, 5001)
    chunk = ActionChunk(T0, JOINTS, Trajectory(times, wish(times)))
    scheduler = ChunkScheduler(limits(), 2)
    scheduler.begin(T0)
    start = wish(0.0)[0]
    splice = scheduler.splice(chunk, start, T0 + S // 10, Reality(start))
    assert splice.chunk.trajectory.end == pytest.approx(5.0, abs=0.03)
    wanted = wish(np.array([1.0, 4.0]))
    assert np.abs(splice.chunk.trajectory.sample([1.0, 4.0]).positions - wanted)[:, NO_GRIPPER].max() < 0.01


def test_points_at_one_time_are_refused():
    times = np.array([0.1, 0.2, 0.2 + 1e-13, 0.3, 0.8])
    scheduler = ChunkScheduler(limits(), 2)
    scheduler.begin(T0)
    chunk = ActionChunk(T0, JOINTS, Trajectory(times, wish(times)))
    with pytest.raises(ChunkError, match="points 1e-13 s apart"):
        scheduler.splice(chunk, wish(0.0)[0], T0 + S // 10, Reality(wish(0.0)[0]))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_chunk_that_was_cut_short_says_by_what(rows):
    times = 0.1 * np.arange(1, rows + 1)
    chunk = ActionChunk(T0, JOINTS, Trajectory(times, wish(times)), shortened="point 3 is out of reach")
    scheduler = ChunkScheduler(limits(), 2)
    scheduler.begin(T0)
    with pytest.raises(ChunkError, match="point 3 is out of reach"):
        scheduler.splice(chunk, wish(0.0)[0], T0 + S // 10, Reality(wish(0.0)[0]))


def test_a_robot_that_was_stopped_executes_no_prefix():
    world = run(World(Schedule(strategy="rtc")), [0.1] * 3)
    observed = world.published[-1][0] + round(0.2 * S)
    assert world.scheduler.prefix(observed, world.position(observed) + [0.3, 0.0, 0.0]) is None


@pytest.mark.parametrize("joint", [0, 2])
def test_what_stands_now_and_would_move_later_is_stopped_too(joint):
    start = wish(0.0)[0]
    points = np.tile(start, (16, 1))
    points[8:, joint] += np.linspace(-0.03, -0.3, 8) if joint == 0 else -0.04
    points[:, 2] = np.clip(points[:, 2], 0.0, 0.04)
    scheduler = ChunkScheduler(limits(), 2)
    scheduler.begin(T0)
    times = 0.1 * np.arange(1, 17)
    played = scheduler.splice(ActionChunk(T0, JOINTS, Trajectory(times, points)), start, T0 + S // 10, Reality(start))
    where = played.chunk.trajectory.sample(0.3).positions[0]
    stop = scheduler.stop(T0 + round(0.3 * S), Reality(where, played.chunk.trajectory, T0))
    assert stop is not None and np.abs(stop.positions - where).max() < 1e-3
    assert scheduler.stop(T0 + round(0.5 * S), Reality(where, stop, T0)) is None, "nothing is left to be stopped"


def test_a_robot_that_lags_behind_what_it_was_told_is_stopped_too():
    world = run(World(), [0.1] * 4)
    now = world.published[-1][0] + round(0.3 * S)
    played = world.published[-1][1].chunk
    behind = Reality(world.position(now) - [0.2, 0.0, 0.0], played.trajectory, played.stamp_ns)
    stop = world.scheduler.stop(now, behind)
    assert stop is not None and np.abs(stop.velocities[-1]).max() < 1e-9
    begins = played.trajectory.sample(stop.start + (world.scheduler.observed_ns - played.stamp_ns) * 1e-9)
    assert np.abs(stop.positions[0] - begins.positions[0]).max() < 1e-3, "it brakes along what is played"


def test_a_robot_that_stands_elsewhere_and_was_told_nothing_stays_there():
    world = run(World(), [0.1] * 4)
    now = world.published[-1][0] + round(0.3 * S)
    elsewhere = world.position(now) - [0.2, 0.0, 0.0]
    stop = world.scheduler.stop(now, Reality(elsewhere))
    assert stop is not None and np.abs(stop.positions - elsewhere).max() < 1e-9


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
