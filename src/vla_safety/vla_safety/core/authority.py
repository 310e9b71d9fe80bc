"""Who moves the robot: override before planner before policy, and whether the human behind an override is there.

Proof obligation (I11). There is one holder at most. While there is one, a source of lower priority is refused; a source
of higher priority takes over with its first accepted proposal, spliced like any other. The planner gives the robot back
when its plan has come to rest at its own end; a planner that ends otherwise keeps it (mode HOLD) until it goes on or a
person arms. An override gives it back only by disarming: nothing goes on behind a human's back.
"""

import math

from vla_safety.core.config import Watchdogs
from vla_safety.core.findings import Finding
from vla_safety.core.motion import seconds
from vla_safety.core.validation import OVERRIDE, PLANNER, POLICY
from vla_safety.core.watchdogs import Instant

PRIORITY = {POLICY: 0, PLANNER: 1, OVERRIDE: 2}


class Authority:
    """Which source has the robot, and when it was heard.

    Attributes:
        holder: the source that has the robot to itself; None: whoever comes first.
    """

    def __init__(self, settings: Watchdogs):
        self._settings = settings
        self._heard: dict[str, int] = {}
        self._held = False
        self._deadman_ns: int | None = None
        self.holder: str | None = None

    def clear(self) -> None:
        """Nobody has the robot."""
        self._heard.clear()
        self.holder = None

    def against(self, source: str, now: Instant) -> Finding | None:
        """What speaks against `source` moving the robot."""
        if source not in PRIORITY:
            return Finding("authority", source[:80])
        if self.holder is not None and PRIORITY[source] < PRIORITY[self.holder]:
            return Finding("authority", self.holder)
        return self.absent(now) if source == OVERRIDE else None

    def take(self, source: str, now: Instant) -> None:
        """A proposal of `source` was accepted."""
        self._heard[source] = now.watch_ns
        self.holder = None if source == POLICY else source

    def give_back(self, source: str) -> None:
        """The plan of `source` came to rest at its end."""
        if source == PLANNER and self.holder == PLANNER:
            self.holder = None

    def deadman(self, held: bool, now: Instant) -> None:
        """What the dead-man signal says."""
        self._held, self._deadman_ns = held, now.watch_ns

    @property
    def has_deadman(self) -> bool:
        """Whether there is such a device."""
        return self._settings.deadman > 0

    def absent(self, now: Instant) -> Finding | None:
        """Whether the human behind an override is not there, as far as the dead-man signal can tell."""
        limit = self._settings.deadman
        if not self.has_deadman:
            return None
        silence = math.inf if self._deadman_ns is None else seconds(now.watch_ns - self._deadman_ns)
        if not -limit <= silence <= limit:
            return Finding("deadman_silent", "~/deadman", silence, limit)
        return None if self._held else Finding("deadman_released", "~/deadman")

    def lost(self, now: Instant) -> Finding | None:
        """Why an override that has the robot must stop."""
        silence, limit = self.silence(OVERRIDE, now), self._settings.override_timeout
        if not silence <= limit:
            return Finding("override_lost", OVERRIDE, silence, limit)
        return self.absent(now)

    def silence(self, source: str, now: Instant) -> float:
        """s since a proposal of `source` was accepted; inf: never since arming."""
        return seconds(now.watch_ns - self._heard[source]) if source in self._heard else math.inf
