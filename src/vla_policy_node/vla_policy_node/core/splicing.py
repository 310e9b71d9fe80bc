"""Joins a new curve onto one that is being executed: continuous in position, velocity and acceleration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.interpolation import Samples, Trajectory
from vla_contract.limits import JointLimits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """What a spliced curve should keep, each (n,): rad or m and their derivatives by seconds."""

    velocity: Array
    acceleration: Array
    jerk: Array

    @classmethod
    def share(cls, limits: JointLimits, share: float) -> "Bounds":
        """`share` in (0, 1] of the robot's limits."""
        return cls(share * limits.max_velocity, share * limits.max_acceleration, share * limits.max_jerk)

    def excess(self, curve: Trajectory) -> float:
        """Largest ratio of a derivative along the curve to its bound; <= 1: kept everywhere."""
        grid = np.linspace(0.0, 1.0, 5)[:-1]
        times = (curve.times[:-1, None] + np.diff(curve.times)[:, None] * grid).ravel()
        samples = curve.sample(np.append(times, curve.end))
        pairs = (
            (samples.velocities, self.velocity),
            (samples.accelerations, self.acceleration),
            (samples.jerks, self.jerk),
        )
        return max(float((np.abs(values) / bound).max()) for values, bound in pairs)


# Stamps on the wire are whole nanoseconds: between knots closer than this, that rounding would look like jerk.
APART = 2e-3  # s


def snap(curve: Trajectory, time: float) -> float:
    """`time`, or the knot of `curve` that is too close to it for another."""
    nearest = float(curve.times[np.abs(curve.times - time).argmin()])
    return nearest if abs(nearest - time) < APART else time


def portion(curve: Trajectory, start: float, end: float) -> Trajectory:
    """`curve` from `start` to `end` s (inside it), as knots that reproduce it exactly.

    A quintic segment that is cut at a point of its own stays the same polynomial.
    """
    inner = curve.times[(curve.times > start + 1e-9) & (curve.times < end - 1e-9)]
    times = np.concatenate([[start], inner, [end]]) if end > start + 1e-9 else np.array([start])
    states = curve.sample(times)
    return Trajectory(times, states.positions, states.velocities, states.accelerations)


def join(head: Trajectory, tail: Trajectory) -> Trajectory:
    """`head`, then the knots of `tail` that come after it."""
    rest = tail.times > head.end + 1e-9
    parts = []
    for name in ("times", "positions", "velocities", "accelerations"):
        parts.append(np.concatenate([getattr(head, name), getattr(tail, name)[rest]]))
    return Trajectory(*parts)


def rest_at(positions: Array, start: float, end: float) -> Trajectory:
    """Stands at `positions` (n,) from `start` to `end` s."""
    both = np.repeat(positions[None], 2, axis=0)
    return Trajectory([start, end], both, np.zeros_like(both), np.zeros_like(both))


def state_at(curve: Trajectory, time: float) -> tuple[Array, Array, Array]:
    """Position, velocity and acceleration (n,) at `time` s."""
    samples = curve.sample(time)
    return samples.positions[0], samples.velocities[0], samples.accelerations[0]


def approach(state: tuple[Array, Array, Array], target: Samples, times: Array, blend: float) -> Trajectory:
    """A curve that starts in `state` and becomes `target` within `blend` s.

    The difference at the start fades along the quintic that takes it to zero with its derivatives.

    Args:
        state: position, velocity, acceleration (n,) at `times[0]`.
        target: (m, n) at `times`.
        times: (m,) s.
        blend: s.
    """
    start = tuple(np.asarray(s) for s in state)
    first = (target.positions[0], target.velocities[0], target.accelerations[0])
    gap = [(have - want)[None] for have, want in zip(start, first, strict=True)]
    zero = np.zeros_like(gap[0])
    fade = Trajectory([0.0, blend], *(np.concatenate([g, zero]) for g in gap))
    faded = fade.sample(times - times[0])
    return Trajectory(
        times,
        target.positions + faded.positions,
        target.velocities + faded.velocities,
        target.accelerations + faded.accelerations,
    )
