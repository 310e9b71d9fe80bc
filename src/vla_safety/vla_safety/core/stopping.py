"""The stop: every joint from (q, v, a) to rest, limited in acceleration and jerk, in four knots.

All joints share three phases: the acceleration goes linearly to -p_i, stays, and goes linearly to zero, in t1, t2, t3.
Within a phase the jerk is constant, so the position is a cubic, which the controller's quintic between two knots
reproduces exactly: what is verified is what is played. With D = (t1 + t3) / 2 + t2 and t1 = t3 = t

    p_i = (v_i + a_i t / 2) / D        brings v_i to zero,
    |p_i| <= A_i, |p_i| <= J t, |a_i + p_i| <= J t    keep the limits,

so D is the largest of a handful of quotients, and the t with the shortest t + D wins. For one joint at rest in
acceleration this is the classical time-optimal stop (v / A + A / J); with several, all stop together with the slowest,
along the tangent of the path, close to where the path was verified.
"""

import numpy as np

from vla_contract.limits import JointLimits
from vla_safety.core.motion import NS, Motion, State

_SHORTEST_PHASE = 2e-3  # s; shorter phases are below the controller's period and condition the quintic badly
_CANDIDATES = 24


def stop(state: State, time_ns: int, limits: JointLimits, fraction: float = 1.0) -> Motion:
    """The stop from `state` at `time_ns`.

    Args:
        fraction: (0, 1], of the acceleration and jerk limits, that the stop may use.

    Returns:
        A motion whose first knot is `state`, bit by bit, and whose last is at rest.
    """
    if state.at_rest:
        return Motion.at(time_ns, state)
    v, a = state.velocity, state.acceleration
    ramp_ns, hold_ns = _phases(state, limits, fraction)
    t, h = ramp_ns / NS, hold_ns / NS
    p = (v + a * t / 2) / (t + h)
    v1 = v + (a - p) / 2 * t
    q1 = state.position + v * t + a * t * t / 2 + (-p - a) * t * t / 6
    v2 = v1 - p * h
    q2 = q1 + v1 * h - p * h * h / 2
    q3 = q2 + v2 * t - p * t * t / 2 + p * t * t / 6
    zero = np.zeros_like(v)
    times = [time_ns, time_ns + ramp_ns, time_ns + ramp_ns + hold_ns, time_ns + 2 * ramp_ns + hold_ns]
    keep = [0, 1, 2, 3] if hold_ns > 0 else [0, 1, 3]
    return Motion(
        np.array(times, dtype=np.int64)[keep],
        np.array([state.position, q1, q2, q3])[keep],
        np.array([v, v1, v2, zero])[keep],
        np.array([a, -p, -p, zero])[keep],
    )


def _phases(state: State, limits: JointLimits, fraction: float) -> tuple[int, int]:
    """Durations of the ramps and of the phase between them [ns]; the latter is 0 or not shorter than a phase may be."""
    v, a = state.velocity, state.acceleration
    acceleration, jerk = limits.max_acceleration * fraction, limits.max_jerk * fraction
    shortest = max(_SHORTEST_PHASE, float(np.max(np.abs(a) / jerk)) * (1 + 1e-6))
    longest = max(2 * shortest, 2 * float(np.max(limits.max_acceleration / jerk)))
    ramps = np.linspace(shortest, longest, _CANDIDATES)[:, None]
    w = v + a * ramps / 2
    room = np.minimum(np.minimum(acceleration, jerk * ramps), jerk * ramps - np.sign(w) * a)
    # Where the velocity vanishes already, no room is needed; elsewhere it is positive for all but the shortest ramp.
    need = np.where(w == 0, 0.0, np.abs(w) / np.maximum(room, 1e-12))
    spans = np.maximum(need.max(axis=1), ramps[:, 0])
    best = int(np.argmin(spans + ramps[:, 0]))
    ramp_ns = int(np.ceil(ramps[best, 0] * NS))
    hold = spans[best] - ramps[best, 0]
    if hold <= 0:
        return ramp_ns, 0
    return ramp_ns, int(np.ceil(max(hold, _SHORTEST_PHASE) * NS))


def stopping_distance(speed: float, acceleration: float, jerk: float, reaction: float = 0.0) -> float:
    """A sufficient bound on the way of one joint to rest: d <= v t + v^2 / 2A + v A / 2J [rad]."""
    return speed * reaction + speed**2 / (2 * acceleration) + speed * acceleration / (2 * jerk)
