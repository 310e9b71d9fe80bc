"""Judges a whole motion: envelope, fence and speed of links, continuously in time.

Proof obligation (I3, I14). Between two samples a point of body b moves along an arc no longer than the integral of
sum_i reach[b, i] |dq_i/dt|; at any instant it is within half of that of one of the two samples. So a body whose
clearance at both samples exceeds half the arc (plus the margin) is clear at every instant between: a thin wall cannot
be tunnelled through. Intervals where this does not suffice are divided; those that are still in doubt after the last
division count as violations (fail closed). How fast links move in between is argued in `speed.py`.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.findings import Finding
from vla_safety.core.intervals import Intervals, Sampled, first_intervals, grouped, joined, sampled
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.limits import Extent, check_envelope, extents_of
from vla_safety.core.motion import Array, Motion
from vla_safety.core.speed import SpeedCaps, pace, too_fast
from vla_safety.core.stopping import Groups

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

    def parts(self, placement: Placement) -> "Sequence[DistanceCheck]":
        """The same check, as several: what is violated in a configuration has distances of its own."""


class Verifier:
    """Holds what motions are judged against.

    Args:
        checks: of distances; the first is the one whose smallest value is reported as clearance.
        groups: columns of the joints that stop together; None: all do.
        caps: of the speed of links; None: there are none.

    Attributes:
        margins: (C,) m, that each distance must keep.
    """

    def __init__(
        self,
        limits: JointLimits,
        model: RobotModel,
        checks: Sequence[DistanceCheck],
        groups: Groups | None = None,
        caps: SpeedCaps | None = None,
    ):
        self.limits = limits
        self.caps = caps
        self.groups = groups
        self.model = model
        self.checks = tuple(checks)
        self._reach: Array = np.concatenate([check.reach for check in checks])
        sizes = [len(check.reach) for check in checks]
        self.margins: Array = np.repeat([float(check.margin) for check in checks], sizes)
        self._owners = [(check, column) for check, size in zip(checks, sizes, strict=True) for column in range(size)]
        self._bounds = np.cumsum([0, *sizes])
        self._reported = int(self._bounds[1])

    def verify(self, motion: Motion) -> Report:
        """Judges `motion` at every instant from its first to its last knot."""
        return self.verify_all([motion])[0]

    def verify_all(self, motions: Sequence[Motion]) -> list[Report]:
        """Judges each of several motions as `verify` does; one look at all of them costs little more than at one."""
        bounds = extents_of(motions)
        envelopes = [check_envelope(motion, b, self.limits) for motion, b in zip(motions, bounds, strict=True)]
        inside = [
            motion.knots(0, kept) if kept < len(motion) - 1 else motion
            for motion, (kept, _) in zip(motions, envelopes, strict=True)
        ]
        reports = []
        for whole, motion, b, (kept, finding), screened in zip(
            motions, inside, bounds, envelopes, self._screen(inside, bounds), strict=True
        ):
            if finding is not None and kept == 0:
                reports.append(Report(finding, whole.start, np.inf))
                continue
            fence = self._check_fence(motion, b, *screened)
            reports.append(fence if fence.finding is not None else Report(finding, motion.end, fence.clearance))
        return reports

    def pace(self, motion: Motion) -> tuple[float, Finding | None]:
        """The largest uniform slow-down in (0, 1] with which a path keeps the caps of links, with a reserve; and what
        made it less than one."""
        return (1.0, None) if self.caps is None else pace(motion, self.caps, self.model)

    def clearances(self, q: Array) -> tuple[list[float], Finding | None]:
        """The smallest distance of one configuration (n,) in each check, inf where there is none; and the worst that is
        violated, without a margin."""
        values, labels = self._distances(self.model.place(q[None]))
        parts = [values[0, a:b] for a, b in zip(self._bounds, self._bounds[1:], strict=False)]
        smallest = [float(part.min()) if len(part) else np.inf for part in parts]
        column = int(np.argmin(values[0]))
        value = float(values[0, column])
        if value >= 0:
            return smallest, None
        reason, subject = self._describe(column, int(labels[0, column]))
        return smallest, Finding(f"measured_{reason}", subject, value, 0.0)

    def distances(self, q: Array) -> Array:
        """(C,) m: the distances of one configuration (n,), in the order of `margins`."""
        return self._distances(self.model.place(q[None]))[0][0]

    def split(self, q: Array) -> "Verifier":
        """The same rules. What is violated in configuration `q` (n,) has distances of its own in them: it does not hide
        what else is to be kept away from."""
        placement = self.model.place(q[None])
        parts = [check.parts(placement) for check in self.checks]
        other = Verifier(self.limits, self.model, [c for group in parts for c in group], self.groups, self.caps)
        other._reported = int(other._bounds[len(parts[0])])
        return other

    def loosened(self, margins: Array, limits: JointLimits) -> "Verifier":
        """The same rules with other margins (C,) and limits, for a robot that is led out of where it may not be."""
        other = copy(self)
        other.margins, other.limits = margins, limits
        return other

    def _distances(self, placement: Placement) -> tuple[Array, NDArray[np.int64]]:
        results = [check.clearances(placement) for check in self.checks]
        return np.concatenate([r[0] for r in results], axis=1), np.concatenate([r[1] for r in results], axis=1)

    def _describe(self, column: int, label: int) -> tuple[str, str]:
        check, own = self._owners[column]
        return check.describe(own, label)

    def _check_fence(self, motion: Motion, bounds: Extent, unclear: NDArray[np.bool_], clearance: float) -> Report:
        if not unclear.any():
            return Report(None, motion.end, clearance)
        intervals = first_intervals(motion, unclear)
        earliest, finding = np.inf, None
        for level in range(_LEVELS):
            last = level == _LEVELS - 1
            doubtful, definite, clear = self._examine(sampled(motion, bounds, intervals), intervals, give_up=last)
            clearance = min(clearance, float(np.min(clear, initial=np.inf)))
            if definite is not None and definite.at < earliest:
                earliest, finding = definite.at, definite
            # What comes after a violation need not be looked at.
            doubtful = doubtful.select(doubtful.start < earliest)
            if len(doubtful) == 0:
                break
            intervals = doubtful.divided()
        safe = motion.end if finding is None else motion.start + int(np.floor(earliest * 1e9))
        return Report(finding, safe, clearance)

    def _screen(self, motions: Sequence[Motion], bounds: Sequence[Extent]) -> list[tuple[NDArray[np.bool_], float]]:
        """A first look at groups of segments in which little moves; it only ever says that all is well.

        Returns:
            For each motion the segments (K,) that it leaves in doubt, and the smallest clearance that it saw.
        """
        results = [(np.ones(1, dtype=bool), np.inf)] * len(motions)
        long = [k for k, motion in enumerate(motions) if len(motion) > 2]
        if not long:
            return results
        parts = [grouped(motions[k], bounds[k], self._reach) for k in long]
        groups = joined(parts)
        doubtful, _, clear = self._examine(groups.samples, groups.intervals, screen=True)
        unclear = np.zeros(len(groups.intervals), dtype=bool)
        unclear[doubtful.segment] = True
        row = number = 0
        for k, part in zip(long, parts, strict=True):
            rows, numbers = row + len(part.samples.positions), number + len(part.intervals)
            lowest = float(np.min(clear[row:rows], initial=np.inf))
            results[k] = np.repeat(unclear[number:numbers], part.sizes), lowest
            row, number = rows, numbers
        return results

    def _examine(
        self, samples: Sampled, intervals: Intervals, *, give_up: bool = False, screen: bool = False
    ) -> tuple[Intervals, Finding | None, Array]:
        """Judges intervals by their ends. `give_up`: what is in doubt is a violation; `screen`: nothing is, yet.

        Returns:
            Intervals in doubt; the earliest violation (its `at` is the start of its interval); the first check's
            distances at the samples.
        """
        placement = self.model.place(samples.positions)
        clear, labels = self._distances(placement)
        first, second = samples.first, samples.second
        sweep = samples.spans / 2 * (samples.speed @ self._reach.T)
        room = np.minimum(clear[first], clear[second]) - self.margins
        broken = ~(room >= 0)
        failed = broken | ~(room >= sweep)
        zones = clear[:, : self._reported]
        bad: NDArray[np.bool_] = np.any(failed if give_up else broken, axis=1)
        doubt: NDArray[np.bool_] = np.any(failed, axis=1)
        fence = bad
        if self.caps is not None:
            ratios = self.caps.ratios(samples, placement)
            fast = too_fast(ratios.high if give_up else ratios.low)
            doubt = doubt | too_fast(ratios.high)
            bad = bad | fast
        if screen:
            return intervals.select(doubt), None, zones
        doubtful = intervals.select(doubt & ~bad)
        if not bad.any():
            return doubtful, None, zones
        k = int(np.argmax(bad))
        at = float(intervals.start[k])
        if self.caps is not None and not fence[k]:
            return doubtful, self.caps.finding(ratios, k, at, surely=not give_up), zones
        slack = np.where((failed if give_up else broken)[k], room[k] - sweep[k], np.inf)
        c = int(np.argmin(slack))
        sample = int(first[k] if clear[first[k], c] <= clear[second[k], c] else second[k])
        reason, subject = self._describe(c, int(labels[sample, c]))
        return doubtful, Finding(reason, subject, float(clear[sample, c]), float(self.margins[c]), at), zones
