"""When a task is over, and why. Pure: times come in, a verdict comes out."""

import math
from dataclasses import dataclass
from enum import IntEnum

_SET_BACK = 1.0  # s, from which on a clock was not only adjusted


class Outcome(IntEnum):
    """As in ExecuteTask.action."""

    SUCCEEDED = 0
    FAILED = 1
    TIMEOUT = 2
    CANCELED = 3
    STOPPED = 4
    REFUSED = 5


@dataclass(frozen=True)
class Verdict:
    """How a task ended; `message` is one plain sentence."""

    outcome: Outcome
    message: str


@dataclass(frozen=True)
class Rules:
    """When a task is over.

    Attributes:
        progress, chunks: succeeded after so many chunks in a row with at least that progress.
        failures: inferences in a row without an answer; those that an outage left without one do not count.
        unarmed: s that the safety filter may be disarmed or e-stopped.
    """

    progress: float = 0.9
    chunks: int = 3
    failures: int = 10
    unarmed: float = 1.0


class Task:
    """One goal. Times in ns of the clock that the robot's stamps are made with.

    Attributes:
        id: UUID of the goal.
        instruction: the sentence to obey.
        chunks: published so far.
        progress: of the newest chunk; NaN: unknown.
        unanswered: inferences that an outage left without an answer.
    """

    def __init__(self, identifier: str, instruction: str, now_ns: int, timeout: float, rules: Rules):
        self.id = identifier
        self.instruction = instruction
        self.started_ns = now_ns
        self.timeout = timeout
        self.chunks = self.unanswered = 0
        self.progress = math.nan
        self._rules = rules
        self._done = self._failures = 0
        self._last_failure = self._outage = ""
        self._broken = ""
        self._unarmed_since: int | None = None
        self._mode = ""
        self._latest_ns = now_ns

    def duration(self, now_ns: int) -> float:
        """s since the start."""
        return (now_ns - self.started_ns) * 1e-9

    def published(self, progress: float, whole: bool = True) -> None:
        """A chunk was published; `whole`: its progress is that of the task, not of a part that a planner named."""
        self.chunks += 1
        self.progress = progress
        self._failures, self._outage = 0, ""
        self._done = self._done + 1 if whole and progress >= self._rules.progress else 0

    def failed(self, reason: str) -> None:
        """An inference gave no usable answer."""
        self._failures += 1
        self._outage = ""
        self._last_failure = reason.splitlines()[0] if reason else "no reason given"

    def unavailable(self, reason: str) -> None:
        """What the policy runs on is away: no failure of the policy, however long it lasts. The robot rests."""
        self.unanswered += 1
        self._outage = reason.splitlines()[0] if reason else "no reason given"

    def broke(self, reason: str) -> None:
        """The worker is down for good."""
        self._broken = reason.splitlines()[0]

    def mode(self, name: str, moving_allowed: bool, now_ns: int) -> None:
        """The safety filter's mode as it is now."""
        self._mode = name
        if moving_allowed:
            self._unarmed_since = None
        elif self._unarmed_since is None:
            self._unarmed_since = now_ns

    def verdict(self, now_ns: int, cancel_requested: bool) -> Verdict | None:
        """How the task has ended; None: it goes on."""
        back, self._latest_ns = (self._latest_ns - now_ns) * 1e-9, max(self._latest_ns, now_ns)
        if back > _SET_BACK:
            return Verdict(
                Outcome.FAILED, f"the clock was set back by {back:.1f} s, stamps mean nothing: send the task again"
            )
        if cancel_requested:
            return Verdict(Outcome.CANCELED, f"canceled after {self.duration(now_ns):.1f} s")
        if self._broken:
            return Verdict(Outcome.FAILED, f"the policy's worker is down: {self._broken}")
        if self._failures >= self._rules.failures:
            return Verdict(
                Outcome.FAILED, f"{self._failures} inferences in a row failed, the last one: {self._last_failure}"
            )
        if self._done >= self._rules.chunks:
            return Verdict(
                Outcome.SUCCEEDED,
                f"the policy reports progress >= {self._rules.progress:g} in {self._done} chunks in a row",
            )
        if self._unarmed_since is not None and (now_ns - self._unarmed_since) * 1e-9 > self._rules.unarmed:
            return Verdict(
                Outcome.STOPPED,
                f"the safety filter is {self._mode}: clear the cause, arm the robot (vla arm), send the task again",
            )
        if self.duration(now_ns) > self.timeout:
            outage = f"; no answer at the end: {self._outage}" if self._outage else ""
            return Verdict(Outcome.TIMEOUT, f"not done within {self.timeout:g} s, progress {self.progress:.2f}{outage}")
        return None
