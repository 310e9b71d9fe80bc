"""The filter as a ROS node: messages in, `core.filter` judges, messages out. Nothing is decided here."""

import time
from dataclasses import dataclass, replace

from sensor_msgs.msg import JointState
from std_msgs.msg import String
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
from vla_safety.building import build_filter
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.records import Answer
from vla_safety.core.watchdogs import Instant
from vla_safety.markers import markers
from vla_safety.messages import decision_msg, motion_msg, proposal_from_chunk, proposal_from_override, state_msg

_STATE_PERIOD = 0.1  # s
_MARKER_PERIOD = 0.5
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


class SafetyNode(VlaNode):
    """The only publisher on the controller's topic."""

    Parameters = Parameters

    def __init__(self) -> None:
        super().__init__("vla_safety")
        self._filter: SafetyFilter | None = None
        self._timers_made: list[object] = []
        self._overrides = 0
        self._shown: tuple[object, ...] = ()
        self._busy_ns = 0
        self._cycles = 0
        self._reported_ns = time.monotonic_ns()

    # -- lifecycle

    def configure(self) -> None:
        if not self.params.robot:
            raise ConfigError("parameter 'robot' of node 'vla_safety' is empty; give the path of a robot file")
        self._robot = robot = load_robot(self.params.robot)
        self._lockstep = Lockstep(self, self.params.lockstep)
        self._diagnostics = Diagnostics(self)
        self._commands = self.create_publisher(JointTrajectory, robot.controller.topic, COMMAND)
        self._states = self.create_publisher(SafetyState, "~/state", LATCHED)
        self._decisions = self.create_publisher(SafetyDecision, "~/decision", EVENT)
        self._markers = self.create_publisher(MarkerArray, "~/markers", LATCHED)
        if self.params.description_topic:
            self.create_subscription(String, self.params.description_topic, self._on_description, LATCHED)
        else:
            self._filter = build_filter(robot, self.params.safety)
        self.create_subscription(JointState, robot.joint_states.topic, self._on_joint_state, SENSOR)
        self.create_subscription(ActionChunk, "vla_policy/chunk", self._on_chunk, COMMAND)
        self.create_subscription(JointTrajectory, "~/override", self._on_override, COMMAND)
        for name, act in (("arm", self._arm), ("disarm", self._disarm), ("estop", self._estop), ("reset", self._reset)):
            self.create_service(Trigger, f"~/{name}", self._service(name, act))

    def activate(self) -> None:
        if self._filter is not None:
            self._start()

    def deactivate(self) -> None:
        if self._filter is not None and self._filter.mode not in (Mode.DISARMED, Mode.ESTOP):
            self._filter.disarm(self._instant(), "deactivation")
            self._flush()
        for timer in self._timers_made:
            self.destroy_timer(timer)
        self._timers_made = []

    def cleanup(self) -> None:
        self._filter = None

    def on_callback_error(self, error: Exception) -> None:
        """What cannot be understood is stopped: the process lives on, latched, so that people can ask it why."""
        if self._filter is not None:
            self._filter.estop(self._instant(), f"error: {type(error).__name__}")
            self._flush()

    def _start(self) -> None:
        assert self._filter is not None
        self._timers_made = [
            self.create_timer(self._filter.config.cycle.period, self._cycle),
            self.create_timer(_STATE_PERIOD, self._publish_state),
            self.create_timer(_MARKER_PERIOD, self._publish_markers),
            self.create_timer(_REPORT_PERIOD, self._report),
        ]
        self._publish_state()
        self.get_logger().info(
            f"filter ready for '{self._robot.name}': {len(self._robot.joints)} joints, "
            f"zones {', '.join(z.name for z in self._filter.config.zones) or 'none'}; disarmed"
        )

    # -- inputs

    def _instant(self) -> Instant:
        clock = self.now_ns()
        return Instant(clock, clock if self.sim_time else time.monotonic_ns())

    def _on_description(self, message: String) -> None:
        if self._filter is not None:
            if self._filter.mode != Mode.DISARMED:
                self.get_logger().error(
                    "a new robot description came while armed: ignored; disarm and restart the filter"
                )
            return
        try:
            self._filter = build_filter(self._robot, self.params.safety, message.data)
        except VlaError as error:
            self.get_logger().error(f"the robot description cannot be used: {error}")
            return
        self._start()

    def _on_joint_state(self, message: JointState) -> None:
        if self._filter is not None:
            self._filter.observe(
                to_ns(message.header.stamp), message.name, message.position, message.velocity, self._instant()
            )

    def _on_chunk(self, message: ActionChunk) -> None:
        began = time.monotonic_ns()
        if self._filter is None:
            return
        now = self._instant()
        limit = self._filter.config.proposals.max_points
        self._filter.propose(proposal_from_chunk(message, now.clock_ns, limit), now)
        self._flush(began)

    def _on_override(self, message: JointTrajectory) -> None:
        began = time.monotonic_ns()
        if self._filter is None:
            return
        now = self._instant()
        self._overrides += 1
        limit = self._filter.config.proposals.max_points
        self._filter.propose(proposal_from_override(message, self._overrides, now.clock_ns, limit), now)
        self._flush(began)

    def _cycle(self) -> None:
        assert self._filter is not None
        began = time.monotonic_ns()
        now = self._instant()
        self._filter.cycle(now)
        self._flush(began)
        self._lockstep.acknowledge(now.clock_ns)
        self._busy_ns += time.monotonic_ns() - began
        self._cycles += 1

    # -- people

    def _service(self, name: str, act):  # type: ignore[no-untyped-def]
        def serve(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if self._filter is None:
                response.success, response.message = False, "no robot description yet"
                return response
            answer: Answer = act(self._filter)
            self._flush()
            response.success, response.message = answer.success, answer.message
            self.get_logger().info(f"{name}: {answer.message}")
            return response

        return self.guarded(serve)

    def _arm(self, safety: SafetyFilter) -> Answer:
        return safety.arm(self._instant())

    def _disarm(self, safety: SafetyFilter) -> Answer:
        return safety.disarm(self._instant())

    def _estop(self, safety: SafetyFilter) -> Answer:
        return safety.estop(self._instant())

    def _reset(self, safety: SafetyFilter) -> Answer:
        return safety.reset(self._instant())

    # -- outputs

    def _flush(self, began_ns: int | None = None) -> None:
        """Publishes what the filter wants to be published: commands first."""
        assert self._filter is not None
        output = self._filter.drain()
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
        shown = (self._filter.mode, self._filter.finding)
        if shown != self._shown:
            self._shown = shown
            self._publish_state()

    def _publish_state(self) -> None:
        assert self._filter is not None
        self._states.publish(state_msg(self._filter.status(), self.now_ns(), self._robot.base_frame))

    def _publish_markers(self) -> None:
        assert self._filter is not None
        if self._markers.get_subscription_count() == 0:
            return
        safety = self._filter
        self._markers.publish(
            markers(
                safety.config.zones,
                safety.committed,
                safety.verifier.model,
                self._robot.tool_frame,
                self._robot.base_frame,
                time_msg(self.now_ns()),
            )
        )

    def _report(self) -> None:
        assert self._filter is not None
        now = time.monotonic_ns()
        load = self._busy_ns / max(1, now - self._reported_ns)
        status = self._filter.status()
        level = ERROR if status.mode == Mode.ESTOP else WARN if status.mode == Mode.HOLD else OK
        message = status.mode.name if status.finding is None else f"{status.mode.name}: {status.finding.sentence}"
        self._diagnostics.publish(
            level,
            message,
            {
                "cycles": self._cycles,
                "load": load,
                "joint_margin": status.joint_margin,
                "zone_clearance": status.zone_clearance,
                "tracking_error": status.tracking_error,
                "speed_scale": status.speed_scale,
            },
        )
        self._busy_ns, self._cycles, self._reported_ns = 0, 0, now


def main() -> None:
    """Entry point."""
    run(SafetyNode)
