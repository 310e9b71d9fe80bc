"""The curve that ros2_control's joint_trajectory_controller plays between the points of a trajectory.

Between two points the controller uses the polynomial of lowest degree that meets what both points give: linear for
positions alone, cubic for positions and velocities, quintic with accelerations as well (Hermite interpolation; the
formulas are the standard solution of the boundary-value problem, e.g. Biagiotti and Melchiorri, "Trajectory Planning
for Automatic Machines and Robots", 2008, section 2.1).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.errors import ChunkError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """States along a trajectory, each (m, n): rad or m, and their derivatives by seconds."""

    positions: Array
    velocities: Array
    accelerations: Array
    jerks: Array


class Trajectory:
    """A piecewise polynomial through `K` points of `n` joints.

    Args:
        times: (K,) s, strictly increasing; the origin is the caller's.
        positions: (K, n) rad or m.
        velocities: (K, n) or None.
        accelerations: (K, n) or None; needs velocities.

    Raises:
        ChunkError: on wrong shapes, non-finite numbers or times that do not increase.
    """

    def __init__(
        self,
        times: ArrayLike,
        positions: ArrayLike,
        velocities: ArrayLike | None = None,
        accelerations: ArrayLike | None = None,
    ):
        self.times: Array = np.asarray(times, dtype=np.float64)
        self.positions: Array = np.asarray(positions, dtype=np.float64)
        self.velocities: Array | None = None if velocities is None else np.asarray(velocities, dtype=np.float64)
        self.accelerations: Array | None = None if accelerations is None else np.asarray(accelerations, np.float64)
        self._check()

    def _check(self) -> None:
        if self.times.ndim != 1 or len(self.times) == 0:
            raise ChunkError(f"times have shape {self.times.shape}, expected (K,) with K >= 1")
        if self.positions.ndim != 2 or len(self.positions) != len(self.times):
            raise ChunkError(f"positions have shape {self.positions.shape}, expected ({len(self.times)}, n)")
        if self.accelerations is not None and self.velocities is None:
            raise ChunkError("accelerations need velocities: give both, or neither")
        for name in ("velocities", "accelerations"):
            values = getattr(self, name)
            if values is not None and values.shape != self.positions.shape:
                raise ChunkError(f"{name} have shape {values.shape}, expected {self.positions.shape}")
        for name in ("times", "positions", "velocities", "accelerations"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
                raise ChunkError(f"{name}{list(where)} is {values[where]}, expected a finite number")
        steps = np.diff(self.times)
        if (steps <= 0).any():
            k = int(np.argmax(steps <= 0))
            raise ChunkError(
                f"times[{k + 1}] = {self.times[k + 1]} s does not come after times[{k}] = {self.times[k]} s"
            )

    def __len__(self) -> int:
        return len(self.times)

    @property
    def start(self) -> float:
        """s"""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """s"""
        return float(self.times[-1])

    @cached_property
    def coefficients(self) -> Array:
        """(K-1, 6, n): ascending powers of the time since the segment's first point."""
        t = np.diff(self.times)[:, None]
        p0, p1 = self.positions[:-1], self.positions[1:]
        c = np.zeros((len(self.times) - 1, 6, self.positions.shape[1]))
        c[:, 0] = p0
        if self.velocities is None:
            c[:, 1] = (p1 - p0) / t
            return c
        v0, v1, d = self.velocities[:-1], self.velocities[1:], p1 - p0
        c[:, 1] = v0
        if self.accelerations is None:
            c[:, 2] = (3 * d / t - 2 * v0 - v1) / t
            c[:, 3] = (-2 * d / t + v0 + v1) / t**2
            return c
        a0, a1 = self.accelerations[:-1], self.accelerations[1:]
        c[:, 2] = a0 / 2
        c[:, 3] = (20 * d / t - (8 * v1 + 12 * v0) - (3 * a0 - a1) * t) / (2 * t**2)
        c[:, 4] = (-30 * d / t + (14 * v1 + 16 * v0) + (3 * a0 - 2 * a1) * t) / (2 * t**3)
        c[:, 5] = (12 * d / t - 6 * (v1 + v0) + (a1 - a0) * t) / (2 * t**4)
        return c

    def sample(self, times: ArrayLike) -> Samples:
        """States at `times` (m,) s. Before the first and after the last point: that point, at rest."""
        t = np.atleast_1d(np.asarray(times, dtype=np.float64))
        if len(self.times) == 1:
            held = np.repeat(self.positions, len(t), axis=0)
            zero = np.zeros_like(held)
            return Samples(held, zero, zero, zero)
        k = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 2)
        s = np.clip(t, self.times[0], self.times[-1]) - self.times[k]
        outside = (t < self.times[0]) | (t > self.times[-1])
        c, s = self.coefficients[k], s[:, None]
        # Horner's scheme, once for each derivative.
        position = ((((c[:, 5] * s + c[:, 4]) * s + c[:, 3]) * s + c[:, 2]) * s + c[:, 1]) * s + c[:, 0]
        velocity = (((5 * c[:, 5] * s + 4 * c[:, 4]) * s + 3 * c[:, 3]) * s + 2 * c[:, 2]) * s + c[:, 1]
        acceleration = ((20 * c[:, 5] * s + 12 * c[:, 4]) * s + 6 * c[:, 3]) * s + 2 * c[:, 2]
        jerk = (60 * c[:, 5] * s + 24 * c[:, 4]) * s + 6 * c[:, 3]
        for derivative in (velocity, acceleration, jerk):
            derivative[outside] = 0.0
        return Samples(position, velocity, acceleration, jerk)
