"""Leads from the commanded motion onto a chunk, at a given time, within the limits.

The result's knots are the chunk's own, bit by bit, wherever the chunk can be followed: from the splice on when it
continues the commanded motion, else from the end of a short bridge. A chunk that exceeds a velocity, acceleration or
jerk limit, or a cap on the speed of links, is followed slower, along the same path.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.config import Proposals
from vla_safety.core.findings import Finding
from vla_safety.core.limits import Extent, check_envelope, extent, extent_of, hermite, speed_scale
from vla_safety.core.motion import NS, Array, Motion, State, nanoseconds, seconds
from vla_safety.core.speed import RESERVE
from vla_safety.core.validation import Chunk

GAP_NS = 5_000_000  # knots closer than this amplify rounding into jerk
_SAME = (1e-7, 1e-5, 1e-3)  # position, velocity, acceleration: closer than this is continuous
_GENTLE = 0.5  # of the limits, that a bridge should keep
_SLOWER = 0.7
_ATTEMPTS = 4
_LINKS = 0.25  # of the slowest scale, that a cap on the speed of links may ask for

Pace = Callable[[Motion], tuple[float, Finding | None]]


@dataclass(frozen=True)
class Splice:
    """A plan.

    Attributes:
        motion: commanded up to `splice_ns`, then the way onto the chunk, then the chunk.
        first: index of the first point of the chunk that is in it; `count`: points of the chunk in it.
        scale: speed scale, 1 when the chunk's times are kept.
        finding: why it is not the chunk unchanged; None: it is.
    """

    motion: Motion
    splice_ns: int
    first: int
    count: int
    scale: float
    finding: Finding | None


def complete(chunk: Chunk) -> Motion:
    """The chunk with the derivatives that it does not give, as central differences of what it gives."""
    t = (chunk.times - chunk.times[0]) * 1e-9
    positions = chunk.positions
    if len(t) == 1:
        zero = np.zeros_like(positions)
        v = zero if chunk.velocities is None else chunk.velocities
        a = zero if chunk.accelerations is None else chunk.accelerations
        return Motion(chunk.times, positions, v, a)
    velocities = chunk.velocities if chunk.velocities is not None else np.gradient(positions, t, axis=0)
    accelerations = chunk.accelerations if chunk.accelerations is not None else np.gradient(velocities, t, axis=0)
    return Motion(chunk.times, positions, velocities, accelerations)


def splice_time(committed: Motion, chunk: Motion, earliest_ns: int) -> int:
    """The first time from `earliest_ns` on that leaves room to the knots before and after it."""
    earliest = max(earliest_ns, committed.start)
    for offset in range(0, 4 * GAP_NS, NS // 1000):
        time = earliest + offset
        k = int(np.searchsorted(committed.times, time, side="right")) - 1
        behind = time - int(committed.times[k])
        j = int(np.searchsorted(chunk.times, time))
        ahead = int(chunk.times[j]) - time if j < len(chunk) else GAP_NS
        if (behind == 0 or behind >= GAP_NS) and (ahead == 0 or ahead >= GAP_NS):
            return time
    return earliest


def splice(
    committed: Motion,
    chunk: Motion,
    now_ns: int,
    earliest_ns: int,
    limits: JointLimits,
    settings: Proposals,
    cap: float = 1.0,
    pace: Pace = lambda _: (1.0, None),
) -> Splice | Finding:
    """Leads from `committed` onto `chunk`, not before `earliest_ns`, at a speed scale of at most `cap`.

    Args:
        pace: the slow-down that a path needs for the speed of links, as `Verifier.pace`.
    """
    if not (np.isfinite(chunk.velocities).all() and np.isfinite(chunk.accelerations).all()):
        return Finding("not_finite", "derivatives")  # differences of finite numbers may overflow
    at = splice_time(committed, chunk, earliest_ns)
    if chunk.start > at and _same(committed.state(chunk.start), chunk.knot(0)):
        at = splice_time(committed, chunk, chunk.start)  # it begins ahead, on the committed motion
    base = committed.since(now_ns).until(at)
    start = base.knot(len(base) - 1)
    first = int(np.searchsorted(chunk.times, at + GAP_NS))
    if first == len(chunk):
        return Finding("expired", "trajectory", seconds(at - chunk.end), 0.0)
    met = chunk.state(at) if chunk.start <= at else None
    jump = _jump(start, chunk, first, at, met, limits, settings)
    if jump is not None:
        return jump
    ahead = chunk.knots(first, len(chunk) - 1)
    continues = met is not None and _same(start, met)
    known: tuple[float, Finding | None] | None = None
    if continues and cap >= 1.0:
        whole = base.then(ahead)
        onward = whole.knots(len(base) - 1, len(whole) - 1)
        if _within(onward, limits):
            known = pace(onward)
            if known[0] >= 1.0:
                return Splice(whole, at, first, len(ahead), 1.0, None)
    own = ahead if met is None else Motion.at(at, met).then(ahead)
    scale, slowed_by = _needed_scale(own, limits)
    links, too_fast = known or pace(own)
    for limit, finding in ((links, too_fast), (cap, Finding("reduced_speed", "speed_scale", cap, 1.0))):
        if limit < scale:
            scale, slowed_by = limit, finding
    slowest = min(cap, settings.slowest * (1.0 if links >= settings.slowest else _LINKS))
    refused: Finding | None = None
    for _ in range(_ATTEMPTS):
        if scale < slowest:
            return slowed_by or refused or Finding("start_jump", limits.names[0])
        paced = _paced(ahead, at, scale)
        continuous = scale == 1.0 and continues
        join = _join(start, paced, at, limits, settings, continuous=continuous)
        if isinstance(join, int) and not continuous:
            fast = pace(Motion.at(at, start).then(paced.knots(join, join)))
            if fast[1] is not None and fast[0] < RESERVE * (1 - 1e-9):  # more than the cap itself
                join = fast[1]
        if isinstance(join, int):
            finding = slowed_by or (None if continuous else _bridge(start, met or chunk.knot(first + join), limits))
            motion = base.then(paced.knots(join, len(paced) - 1))
            return Splice(motion, at, first + join, len(chunk) - first - join, scale, finding)
        refused = join
        slowed_by = slowed_by or join
        scale *= _SLOWER
    assert refused is not None
    return refused


def _jump(
    start: State, chunk: Motion, first: int, at: int, met: State | None, limits: JointLimits, settings: Proposals
) -> Finding | None:
    """Whether the chunk is too far from the commanded state to be meant for it."""
    if met is None:
        allowed = settings.start_tolerance + limits.max_velocity * seconds(int(chunk.times[first]) - at)
        gap = np.abs(chunk.positions[first] - start.position)
    else:
        allowed = np.full(len(limits), settings.start_tolerance)
        gap = np.abs(met.position - start.position)
    within = gap <= allowed
    if within.all():
        return None
    j = int(np.argmax(np.where(within, -1.0, gap)))
    return Finding("start_jump", limits.names[j], float(gap[j]), float(allowed[j]))


def _within(motion: Motion, limits: JointLimits) -> bool:
    """Whether a motion keeps all limits: a chunk that does, and continues what is commanded, is taken as it is."""
    return check_envelope(motion, extent_of(motion), limits)[1] is None


def _needed_scale(own: Motion, limits: JointLimits) -> tuple[float, Finding | None]:
    if len(own) == 1:
        return 1.0, None
    return speed_scale(extent_of(own), limits)


def _paced(ahead: Motion, at: int, scale: float) -> Motion:
    """The same path, played at `scale` from `at` on; the very same motion at scale one."""
    if scale == 1.0:
        return ahead
    times = np.array([at + nanoseconds(seconds(int(t) - at) / scale) for t in ahead.times], dtype=np.int64)
    return replace(
        ahead, times=times, velocities=ahead.velocities * scale, accelerations=ahead.accelerations * scale**2
    )


def _join(
    start: State, ahead: Motion, at: int, limits: JointLimits, settings: Proposals, *, continuous: bool
) -> int | Finding:
    """Index of the knot of `ahead` that a single quintic from `start` leads to within the limits."""
    durations: Array = (ahead.times - at).astype(np.float64) * 1e-9
    count = max(1, int(np.searchsorted(durations, settings.longest_bridge, side="right")))
    durations = durations[:count]
    origin = tuple(np.broadcast_to(x, (count, len(x))) for x in (start.position, start.velocity, start.acceleration))
    goal = (ahead.positions[:count], ahead.velocities[:count], ahead.accelerations[:count])
    bounds = extent(hermite(durations, (origin[0], origin[1], origin[2]), goal), durations)
    ratios = np.stack(
        [
            (bounds.speed / limits.max_velocity).max(axis=1),
            (bounds.acceleration / limits.max_acceleration).max(axis=1),
            (bounds.jerk / limits.max_jerk).max(axis=1),
        ]
    )
    low, high = limits.min_position - 1e-9, limits.max_position + 1e-9
    ranged: NDArray[np.bool_] = np.all((bounds.lowest >= low) & (bounds.highest <= high), axis=1)
    worst = np.nan_to_num(ratios.max(axis=0), nan=np.inf)
    possible = ranged & (worst <= 1.0)
    if continuous and possible[0]:
        return 0
    if not possible.any():
        k = int(np.argmin(np.where(ranged, worst, np.inf)))
        return _blame(bounds, k, ranged, limits)
    gentle = possible & (ratios[1] <= _GENTLE) & (durations >= settings.bridge)
    if gentle.any():
        return int(np.argmax(gentle))
    return int(np.argmin(np.where(possible, ratios[1], np.inf)))


def _blame(bounds: Extent, k: int, ranged: NDArray[np.bool_], limits: JointLimits) -> Finding:
    """The limit that bridge `k` breaks worst."""
    if not ranged[k]:
        over = np.maximum(bounds.highest[k] - limits.max_position, limits.min_position - bounds.lowest[k])
        j = int(np.argmax(over))
        high = bounds.highest[k, j] > limits.max_position[j]
        value, limit = (bounds.highest, limits.max_position) if high else (bounds.lowest, limits.min_position)
        return Finding("joint_position", limits.names[j], float(value[k, j]), float(limit[j]))
    one = slice(k, k + 1)
    _, finding = speed_scale(
        Extent(bounds.lowest[one], bounds.highest[one], bounds.speed[one], bounds.acceleration[one], bounds.jerk[one]),
        limits,
    )
    return finding or Finding("start_jump", limits.names[0])


def _same(a: State, b: State) -> bool:
    pairs = ((a.position, b.position), (a.velocity, b.velocity), (a.acceleration, b.acceleration))
    return all(bool((np.abs(x - y) <= tolerance).all()) for (x, y), tolerance in zip(pairs, _SAME, strict=True))


def _bridge(start: State, met: State, limits: JointLimits) -> Finding:
    gap = np.abs(met.position - start.position)
    j = int(np.argmax(gap))
    return Finding("bridge", limits.names[j], float(gap[j]), 0.0)
