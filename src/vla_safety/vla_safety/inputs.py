"""Devices that say stop: the hardware e-stop."""

import math

from std_msgs.msg import Bool

from vla_node_base.qos import COMMAND
from vla_safety.adapters import Adapter, Host
from vla_safety.building import Parts
from vla_safety.core.findings import Finding
from vla_safety.core.watchdogs import Instant


class EstopInput(Adapter):
    """A button on `~/estop_input`: true stops and latches. With `watchdogs.estop_heartbeat` so does its silence."""

    def __init__(self, host: Host):
        super().__init__(host)
        self._heard_ns: int | None = None
        self._limit = 0.0
        self._pressed = False
        host.create_subscription(Bool, "~/estop_input", self._on_message, COMMAND)

    def rebuilt(self, parts: Parts) -> None:
        self._limit = parts.config.watchdogs.estop_heartbeat

    def check(self, now: Instant) -> None:
        self._tell(now)  # again: the button may have been pressed before there was a filter
        if self._limit > 0:
            silence = math.inf if self._heard_ns is None else (now.watch_ns - self._heard_ns) * 1e-9
            fresh = -self._limit <= silence <= self._limit
            silent = None if fresh else Finding("estop_heartbeat", "~/estop_input", silence, self._limit)
            self.host.tell("estop_heartbeat", silent, now)

    def _on_message(self, message: Bool) -> None:
        now = self.host.instant()
        self._heard_ns = now.watch_ns
        self._pressed = bool(message.data)
        self._tell(now)

    def _tell(self, now: Instant) -> None:
        self.host.tell("estop_input", Finding("estop_input", "~/estop_input") if self._pressed else None, now)
