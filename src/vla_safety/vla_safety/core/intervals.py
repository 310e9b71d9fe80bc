"""Pieces of a motion between two samples, and how they are divided where the samples do not suffice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.limits import Extent
from vla_safety.core.motion import Array, Motion

_WAY = 0.04  # m that a body may go between the samples of a first look
_STEP = 0.025  # s between the samples of a second one
_PARTS = 4


@dataclass(frozen=True)
class Intervals:
    """Pieces of the curve: `start`, `end` s; `segment` between knots that each lies in. All (M,)."""

    start: Array
    end: Array
    segment: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def select(self, mask: NDArray[np.bool_]) -> "Intervals":
        """Those where `mask` (M,) is true."""
        return Intervals(self.start[mask], self.end[mask], self.segment[mask])

    def divided(self) -> "Intervals":
        """Each in equal pieces."""
        return _split(self.start, self.end, self.segment, np.full(len(self), _PARTS, dtype=np.int64))


@dataclass(frozen=True)
class Sampled:
    """Intervals with the states at their ends.

    Attributes:
        positions, velocities: (N, n) at the samples.
        first, second: (M,) rows of the samples at the start and the end of each interval.
        spans: (M, 1) s.
        speed, acceleration: (M, n), bounds of each joint within each interval.
    """

    positions: Array
    velocities: Array
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    spans: Array
    speed: Array
    acceleration: Array


@dataclass(frozen=True)
class Groups:
    """Runs of segments, each looked at as one interval.

    Attributes:
        intervals: (G,), whose `segment` is the number of the group; samples: the states at their ends.
        sizes: (G,) segments in each.
    """

    intervals: Intervals
    samples: Sampled
    sizes: NDArray[np.int64]


def grouped(motion: Motion, bounds: Extent, reach: Array) -> Groups:
    """The segments of a motion in groups, in each of which no body goes much further than `_WAY`.

    Args:
        bounds: of the segments; reach: (C, n) m per rad, how fast the joints move a body.
    """
    times = (motion.times - motion.times[0]) * 1e-9
    count = len(times) - 1
    way = np.diff(times) * (bounds.speed[:count] @ reach.T).max(axis=1, initial=0.0)
    group = np.floor(np.cumsum(way) / _WAY)
    ends = np.concatenate([[0], np.flatnonzero(group[1:] != group[:-1]) + 1, [count]])
    starts = ends[:-1]
    spans = np.diff(times[ends])[:, None]
    acceleration = np.maximum.reduceat(bounds.acceleration[:count], starts)
    number = np.arange(len(starts))
    speeds = np.abs(motion.velocities[ends])
    speed = np.maximum(speeds[:-1], speeds[1:]) + spans / 2 * acceleration
    speed = np.minimum(speed, np.maximum.reduceat(bounds.speed[:count], starts))
    samples = Sampled(motion.positions[ends], motion.velocities[ends], number, number + 1, spans, speed, acceleration)
    return Groups(Intervals(times[starts], times[ends[1:]], number), samples, np.diff(ends))


def joined(groups: Sequence[Groups]) -> Groups:
    """Several motions' groups as one, to be looked at together; numbers and rows go on from one to the next."""
    if len(groups) == 1:
        return groups[0]
    parts, samples = [g.intervals for g in groups], [g.samples for g in groups]
    rows = np.cumsum([0, *(len(s.positions) for s in samples[:-1])])
    numbers = np.cumsum([0, *(len(p) for p in parts[:-1])])
    return Groups(
        Intervals(
            np.concatenate([p.start for p in parts]),
            np.concatenate([p.end for p in parts]),
            np.concatenate([p.segment + n for p, n in zip(parts, numbers, strict=True)]),
        ),
        Sampled(
            np.concatenate([s.positions for s in samples]),
            np.concatenate([s.velocities for s in samples]),
            np.concatenate([s.first + row for s, row in zip(samples, rows, strict=True)]),
            np.concatenate([s.second + row for s, row in zip(samples, rows, strict=True)]),
            np.concatenate([s.spans for s in samples]),
            np.concatenate([s.speed for s in samples]),
            np.concatenate([s.acceleration for s in samples]),
        ),
        np.concatenate([g.sizes for g in groups]),
    )


def first_intervals(motion: Motion, chosen: NDArray[np.bool_] | None = None) -> Intervals:
    """A motion, or the `chosen` (K,) of its segments, in pieces of at most `_STEP`, each within one segment."""
    if len(motion) == 1:
        return Intervals(np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64))
    times = motion.curve.times
    pieces = np.maximum(1, np.ceil(np.diff(times) / _STEP)).astype(np.int64)
    number = np.arange(len(pieces)) if chosen is None else np.flatnonzero(chosen)
    return _split(times[number], times[number + 1], number, pieces[number])


def sampled(motion: Motion, bounds: Extent, intervals: Intervals) -> Sampled:
    """The states at the ends of `intervals`; `bounds` are those of the motion's segments."""
    samples, inverse = np.unique(np.concatenate([intervals.start, intervals.end]), return_inverse=True)
    states = motion.curve.sample(samples)
    first, second = inverse[: len(intervals)], inverse[len(intervals) :]
    spans = (intervals.end - intervals.start)[:, None]
    speeds = np.abs(states.velocities)
    speed = np.maximum(speeds[first], speeds[second])
    acceleration = np.zeros_like(speed)
    if len(motion) > 1:
        # The speed within the interval, from its ends and the segment's bounds; both are rigorous.
        acceleration = bounds.acceleration[intervals.segment]
        speed = np.minimum(speed + spans / 2 * acceleration, bounds.speed[intervals.segment])
    return Sampled(states.positions, states.velocities, first, second, spans, speed, acceleration)


def _split(start: Array, end: Array, segment: NDArray[np.int64], pieces: NDArray[np.int64]) -> Intervals:
    """Each interval in equal pieces, in order of time; shared ends are the same numbers, bit by bit."""
    owner = np.repeat(np.arange(len(pieces)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    width = (end - start)[owner] / pieces[owner]
    begins = start[owner] + number * width
    ends = np.where(number + 1 == pieces[owner], end[owner], start[owner] + (number + 1) * width)
    return Intervals(begins, ends, segment[owner])
