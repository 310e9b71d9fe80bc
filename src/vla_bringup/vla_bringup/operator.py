"""The operator's side of a running system: what a person (or a test) at the controls sees and can do, as plain calls.

One `Operator` has a ROS context of its own, so that several systems in several domains can be watched from one process.
Callbacks run in a thread of its own; every call here waits on conditions, never on the clock alone.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk, PolicyStatus, SafetyDecision, SafetyState, SceneState
from vla_msgs.srv import ResetScene, SetTool

from vla_bringup.episode import Episode
from vla_contract.errors import VlaError
from vla_contract.robot import Robot
from vla_node_base.conversions import duration_msg, seconds, to_ns
from vla_node_base.qos import COMMAND, EVENT, LATCHED, SENSOR

MODES = {0: "DISARMED", 1: "ARMED", 2: "OVERRIDE", 3: "HOLD", 4: "ESTOP"}
POLICY_STATES = {0: "UNCONFIGURED", 1: "LOADING", 2: "READY", 3: "RUNNING", 4: "WAITING", 5: "FAILED"}
TRIGGERS = ("arm", "disarm", "estop", "reset", "retreat")  # services of the filter
OUTCOMES = {0: "SUCCEEDED", 1: "FAILED", 2: "TIMEOUT", 3: "CANCELED", 4: "STOPPED", 5: "REFUSED"}

SERVICE_TIMEOUT = 10.0  # s, for a service or action server to appear and to answer
_TICK = 0.1  # s between looks at what no message announces


class NotReady(VlaError):
    """Something that was waited for did not come. The message says what, from whom, and for how long."""


@dataclass(frozen=True)
class TaskResult:
    """How the policy node ended a task; `duration` in s of its clock."""

    outcome: str
    message: str
    duration: float


class Task:
    """A goal that was sent to the policy."""

    def __init__(self) -> None:
        self.feedback: ExecuteTask.Feedback = ExecuteTask.Feedback()
        self.result: TaskResult | None = None
        self._handle: Any = None

    @property
    def done(self) -> bool:
        """The policy has ended it."""
        return self.result is not None

    def cancel(self) -> None:
        """Asks the policy to end it."""
        if self._handle is not None and not self.done:
            self._handle.cancel_goal_async()


class Operator:
    """Connects to a running system.

    Args:
        robot: whose topics to watch.
        domain: ROS domain; None: the environment's.

    Attributes:
        state, status, scene, joint_state: the newest message of each, None before the first.
        reset_time_s: simulated time of the last `reset_scene`, s.
        episode: what is being recorded; None: nothing.
    """

    def __init__(self, robot: Robot, domain: int | None = None):
        self.robot = robot
        self.domain = os.environ.get("ROS_DOMAIN_ID", "0") if domain is None else str(domain)
        self.state: SafetyState | None = None
        self.status: PolicyStatus | None = None
        self.scene: SceneState | None = None
        self.joint_state: JointState | None = None
        self.reset_time_s = -math.inf
        self.episode: Episode | None = None
        self._changed = threading.Condition()
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = Node("vla_operator", context=self._context)
        self._connect()
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="vla_operator", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Operator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the system."""
        rclpy.try_shutdown(context=self._context)
        self._thread.join(5.0)
        self.node.destroy_node()

    # -- what the system tells

    def _connect(self) -> None:
        node, robot = self.node, self.robot
        node.create_subscription(SafetyState, "/vla_safety/state", self._on_state, LATCHED)
        node.create_subscription(SafetyDecision, "/vla_safety/decision", self._on_decision, EVENT)
        node.create_subscription(PolicyStatus, "/vla_policy/status", self._on_status, 10)
        node.create_subscription(ActionChunk, "/vla_policy/chunk", self._on_chunk, COMMAND)
        node.create_subscription(SceneState, "/vla_sim/ground_truth", self._on_scene, SENSOR)
        node.create_subscription(JointState, robot.joint_states.topic, self._on_joints, SENSOR)
        self._services = {name: node.create_client(Trigger, f"/vla_safety/{name}") for name in TRIGGERS}
        self._set_tool = node.create_client(SetTool, "/vla_safety/set_tool")
        self._reduce = node.create_client(SetBool, "/vla_safety/reduced_speed")
        self._reset = node.create_client(ResetScene, "/vla_sim/reset")
        self._execute = ActionClient(node, ExecuteTask, "/vla_policy/execute_task")

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_state(self, message: SafetyState) -> None:
        self.state = message
        if self.episode is not None:
            self.episode.clearances.append(message.zone_clearance)
            self.episode.tracking_errors.append(message.tracking_error)
        self._notify()

    def _on_decision(self, message: SafetyDecision) -> None:
        if self.episode is not None:
            self.episode.add_decision(message.verdict, message.reason, message.subject)
        self._notify()

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message
        self._notify()

    def _on_chunk(self, message: ActionChunk) -> None:
        if self.episode is not None:
            self.episode.chunk_stamps.append(to_ns(message.header.stamp) * 1e-9)
            self.episode.inference_times.append(seconds(message.inference_time))

    def _on_scene(self, message: SceneState) -> None:
        self.scene = message
        if self.episode is not None:
            self.episode.add_scene(to_ns(message.header.stamp), message.objects)
        self._notify()

    def _on_joints(self, message: JointState) -> None:
        self.joint_state = message
        if self.episode is not None:
            self.episode.add_joints(to_ns(message.header.stamp), list(message.name), list(message.position))

    @property
    def time_s(self) -> float:
        """Simulated time of the newest ground truth; NaN without a simulator."""
        return to_ns(self.scene.header.stamp) * 1e-9 if self.scene else float("nan")

    @property
    def filter_time_s(self) -> float:
        """Time of the filter's newest state; minus infinity before the first."""
        return to_ns(self.state.header.stamp) * 1e-9 if self.state else -math.inf

    @property
    def speed(self) -> float:
        """Of the fastest joint, rad/s or m/s; infinite before the first joint state."""
        if self.joint_state is None or not self.joint_state.velocity:
            return math.inf
        return max(map(abs, self.joint_state.velocity))

    @property
    def mode(self) -> str:
        """The filter's mode."""
        return MODES.get(self.state.mode, str(self.state.mode)) if self.state else "unknown"

    @property
    def mode_and_reason(self) -> str:
        """The filter's mode, and what put it there if it says so: "ESTOP (tracking_error)"."""
        reason = self.state.reason if self.state else ""
        return f"{self.mode} ({reason})" if reason else self.mode

    @property
    def policy_state(self) -> str:
        """The policy node's state."""
        return POLICY_STATES.get(self.status.state, str(self.status.state)) if self.status else "unknown"

    @property
    def where(self) -> str:
        """Which ROS domain was looked into, and how to look into another, for messages."""
        return f"This is ROS domain {self.domain}; --domain N looks into another (demo and eval print theirs)"

    # -- what an operator does

    def wait(
        self,
        condition: Callable[[], bool],
        timeout: float,
        describe: Callable[[], str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Blocks until `condition` holds.

        Args:
            timeout: s of wall time.
            describe: what is missing, for the error.
            check: raises when waiting has become pointless, e.g. `Runner.check`.

        Raises:
            NotReady: when it did not within `timeout`.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            check()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise NotReady(f"waited {timeout:.0f} s: {describe()}")
            with self._changed:
                self._changed.wait(min(_TICK, remaining))

    def trigger(self, name: str, timeout: float = SERVICE_TIMEOUT) -> tuple[bool, str]:
        """Calls one of TRIGGERS; returns success and message.

        Raises:
            NotReady: when the filter does not answer.
        """
        response = self._call(self._services[name], Trigger.Request(), f"/vla_safety/{name}", timeout)
        return bool(response.success), str(response.message)

    def set_tool(self, tool: str, payload: str = "", timeout: float = SERVICE_TIMEOUT) -> tuple[bool, str]:
        """Tells the filter what is mounted and carried, by names of its safety file; empty: nothing.

        Raises:
            NotReady: when the filter does not answer.
        """
        request = SetTool.Request(tool=tool, payload=payload)
        response = self._call(self._set_tool, request, "/vla_safety/set_tool", timeout)
        return bool(response.success), str(response.message)

    def reduce_speed(self, on: bool, timeout: float = SERVICE_TIMEOUT) -> tuple[bool, str]:
        """Switches reduced speed.

        Raises:
            NotReady: when the filter does not answer.
        """
        response = self._call(self._reduce, SetBool.Request(data=on), "/vla_safety/reduced_speed", timeout)
        return bool(response.success), str(response.message)

    def reset_scene(self, seed: int, timeout: float = SERVICE_TIMEOUT) -> None:
        """Puts the simulated cell back to the scene of `seed`, and waits for its ground truth.

        Raises:
            NotReady: when the simulator refuses or does not answer.
        """
        episode = self.scene.episode if self.scene else -1
        response = self._call(self._reset, ResetScene.Request(seed=seed), "/vla_sim/reset", timeout)
        if not response.success:
            raise NotReady(f"/vla_sim/reset of seed {seed} refused: {response.message}")
        self.wait(
            lambda: self.scene is not None and self.scene.episode != episode and self.scene.seed == seed,
            timeout,
            lambda: f"no ground truth of scene {seed} came from /vla_sim after its reset",
        )
        self.reset_time_s = self.time_s

    def execute(self, instruction: str, timeout: float = 0.0) -> Task:
        """Sends a sentence to the policy.

        Args:
            timeout: s of the policy's clock; 0: its default.

        Raises:
            NotReady: when there is no policy node.
        """
        if not self._execute.wait_for_server(SERVICE_TIMEOUT):
            raise NotReady(
                f"no action server /vla_policy/execute_task appeared within {SERVICE_TIMEOUT:g} s; is the policy up? "
                f"{self.where}"
            )
        task = Task()
        goal = ExecuteTask.Goal(instruction=instruction, timeout=duration_msg(timeout))
        future = self._execute.send_goal_async(goal, feedback_callback=lambda m: setattr(task, "feedback", m.feedback))
        future.add_done_callback(lambda f: self._on_goal(task, f))
        return task

    def _on_goal(self, task: Task, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            task.result = TaskResult("REFUSED", "the policy node did not accept the goal; see its log", 0.0)
            self._notify()
            return
        task._handle = handle
        handle.get_result_async().add_done_callback(lambda f: self._on_result(task, f))

    def _on_result(self, task: Task, future: Any) -> None:
        answer = future.result()
        result = answer.result
        outcome = OUTCOMES.get(result.outcome, str(result.outcome))
        if answer.status == GoalStatus.STATUS_ABORTED and outcome == "SUCCEEDED":
            outcome = "FAILED"  # the node ended the goal without filling in its result
        task.result = TaskResult(outcome, result.message, seconds(result.duration))
        self._notify()

    def _call(self, client: Any, request: Any, name: str, timeout: float) -> Any:
        if not client.wait_for_service(timeout):
            raise NotReady(f"service {name} did not appear within {timeout:g} s; is the system up? {self.where}")
        future = client.call_async(request)
        future.add_done_callback(lambda _: self._notify())
        self.wait(future.done, timeout, lambda: f"service {name} did not answer")
        return future.result()
