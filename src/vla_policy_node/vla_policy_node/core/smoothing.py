"""From the points that a policy wants to a curve that a robot can follow.

A policy's points carry noise of millimetres; twice differentiated over 0.1 s that is more acceleration than a safety
filter lets pass. Points are drawn toward smoothness just as far as the acceleration demands (Whittaker's smoother:
least squares with a penalty on third differences), then joined by a natural cubic spline, which has the least
acceleration of all curves through them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.interpolation import Trajectory

Array = NDArray[np.float64]

_SETTLE = 0.1  # s, time constant of a set-point's last millimetres
_RESPONSE = 0.03  # s, in which a speed that is off is mended
_THERE = 1e-7  # m or rad, plus what it changes by per second: so little is left when a set-point is reached

# Penalties that are tried, mildest first. At 3 and steps of 0.1 s what repeats within 0.7 s is halved: more would round
# off the motions themselves, and slowing down is the better answer.
_PENALTIES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)


def smooth(
    times: ArrayLike, points: ArrayLike, max_acceleration: ArrayLike, stiffness: float = 0.1, origin: float = 0.0
) -> Trajectory:
    """A curve with continuous acceleration near `points`.

    Args:
        times: (K,) s, strictly increasing, K >= 2.
        points: (K, n) rad or m.
        max_acceleration: (n,) rad/s² or m/s², met if a penalty of the list meets it.
        stiffness: smallest penalty; 0 goes through the points unless their acceleration is too high.
        origin: s; what is computed once for a grid serves it wherever it begins.

    Returns:
        Knots at `origin + times` with velocities and accelerations; its quintic interpolant is a cubic spline.
    """
    grid = tuple(np.asarray(times, dtype=np.float64).tolist())
    wanted, bound = np.asarray(points, dtype=np.float64), np.asarray(max_acceleration, dtype=np.float64)
    for penalty in (p for p in _PENALTIES if p >= stiffness or p == _PENALTIES[-1]):
        position, velocity, acceleration = _operators(grid, penalty)
        # A cubic spline's acceleration is linear between knots: its peaks are at the knots.
        accelerations = acceleration @ wanted
        if (np.abs(accelerations) <= bound).all():
            break
    return Trajectory(origin + np.array(grid), position @ wanted, velocity @ wanted, accelerations)


@lru_cache(maxsize=64)
def _operators(times: tuple[float, ...], penalty: float) -> tuple[Array, Array, Array]:
    """(K, K) matrices from points to positions, velocities and accelerations at the knots."""
    t = np.array(times)
    position: Array = np.linalg.inv(np.eye(len(t)) + penalty * _roughness(t)).astype(np.float64)
    second = _second_derivatives(t)
    acceleration: Array = second @ position
    return position, np.asarray(_first_derivatives(t, second) @ position), acceleration


def _roughness(t: Array) -> Array:
    """D'D of third divided differences, scaled so that a step of the mean length counts as 1."""
    size = len(t)
    if size < 4:
        return np.zeros((size, size))
    step = (t[-1] - t[0]) / (size - 1)
    differences = np.eye(size)
    for order in (1, 2, 3):
        span = (t[order:] - t[:-order]) / (order * step)
        differences = np.diff(differences, axis=0) / span[:, None]
    return np.asarray(differences.T @ differences, dtype=np.float64)


def _second_derivatives(t: Array) -> Array:
    """Of the natural cubic spline at its knots: the tridiagonal system of its smoothness, solved once."""
    size, h = len(t), np.diff(t)
    left, right = np.eye(size), np.zeros((size, size))
    for k in range(1, size - 1):
        left[k, k - 1 : k + 2] = h[k - 1] / 6, (h[k - 1] + h[k]) / 3, h[k] / 6
        right[k, k - 1 : k + 2] = 1 / h[k - 1], -1 / h[k - 1] - 1 / h[k], 1 / h[k]
    return np.linalg.solve(left, right).astype(np.float64)


def _first_derivatives(t: Array, second: Array) -> Array:
    size, h = len(t), np.diff(t)
    result = np.zeros((size, size))
    identity = np.eye(size)
    for k in range(size - 1):
        result[k] = (identity[k + 1] - identity[k]) / h[k] - h[k] * (2 * second[k] + second[k + 1]) / 6
    result[-1] = (identity[-1] - identity[-2]) / h[-1] + h[-1] * (second[-2] + 2 * second[-1]) / 6
    return result


@dataclass(frozen=True)
class Pace:
    """How fast a joint may go after its set-point: m/s or rad/s, and by seconds; all positive."""

    velocity: float
    acceleration: float
    jerk: float


def follow_setpoint(
    state: tuple[float, float, float], goals: Array, step: float, pace: Pace
) -> tuple[Array, Array, Array]:
    """How a joint moves after set-points that jump (a gripper's): as fast as allowed, no overshoot, no look-ahead.

    A smoother would begin to close before the policy says so; this never does.

    Args:
        state: position, velocity, acceleration at the start, m or rad and by seconds.
        goals: (m,) set-point in force during each step.
        step: s.

    Returns:
        Positions, velocities, accelerations at the start and after each step, each (m + 1,).
    """
    p, v, a = state
    track = [p, v, a]
    fastest, most, jerk = pace.velocity, pace.acceleration, pace.jerk
    for goal in goals.tolist():
        away = goal - p
        distance = abs(away)
        if distance + abs(v) + abs(a) < _THERE:
            p, v, a = goal, 0.0, 0.0
            track += (p, v, a)
            continue
        # The speed from which a third of the acceleration brakes in time (building it up takes the rest); close to the
        # goal an approach without chatter.
        speed = min(fastest, (most * distance * 2 / 3) ** 0.5, distance / _SETTLE)
        wish = ((speed if away > 0 else -speed) - v) / _RESPONSE
        wish = -most if wish < -most else most if wish > most else wish
        j = (wish - a) / step
        j = -jerk if j < -jerk else jerk if j > jerk else j
        p += step * (v + step * (a / 2 + step * j / 6))
        v += step * (a + step * j / 2)
        a += step * j
        track += (p, v, a)
    positions, velocities, accelerations = np.array(track).reshape(-1, 3).T
    return positions, velocities, accelerations
