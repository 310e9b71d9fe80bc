"""A short plan of the robot's motion."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_contract.interpolation import Trajectory


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

    def with_trajectory(self, trajectory: Trajectory) -> "ActionChunk":
        """The same chunk with another motion."""
        return replace(self, trajectory=trajectory)

    @property
    def positions(self) -> NDArray[np.float64]:
        """(K, n) rad or m."""
        return self.trajectory.positions
