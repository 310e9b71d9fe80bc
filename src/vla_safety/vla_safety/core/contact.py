"""Contact: the force sensor against a limit, two samples at the most from touch to stop.

The load of tool and gravity is taken out by a zero: the reading when the robot was armed. That holds for a tool that
keeps its orientation; otherwise the limit must leave room for the tool's weight.
"""

import math

from vla_safety.core.config import ContactLimits
from vla_safety.core.findings import Finding
from vla_safety.core.motion import seconds
from vla_safety.core.watchdogs import Instant

Vector = tuple[float, float, float]


class ContactMonitor:
    """Judges wrenches as they come."""

    def __init__(self, limits: ContactLimits):
        self._limits = limits
        self._zero: tuple[float, ...] = (0.0,) * 6
        self._newest: tuple[float, ...] | None = None
        self._heard: int | None = None
        self._above = 0

    def zero(self) -> None:
        """What is measured now is no contact."""
        if self._newest is not None:
            self._zero = self._newest
        self._above = 0

    def receive(
        self, force: tuple[float, float, float], torque: tuple[float, float, float], now: Instant
    ) -> Finding | None:
        """Takes a wrench (N, Nm); a finding when it is the second in a row that is too large. NaN counts as silence."""
        wrench = (*force, *torque)
        if not all(map(math.isfinite, wrench)):
            return None
        self._newest, self._heard = wrench, now.watch_ns
        push = math.dist(wrench[:3], self._zero[:3])
        twist = math.dist(wrench[3:], self._zero[3:])
        if push <= self._limits.max_force and twist <= self._limits.max_torque:
            self._above = 0
            return None
        self._above += 1
        if self._above < self._limits.samples:
            return None
        if push > self._limits.max_force:
            return Finding("contact_force", "wrench", push, self._limits.max_force)
        return Finding("contact_torque", "wrench", twist, self._limits.max_torque)

    def check(self, now: Instant) -> Finding | None:
        """Whether the sensor is alive."""
        age = math.inf if self._heard is None else seconds(now.watch_ns - self._heard)
        if -self._limits.timeout <= age <= self._limits.timeout:
            return None
        return Finding("stale_wrench", "wrench", age, self._limits.timeout)
