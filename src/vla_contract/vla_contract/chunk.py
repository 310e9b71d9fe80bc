"""A short plan of the robot's motion."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ChunkError
from vla_contract.interpolation import Trajectory


@dataclass(frozen=True)
class BaseMotion:
    """How a mobile base should drive meanwhile.

    Attributes:
        times: (K,) s since the chunk's stamp, strictly increasing, K >= 1.
        twists: (K, 3) at those times, in the base's own frame: forward x and sideways y [m/s], turning about z [rad/s].

    Raises:
        ChunkError: on wrong shapes, non-finite numbers or times that do not increase.
    """

    times: NDArray[np.float64]
    twists: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or not len(self.times) or self.twists.shape != (len(self.times), 3):
            raise ChunkError(
                f"base motion has times of shape {self.times.shape} and twists of shape {self.twists.shape}, "
                "expected (K,) and (K, 3) with K >= 1"
            )
        if not (np.isfinite(self.times).all() and np.isfinite(self.twists).all()):
            raise ChunkError("base motion holds numbers that are not finite")
        if (np.diff(self.times) <= 0).any():
            raise ChunkError("base motion has times that do not increase")

    def sample(self, time: float) -> NDArray[np.float64]:
        """(3,) at `time` s, linear between two points; the first holds before itself, nothing moves after the last."""
        if time > self.times[-1]:
            return np.zeros(3)
        return np.array([np.interp(time, self.times, column) for column in self.twists.T])


@dataclass(frozen=True)
class ActionChunk:
    """`K` points of `n` joints. Point k is meant for `stamp_ns + times[k]`.

    Attributes:
        stamp_ns: capture time of the newest observation that it was computed from [ns].
        joint_names: (n,), in the order of the columns.
        trajectory: times (K,) s since `stamp_ns`, positions, and optionally velocities and accelerations.
        sequence: +1 per inference.
        policy, policy_digest: who computed it; digest is the sha256 of the checkpoint, hex.
        task_id: UUID of the ExecuteTask goal.
        instruction: the sentence that it obeys.
        inference_time: s.
        confidence: [0, 1]; NaN: unknown.
        progress: [0, 1] of the task, as the policy sees it; NaN: unknown.
        base: of a mobile base; None: it stays, or there is none. Never a part of the arm's trajectory.
        shortened: why it ends before the policy wanted it to; empty: it does not.
    """

    stamp_ns: int
    joint_names: tuple[str, ...]
    trajectory: Trajectory
    sequence: int = 0
    policy: str = ""
    policy_digest: str = ""
    task_id: str = ""
    instruction: str = ""
    inference_time: float = 0.0
    confidence: float = float("nan")
    progress: float = float("nan")
    base: BaseMotion | None = None
    shortened: str = ""

    def with_trajectory(self, trajectory: Trajectory) -> "ActionChunk":
        """The same chunk with another motion."""
        return replace(self, trajectory=trajectory)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(K, n) rad or m."""
        return self.trajectory.positions
