"""A stop that did not arrive: the controller is deactivated through ros2_control's controller manager.

controller_manager_msgs is asked for when the program runs: where ros2_control is installed, it is there.
"""

import importlib
import time
from typing import Any

from vla_contract.robot import Robot
from vla_safety.adapters import Adapter, Host
from vla_safety.core.escalation import Deactivation, Pending
from vla_safety.core.watchdogs import Instant

TYPE = ("controller_manager_msgs.srv", "SwitchController")


def switch_type() -> Any | None:
    """The service's type; None where ros2_control is not installed."""
    try:
        return getattr(importlib.import_module(TYPE[0]), TYPE[1])
    except ImportError:
        return None


def deactivation_request(service: Any, controller: str) -> Any:
    """Deactivates `controller` and nothing else, even if it is not active any more."""
    request = service.Request()
    request.deactivate_controllers = [controller]
    request.strictness = request.BEST_EFFORT
    return request


class ControllerSwitch(Adapter):
    """Watches for the filter's escalation. The hardware output is the node's own and does not wait for this."""

    def __init__(self, host: Host, robot: Robot, service: Any | None):
        super().__init__(host)
        self._controller = robot.controller.name
        self._service = service
        self._client: Any | None = None
        self._deactivation: Deactivation | None = None
        if not self._controller:
            return
        if service is None:
            host.get_logger().warning(
                f"a stop that does not arrive cannot deactivate '{self._controller}': {TYPE[0].split('.')[0]} is not "
                "installed; wire ~/hardware_stop to the drives"
            )
            return
        self._client = host.create_client(service, f"{robot.controller.manager}/switch_controller")
        self._deactivation = Deactivation(self._switch)

    def check(self, now: Instant) -> None:
        if self._deactivation is None or self.host.safety is None:
            return
        before = self._deactivation.state
        self._deactivation.step(self.host.safety.escalated, time.monotonic_ns())
        if self._deactivation.state != before and self._deactivation.state:
            self.host.get_logger().error(
                f"a stop did not arrive: deactivating '{self._controller}': {self._deactivation.state}"
            )

    def diagnostics(self) -> dict[str, object]:
        if not self._controller:
            return {"controller_deactivation": "not configured: robot file, controller.name"}
        if self._deactivation is None:
            return {"controller_deactivation": "controller_manager_msgs is not installed"}
        return {"controller_deactivation": self._deactivation.state or "ready"}

    def _switch(self) -> Pending | None:
        assert self._client is not None
        if not self._client.service_is_ready():
            return None
        future: Pending = self._client.call_async(deactivation_request(self._service, self._controller))
        return future
