"""Judges a whole motion: envelope and fence, continuously in time.

Proof obligation (I3, I14). Between two samples a point of body b moves along an arc no longer than the integral of
sum_i reach[b, i] |dq_i/dt|; at any instant it is within half of that of one of the two samples. So a body whose
clearance at both samples exceeds half the arc (plus the margin) is clear at every instant between: a thin wall cannot
be tunnelled through. Intervals where this does not suffice are divided; those that are still in doubt after the last
division count as violations (fail closed).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.findings import Finding
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.limits import Extent, check_envelope, extent_of
from vla_safety.core.motion import Array, Motion
from vla_safety.core.stopping import Groups

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


class DistanceCheck(Protocol):
    """Distances that must stay above a margin; `C` of them.

    Attributes:
        reach: (C, n): how fast each distance can shrink with the joints' speeds; margin: m.
    """

    @property
    def reach(self) -> Array: ...

    @property
    def margin(self) -> float: ...

    def clearances(self, placement: Placement) -> tuple[Array, NDArray[np.int64]]:
        """(N, C) m, lower bounds; and a label for each."""

    def describe(self, column: int, label: int) -> tuple[str, str]:
        """Reason and subject of a finding."""


class Verifier:
    """Holds what motions are judged against.

    Args:
        checks: of distances; the first is the one whose smallest value is reported as clearance.
        groups: columns of the joints that stop together; None: all do.
    """

    def __init__(
        self,
        limits: JointLimits,
        model: RobotModel,
        checks: Sequence[DistanceCheck],
        groups: Groups | None = None,
    ):
        self.limits = limits
        self.groups = groups
        self.model = model
        self.checks = tuple(checks)
        self._reach: Array = np.concatenate([check.reach for check in checks])
        sizes = [len(check.reach) for check in checks]
        self._margins = np.repeat([check.margin for check in checks], sizes)
        self._owners = [(check, column) for check, size in zip(checks, sizes, strict=True) for column in range(size)]
        self._bounds = np.cumsum([0, *sizes])

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

    def clearances(self, q: Array) -> tuple[list[float], Finding | None]:
        """The smallest distance of one configuration (n,) in each check, inf where there is none; and the worst that is
        violated, without a margin."""
        values, labels = self._distances(q[None])
        parts = [values[0, a:b] for a, b in zip(self._bounds, self._bounds[1:], strict=False)]
        smallest = [float(part.min()) if len(part) else np.inf for part in parts]
        column = int(np.argmin(values[0]))
        value = float(values[0, column])
        if value >= 0:
            return smallest, None
        reason, subject = self._describe(column, int(labels[0, column]))
        return smallest, Finding(f"measured_{reason}", subject, value, 0.0)

    def _distances(self, q: Array) -> tuple[Array, NDArray[np.int64]]:
        placement = self.model.place(q)
        results = [check.clearances(placement) for check in self.checks]
        return np.concatenate([r[0] for r in results], axis=1), np.concatenate([r[1] for r in results], axis=1)

    def _describe(self, column: int, label: int) -> tuple[str, str]:
        check, own = self._owners[column]
        return check.describe(own, label)

    def _check_fence(self, motion: Motion, bounds: Extent) -> Report:
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
        clear, labels = self._distances(states.positions)
        first, second = inverse[: len(intervals.start)], inverse[len(intervals.start) :]
        spans = intervals.end - intervals.start
        speeds = np.abs(states.velocities)
        rate = np.maximum(speeds[first], speeds[second])
        if len(motion) > 1:
            # The speed within the interval, from its ends and the segment's bounds; both are rigorous.
            gain = spans[:, None] / 2 * bounds.acceleration[intervals.segment]
            rate = np.minimum(rate + gain, bounds.speed[intervals.segment])
        sweep = spans[:, None] / 2 * (rate @ self._reach.T)
        room = np.minimum(clear[first], clear[second]) - self._margins
        broken = ~(room >= 0)
        failed = broken | ~(room >= sweep)
        lowest = float(np.min(clear[:, : self._bounds[1]], initial=np.inf))
        bad: NDArray[np.bool_] = np.any(failed if give_up else broken, axis=1)
        doubtful = _select(intervals, np.any(failed, axis=1) & ~bad)
        if not bad.any():
            return doubtful, None, lowest
        k = int(np.argmax(bad))
        slack = np.where((failed if give_up else broken)[k], room[k] - sweep[k], np.inf)
        c = int(np.argmin(slack))
        sample = int(first[k] if clear[first[k], c] <= clear[second[k], c] else second[k])
        reason, subject = self._describe(c, int(labels[sample, c]))
        value, at = float(clear[sample, c]), float(intervals.start[k])
        return doubtful, Finding(reason, subject, value, float(self._margins[c]), at), lowest


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
