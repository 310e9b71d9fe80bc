"""The filter as a ROS node: messages in, `core.filter` judges, messages out. Nothing is decided here."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from geometry_msgs.msg import WrenchStamped
from rclpy.timer import Timer
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray
from vla_msgs.msg import ActionChunk, SafetyDecision, SafetyState

from vla_contract.errors import ConfigError, VlaError
from vla_contract.robot import load_robot
from vla_node_base.conversions import time_msg, to_ns
from vla_node_base.diagnostics import ERROR, OK, WARN, Diagnostics
from vla_node_base.lockstep import Lockstep
from vla_node_base.node import VlaNode, run
from vla_node_base.parameters import parameter
from vla_node_base.qos import COMMAND, EVENT, LATCHED, SENSOR
from vla_safety.building import assemble, read_parts
from vla_safety.core.audit import AuditLog
from vla_safety.core.contact import ContactMonitor
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.latch import LatchFile
from vla_safety.core.modes import ENABLED, Mode
from vla_safety.core.records import Answer
from vla_safety.core.watchdogs import Instant
from vla_safety.markers import markers
from vla_safety.messages import decision_msg, motion_msg, proposal_from_chunk, proposal_from_override, state_msg
from vla_safety.recording import RecordedFilter

_STATE_PERIOD = 0.1  # s
_SLOW_PERIOD = 0.5
_REPORT_PERIOD = 1.0


@dataclass(frozen=True)
class Parameters:
    """Of the filter's node; everything that it judges by is in the safety file."""

    robot: str = parameter("", "path of the robot file")
    safety: str = parameter("", "path of the safety file; empty: the one that the robot file names")
    description_topic: str = parameter(
        "", "topic of the URDF, e.g. /robot_description; empty: the file that the robot file names"
    )
    lockstep: bool = parameter(False, "acknowledges each cycle to a simulator that waits for it")
    shadow: bool = parameter(False, "judges, shows and records everything, commands nothing")
    state_dir: str = parameter("", "folder where a latched e-stop survives a restart; empty: it does not")
    audit_dir: str = parameter("", "folder for the records of every decision; empty: none are kept")


