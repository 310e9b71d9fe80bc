"""What monitors beside the checks may say: slower, or stop. This is the seam for statistical monitors (I16) and for the
instruction gate (I17).

Proof obligation. An Advice has two effects: the speed scale of the next plans is at most its cap, and its stop latches
like any reported cause. Caps are at most one and the smallest counts, so one monitor cannot undo what another said; no
check, limit or mode can be reached through here. A monitor that is wrong, silly or compromised costs time, never
safety.
"""

from dataclasses import dataclass

from vla_safety.core.findings import Finding


@dataclass(frozen=True)
class Advice:
    """The newest word of one monitor; it replaces that monitor's last one.

    Attributes:
        monitor: its name, e.g. "anomaly" or "instruction".
        cap: (0, 1], of the speed of every plan that begins from now on. Anything else counts as a stop.
        stop: why the robot must stop and stay stopped; None: no reason, or no longer.
    """

    monitor: str
    cap: float = 1.0
    stop: Finding | None = None

    @property
    def finding(self) -> Finding | None:
        """Why it stops."""
        if self.stop is None and not 0.0 < self.cap <= 1.0:  # NaN as well
            return Finding("advice", self.monitor[:80], self.cap, 1.0)
        return self.stop


class Advices:
    """What all monitors say together."""

    def __init__(self) -> None:
        self._caps: dict[str, float] = {}

    def take(self, advice: Advice) -> None:
        """The newest word of a monitor. A cap that is none changes nothing but the stop that it causes."""
        if 0.0 < advice.cap <= 1.0:
            self._caps[advice.monitor] = advice.cap

    @property
    def cap(self) -> float:
        """(0, 1]: the smallest."""
        return min(self._caps.values(), default=1.0)
