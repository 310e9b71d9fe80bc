"""The policy node: ROS in front of `runtime.Runtime`. Everything runs on the executor's thread; nothing waits."""

import time
import uuid

from rcl_interfaces.msg import SetParametersResult
from rclpy.action import CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import SafetyState

from vla_contract.errors import ChunkError, ConfigError, VlaError
from vla_contract.robot import load_robot
from vla_node_base.conversions import NS, image_view, seconds, to_ns
from vla_node_base.lockstep import Lockstep
from vla_node_base.node import VlaNode, run
from vla_node_base.qos import COMMAND, LATCHED, SENSOR
from vla_node_base.serialized import ImageBytes, chunk_bytes, trajectory_from_bytes
from vla_policy_node.action import TaskServer, result_msg
from vla_policy_node.cameras import Cameras
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.observations import StreamError
from vla_policy_node.core.scheduling import Reality
from vla_policy_node.core.task import Outcome, Rules, Task, Verdict
from vla_policy_node.driving import Driver
from vla_policy_node.parameters import Parameters
from vla_policy_node.preflight import preflight, strategy_warning
from vla_policy_node.reporting import Reporter
from vla_policy_node.runtime import Result, Runtime, State
from vla_policy_node.subtasks import LONGEST, Subtasks
from vla_policy_node.truth import read_truth
from vla_policy_node.worker.events import Down, Ready, Refusal

_TICK = 0.05  # s


