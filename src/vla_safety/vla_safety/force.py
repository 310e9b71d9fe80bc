"""What the robot touches and carries: the force sensor, torques estimated from joint efforts, tools and payloads."""

from geometry_msgs.msg import WrenchStamped
from sensor_msgs.msg import JointState
from vla_msgs.srv import SetTool

from vla_contract.errors import ConfigError
from vla_contract.robot import Robot
from vla_node_base.conversions import to_ns
from vla_node_base.qos import SENSOR
from vla_safety.adapters import Adapter, Host
from vla_safety.building import Parts
from vla_safety.core.contact import ContactMonitor
from vla_safety.core.findings import Finding
from vla_safety.core.latch import CarriedFile
from vla_safety.core.observer import TorqueMonitor
from vla_safety.core.watchdogs import Instant
from vla_safety.monitors import dynamics_of, make_monitors, weight_of


class Forces(Adapter):
    """The wrench topic of the robot file and the efforts of its joint states, against the limits of the safety file.

    `~/set_tool` says what is mounted and carried: the filter verifies with its geometry, the monitors take its weight
    out. `memory` keeps it for the next start; None: it is the safety file's again then.
    """

    def __init__(self, host: Host, robot: Robot, memory: CarriedFile | None = None):
        super().__init__(host)
        self._robot = robot
        self._memory = memory
        self._parts: Parts | None = None
        self._contact: ContactMonitor | None = None
        self._torque: TorqueMonitor | None = None
        if robot.wrench_topic is not None:
            host.create_subscription(WrenchStamped, robot.wrench_topic, self._on_wrench, SENSOR)
        host.create_service(SetTool, "~/set_tool", self._set_tool)

    def rebuilt(self, parts: Parts) -> None:
        if parts.config.contact is not None and self._robot.wrench_topic is None:
            raise ConfigError("the safety file limits contact, but the robot file names no wrench_topic; name it")
        self._contact, self._torque = make_monitors(parts)
        self._parts = parts

    def reconfigured(self, parts: Parts) -> None:
        before, self._parts = self._parts, parts
        if before is not None and (before.setup.tool, before.setup.payload) == (parts.setup.tool, parts.setup.payload):
            return
        if self._contact is not None:
            self._contact.carry(weight_of(parts, parts.setup))
        dynamics = dynamics_of(parts, parts.setup)
        if self._torque is not None and dynamics is not None:
            self._torque.carry(dynamics)

    def joint_state(self, message: JointState, now: Instant) -> None:
        if self._contact is not None and self.host.safety is not None:
            measured = self.host.safety.monitor.newest
            if measured is not None:
                self._contact.pose(measured.position)
        if self._torque is not None:
            stamp = to_ns(message.header.stamp)
            finding = self._torque.receive(stamp, message.name, message.position, message.velocity, message.effort, now)
            self.host.tell("external_torque", finding, now)

    def check(self, now: Instant) -> None:
        if self._contact is not None:
            self.host.tell("wrench", self._contact.check(now), now)
        if self._torque is not None:
            self.host.tell("effort", self._torque.check(now), now)

    def arming(self) -> Finding | None:
        return next(filter(None, [monitor.zero() for monitor in (self._contact, self._torque) if monitor]), None)

    def diagnostics(self) -> dict[str, object]:
        values: dict[str, object] = {}
        if self._parts is not None:
            values |= {"tool": self._parts.setup.tool or "none", "payload": self._parts.setup.payload or "none"}
        if self._contact is not None:
            values["contact_force"] = self._contact.force
        if self._torque is not None:
            values["external_torque_of_limit"] = self._torque.load
        return values

    def _on_wrench(self, message: WrenchStamped) -> None:
        if self._contact is None:
            return
        now, f, t = self.host.instant(), message.wrench.force, message.wrench.torque
        stamp, frame = to_ns(message.header.stamp), message.header.frame_id
        finding = self._contact.receive((f.x, f.y, f.z), (t.x, t.y, t.z), now, frame, stamp)
        self.host.tell("contact", finding, now)

    def _set_tool(self, request: SetTool.Request, response: SetTool.Response) -> SetTool.Response:
        wanted = f"{request.tool or 'none'}/{request.payload or 'none'}"
        if why := self.host.objection():
            response.success, response.message = False, why
            return response
        answer = self.host.reconfigure(Finding("tool", wanted), tool=request.tool, payload=request.payload)
        response.success, response.message = answer.success, f"tool and payload {wanted}: {answer.message}"
        setup = None if self._parts is None else self._parts.setup
        unsaved = (
            self._memory.keep(setup.tool, setup.payload, setup.reduced)
            if answer.success and setup is not None and self._memory is not None
            else ""
        )
        if unsaved:
            response.message += f"; set it again after a restart, for it could not be kept: {unsaved}"
        self.host.get_logger().info(response.message)
        return response
