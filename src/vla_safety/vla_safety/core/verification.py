"""Judges a whole motion: envelope and fence, continuously in time.

Proof obligation (I3, I14). Between two samples a point of body b moves along an arc no longer than the integral of
sum_i reach[b, i] |dq_i/dt|; at any instant it is within half of that of one of the two samples. So a body whose
clearance at both samples exceeds half the arc (plus the margin) is clear at every instant between: a thin wall cannot be
tunnelled through. Intervals where this does not suffice are divided; those that are still in doubt after the last
division count as violations (fail closed).
"""

from dataclasses import dataclass

import numpy as np
from vla_contract.limits import JointLimits

from vla_safety.core.findings import Finding
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.limits import Extent, check_envelope, extent_of
from vla_safety.core.motion import Array, Motion
from vla_safety.core.zones import ZoneSet

_STEP = 0.025  # s between the first samples
_PARTS = 4
_LEVELS = 3


@dataclass(frozen=True)
class Report:
    """The verdict on a motion.

    Attributes:
        finding: the first thing that is wrong; None: the motion is verified from start to end.
        safe_until: ns; the motion is verified up to there. Its start, when not even that is.
        clearance: m, smallest distance to a zone over the samples up to the finding; inf: no zones.
    """

    finding: Finding | None
    safe_until: int
    clearance: float

    @property
    def safe(self) -> bool:
        """Verified from start to end."""
        return self.finding is None


@dataclass(frozen=True)
class _Intervals:
    """Pieces of the curve: `start`, `end` s; `segment` between knots that each lies in. All (M,)."""

    start: Array
    end: Array
    segment: np.ndarray


class Verifier:
    """Holds what motions are judged against.

    Args:
        margin: m, that every body keeps from every zone (the tolerance for tracking and modelling errors).
    """

    def __init__(self, limits: JointLimits, model: RobotModel, zones: ZoneSet, margin: float):
        self.limits = limits
        self.model = model
        self.zones = zones
        self.margin = margin

    def verify(self, motion: Motion) -> Report:
        """Judges `motion` at every instant from its first to its last knot."""
        bounds = extent_of(motion)
        kept, finding = check_envelope(motion, bounds, self.limits)
        if finding is not None and kept == 0:
            return Report(finding, motion.start, np.inf)
        inside = motion.knots(0, kept) if kept < len(motion) - 1 else motion
        fence = self._check_fence(inside, bounds)
        if fence.finding is not None:
            return fence
        return Report(finding, inside.end, fence.clearance)

    def clearances(self, q: Array) -> tuple[float, Finding | None]:
        """Smallest clearance of one configuration (n,), and the zone that it violates (without margin), if any."""
        values, which = self.zones.clearances(self.model.place(q[None]))
        b = int(np.argmin(values[0]))
        clearance = float(values[0, b])
        if clearance >= 0:
            return clearance, None
        zone = self.zones.zones[int(which[0, b])].name
        return clearance, Finding(f"zone_measured:{zone}", self.model.body_links[b], clearance, 0.0)

    def _check_fence(self, motion: Motion, bounds: Extent) -> Report:
        if len(self.zones) == 0:
            return Report(None, motion.end, np.inf)
        intervals = _first_intervals(motion)
        clearance, earliest, finding = np.inf, np.inf, None
        for level in range(_LEVELS):
            last = level == _LEVELS - 1
            doubtful, definite, lowest = self._examine(motion, bounds, intervals, give_up=last)
            clearance = min(clearance, lowest)
            if definite is not None and definite.at < earliest:
                earliest, finding = definite.at, definite
            # What comes after a violation need not be looked at.
            doubtful = _select(doubtful, doubtful.start < earliest)
            if len(doubtful.start) == 0:
                break
            intervals = _divide(doubtful)
        safe = motion.end if finding is None else motion.start + int(np.floor(earliest * 1e9))
        return Report(finding, safe, clearance)

    def _examine(
        self, motion: Motion, bounds: Extent, intervals: _Intervals, *, give_up: bool
    ) -> tuple[_Intervals, Finding | None, float]:
        """Judges intervals by their ends.

        Returns:
            Intervals in doubt; the earliest violation (its `at` is the start of its interval); the smallest clearance.
        """
        samples, inverse = np.unique(np.concatenate([intervals.start, intervals.end]), return_inverse=True)
        states = motion.curve.sample(samples)
        clear, which = self.zones.clearances(self.model.place(states.positions))
        first, second = inverse[: len(intervals.start)], inverse[len(intervals.start) :]
        spans = intervals.end - intervals.start
        speeds = np.abs(states.velocities)
        rate = np.maximum(speeds[first], speeds[second])
        if len(motion) > 1:
            # The speed within the interval, from its ends and the segment's bounds; both are rigorous.
            gain = spans[:, None] / 2 * bounds.acceleration[intervals.segment]
            rate = np.minimum(rate + gain, bounds.speed[intervals.segment])
        sweep = spans[:, None] / 2 * (rate @ self.model.reach.T)
        room = np.minimum(clear[first], clear[second]) - self.margin
        broken = ~(room >= 0)
        failed = broken | ~(room >= sweep)
        lowest = float(np.min(clear))
        bad = (failed if give_up else broken).any(axis=1)
        doubtful = _select(intervals, failed.any(axis=1) & ~bad)
        if not bad.any():
            return doubtful, None, lowest
        k = int(np.argmax(bad))
        slack = np.where((failed if give_up else broken)[k], room[k] - sweep[k], np.inf)
        b = int(np.argmin(slack))
        sample = int(first[k] if clear[first[k], b] <= clear[second[k], b] else second[k])
        zone = self.zones.zones[int(which[sample, b])].name
        finding = Finding(
            f"zone:{zone}", self.model.body_links[b], float(clear[sample, b]), self.margin, float(intervals.start[k])
        )
        return doubtful, finding, lowest


def _first_intervals(motion: Motion) -> _Intervals:
    if len(motion) == 1:
        return _Intervals(np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64))
    times = motion.curve.times
    pieces = np.maximum(1, np.ceil(np.diff(times) / _STEP)).astype(np.int64)
    return _split(times[:-1], times[1:], np.arange(len(pieces)), pieces)


def _divide(intervals: _Intervals) -> _Intervals:
    pieces = np.full(len(intervals.start), _PARTS, dtype=np.int64)
    return _split(intervals.start, intervals.end, intervals.segment, pieces)


def _split(start: Array, end: Array, segment: np.ndarray, pieces: np.ndarray) -> _Intervals:
    """Each interval in equal pieces, in order of time; shared ends are the same numbers, bit by bit."""
    owner = np.repeat(np.arange(len(pieces)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    width = (end - start)[owner] / pieces[owner]
    begins = start[owner] + number * width
    ends = np.where(number + 1 == pieces[owner], end[owner], start[owner] + (number + 1) * width)
    return _Intervals(begins, ends, segment[owner])


def _select(intervals: _Intervals, mask: np.ndarray) -> _Intervals:
    return _Intervals(intervals.start[mask], intervals.end[mask], intervals.segment[mask])
