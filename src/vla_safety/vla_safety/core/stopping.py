"""The stop: every joint from (q, v, a) to rest, limited in acceleration and jerk, in a handful of knots.

The joints of a group share three phases: the acceleration goes linearly to -p_i, stays, and goes linearly to zero, in
t, h and t. Within a phase the jerk is constant, so the position is a cubic, which the controller's quintic between two
knots reproduces exactly: what is verified is what is played. With D = t + h

    p_i = (v_i + a_i t / 2) / D                        brings v_i to zero,
    |p_i| <= A_i, |p_i| <= J t, |a_i + p_i| <= J t     keep the limits,

so D is the largest of a handful of quotients, and the t with the shortest t + D wins. For one joint without initial
acceleration this is the classical time-optimal stop (v / A + A / J); with several, all stop together with the slowest,
along the tangent of the path, close to where the path was verified. A gripper is a group of its own: it need not wait
for the arm.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.motion import Array, Motion, State

_GRID = 1_000_000  # ns; phases are multiples, so that knots of different groups are never too close for the quintic
_SHORTEST_PHASE = 2 * _GRID
_CANDIDATES = 24

Groups = Sequence[NDArray[np.int64]]


def stop(
    state: State, time_ns: int, limits: JointLimits, fraction: float = 1.0, groups: Groups | None = None
) -> Motion:
    """The stop from `state` at `time_ns`.

    Args:
        fraction: (0, 1], of the acceleration and jerk limits, that the stop may use.
        groups: columns of the joints that stop together; None: all do.

    Returns:
        A motion whose first knot is `state`, bit by bit, and whose last is at rest.
    """
    if state.at_rest:
        return Motion.at(time_ns, state)
    columns = [np.arange(len(limits))] if groups is None else list(groups)
    moving = [c for c in columns if state.velocity[c].any() or state.acceleration[c].any()]
    phases = [_phases(state.velocity[c], state.acceleration[c], limits, c, fraction) for c in moving]
    ends = {0}
    for ramp, hold in phases:
        ends |= {ramp, ramp + hold, 2 * ramp + hold}
    times = np.array(sorted(ends), dtype=np.int64)
    q = np.repeat(state.position[None], len(times), axis=0)
    v, a = np.zeros_like(q), np.zeros_like(q)
    for c, (ramp, hold) in zip(moving, phases, strict=True):
        start = state.position[c], state.velocity[c], state.acceleration[c]
        q[:, c], v[:, c], a[:, c] = _profile(times, start, ramp, hold)
    q[0], v[0], a[0] = state.position, state.velocity, state.acceleration
    return Motion(time_ns + times, q, v, a)


def _profile(times: NDArray[np.int64], start: tuple[Array, Array, Array], ramp: int, hold: int) -> tuple[Array, ...]:
    """States (K, m) of one group at `times` (K,) ns since the start of its stop; at rest from its end on."""
    q, v, a = start
    t, h = ramp * 1e-9, hold * 1e-9
    p = (v + a * t / 2) / (t + h)
    # In each phase: how long one is in it, then position, velocity and acceleration move on by its constant jerk.
    for begin, length, jerk in ((0, ramp, -(p + a) / t), (ramp, hold, 0 * p), (ramp + hold, ramp, p / t)):
        s = np.clip(times - begin, 0, length)[:, None] * 1e-9
        q = q + s * (v + s * (a / 2 + s * jerk / 6))
        v = v + s * (a + s * jerk / 2)
        a = a + s * jerk
    ended = times >= 2 * ramp + hold
    v[ended] = 0.0
    a[ended] = 0.0
    a[(times >= ramp) & (times <= ramp + hold)] = -p
    return q, v, a


def _phases(v: Array, a: Array, limits: JointLimits, columns: NDArray[np.int64], fraction: float) -> tuple[int, int]:
    """Durations of a ramp and of the phase between the ramps [ns], multiples of the grid."""
    acceleration, jerk = limits.max_acceleration[columns] * fraction, limits.max_jerk[columns] * fraction
    shortest = max(_SHORTEST_PHASE * 1e-9, float(np.max(np.abs(a) / jerk)) * (1 + 1e-6))
    longest = max(2 * shortest, 2 * float(np.max(limits.max_acceleration[columns] / jerk)))
    candidates = np.unique(np.ceil(np.linspace(shortest, longest, _CANDIDATES) * (1e9 / _GRID) - 1e-6))
    ramps = candidates[:, None] * (_GRID * 1e-9)
    w = v + a * ramps / 2
    room = np.minimum(np.minimum(acceleration, jerk * ramps), jerk * ramps - np.sign(w) * a)
    # Where the velocity vanishes already, no room is needed; elsewhere it is positive for all but the shortest ramp.
    need = np.where(w == 0, 0.0, np.abs(w) / np.maximum(room, 1e-12))
    spans = np.maximum(need.max(axis=1), ramps[:, 0])
    best = int(np.argmin(spans + ramps[:, 0]))
    hold = float(spans[best] - ramps[best, 0])
    hold_ns = int(np.ceil(hold * (1e9 / _GRID) - 1e-9)) * _GRID
    return int(candidates[best]) * _GRID, 0 if hold <= 0 else max(hold_ns, _SHORTEST_PHASE)


def stopping_distance(speed: float, acceleration: float, jerk: float, reaction: float = 0.0) -> float:
    """A sufficient bound on the way of one joint to rest: d <= v t + v^2 / 2A + v A / 2J [rad]."""
    return speed * reaction + speed**2 / (2 * acceleration) + speed * acceleration / (2 * jerk)
