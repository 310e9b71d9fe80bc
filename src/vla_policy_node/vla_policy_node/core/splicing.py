"""Joins a new curve onto one that is being executed: continuous in position, velocity and acceleration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.interpolation import Samples, Trajectory
from vla_contract.limits import JointLimits

Array = NDArray[np.float64]

_POWERS = np.arange(6.0)
# The quintic between two states, for a time u that runs from 0 to 1: coefficients of u⁰ … u⁵ (rows) that belong to
# position, velocity and acceleration at its start, and at its end (columns).
_HERMITE = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0],
        [-10, -6, -1.5, 10, -4, 0.5],
        [15, 8, 1.5, -15, 7, -1],
        [-6, -3, -0.5, 6, -3, 0.5],
    ]
)


def _derived(coefficients: Array) -> Array:
    """Of polynomials whose coefficients of u⁰ … u⁵ are the rows: those of their derivatives."""
    return np.vstack([coefficients[1:] * _POWERS[1:, None], np.zeros(coefficients.shape[1])])


_SLOPES = _derived(_HERMITE)
_BENDS = _derived(_SLOPES)
_INSIDE = np.array([0.0, 0.25, 0.5, 0.75])  # of a segment: where bounds are looked at


def _looks(u: Array) -> Array:
    """(3 m, 6): from a segment's coefficients, times the powers of its length, to its first three derivatives at u."""
    powers = u[:, None] ** _POWERS
    rows = []
    derived = np.eye(6)
    for _ in range(3):
        derived = _derived(derived)
        rows.append(powers @ derived)
    return np.concatenate(rows)


_LOOKS, _LAST_LOOK = _looks(_INSIDE), _looks(np.ones(1))


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

    def excess(self, curve: Trajectory, joints: NDArray[np.intp] | slice = slice(None)) -> float:
        """Largest ratio of a derivative along the curve to its bound; <= 1: kept everywhere.

        Args:
            joints: columns of the curve that the bounds are for.
        """
        span = np.diff(curve.times)[:, None]
        powers = span**_POWERS
        scaled = curve.coefficients[:, :, joints] * powers[:, :, None]
        bounds = np.stack([self.velocity, self.acceleration, self.jerk]) * powers[:, 1:4, None]  # (K - 1, 3, n)
        inside = (_LOOKS @ scaled).reshape(len(span), 3, len(_INSIDE), -1) / bounds[:, :, None]
        end = (_LAST_LOOK @ scaled[-1]) / bounds[-1]
        return float(max(np.abs(inside).max(), np.abs(end).max()))


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
    first = state_at(curve, start)
    if end <= start + 1e-9:
        return Trajectory([start], *(values[None] for values in first))
    inside = (curve.times > start + 1e-9) & (curve.times < end - 1e-9)
    times = np.concatenate([[start], curve.times[inside], [end]])
    parts = zip(first, columns(curve), state_at(curve, end), strict=True)
    return Trajectory(times, *(np.vstack([head, values[inside], tail]) for head, values, tail in parts))


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


def columns(curve: Trajectory) -> tuple[Array, Array, Array]:
    """Positions, velocities and accelerations (K, n) of its knots; it has all three."""
    assert curve.velocities is not None and curve.accelerations is not None
    return curve.positions, curve.velocities, curve.accelerations


def end_of(curve: Trajectory) -> tuple[Array, Array, Array]:
    """Position, velocity and acceleration (n,) at its end."""
    positions, velocities, accelerations = columns(curve)
    return positions[-1], velocities[-1], accelerations[-1]


def state_at(curve: Trajectory, time: float) -> tuple[Array, Array, Array]:
    """Position, velocity and acceleration (n,) at `time` s; `curve` has all three. Beyond its ends: there, at rest."""
    k = min(max(int(curve.times.searchsorted(time, side="right")) - 1, 0), len(curve) - 2)
    if not curve.start <= time <= curve.end or k < 0:
        zero = np.zeros(curve.positions.shape[1])
        return curve.positions[0 if time < curve.start else -1], zero, zero
    start, length = float(curve.times[k]), float(curve.times[k + 1] - curve.times[k])
    (p0, p1), (v0, v1), (a0, a1) = (values[k : k + 2] for values in columns(curve))
    # Counted from the first of the two positions: the digits that both share would be missing in the derivatives.
    ends = np.vstack([np.zeros_like(p0), v0 * length, a0 * length**2, p1 - p0, v1 * length, a1 * length**2])
    powers = ((time - start) / length) ** _POWERS
    return p0 + powers @ _HERMITE @ ends, powers @ _SLOPES @ ends / length, powers @ _BENDS @ ends / length**2


def knots(curve: Trajectory, chosen: NDArray[np.bool_]) -> Trajectory:
    """Those of `curve` that are `chosen` (K,), at least one, in a row."""
    return Trajectory(curve.times[chosen], *(values[chosen] for values in columns(curve)))


def approach(state: tuple[Array, Array, Array], target: Samples, times: Array, blend: float) -> Trajectory:
    """A curve that starts in `state` and becomes `target` within `blend` s.

    The difference at the start fades along the quintic that takes it to zero with its derivatives.

    Args:
        state: position, velocity, acceleration (n,) at `times[0]`.
        target: (m, n) at `times`.
        times: (m,) s.
        blend: s.
    """
    position, velocity, acceleration = state
    gap = np.stack(
        [
            position - target.positions[0],
            (velocity - target.velocities[0]) * blend,
            (acceleration - target.accelerations[0]) * blend**2,
        ]
    )
    u = np.minimum((times - times[0]) / blend, 1.0)[:, None] ** _POWERS
    return Trajectory(
        times,
        target.positions + u @ _HERMITE[:, :3] @ gap,
        target.velocities + u @ _SLOPES[:, :3] @ gap / blend,
        target.accelerations + u @ _BENDS[:, :3] @ gap / blend**2,
    )
