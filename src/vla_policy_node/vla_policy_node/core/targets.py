"""What a chunk asks for: a smooth curve for the arm, set-points for the gripper."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError
from vla_contract.interpolation import Trajectory
from vla_contract.limits import JointLimits
from vla_policy_node.core.smoothing import smooth

Array = NDArray[np.float64]

# Share of a joint's range that targets keep from its ends: smoothing and fades swing a little beyond the points, and
# the filter refuses what swings beyond the position limit.
EDGE = 0.01
_SETTLE = 6  # steps that a motion gets to come to rest at a point
_REMEMBERED = 12  # chunks that an ensemble may hold
_MOST = 256  # points of a chunk that are looked at, evenly spread: the work grows with their third power
_CLOSEST = 1e-4  # s between two points: what is closer makes accelerations of rounding errors
_FADE = 0.3  # s, in which a chunk of an ensemble loses its weight toward its end


@dataclass(frozen=True)
class Target:
    """Times in s of the scheduler's clock.

    Attributes:
        curve: knots with velocities and accelerations; the gripper's column is not to be followed.
        goals: the points themselves; the gripper goes to the one that is due next.
        clipped: joints whose points were beyond where plans may go (for the gripper: beyond its position limits), and
            are held there.
    """

    curve: Trajectory
    goals: Trajectory
    clipped: tuple[str, ...]


class TargetMaker:
    """Makes targets for one robot.

    Args:
        acceleration_share: of the limits, that smoothing aims at.
        stiffness: least smoothing.
    """

    def __init__(self, limits: JointLimits, gripper: int | None, acceleration_share: float, stiffness: float):
        self._limits = limits
        room = EDGE * (limits.max_position - limits.min_position)
        self.low, self.high = limits.min_position + room, limits.max_position - room
        self._bound = acceleration_share * limits.max_acceleration
        self._arm = np.ones(len(limits), dtype=bool)
        if gripper is not None:
            self._bound[gripper], self._arm[gripper] = np.inf, False
        # A gripper is asked for its very ends, and kept 1 % from them: only what lies beyond them is worth a word.
        told = np.where(self._arm, room, 0.0)
        self._told = limits.min_position + told, limits.max_position - told
        self._stiffness = stiffness

    def make(self, chunk: ActionChunk, observed: Array, origin: float) -> Target:
        """`chunk` with its times counted from `origin`, after the observed joint positions (n,) there.

        Raises:
            ChunkError: when it is not for this robot, has fewer than two points, or two that are too close together.
        """
        if chunk.joint_names != self._limits.names:
            raise ChunkError(f"chunk is for joints {list(chunk.joint_names)}, the robot has {list(self._limits.names)}")
        every = -(-len(chunk.trajectory) // _MOST)  # the last one of every so many
        points, times = chunk.positions[every - 1 :: every], chunk.trajectory.times[every - 1 :: every]
        if len(times) < 2 or times[0] <= 0:
            why = f"{chunk.shortened}: " if chunk.shortened else ""
            raise ChunkError(
                f"{why}chunk has {len(times)} points from {times[0]:.3f} s on; expected >= 2 after its observation"
            )
        closest = float(np.diff(times).min())
        if closest < _CLOSEST:
            raise ChunkError(f"chunk has points {closest:.2g} s apart (< {_CLOSEST:g} s); leave out one of them")
        low, high = self._told
        beyond = np.maximum(low - points, points - high).max(axis=0) > 1e-6
        clipped = tuple(name for name, out in zip(self._limits.names, beyond, strict=True) if out)
        wish = np.concatenate([observed[None], np.clip(points, self.low, self.high)])
        return self._target(np.concatenate([[0.0], times]), wish, origin, clipped)

    def hold_after(self, target: Target, duration: float) -> Target:
        """The first `duration` s of `target`, then to rest at the point that it has reached."""
        goals = target.goals
        last = max(2, int(np.searchsorted(goals.times - goals.start, duration + 1e-6, side="right")) - 1)
        step = float(np.diff(goals.times[: last + 1]).mean())
        times = np.append(goals.times[: last + 1], goals.times[last] + step * np.arange(1, _SETTLE + 1))
        points = np.append(goals.positions[: last + 1], np.repeat(goals.positions[[last]], _SETTLE, axis=0), axis=0)
        held = self._target(times - goals.start, points, goals.start, target.clipped)
        curve = held.curve
        assert curve.velocities is not None and curve.accelerations is not None
        curve.velocities[-1] = curve.accelerations[-1] = 0.0
        return Target(
            Trajectory(curve.times, curve.positions, curve.velocities, curve.accelerations), held.goals, held.clipped
        )

    def average(self, newest: Target, older: "deque[Target]", decay: float) -> Target:
        """`newest` averaged with the older chunks that speak of the same time.

        Weights as in ACT (Zhao et al., arXiv 2304.13705): exp(-decay * i), the oldest has i = 0. Toward its end a chunk
        loses its weight, so that its leaving is not felt. The gripper's set-points are averaged like the arm's points:
        a gripper that obeyed the newest chunk alone would close before the averaged arm is there.
        """
        times = newest.goals.times
        chunks = [*older, newest]
        weights = np.exp(-decay * np.arange(len(chunks)))[:, None] * np.ones(len(times))
        for k, target in enumerate(older):
            weights[k] *= np.clip((target.goals.end - times) / _FADE, 0.0, 1.0)
        wishes = [self._wish(target, np.minimum(times, target.goals.end)) for target in older]
        points = (weights[:, :, None] * np.stack([*wishes, newest.goals.positions])).sum(axis=0)
        points /= weights.sum(axis=0)[:, None]
        return self._target(times - newest.goals.start, points, newest.goals.start, newest.clipped)

    def _wish(self, target: Target, times: Array) -> Array:
        """(m, n): where `target` wants the joints at `times`."""
        points = target.goals.sample(times).positions
        points[:, self._arm] = target.curve.sample(times).positions[:, self._arm]
        return points

    def _target(self, times: Array, wish: Array, origin: float, clipped: tuple[str, ...]) -> Target:
        # The operators of the smoother are cached by the grid: give it the same one every time.
        curve = smooth(np.round(times, 9), wish, self._bound, self._stiffness, origin)
        return Target(curve, Trajectory(origin + times, wish), clipped)


class Ensemble:
    """The chunks of the last moments, for temporal ensembling."""

    def __init__(self, maker: TargetMaker, decay: float):
        self._maker, self._decay = maker, decay
        self._older: deque[Target] = deque(maxlen=_REMEMBERED)

    def clear(self) -> None:
        """The robot went elsewhere: what was wished for does not count any more."""
        self._older.clear()

    def add(self, newest: Target, now: float) -> Target:
        """The average of `newest` and those that still reach beyond `now` s."""
        while self._older and self._older[0].goals.end <= now:
            self._older.popleft()
        averaged = self._maker.average(newest, self._older, self._decay)
        self._older.append(newest)
        return averaged
