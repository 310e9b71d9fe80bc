"""What happened in an episode, as numbers: enough to judge it, to draw it, and to film it afterwards."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERDICTS = ("accepted", "slowed", "trimmed", "refused", "stopped")


@dataclass
class Episode:
    """A growing record of one episode. Times are simulated nanoseconds.

    Attributes:
        joint_times, joint_positions: (N,), (N, n) rad or m, in the order of the robot file.
        scene_times: (M,); poses: name -> (M, 7) position m and quaternion x, y, z, w in the base frame.
        decisions: verdict -> count.
        reasons: (verdict, reason, subject) -> count, for every decision that carries a reason.
    """

    joints: tuple[str, ...]
    joint_times: list[int] = field(default_factory=list)
    joint_positions: list[list[float]] = field(default_factory=list)
    scene_times: list[int] = field(default_factory=list)
    poses: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    decisions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    clearances: list[float] = field(default_factory=list)
    tracking_errors: list[float] = field(default_factory=list)
    inference_times: list[float] = field(default_factory=list)
    chunk_stamps: list[float] = field(default_factory=list)

    def add_joints(self, stamp_ns: int, names: list[str], positions: list[float]) -> None:
        """A joint state; its names may come in any order."""
        by_name = dict(zip(names, positions, strict=False))
        if all(joint in by_name for joint in self.joints):
            self.joint_times.append(stamp_ns)
            self.joint_positions.append([by_name[joint] for joint in self.joints])

    def add_scene(self, stamp_ns: int, objects: list[Any]) -> None:
        """Ground truth: vla_msgs/ObjectState messages."""
        self.scene_times.append(stamp_ns)
        for item in objects:
            p, q = item.pose.position, item.pose.orientation
            self.poses.setdefault(item.name, []).append((p.x, p.y, p.z, q.x, q.y, q.z, q.w))

    def add_decision(self, verdict: int, reason: str, subject: str) -> None:
        """A safety decision."""
        name = VERDICTS[verdict] if verdict < len(VERDICTS) else str(verdict)
        self.decisions[name] += 1
        if reason:
            self.reasons[name, reason, subject] += 1

    def frames(self, rate: float) -> "Frames":
        """The motion at `rate` Hz of simulated time, from its first to its last moment; the nearest sample each."""
        times = np.array(self.joint_times)
        scenes = np.array(self.scene_times)
        if not len(times) or not len(scenes):
            return Frames(np.zeros(0), np.zeros((0, len(self.joints))), {})
        grid = np.arange(times[0], times[-1] + 1, round(1e9 / rate))
        joint_index = _nearest(times, grid)
        scene_index = _nearest(scenes, grid)
        poses = {name: np.array(rows)[scene_index] for name, rows in self.poses.items() if len(rows) == len(scenes)}
        return Frames((grid - grid[0]) * 1e-9, np.array(self.joint_positions)[joint_index], poses)

    def save(self, path: Path) -> None:
        """As an .npz file that a later reader can film or measure again."""
        poses: dict[str, Any] = {f"pose_{name}": np.array(rows) for name, rows in self.poses.items()}
        np.savez_compressed(
            path,
            joints=np.array(self.joints),
            joint_times=np.array(self.joint_times),
            joint_positions=np.array(self.joint_positions),
            scene_times=np.array(self.scene_times),
            **poses,
        )

    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        clearances = [c for c in self.clearances if np.isfinite(c)]
        errors = [e for e in self.tracking_errors if np.isfinite(e)]
        inference = np.array(self.inference_times)
        span = self.chunk_stamps[-1] - self.chunk_stamps[0] if len(self.chunk_stamps) > 1 else 0.0
        return {
            "chunks": len(self.chunk_stamps),
            "chunk_rate_hz": (len(self.chunk_stamps) - 1) / span if span > 0 else None,
            "inference_ms": {f"p{p}": float(np.percentile(inference, p) * 1e3) for p in (50, 95)}
            if len(inference)
            else None,
            "min_zone_clearance_m": min(clearances, default=None),
            "max_tracking_error_rad": max(errors, default=None),
            "reasons": [
                {"verdict": v, "reason": r, "subject": s, "count": n} for (v, r, s), n in self.reasons.most_common()
            ],
        }


@dataclass(frozen=True)
class Frames:
    """times (F,) s; joint_positions (F, n); poses: name -> (F, 7)."""

    times: NDArray[np.float64]
    joint_positions: NDArray[np.float64]
    poses: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.times)


def _nearest(sorted_times: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    right = np.clip(np.searchsorted(sorted_times, wanted), 1, max(1, len(sorted_times) - 1))
    right = np.minimum(right, len(sorted_times) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(wanted - sorted_times[left] <= sorted_times[right] - wanted, left, right)