class SafetyNode(VlaNode):
    """The only publisher on the controller's topic.

    `_filter` is what is called (and recorded, if it is), `_safety` the filter itself, for views.
    """

    Parameters = Parameters

    def __init__(self) -> None:
        super().__init__("vla_safety")
        self._filter: SafetyFilter | RecordedFilter | None = None
        self._safety: SafetyFilter | None = None
        self._log: AuditLog | None = None
        self._memory: LatchFile | None = None
        self._contact: ContactMonitor | None = None
        self._timers_made: list[Timer] = []
        self._overrides = 0
        self._shown: tuple[object, ...] = ()
        self._told: dict[str, Finding] = {}
        self._pressed = False
        self._heartbeat_ns: int | None = None
        self._busy_ns = 0
        self._cycles = 0
        self._reported_ns = time.monotonic_ns()

    # -- lifecycle

    def configure(self) -> None:
        params = self.params
        if not params.robot:
            raise ConfigError("parameter 'robot' of node 'vla_safety' is empty; give the path of a robot file")
        self._robot = robot = load_robot(params.robot)
        self._lockstep = Lockstep(self, params.lockstep)
        self._diagnostics = Diagnostics(self)
        if params.state_dir:
            self._memory = LatchFile(Path(params.state_dir).expanduser() / f"{robot.name}.estop.json")
        if params.audit_dir:
            name = f"{robot.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.jsonl"
            self._log = AuditLog(Path(params.audit_dir).expanduser() / name)
        # In shadow nothing may even be able to reach the controller.
        self._commands = (
            None if params.shadow else self.create_publisher(JointTrajectory, robot.controller.topic, COMMAND)
        )
        self._states = self.create_publisher(SafetyState, "~/state", LATCHED)
        self._decisions = self.create_publisher(SafetyDecision, "~/decision", EVENT)
        self._markers = self.create_publisher(MarkerArray, "~/markers", LATCHED)
        self._hardware_stop = self.create_publisher(Bool, "~/hardware_stop", LATCHED)
        if params.description_topic:
            self.create_subscription(String, params.description_topic, self._on_description, LATCHED)
        else:
            self._build("")
        self.create_subscription(JointState, robot.joint_states.topic, self._on_joint_state, SENSOR)
        self.create_subscription(ActionChunk, "vla_policy/chunk", self._on_chunk, COMMAND)
        self.create_subscription(JointTrajectory, "~/override", self._on_override, COMMAND)
        self.create_subscription(Bool, "~/estop_input", self._on_estop_input, COMMAND)
        if robot.wrench_topic is not None:
            self.create_subscription(WrenchStamped, robot.wrench_topic, self._on_wrench, SENSOR)
        for name, act in (
            ("arm", self._arm),
            ("disarm", self._disarm),
            ("estop", self._estop),
            ("reset", self._reset),
            ("reload", self._reload),
        ):
            self.create_service(Trigger, f"~/{name}", self._service(name, act))

    def activate(self) -> None:
        if self._filter is not None:
            self._start()

    def deactivate(self) -> None:
        if self._filter is not None and self._safety is not None and self._safety.mode in ENABLED:
            self._filter.disarm(self._instant(), "deactivation")
            self._flush()
        for timer in self._timers_made:
            self.destroy_timer(timer)
        self._timers_made = []

    def cleanup(self) -> None:
        self._filter = self._safety = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def on_callback_error(self, error: Exception) -> None:
        """What cannot be understood is stopped: the process lives on, latched, so that people can ask it why."""
        if self._filter is not None:
            self._filter.estop(self._instant(), f"error: {type(error).__name__}")
            self._flush()

    def _build(self, urdf: str) -> None:
        """Makes the filter anew from its files; the old one stays when one of them is wrong."""
        parts = read_parts(self._robot, self.params.safety, urdf, self.params.shadow)
        if parts.config.contact is not None and self._robot.wrench_topic is None:
            raise ConfigError("the safety file limits contact, but the robot file names no wrench_topic; name it")
        safety = assemble(parts, self._memory)
        self._contact = None if parts.config.contact is None else ContactMonitor(parts.config.contact)
        self._urdf = urdf
        self._told.clear()
        self._safety = safety
        self._filter = safety if self._log is None else RecordedFilter(safety, self._log, parts)

    def _start(self) -> None:
        assert self._safety is not None
        self._timers_made = [
            self.create_timer(self._safety.config.cycle.period, self._cycle),
            self.create_timer(_STATE_PERIOD, self._publish_state),
            self.create_timer(_SLOW_PERIOD, self._look_around),
            self.create_timer(_REPORT_PERIOD, self._publish_diagnostics),
        ]
        self._publish_state()
        self.get_logger().info(
            f"filter ready for '{self._robot.name}': {len(self._robot.joints)} joints, "
            f"zones {', '.join(z.name for z in self._safety.config.zones) or 'none'}; {self._safety.mode.name}"
            f"{'; shadow: nothing is commanded' if self.params.shadow else ''}"
        )

    # -- inputs

    def _instant(self) -> Instant:
        clock = self.now_ns()
        return Instant(clock, clock if self.sim_time else time.monotonic_ns())

    def _on_description(self, message: String) -> None:
        if self._filter is not None:
            self.get_logger().error("another robot description came: ignored; restart the filter to use it")
            return
        try:
            self._build(message.data)
        except VlaError as error:
            self.get_logger().error(f"the robot description cannot be used: {error}")
            return
        self._start()

    def _on_joint_state(self, message: JointState) -> None:
        if self._filter is not None:
            stamp = to_ns(message.header.stamp)
            self._filter.observe(stamp, message.name, message.position, message.velocity, self._instant())

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._filter is None or self._safety is None:
            return
        began, now = time.monotonic_ns(), self._instant()
        limit = self._safety.config.proposals.max_points
        self._filter.propose(proposal_from_chunk(message, now.clock_ns, limit), now)
        self._flush(began, now)

    def _on_override(self, message: JointTrajectory) -> None:
        if self._filter is None or self._safety is None:
            return
        began, now = time.monotonic_ns(), self._instant()
        self._overrides += 1
        limit = self._safety.config.proposals.max_points
        self._filter.propose(proposal_from_override(message, self._overrides, now.clock_ns, limit), now)
        self._flush(began, now)

    def _on_estop_input(self, message: Bool) -> None:
        now = self._instant()
        self._heartbeat_ns = now.watch_ns
        self._tell("estop_input", Finding("estop_input", "~/estop_input") if message.data else None, now)

    def _on_wrench(self, message: WrenchStamped) -> None:
        if self._contact is None:
            return
        now, f, t = self._instant(), message.wrench.force, message.wrench.torque
        self._tell("contact", self._contact.receive((f.x, f.y, f.z), (t.x, t.y, t.z), now), now)

    def _tell(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """Reports a cause to the filter when it appears or goes."""
        if self._filter is None or (finding is None) == (cause not in self._told):
            return
        if finding is None:
            del self._told[cause]
        else:
            self._told[cause] = finding
        self._filter.report(cause, finding, now)
        self._flush()

    def _cycle(self) -> None:
        assert self._filter is not None and self._safety is not None
        began, now = time.monotonic_ns(), self._instant()
        if self._contact is not None:
            self._tell("wrench", self._contact.check(now), now)
        limit = self._safety.config.watchdogs.estop_heartbeat
        if limit > 0:
            silence = math.inf if self._heartbeat_ns is None else (now.watch_ns - self._heartbeat_ns) * 1e-9
            silent = None if silence <= limit else Finding("estop_heartbeat", "~/estop_input", silence, limit)
            self._tell("estop_heartbeat", silent, now)
        self._filter.cycle(now)
        self._flush(began, now)
        self._lockstep.acknowledge(now.clock_ns)
        self._busy_ns += time.monotonic_ns() - began
        self._cycles += 1

    def _look_around(self) -> None:
        """Whether somebody else publishes on the controller's topic; and markers."""
        others = [
            f"{info.node_namespace.rstrip('/')}/{info.node_name}"
            for info in self.get_publishers_info_by_topic(self._robot.controller.topic)
        ]
        own = f"{self.get_namespace().rstrip('/')}/{self.get_name()}"
        if self._commands is not None and own in others:
            others.remove(own)
        if not self.params.shadow:
            self._tell("bypass", Finding("bypass", others[0]) if others else None, self._instant())
        self._publish_markers()

    # -- people

    def _service(self, name: str, act: Callable[[Instant], Answer]) -> Callable[..., Trigger.Response]:
        def serve(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if self._filter is None:
                response.success, response.message = False, "no robot description yet"
                return response
            answer = act(self._instant())
            self._flush()
            response.success, response.message = answer.success, answer.message
            self.get_logger().info(f"{name}: {answer.message}")
            return response

        return self.guarded(serve)

    def _arm(self, now: Instant) -> Answer:
        assert self._filter is not None and self._safety is not None
        if self._contact is not None and self._safety.mode == Mode.DISARMED:
            self._contact.zero()
        return self._filter.arm(now)

    def _disarm(self, now: Instant) -> Answer:
        assert self._filter is not None
        return self._filter.disarm(now)

    def _estop(self, now: Instant) -> Answer:
        assert self._filter is not None
        return self._filter.estop(now)

    def _reset(self, now: Instant) -> Answer:
        assert self._filter is not None
        return self._filter.reset(now)

    def _reload(self, now: Instant) -> Answer:
        """Reads the safety file again. A wrong one is refused whole, and the old one stays."""
        assert self._safety is not None
        if self._safety.mode != Mode.DISARMED:
            return Answer(False, f"not in mode {self._safety.mode.name}; disarm first")
        try:
            self._build(self._urdf)
        except VlaError as error:
            return Answer(False, f"refused, the old zones stay: {error}")
        return Answer(True, f"zones {', '.join(z.name for z in self._safety.config.zones) or 'none'}")

    # -- outputs

    def _flush(self, began_ns: int | None = None, judged: Instant | None = None) -> None:
        """Publishes what the filter wants to be published: commands first. `judged`: the time it was judged for."""
        assert self._filter is not None and self._safety is not None
        if judged is not None and self._filter.pending:
            now = self._instant()
            if (now.clock_ns - judged.clock_ns) * 1e-9 > self._safety.config.cycle.lead / 2:
                self._filter.retract(now)
        output = self._filter.drain()
        if self._commands is not None:
            for motion in output.motions:
                self._commands.publish(motion_msg(motion, self._robot.joints))
        latency = 0 if began_ns is None else time.monotonic_ns() - began_ns
        for decision in output.decisions:
            self._decisions.publish(decision_msg(replace(decision, latency_ns=latency), self._robot.base_frame))
            if decision.finding is not None and decision.verdict >= Verdict.TRIMMED:
                self.get_logger().warning(
                    f"{decision.verdict.name} {decision.source} {decision.sequence}: {decision.finding.sentence}; "
                    f"{decision.finding.remedy}",
                    throttle_duration_sec=0.5,
                )
        shown = (self._safety.mode, self._safety.finding, self._safety.escalated)
        if shown != self._shown:
            if self._safety.escalated != (self._shown[2:] == (True,)):
                self._hardware_stop.publish(Bool(data=self._safety.escalated))
            self._shown = shown
            self._publish_state()

    def _publish_state(self) -> None:
        assert self._safety is not None
        self._states.publish(state_msg(self._safety.status(), self.now_ns(), self._robot.base_frame))

    def _publish_markers(self) -> None:
        assert self._safety is not None
        if self._markers.get_subscription_count() == 0:
            return
        zones, model, stamp = self._safety.config.zones, self._safety.verifier.model, time_msg(self.now_ns())
        shown = markers(zones, self._safety.committed, model, self._robot.tool_frame, self._robot.base_frame, stamp)
        self._markers.publish(shown)

    def _publish_diagnostics(self) -> None:
        assert self._safety is not None
        now = time.monotonic_ns()
        load = self._busy_ns / max(1, now - self._reported_ns)
        status = self._safety.status()
        level = ERROR if status.mode == Mode.ESTOP else WARN if status.mode == Mode.HOLD else OK
        message = status.mode.name if status.finding is None else f"{status.mode.name}: {status.finding.sentence}"
        values: dict[str, object] = {
            "cycles": self._cycles,
            "load": load,
            "joint_margin": status.joint_margin,
            "zone_clearance": status.zone_clearance,
            "self_clearance": status.self_clearance,
            "tracking_error": status.tracking_error,
            "speed_scale": status.speed_scale,
        }
        if self._log is not None:
            values["audit_head"] = self._log.head
        if self._memory is not None and self._memory.error:
            level, values["latch_error"] = max(level, WARN), self._memory.error
        self._diagnostics.publish(level, message, values)
        self._busy_ns, self._cycles, self._reported_ns = 0, 0, now


def main() -> None:
    """Entry point."""
    run(SafetyNode)