class PolicyNode(VlaNode):
    """Observations in, chunks out, one task at a time."""

    Parameters = Parameters

    def __init__(self) -> None:
        super().__init__("vla_policy")
        self._runtime: Runtime | None = None
        self._task: Task | None = None
        self._goal: ServerGoalHandle | None = None
        self._reason = self._phase = ""
        self._held: Result | None = None
        self._command: bytes | None = None
        self._clock_ns = 0
        self._latency_ns = round(self.params.simulated_latency * NS)
        self._safety: SafetyState | None = None
        self._cameras: Cameras | None = None
        self._take_events = self.guarded(self._on_events)

    # -- lifecycle

    def configure(self) -> None:
        for name in ("robot", "policy"):
            if not getattr(self.params, name):
                raise ConfigError(f"parameter '{name}' is empty; give the path of a {name} file")
        robot, policy = load_robot(self.params.robot), load_policy_file(self.params.policy)
        preflight(robot, policy)
        self._chunks = self.create_publisher(ActionChunkMsg, "vla_policy/chunk", COMMAND)
        self._reporter = Reporter(self)
        self._subtasks = Subtasks(self, self._reporter, self.params.subtask_timeout, (self._now, self._watch))
        self._lockstep = Lockstep(self, self.params.lockstep)
        self.create_subscription(JointState, robot.joint_states.topic, self._on_joints, SENSOR)
        self.create_subscription(SafetyState, "vla_safety/state", self._on_safety, LATCHED)
        # Kept as bytes: it comes at every cycle of the filter, and is looked at once for each chunk.
        self.create_subscription(JointTrajectory, robot.controller.topic, self._on_command, COMMAND, raw=True)
        if self.params.lockstep:
            self.create_subscription(ClockMsg, "/clock", self._on_clock, SENSOR)
        self._server = TaskServer(
            self,
            ExecuteTask,
            "vla_policy/execute_task",
            begin=self.guarded(self._on_goal),
            cancel=lambda goal: CancelResponse.ACCEPT,
        )
        self.keep(self._server, TaskServer.destroy)
        self.create_timer(_TICK, self._on_tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._driver = Driver(self, robot.base, (self._now, self._watch))
        runtime = Runtime(robot, policy, image_view, self._wake)
        runtime.simulated = self.sim_time
        if strategy := str(self.get_parameter("strategy").value):  # it may have been changed since the node began
            runtime.scheduler.choose(strategy)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._runtime = runtime
        runtime.start()

    def deactivate(self) -> None:
        if self._task is not None:
            self._come_to_rest(self._task)
            self._end(Verdict(Outcome.STOPPED, "the policy node was deactivated"))
        self._driver.halt()

    def cleanup(self) -> None:
        if self._runtime is not None:
            self._runtime.close()
        self._runtime = self._cameras = self._command = self._safety = None
        self._clock_ns = 0

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """The strategy may change at any time; the next chunk follows it."""
        assert self._runtime is not None
        for parameter_ in parameters:
            if parameter_.name == "strategy":
                try:
                    self._runtime.scheduler.choose(parameter_.value or self._runtime.policy.timing.strategy)
                    self._warn_of_strategy(self._runtime)
                except ConfigError as error:
                    return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # -- clocks

    def _now(self) -> int:
        return max(self.now_ns(), self._clock_ns)

    def _watch(self) -> int:
        """What receipt is judged by: nobody sets it."""
        return self._now() if self.sim_time else time.monotonic_ns()

    def _on_clock(self, message: ClockMsg) -> None:
        """Lockstep: says how far the simulator may go."""
        self._clock_ns = max(self._clock_ns, to_ns(message.clock))
        self._go_on()

    def _go_on(self) -> None:
        """Publishes a held result whose time has come; acknowledges the clock unless an inference is overdue."""
        if self._held is not None and self._clock_ns >= self._held.asked.stamp_ns + self._latency_ns:
            result, self._held = self._held, None
            self._publish(result)
        pending = self._runtime.pending if self._runtime is not None else None
        slack = round(self.params.lockstep_slack * NS)
        if pending is None or self._clock_ns < pending.stamp_ns + self._latency_ns - slack:
            self._lockstep.acknowledge(self._clock_ns)

    # -- streams

    def _on_image(self, camera: str, image: ImageBytes) -> None:
        self._try_infer()
        if self._task is not None and self._runtime is not None:
            self._runtime.expect(camera, image, image.stamp_ns, self._now())

    def _on_joints(self, message: JointState) -> None:
        runtime = self._runtime
        assert runtime is not None
        stamp = to_ns(message.header.stamp)
        runtime.buffer.add_joints(stamp, self._watch(), message.name, message.position, message.velocity)
        if self._task is not None and runtime.pending is None:
            self._try_infer()

    def _on_command(self, message: bytes) -> None:
        self._command = message

    def _on_safety(self, message: SafetyState) -> None:
        self._safety = message
        self._driver.watch(message)

    def _reality(self) -> Reality:
        runtime = self._runtime
        assert runtime is not None
        positions, _ = runtime.buffer.joints_now(self._now(), self._watch())
        if self._command is None:
            return Reality(positions)
        try:
            stamp_ns, joints, curve = trajectory_from_bytes(self._command)
        except ChunkError:
            return Reality(positions)  # the controller will not play it either
        return Reality(positions, curve, stamp_ns) if joints == runtime.robot.joints else Reality(positions)

    # -- inference

    def _wake(self) -> None:
        """Called on the worker's thread: has the executor's thread look at the events."""
        executor = self.executor
        if executor is not None and self.context.ok():
            executor.create_task(self._take_events)

    def _try_infer(self) -> None:
        runtime, task = self._runtime, self._task
        if runtime is None or task is None or not self.active or self._held is not None:
            return
        try:
            sentence = self._subtasks.sentence(task)
            runtime.try_infer(self._now(), self._watch(), task.started_ns, sentence, self._reporter.watched)
            self._reason = ""
        except StreamError as error:
            self._reason = str(error)

    def _on_events(self) -> None:
        runtime = self._runtime
        if runtime is None:  # cleaned up since the worker spoke
            return
        for event in runtime.take_events():
            if isinstance(event, Ready):
                self._on_ready(event)
            elif isinstance(event, Down):
                self._on_down(event)
            elif isinstance(event, Refusal):
                self._on_failure(event.reason, event.unavailable)
            elif self.params.lockstep:
                self._held = event
            else:
                self._publish(event)
        if self.params.lockstep:
            self._go_on()
        self._try_infer()
        self._say()

    def _on_ready(self, event: Ready) -> None:
        assert self._runtime is not None
        self.get_logger().info(
            f"policy '{event.metadata.name}' is ready after {event.seconds:.1f} s (sha256 {event.metadata.digest[:12]})"
        )
        self._warn_of_strategy(self._runtime)
        if event.metadata.ground_truth:
            read_truth(self, self._runtime)
        if self._cameras is None:
            clocks, names = (self._now, self._watch), event.metadata.cameras
            self._cameras = Cameras(self, self._runtime, names, self._reporter.images, clocks, self._on_image)

    def _warn_of_strategy(self, runtime: Runtime) -> None:
        if warning := strategy_warning(runtime.policy, runtime.scheduler.strategy, runtime.metadata):
            self.get_logger().warning(warning, once=True)

    def _on_down(self, event: Down) -> None:
        self.get_logger().error(f"worker is down: {event.reason}")
        if event.restart_in is None and self._task is not None:
            self._task.broke(event.reason)

    def _on_failure(self, reason: str, unavailable: bool = False) -> None:
        what = "no answer" if unavailable else "inference failed"
        self.get_logger().warning(f"{what}: {reason}", throttle_duration_sec=1.0)
        if self._task is not None:
            (self._task.unavailable if unavailable else self._task.failed)(reason)
            self._judge()

    def _publish(self, result: Result) -> None:
        runtime, task = self._runtime, self._task
        if runtime is None or task is None:
            return
        now = self._now()
        try:
            spliced = runtime.splice(result, now, self._reality(), task.id, task.instruction)
        except (ChunkError, StreamError) as error:
            self._on_failure(str(error))
            return
        self._chunks.publish(chunk_bytes(spliced.chunk, runtime.robot.base_frame))
        self._driver.take(spliced.chunk, now + round(runtime.policy.timing.margin * NS))
        if spliced.clipped:
            self.get_logger().warning(
                f"the policy asks {', '.join(spliced.clipped)} to or beyond a position limit: held where plans may go",
                throttle_duration_sec=5.0,
            )
        self._reporter.splice = spliced
        self._reporter.show(result.answer.path, runtime.robot.base_frame, now)
        # What the policy was told may have been another sentence than what holds now.
        task.published(result.answer.chunk.progress, whole=result.asked.instruction == task.instruction)
        self._feedback(task)
        self._judge()

    # -- the task

    def _on_goal(self, goal: ServerGoalHandle) -> None:
        """A goal was sent. It is always taken, so that a refusal can say why."""
        refusal = self._refusal(goal.request.instruction, seconds(goal.request.timeout))
        if refusal:
            result = result_msg(Verdict(Outcome.REFUSED, refusal), 0.0)
            self.get_logger().warning(f"task refused: {refusal}")
            self._server.conclude(goal, result, succeeded=False)
            return
        runtime = self._runtime
        assert runtime is not None
        limits = runtime.policy.done
        self._task = Task(
            str(uuid.UUID(bytes=bytes(goal.goal_id.uuid))),
            goal.request.instruction,
            self._now(),
            seconds(goal.request.timeout) or self.params.default_timeout,
            Rules(limits.progress, limits.chunks, runtime.policy.failures, self.params.unarmed_time),
        )
        self._goal, self._held, self._phase, self._reporter.splice = goal, None, "", None
        runtime.begin_task()
        self._subtasks.begin(self._task)
        self.get_logger().info(f"task {self._task.id}: '{self._task.instruction}'")
        self._reporter.think(self._task, "task begins", self._now())
        self._say()

    def _refusal(self, instruction: str, timeout: float) -> str:
        """Why a task cannot begin now; empty: it can."""
        runtime = self._runtime
        if runtime is None or not self.active:
            return "the policy node is not active; activate it first"
        if self._task is not None:
            return f"task '{self._task.instruction}' ({self._task.id}) is running; cancel it first"
        if not runtime.usable:
            return f"the policy is not ready: {runtime.reason}"
        if not instruction.strip() and not self.params.allow_blank:
            return "the instruction is empty; say what to do"
        if len(instruction) > LONGEST:
            return f"the instruction has {len(instruction)} characters (> {LONGEST}); say it in fewer"
        if timeout < 0:
            return f"the timeout is {timeout:g} s; give more than 0, or 0 for the node's own"
        return ""

    def _judge(self) -> None:
        """Ends the task when it is over."""
        task, goal = self._task, self._goal
        if task is None or goal is None:
            return
        now = self._now()
        if self._safety is not None:
            mode = self._safety.mode
            name = {SafetyState.DISARMED: "DISARMED", SafetyState.ESTOP: "in ESTOP"}.get(mode, "armed")
            task.mode(f"{name} ({self._safety.reason})" if self._safety.reason else name, name == "armed", now)
        verdict = task.verdict(now, goal.is_cancel_requested)
        if verdict is not None:
            self._end(verdict)

    def _end(self, verdict: Verdict) -> None:
        task, goal, runtime = self._task, self._goal, self._runtime
        assert task is not None and goal is not None and runtime is not None
        self._driver.release()
        if verdict.outcome != Outcome.STOPPED:
            self._come_to_rest(task)
        self._reporter.think(task, f"task ends: {verdict.outcome.name}, {verdict.message}", self._now())
        self._task = self._goal = self._held = None
        self._subtasks.begin(None)
        self._reason = ""
        duration = task.duration(self._now())
        self.get_logger().info(f"task {task.id}: {verdict.outcome.name} after {duration:.1f} s: {verdict.message}")
        result = result_msg(verdict, duration)
        self._server.conclude(goal, result, succeeded=verdict.outcome == Outcome.SUCCEEDED)
        self._say()

    def _come_to_rest(self, task: Task) -> None:
        """The rest of the last chunk is not what anybody wants any more."""
        runtime = self._runtime
        assert runtime is not None
        try:
            chunk = runtime.stop(self._now(), self._reality(), task.id, task.instruction)
        except VlaError as error:
            self.get_logger().warning(f"no stopping motion: {error}; the filter stops at the end of the plan")
            return
        if chunk is not None:
            self._chunks.publish(chunk_bytes(chunk, runtime.robot.base_frame))

    # -- what it says

    def _on_tick(self) -> None:
        assert self._runtime is not None
        if self._task is not None:
            if self._runtime.scheduler.watch(self._now()):
                self.get_logger().warning(
                    f"starved: no chunk in time, the plan has ended{': ' + self._reason if self._reason else ''}"
                )
            self._try_infer()
            self._judge()
        self._say()

    def _say(self) -> None:
        """Status at 2 Hz and on every change; feedback and trace with it."""
        runtime, task = self._runtime, self._task
        if runtime is None or not self.context.ok():
            return
        state, reason = self._reporter.judge(runtime, task, self._reason)
        if not self._reporter.report(runtime, task, self._now(), state, reason):
            return
        if task is not None:
            self._phase = state.name.lower() if state == State.RUNNING else reason
            self._reporter.enter(task, self._phase, self._now())
            self._feedback(task)

    def _feedback(self, task: Task) -> None:
        if self._goal is None or not self._goal.is_active:
            return
        phase = self._phase or "starting"
        self._goal.publish_feedback(ExecuteTask.Feedback(phase=phase, progress=task.progress, chunks=task.chunks))


def main() -> None:
    """Entry point of the process."""
    run(PolicyNode, events=True)


if __name__ == "__main__":
    main()
