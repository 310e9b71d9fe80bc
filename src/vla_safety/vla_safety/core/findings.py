"""What a check says, and what the filter answers."""

import math
from dataclasses import dataclass
from enum import IntEnum

from vla_safety.core.reasons import explain, remedy_for


class Verdict(IntEnum):
    """Answers to a proposal, mildest first; the values are those of vla_msgs/SafetyDecision."""

    ACCEPTED = 0
    SLOWED = 1
    TRIMMED = 2
    REFUSED = 3
    STOPPED = 4


@dataclass(frozen=True)
class Finding:
    """What a check has against a motion, an input or a state.

    Attributes:
        reason: identifier in `reasons.REASONS`, with the zone's name after a colon where there is one.
        subject: joint, link or zone.
        value, limit: SI, in the same unit; NaN where they do not apply.
        at: s from the start of what was checked; 0 where it does not apply.
    """

    reason: str
    subject: str = ""
    value: float = math.nan
    limit: float = math.nan
    at: float = 0.0

    @property
    def share(self) -> float:
        """The value as a part of its limit; NaN where they do not apply."""
        return self.value / self.limit if self.limit else math.nan

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        return remedy_for(self.reason)

    @property
    def sentence(self) -> str:
        """One plain sentence with the numbers."""
        return explain(self.reason, self.subject, self.value, self.limit)


@dataclass(frozen=True)
class Decision:
    """The answer to one proposal (or, with verdict STOPPED, to a fault).

    Attributes:
        finding: why it is not ACCEPTED unchanged; None: it is.
        points_requested: points in the proposal; points_accepted: those that are executed as requested.
        speed_scale: (0, 1]; below 1 the path is followed slower.
    """

    verdict: Verdict
    source: str
    sequence: int
    finding: Finding | None = None
    points_requested: int = 0
    points_accepted: int = 0
    speed_scale: float = 1.0
    stamp_ns: int = 0
    latency_ns: int = 0
