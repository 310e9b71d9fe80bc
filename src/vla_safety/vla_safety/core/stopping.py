"""Two shapes of stop, each limited in acceleration and jerk, in a handful of knots.

*Joint by joint* (`stop`), the fastest: from (q, v, a) to rest. The joints of a group share three phases: the
acceleration goes linearly to -p_i, stays, and goes linearly to zero, in t, h and t. Within a phase the jerk is
constant, so the position is a cubic, which the controller's quintic between two knots reproduces exactly: what is
verified is what is played. With D = t + h

    p_i = (v_i + a_i t / 2) / D                        brings v_i to zero,
    |p_i| <= A_i, |p_i| <= J t, |a_i + p_i| <= J t     keep the limits,

so D is the largest of a handful of quotients, and the t with the shortest t + D wins. For one joint without initial
acceleration this is the classical time-optimal stop (v / A + A / J); with several, all stop together with the slowest,
along the tangent of the path, close to where the path was verified. A gripper is a group of its own: it need not wait
for the arm.

*Along the path* (`stop_along`): the path c(s) is played on with s = s(t), whose rate u goes from 1 to 0 in phases of
constant jerk: du/dt goes to -r within t, stays for h, and goes back to zero within t, so that r (t + h) = 1; half of
the stop's time is needed of the path's. With primes for derivatives by s, and V, A, J the largest speed, acceleration
and jerk of a joint on that part of the path, from

    dq/dt = c' u,   d2q/dt2 = c'' u^2 + c' du/dt,   d3q/dt3 = c''' u^3 + 3 c'' u du/dt + c' d2u/dt2,   0 <= u <= 1

the limits are kept if A + V r <= A_max and J + 3 A r + V r / t <= J_max. No point of the robot becomes faster than it
was at the same place of the path. What is sent are knots of this curve; the quintic between them differs from it by
next to nothing, and it is the quintic that is verified.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.limits import extent_of
from vla_safety.core.motion import NS, Array, Motion, State, seconds

_GRID = 1_000_000  # ns; phases are multiples, so that knots of different groups are never too close for the quintic
_SHORTEST_PHASE = 2 * _GRID
_CANDIDATES = 24
_LITTLE = 0.1  # s
_GAP = 0.005  # s between knots of a stop along a path: closer ones amplify rounding into jerk
_SPREAD = 0.05  # s; longer pieces of it are divided
_FURTHEST = NS // 2  # ns of a path that a stop may need; a longer one is no stop
_FINE = 128  # places at which the path's time is looked up

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


def stop_along(path: Motion, time_ns: int, limits: JointLimits, fraction: float = 1.0) -> Motion | None:
    """The stop along `path` from `time_ns` on, which must lie within it.

    Args:
        fraction: (0, 1], of the acceleration and jerk limits, that the stop may use.

    Returns:
        A motion whose first knot is the path's state, bit by bit, and whose last is at rest on the path. None: too
        little is left of the path, its own acceleration leaves no room, or it would take far longer than the limits
        need: a robot that is slow here must not be sent through a fast part of the path when it is to stop.
    """
    first = path.state(time_ns)
    left = seconds(path.end - time_ns)
    if first.at_rest or left <= 0:
        return None
    since = path.since(time_ns)
    since = since.knots(0, int(np.searchsorted(since.times, time_ns + _FURTHEST)))
    times: Array = (since.times - time_ns).astype(np.float64) / NS
    phases = _path_phases(since, times, limits, fraction)
    if phases is None or 2 * phases[0] + phases[1] > _patience(first, limits, fraction):
        return None
    ns: NDArray[np.int64] = np.rint(_path_knots(times[1:], *phases) * NS).astype(np.int64)
    place, rate, change = _path_time(ns.astype(np.float64) / NS, *phases)
    states = path.curve.sample(seconds(time_ns - path.start) + place)
    q, v = states.positions, states.velocities * rate[:, None]
    a = states.accelerations * rate[:, None] ** 2 + states.velocities * change[:, None]
    q[0], v[0], a[0] = first.position, first.velocity, first.acceleration
    v[-1], a[-1] = 0.0, 0.0
    return Motion(time_ns + ns, q, v, a)


def _patience(state: State, limits: JointLimits, fraction: float) -> float:
    """s that a stop along a path may take from a state: half as long again as one joint by joint, and a little."""
    acceleration, jerk = limits.max_acceleration * fraction, limits.max_jerk * fraction
    classical = np.abs(state.velocity) / acceleration + acceleration / jerk + np.abs(state.acceleration) / jerk
    return 1.5 * float(classical.max()) + _LITTLE


def _path_phases(path: Motion, times: Array, limits: JointLimits, fraction: float) -> tuple[float, float] | None:
    """Durations of a ramp and of the phase between the ramps [s]; `times` (K,) s of the path's knots since the stop."""
    bounds = extent_of(path)
    # Row k: the most that the first k + 1 segments ask for.
    speed, own, third = (np.maximum.accumulate(x) for x in (bounds.speed, bounds.acceleration, bounds.jerk))
    acceleration, jerk = limits.max_acceleration * fraction, limits.max_jerk * fraction
    change = ((acceleration - own) / np.maximum(speed, 1e-9)).min(axis=1)
    bend = ((jerk - third - 3 * own * np.maximum(change, 0.0)[:, None]) / np.maximum(speed, 1e-9)).min(axis=1)
    for r, j, end in zip(change, bend, times[1:], strict=True):
        if not (r > 0 and j > 0):
            return None
        ramp = max(_GAP, float(r / j if r * r <= j else j**-0.5))
        total = max(1.0 / float(r), ramp)  # ramp and hold
        if (ramp + total) / 2 <= end:
            return (ramp, total - ramp) if total - ramp >= _GAP else (total, 0.0)
    return None


def _path_time(t: Array, ramp: float, hold: float) -> tuple[Array, Array, Array]:
    """The path's time since the stop began [s], its rate, and the rate's change [1/s]; at `t` (K,) s."""
    end = 2 * ramp + hold
    late = t > end / 2
    u = np.where(late, end - t, t)  # the second half mirrors the first
    deepest = 1.0 / (ramp + hold)
    s = np.minimum(u, ramp)
    place, rate, change = s - deepest / (6 * ramp) * s**3, 1 - deepest / (2 * ramp) * s**2, -deepest / ramp * s
    w = u - s
    place, rate = place + rate * w + change * w**2 / 2, rate + change * w
    return np.where(late, end / 2 - u + place, place), np.where(late, 1 - rate, rate), change


def _path_knots(path: Array, ramp: float, hold: float) -> Array:
    """Times [s] of knots: where phases or the path's own segments (ends in s, (K,)) meet, and between if far apart."""
    end = 2 * ramp + hold
    grid = np.linspace(0.0, end, _FINE)
    places = _path_time(grid, ramp, hold)[0]
    met = np.interp(path[path < places[-1]], places, grid)
    times = [0.0]
    for t in [*np.sort(np.concatenate([[ramp, ramp + hold], met])).tolist(), end]:
        room = t - times[-1]
        if t < end and (room < _GAP or end - t < _GAP):
            continue
        pieces = int(np.ceil(room / _SPREAD - 1e-9))
        times += [t - room * k / pieces for k in range(pieces - 1, -1, -1)]
    return np.array(times)


def stopping_distance(speed: float, acceleration: float, jerk: float, reaction: float = 0.0) -> float:
    """A sufficient bound on the way of one joint to rest: d <= v t + v^2 / 2A + v A / 2J [rad]."""
    return speed * reaction + speed**2 / (2 * acceleration) + speed * acceleration / (2 * jerk)
