"""What a part of the campaign has counted: plain values that a state file keeps and that add up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

KEPT = 20  # violations that are described; all are counted


@dataclass
class Tally:
    """Counts by name, the extremes of what was measured, and violations with what is needed to see them again.

    Attributes:
        least: name -> smallest value seen; most: name -> largest.
        violations: descriptions, each with the keys `what` and `again` (how to repeat it).
    """

    counts: Counter[str] = field(default_factory=Counter)
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    violations: list[dict[str, Any]] = field(default_factory=list)

    def low(self, name: str, value: float) -> None:
        """Remembers the smallest."""
        self.least[name] = min(self.least.get(name, value), value)

    def high(self, name: str, value: float) -> None:
        """Remembers the largest."""
        self.most[name] = max(self.most.get(name, value), value)

    def violated(self, what: str, again: dict[str, Any]) -> None:
        """Counts a violation."""
        self.counts["violations"] += 1
        if len(self.violations) < KEPT:
            self.violations.append({"what": what, "again": again})

    def add(self, other: "Tally") -> None:
        """Takes in what another has counted."""
        self.counts.update(other.counts)
        for name, value in other.least.items():
            self.low(name, value)
        for name, value in other.most.items():
            self.high(name, value)
        self.violations = [*self.violations, *other.violations][:KEPT]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "least": self.least,
            "most": self.most,
            "violations": self.violations,
        }

    @staticmethod
    def of(record: dict[str, Any]) -> "Tally":
        """From JSON."""
        return Tally(Counter(record["counts"]), dict(record["least"]), dict(record["most"]), list(record["violations"]))
