"""A robot, a policy and a clock without a machine under them: the scheduler's surroundings in its tests."""

from contextlib import suppress

import numpy as np
from conftest import limit
from hypothesis import Phase

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError
from vla_contract.interpolation import Trajectory
from vla_contract.limits import JointLimits
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule

S = 10**9
T0 = 1_700_000_000 * S
JOINTS = ("j1", "j2", "grip")
# Runs of the whole scheduler take long to shrink; what fails says enough.
FAST = tuple(phase for phase in Phase if phase not in (Phase.shrink, Phase.explain))
NO_GRIPPER = np.array([0, 1])
FRAME = 1 / 30  # s between images


def limits():
    rows = [limit(-2.0, 2.0, 2.0, 10.0, 5000.0)] * 2 + [limit(0.0, 0.04, 0.15, 2.0, 200.0)]
    keys = ("min_position", "max_position", "max_velocity", "max_acceleration", "max_jerk")
    return JointLimits(JOINTS, *(np.array([row[key] for row in rows]) for key in keys))


def wish(t, phase=0.0, size=0.5, offset=0.0):
    """Where a policy wants the joints at time t (K,) s."""
    t = np.atleast_1d(t)
    grip = np.where(np.sin(2 * t + phase) > 0, 0.04, 0.0)
    return np.stack([offset + size * np.sin(1.2 * t + phase), offset + size * np.cos(0.9 * t + phase), grip], axis=1)


class World:
    """A policy with noise and a latency, a robot that follows the plan exactly, a clock that only tests move."""

    def __init__(self, schedule=Schedule(), noise=0.0, seed=0, horizon=16, dt=0.1, flicker=False, **wished):
        self.scheduler = ChunkScheduler(limits(), 2, schedule)
        self.rng = np.random.default_rng(seed)
        self.flicker, self.wished = flicker, wished
        self.noise, self.times = noise, dt * np.arange(1, horizon + 1)
        self.published = []
        self.start = np.clip(wish(0.0, **wished)[0], limits().min_position, limits().max_position)
        self.clock = T0  # of `drive`

    def position(self, now_ns):
        for published_ns, splice in reversed(self.published):
            t = (now_ns - splice.chunk.stamp_ns) * 1e-9
            if published_ns <= now_ns and t >= splice.chunk.trajectory.start:
                return splice.chunk.trajectory.sample(t).positions[0]
        return self.start

    def infer(self, observed_ns, latency, phase=0.0):
        self.scheduler.begin(observed_ns)
        now_ns = observed_ns + round(latency * S)
        points = wish((observed_ns - T0) * 1e-9 + self.times, phase, **self.wished)
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


def drive(world, latencies, strategies=(), phase=0.0):
    """As the node does it: images every FRAME s, an inference at the first one for which it is due, and no two at once.
    Chunks that come too late are dropped. `strategies[k]` holds from inference k on. Goes on where it ended."""
    camera = round(FRAME * S)
    for k, latency in enumerate(latencies):
        while not world.scheduler.due(world.clock, world.clock):
            world.clock += camera
        if k < len(strategies):
            world.scheduler.choose(strategies[k])
        with suppress(ChunkError):
            world.infer(world.clock, latency, phase)
        world.clock += -(-max(round(latency * S), camera) // camera) * camera
    return world
