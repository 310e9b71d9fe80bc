"""The filter as a ROS node: messages in, `core.filter` judges, messages out. Nothing is decided here."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.timer import Timer
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from vla_msgs.msg import ActionChunk, SafetyDecision

from vla_contract.errors import ConfigError, VlaError
from vla_contract.robot import load_robot
from vla_node_base.conversions import to_ns
from vla_node_base.lockstep import Lockstep
from vla_node_base.node import VlaNode, run
from vla_node_base.qos import COMMAND, EVENT, LATCHED, SENSOR
from vla_safety import arrivals
from vla_safety.adapters import Adapter
from vla_safety.building import Parts, assemble, carrying_as_before, make_verifier, read_parts
from vla_safety.controller import Controller
from vla_safety.core.audit import AuditLog
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Finding
from vla_safety.core.latch import CarriedFile, LatchFile
from vla_safety.core.modes import Mode
from vla_safety.core.motion import nanoseconds, seconds
from vla_safety.core.records import Answer, refusal
from vla_safety.core.supervision import is_news
from vla_safety.core.validation import Proposal
from vla_safety.core.wakefulness import Wakefulness
from vla_safety.core.watchdogs import Instant
from vla_safety.escalation import ControllerSwitch, switch_type
from vla_safety.force import Forces
from vla_safety.inputs import EstopInput
from vla_safety.integrity import Integrity, rule_files
from vla_safety.messages import decision_msg, proposal_from_chunk
from vla_safety.parameters import Parameters
from vla_safety.people import People
from vla_safety.planning_scene import PlanningScene
from vla_safety.recording import RecordedFilter
from vla_safety.reduced import ReducedSpeed
from vla_safety.sending import TOO_LATE, Commands
from vla_safety.sources import Sources
from vla_safety.views import Views

Called = SafetyFilter | RecordedFilter

_STATE_PERIOD = 0.1  # s
_SLOW_PERIOD = 0.5
_REPORT_PERIOD = 1.0
_LOOK_PERIOD = 0.02  # on the steady clock, under simulated time
_LONGEST_SLEEP, _LONGEST_SLEEP_IN_LOCKSTEP = 0.1, 2.0  # in lockstep the simulator's clock waits for the filter
_NO_FILTER = "no robot description yet"


class SafetyNode(VlaNode):
    """The only publisher on the controller's topic.

    It supervises from the configuration (or the robot's description, if that comes later) to the clean-up, which is
    refused while a commanded motion is not over; only while it is active anything may be moved.

    `_filter` is what is called (and recorded, if it is), `_safety` the filter itself, for views.
    """

    Parameters = Parameters

    def __init__(self) -> None:
        super().__init__("vla_safety")
        self._filter: SafetyFilter | RecordedFilter | None = None
        self._safety: SafetyFilter | None = None
        self._log: AuditLog | None = None
        self._commands: Commands | None = None
        self._memory: LatchFile | None = None
        self._carried: CarriedFile | None = None
        self._parts: Parts | None = None
        self._adapters: list[Adapter] = []
        self._awake = True
        self._timers_made: list[Timer] = []
        self._told: dict[str, Finding] = {}

    # -- lifecycle

    def configure(self) -> None:
        params = self.params
        if not params.robot:
            raise ConfigError("parameter 'robot' of node 'vla_safety' is empty; give the path of a robot file")
        self._robot = robot = load_robot(params.robot)
        self._lockstep = Lockstep(self, params.lockstep)
        self._wakefulness = Wakefulness(_LONGEST_SLEEP_IN_LOCKSTEP if params.lockstep else _LONGEST_SLEEP)
        self._views = Views(self, robot)
        if params.state_dir:
            self._memory = LatchFile(Path(params.state_dir).expanduser() / f"{robot.name}.estop.json")
            self._carried = CarriedFile(Path(params.state_dir).expanduser() / f"{robot.name}.tool.json")
        if params.audit_dir:
            name = f"{robot.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.jsonl"
            self._log = AuditLog(
                Path(params.audit_dir).expanduser() / name,
                round(params.audit_part * 1e6),
                round(params.audit_keep * 1e6),
            )
        self._decisions = self.create_publisher(SafetyDecision, "~/decision", EVENT)
        self._adapters = [
            *([] if params.shadow else [Controller(self, robot)]),
            EstopInput(self),
            Forces(self, robot, self._carried),
            Sources(self),
            People(self, self._arm, self._reload),
            ReducedSpeed(self, self._carried),
            ControllerSwitch(self, robot, switch_type()),
            Integrity(self, rule_files(robot, params.safety)),
        ]
        if params.planning_scene:
            self._adapters.append(PlanningScene(self, params.planning_scene, robot.base_frame))
        if params.description_topic:
            self.create_subscription(String, params.description_topic, self._on_description, LATCHED)
        self.create_subscription(JointState, robot.joint_states.topic, self._on_joint_state, SENSOR)
        self.create_subscription(ActionChunk, "vla_policy/chunk", self._on_chunk, COMMAND)
        if not params.description_topic:
            self._build("")
            self._start()

    def activate(self) -> None:
        if self._safety is not None:
            self._views.show(self._safety)  # whoever sees it may send

    def deactivate(self) -> None:
        if self._filter is not None:
            now = self.instant()
            self._filter.disarm(now, "deactivation")
            self.flush(now)

    def busy(self) -> str:
        safety = self._safety
        if safety is None or safety.shadow or safety.committed is None:
            return ""
        watched_until = safety.committed.end + nanoseconds(safety.config.watchdogs.stop_grace)
        left = seconds(watched_until - self.now_ns())
        return f"the commanded motion is watched for {left:.2f} s yet; try again after that" if left > 0 else ""

    def cleanup(self) -> None:
        for timer in self._timers_made:
            self.destroy_timer(timer)
        for adapter in self._adapters:
            adapter.close()
        self._timers_made, self._adapters = [], []
        self._filter = self._safety = self._parts = self._memory = self._carried = self._commands = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def on_callback_error(self, error: Exception) -> None:
        """What cannot be understood is stopped: the process lives on, latched, so that people can ask it why."""
        if self._filter is not None:
            now = self.instant()
            self._filter.estop(now, f"error: {type(error).__name__}")
            self.flush(now)

    def _build(self, urdf: str) -> None:
        """Makes the filter anew from its files; the old one stays when one of them is wrong."""
        setup = None if self._parts is None else self._parts.setup
        parts = read_parts(self._robot, self.params.safety, urdf, self.params.shadow, setup)
        if self._parts is not None and parts.config.cycle != self._parts.config.cycle:
            raise ConfigError("`cycle` holds as long as the filter runs; restart it to change that, or put it back")
        if self._parts is None and self._carried is not None:
            parts = carrying_as_before(parts, self._carried)
        safety = assemble(parts, self._memory)
        try:
            for adapter in self._adapters:
                adapter.rebuilt(parts)
            recorded = safety if self._log is None else RecordedFilter(safety, self._log, parts)
        except VlaError:
            for adapter in self._adapters if self._parts is not None else ():
                adapter.rebuilt(self._parts)
            raise
        if self._safety is not None:
            safety.inherit(self._safety)
        if self._commands is None and not self.params.shadow:  # in shadow nothing may even be able to command
            self._commands = Commands(self, self._robot, parts.config.cycle, expire=not self.params.lockstep)
        self._urdf, self._parts, self._safety, self._filter = urdf, parts, safety, recorded
        self._told.clear()

    def _start(self) -> None:
        assert self._safety is not None
        self._timers_made = [
            self.create_timer(self._safety.config.cycle.period, self._cycle),
            self.create_timer(_STATE_PERIOD, self._publish_state),
            self.create_timer(_SLOW_PERIOD, self._look_around),
            self.create_timer(_REPORT_PERIOD, self._publish_diagnostics),
        ]
        if self.sim_time:
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._timers_made.append(self.create_timer(_LOOK_PERIOD, self.instant, clock=steady))
        self.get_logger().info(
            f"filter ready for '{self._robot.name}': {len(self._robot.joints)} joints, "
            f"zones {', '.join(z.name for z in self._safety.config.zones) or 'none'}; {self._safety.mode.name}"
            f"{'; shadow: nothing is commanded' if self.params.shadow else ''}"
        )

    # -- inputs

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
            now = self.instant()
            if not self._awake:
                return
            if self._filter.observe(stamp, message.name, message.position, message.velocity, now) is None:
                for adapter in self._adapters:
                    adapter.joint_state(message, now)

    def _on_chunk(self, message: ActionChunk, info: Mapping[str, int]) -> None:
        self.propose(lambda now_ns, limit: proposal_from_chunk(message, now_ns, limit), info)

    # -- for adapters

    @property
    def filter(self) -> SafetyFilter | RecordedFilter | None:
        """To be called."""
        return self._filter

    @property
    def safety(self) -> SafetyFilter | None:
        """The filter itself, for views."""
        return self._safety

    def instant(self) -> Instant:
        """Now."""
        clock, steady = self.now_ns(), time.monotonic_ns()
        self._awake = self._wakefulness.look(clock, steady) or not self.sim_time
        return Instant(clock, clock if self.sim_time else steady)

    def propose(self, convert: Callable[[int, int], Proposal], info: Mapping[str, int]) -> None:
        """Has a proposal judged, and publishes what comes of it: `convert(now_ns, max_points)` makes it."""
        if self._filter is None or self._safety is None:
            return
        began, now = time.monotonic_ns(), self.instant()
        if not self._awake or not self.active:
            why = "this process slept: proposals wait for a fresh clock" if self.active else "the node is not active"
            self.get_logger().warning(f"a proposal is not looked at: {why}", throttle_duration_sec=1.0)
            return
        proposal = convert(now.clock_ns, self._safety.config.proposals.max_points)
        if proposal.stamp_ns == 0 and not 0 <= (age := self.age_ns(info)) < arrivals.LATE_NS:
            proposal = replace(proposal, stamp_ns=now.clock_ns - age)
        self._filter.propose(proposal, now)
        self.flush(now, began)

    def age_ns(self, info: Mapping[str, int]) -> int:
        """How old a message is at least, ns; negative: it says that it comes from the future. To be asked after
        `instant`."""
        return arrivals.age_ns(info, self._wakefulness, time.time_ns(), time.monotonic_ns())

    def passed_ns(self, judged: Instant, now: Instant) -> int:
        """How long ago a call for `judged` was made, ns; `now` is what `instant` has just said."""
        # Simulated time is a message, which waits while this process sleeps; only in lockstep it is right.
        slept = 0 if self.params.lockstep else self._wakefulness.gap_ns
        return max(now.clock_ns - judged.clock_ns, slept)

    def objection(self, moves: bool = False) -> str:
        """Why what a person asks for is not done, for people; empty: nothing speaks against it. To be asked after
        `instant`. `moves`: the robot may move for it."""
        if self._filter is None:
            return _NO_FILTER
        if moves and not self.active:
            return f"the node is not active; activate it: ros2 lifecycle set {self.get_fully_qualified_name()} activate"
        slept = self._wakefulness.slept_ns
        if not self._awake or slept >= arrivals.LATE_NS:
            return f"this process slept ({seconds(slept):.1f} s), and this may have been asked before; ask again"
        return ""

    def tell(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """Reports a cause to the filter when it appears or goes, or when a touch has become harder or softer."""
        if self._filter is None or not is_news(self._told.get(cause), finding):
            return
        if finding is None:
            del self._told[cause]
        else:
            self._told[cause] = finding
        self._filter.report(cause, finding, now)
        self.flush(now)

    def against(self, now: Instant) -> Finding | None:
        """What any adapter has against moving the robot."""
        return next(filter(None, (adapter.against(now) for adapter in self._adapters)), None)

    def reconfigure(self, finding: Finding, **changes: Any) -> Answer:
        """Asks the filter for another setup; the old one stays when it refuses."""
        if self._filter is None or self._parts is None:
            return Answer(False, _NO_FILTER)
        setup = self._parts.setup.model_copy(update=changes)
        try:
            verifier = make_verifier(self._parts, setup)
        except ConfigError as error:
            return Answer(False, f"refused, the old setup stays: {error}")
        now = self.instant()
        answer = self._filter.reconfigure(verifier, now, finding=finding, setup=setup)
        self.flush(now)
        if answer.success:
            self._parts = replace(self._parts, setup=setup)
            for adapter in self._adapters:
                adapter.reconfigured(self._parts)
        return answer

    # -- the cycle

    def _cycle(self) -> None:
        assert self._filter is not None and self._safety is not None
        began, now = time.monotonic_ns(), self.instant()
        if self._awake:
            for adapter in self._adapters:
                adapter.check(now)
            self._filter.cycle(now)
            self.flush(now, began)
        self._lockstep.acknowledge(now.clock_ns)
        self._views.busy_ns += time.monotonic_ns() - began
        self._views.cycles += 1

    def _look_around(self) -> None:
        """What need not be looked at in each cycle; and markers."""
        for adapter in self._adapters:
            adapter.look(self.instant())
        assert self._safety is not None
        self._views.publish_markers(self._safety)

    # -- people

    def _arm(self, called: Called, asked: Instant) -> Answer:
        assert self._safety is not None
        if self._safety.mode == Mode.DISARMED:
            finding = self.against(asked) or next(filter(None, (each.arming() for each in self._adapters)), None)
            if finding is not None:
                return refusal(finding)
        self._wakefulness.worked(time.monotonic_ns())  # files take their time to be read
        now = self.instant()
        answer = called.arm(now)
        return answer if self.flush(now) else Answer(False, TOO_LATE)

    def _reload(self, _: Called, now: Instant) -> Answer:
        """Reads the safety file again. A wrong one is refused whole, and the old one stays."""
        assert self._safety is not None
        if self._safety.mode != Mode.DISARMED:
            return Answer(False, f"not in mode {self._safety.mode.name}; disarm first")
        committed = self._safety.committed
        if not self.params.shadow and committed is not None and now.clock_ns < committed.end:
            return Answer(False, "the robot is still being stopped or led back; wait until it rests")
        try:
            self._build(self._urdf)
        except VlaError as error:
            return Answer(False, f"refused, the old zones stay: {error}")
        finally:
            self._wakefulness.worked(time.monotonic_ns())
        return Answer(True, f"zones {', '.join(z.name for z in self._safety.config.zones) or 'none'}")

    # -- outputs

    def flush(self, judged: Instant, began_ns: int | None = None) -> bool:
        """Publishes what the filter wants to be published: commands first. False: they were not sent, because it is too
        long ago that they were `judged`."""
        assert self._filter is not None and self._safety is not None
        sent = self._commands is None or self._commands.send(self._filter, judged)
        output = self._filter.drain()
        latency = 0 if began_ns is None else time.monotonic_ns() - began_ns
        for decision in output.decisions:
            self._decisions.publish(decision_msg(replace(decision, latency_ns=latency), self._robot.base_frame))
            self._views.tell(decision)
        if isinstance(self._filter, RecordedFilter):
            self._filter.settle()  # what the controller waits for has left
            if self._filter.pending:  # the record failed: the stop goes out at once
                sent &= self.flush(judged)
        self._views.show(self._safety)
        return sent

    def _publish_state(self) -> None:
        assert self._safety is not None
        self._views.publish_state(self._safety)

    def _publish_diagnostics(self) -> None:
        assert self._safety is not None
        self._views.publish_diagnostics(self._safety, self._adapters, self._log, self._memory)


def main() -> None:
    """Entry point."""
    run(SafetyNode)
