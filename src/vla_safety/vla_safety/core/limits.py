"""The envelope: position, velocity, acceleration and jerk of the curve that the controller plays, not of its knots.

Proof obligation (I2): between two knots the curve is a polynomial. Written in Bernstein form over a piece of the
segment, a polynomial lies in the convex hull of its control points, so their largest and smallest are rigorous bounds;
nothing is sampled, nothing can hide between samples. Splitting a segment into `_PIECES` makes the bounds tight (the
gap shrinks with the square of the pieces' length).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Array, Motion

_PIECES = 6
_ROUNDING = 1e-9  # relative; a curve exactly at a limit must not fail for the last bit
_DERIVATIVES = ("joint_velocity", "joint_acceleration", "joint_jerk")


@dataclass(frozen=True)
class Extent:
    """Bounds of a curve on each of its segments, each (K, n)."""

    lowest: Array
    highest: Array
    speed: Array
    acceleration: Array
    jerk: Array

    def part(self, first: int, last: int) -> "Extent":
        """Of segments `first` to `last`, the last not included."""
        part = slice(first, last)
        return Extent(self.lowest[part], self.highest[part], self.speed[part], self.acceleration[part], self.jerk[part])


def hermite(durations: Array, start: tuple[Array, Array, Array], end: tuple[Array, Array, Array]) -> Array:
    """Quintics that meet position, velocity and acceleration at both ends, in powers of u = t / duration.

    Args:
        durations: (K,) s.
        start, end: position, velocity and acceleration, each broadcastable to (K, n).

    Returns:
        (K, 6, n) coefficients of u in [0, 1].
    """
    t = durations[:, None]
    p0, v0, a0 = start[0], start[1] * t, start[2] * t * t
    p1, v1, a1 = end[0], end[1] * t, end[2] * t * t
    d = p1 - p0
    shape = np.broadcast_shapes(d.shape, v0.shape)
    c = np.empty((shape[0], 6, shape[1]))
    c[:, 0] = p0
    c[:, 1] = v0
    c[:, 2] = a0 / 2
    c[:, 3] = 10 * d - 6 * v0 - 4 * v1 - 1.5 * a0 + 0.5 * a1
    c[:, 4] = -15 * d + 8 * v0 + 7 * v1 + 1.5 * a0 - a1
    c[:, 5] = 6 * d - 3 * (v0 + v1) - 0.5 * (a0 - a1)
    return c


def extent(coefficients: Array, durations: Array) -> Extent:
    """Rigorous bounds of quintics. `coefficients` (K, 6, n) of u in [0, 1]; `durations` (K,) s."""
    count, _, joints = coefficients.shape
    # One product each for all segments and joints at once; reductions then run along the first axis. (One for all four
    # would be large enough for a BLAS with threads to wake them: jitter.)
    columns = np.ascontiguousarray(coefficients.transpose(1, 0, 2)).reshape(6, -1)
    position, *rates = (matrix @ columns for matrix in _control_matrices())
    t = np.repeat(durations, joints)
    bounds: list[Array] = [position.min(axis=0), position.max(axis=0)]
    scale = t
    for points in rates:
        bounds.append(np.abs(points, out=points).max(axis=0) / scale)
        scale = scale * t
    return Extent(*(bound.reshape(count, joints) for bound in bounds))


def extent_of(motion: Motion) -> Extent:
    """Bounds of each segment of a motion; (0, n) arrays for a single knot."""
    durations = np.diff(motion.times) * 1e-9
    p, v, a = motion.positions, motion.velocities, motion.accelerations
    return extent(hermite(durations, (p[:-1], v[:-1], a[:-1]), (p[1:], v[1:], a[1:])), durations)


def extents_of(motions: Sequence[Motion]) -> list[Extent]:
    """Bounds of the segments of several motions, at once."""
    if len(motions) == 1:
        return [extent_of(motions[0])]
    durations = np.diff(np.concatenate([motion.times for motion in motions])) * 1e-9
    ends = np.cumsum([len(motion) for motion in motions])
    durations[ends[:-1] - 1] = 1.0  # from one motion to the next: nobody's segment
    p = np.concatenate([motion.positions for motion in motions])
    v = np.concatenate([motion.velocities for motion in motions])
    a = np.concatenate([motion.accelerations for motion in motions])
    bounds = extent(hermite(durations, (p[:-1], v[:-1], a[:-1]), (p[1:], v[1:], a[1:])), durations)
    return [bounds.part(end - len(motion), end - 1) for motion, end in zip(motions, ends.tolist(), strict=True)]


def check_envelope(motion: Motion, bounds: Extent, limits: JointLimits) -> tuple[int, Finding | None]:
    """Judges a motion by the bounds of its segments.

    Returns:
        The number of segments from the start that keep every limit, and what is wrong with the next one (None: all do).
    """
    slack = 1 + _ROUNDING
    low = limits.min_position - _ROUNDING
    high = limits.max_position + _ROUNDING
    # Written so that NaN fails: a comparison with NaN is false.
    position = (bounds.lowest >= low) & (bounds.highest <= high)
    rates = (
        (bounds.speed, limits.max_velocity),
        (bounds.acceleration, limits.max_acceleration),
        (bounds.jerk, limits.max_jerk),
    )
    kept = position & (motion.positions[:1] >= low) & (motion.positions[:1] <= high)
    for values, maximum in rates:
        kept &= values <= maximum * slack
    whole: NDArray[np.bool_] = np.all(kept, axis=1)
    if whole.all():
        return len(whole), _single_knot(motion, low, high, limits)
    k = int(np.argmin(whole))
    at = float(motion.times[k] - motion.times[0]) * 1e-9
    for reason, (values, maximum) in zip(_DERIVATIVES, rates, strict=True):
        ratio = np.where(values[k] <= maximum * slack, -1.0, np.nan_to_num(values[k] / maximum, nan=np.inf))
        if (ratio > 0).any():
            j = int(np.argmax(ratio))
            return k, Finding(reason, limits.names[j], float(values[k, j]), float(maximum[j]), at)
    return k, _position_finding(bounds.lowest[k], bounds.highest[k], limits, at)


def _single_knot(motion: Motion, low: Array, high: Array, limits: JointLimits) -> Finding | None:
    first = motion.positions[0]
    if ((first >= low) & (first <= high)).all():
        return None
    return _position_finding(first, first, limits, 0.0)


def _position_finding(lowest: Array, highest: Array, limits: JointLimits, at: float) -> Finding:
    under, over = limits.min_position - lowest, highest - limits.max_position
    excess = np.nan_to_num(np.maximum(under, over), nan=np.inf)
    j = int(np.argmax(excess))
    if over[j] >= under[j]:
        return Finding("joint_position", limits.names[j], float(highest[j]), float(limits.max_position[j]), at)
    return Finding("joint_position", limits.names[j], float(lowest[j]), float(limits.min_position[j]), at)


def speed_scale(bounds: Extent, limits: JointLimits) -> tuple[float, Finding | None]:
    """The largest uniform slow-down in (0, 1] with which segments keep velocity, acceleration and jerk limits.

    Playing the same path at scale s multiplies the three by s, s^2 and s^3.

    Returns:
        The scale (0.0: none, e.g. not finite) and what made it less than one.
    """
    worst, finding = 1.0, None
    values = (bounds.speed, bounds.acceleration, bounds.jerk)
    maxima = (limits.max_velocity, limits.max_acceleration, limits.max_jerk)
    for order, (reason, value, maximum) in enumerate(zip(_DERIVATIVES, values, maxima, strict=True), start=1):
        if (value <= maximum * (1 + _ROUNDING)).all():  # NaN is not
            continue
        ratio = np.nan_to_num(value / maximum, nan=np.inf)
        k, j = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if not ratio[k, j] <= 1 + _ROUNDING:
            scale = float(ratio[k, j]) ** (-1.0 / order) * (1 - 1e-6)
            if scale < worst:
                worst = scale
                finding = Finding(reason, limits.names[int(j)], float(value[k, j]), float(maximum[int(j)]))
    return worst, finding


@cache
def _control_matrices() -> tuple[Array, ...]:
    """(R, 6) each: coefficients of u -> control points of the position and of its first three derivatives by u."""
    derivative: Array = np.eye(6)
    parts = []
    for order in range(4):
        parts.append(_control_matrix(5 - order) @ derivative)
        derivative = np.diag(np.arange(1.0, 6 - order)) @ derivative[1:]
    return tuple(parts)


def _control_matrix(degree: int) -> NDArray[np.float64]:
    """(pieces * (degree + 1), degree + 1): coefficients of u -> Bernstein control points on equal pieces of [0, 1]."""
    to_bernstein = np.array(
        [[comb(i, j) / comb(degree, j) if j <= i else 0.0 for j in range(degree + 1)] for i in range(degree + 1)]
    )
    rows = []
    width = 1.0 / _PIECES
    for piece in range(_PIECES):
        a = piece * width
        shift = np.array(
            [
                [comb(j, m) * a ** (j - m) * width**m if j >= m else 0.0 for j in range(degree + 1)]
                for m in range(degree + 1)
            ]
        )
        rows.append(to_bernstein @ shift)
    return np.concatenate(rows)
