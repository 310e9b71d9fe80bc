"""Devices that say stop: the hardware e-stop."""

import math
from collections.abc import Mapping
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool

from vla_safety.adapters import Adapter, Host
from vla_safety.building import Parts
from vla_safety.core.findings import Finding
from vla_safety.core.watchdogs import Instant

_TOPIC = "~/estop_input"
_RELEASE = 1.0  # s without a press, after which a button counts as released
# Every message is looked at: a press that is over before this process comes to it has still been one.
_QUEUE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
_QUEUE_LATCHED = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class EstopInput(Adapter):
    """A button on `~/estop_input`: true stops and latches. With `watchdogs.estop_heartbeat` so does its silence.

    The button counts as pressed until the newest message says false and none has said true for a second: of two buttons
    on the topic one that is pressed and repeats it is heard beside one that is not. Their heartbeats cannot be told
    apart.
    """

    def __init__(self, host: Host):
        super().__init__(host)
        self._heard_ns: int | None = None
        self._limit = 0.0
        self._newest = False
        self._pressed_ns: int | None = None
        self._latched: Any = None
        host.create_subscription(Bool, _TOPIC, self._on_message, _QUEUE)

    def rebuilt(self, parts: Parts) -> None:
        self._limit = parts.config.watchdogs.estop_heartbeat

    def check(self, now: Instant) -> None:
        self._tell(now)  # again: the button may have been pressed before there was a filter
        if self._limit > 0:
            silence = math.inf if self._heard_ns is None else (now.watch_ns - self._heard_ns) * 1e-9
            fresh = -self._limit <= silence <= self._limit
            silent = None if fresh else Finding("estop_heartbeat", _TOPIC, silence, self._limit)
            self.host.tell("estop_heartbeat", silent, now)

    def look(self, now: Instant) -> None:
        # What a button said before this filter was started; asked for where it is kept only, for a subscription that
        # wants it does not hear the others, and they complain.
        publishers = () if self._latched is not None else self.host.get_publishers_info_by_topic(_TOPIC)
        if any(info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in publishers):
            self._latched = self.host.create_subscription(Bool, _TOPIC, self._on_message, _QUEUE_LATCHED)

    def _on_message(self, message: Bool, info: Mapping[str, int]) -> None:
        now = self.host.instant()
        age = self.host.age_ns(info)
        if age >= 0:  # whose clock is ahead, nobody knows how old
            self._heard_ns = now.watch_ns - age
        self._newest = bool(message.data)
        if self._newest:
            self._pressed_ns = now.watch_ns
        self._tell(now)

    def _tell(self, now: Instant) -> None:
        silence = math.inf if self._pressed_ns is None else abs(now.watch_ns - self._pressed_ns) * 1e-9
        pressed = self._newest or silence < _RELEASE
        self.host.tell("estop_input", Finding("estop_input", _TOPIC) if pressed else None, now)
