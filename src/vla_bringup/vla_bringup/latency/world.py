"""The stand-in for robot, operator and clock: one process beside the real policy node and the real filter.

    python -m vla_bringup.latency.world ROBOT_FILE OUT_FILE PLAN

It publishes camera images and joint states, does what the controller would do with the filter's commands, arms the
filter, gives the policy one task after the other, and writes down when everything came. `PLAN` is JSON: a list of maps
with `instruction` and `seconds`. On stdout: one JSON object a line when something begins or ends.

Header stamps are of the wall clock, because the nodes compare them with it; times are taken by CLOCK_MONOTONIC.
"""

import array
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk, PolicyStatus, SafetyDecision, SafetyState

from vla_contract.errors import VlaError
from vla_contract.interpolation import Trajectory
from vla_contract.robot import Camera, Robot, load_robot
from vla_node_base.conversions import duration_msg, image_msg, time_msg, to_ns
from vla_node_base.qos import COMMAND, EVENT, LATCHED, SENSOR
from vla_node_base.serialized import trajectory_from_bytes

START_TIMEOUT = 60.0  # s for policy and filter to come up
ARM_TIMEOUT = 20.0  # s
ANSWER_TIMEOUT = 20.0  # s for a service or an action server
MOST_STOPS = 10  # in one phase
SETTLE = 1.0  # s of a task that are not counted: the first chunks come from rest
AT_REST = 0.005  # rad/s
PICTURES = 4  # that take turns, so that no camera looks frozen
_POLICY = "vla_policy"
_ARMED = (SafetyState.ARMED, SafetyState.HOLD)


class WorldError(VlaError):
    """The system under test did not do what it must."""


class World:
    """Streams, controller, operator, and notes."""

    def __init__(self, robot: Robot):
        self._robot = robot
        # The filter wants the robot file's controller to listen, by its name. And a robot's drivers are lean: the stack
        # waits for what this process takes of the processor. The usual executor looks at every entity for every
        # message, so there are only those that are needed.
        name = robot.controller.name or "vla_bench_world"
        self._node = rclpy.create_node(name, enable_rosout=False, start_parameter_services=False)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._status: PolicyStatus | None = None
        self._state: SafetyState | None = None
        self._counts: dict[str, str] = {}  # of the policy's diagnostics
        self._reports = 0
        self._plans: list[tuple[int, Trajectory]] = [(0, _still(robot))]
        self._position, self._velocity = np.array(robot.home), np.zeros(len(robot.joints))
        self.filming = True
        self.sent = 0
        self._offset = _offset()
        self._forget()
        self._subscribe()
        self._images = [
            (self._node.create_publisher(Image, camera.topic, SENSOR), pictures(camera, seed))
            for seed, camera in enumerate(robot.cameras.values())
        ]
        self._joint_state = JointState(name=list(robot.joints))
        self._joints = self._node.create_publisher(JointState, robot.joint_states.topic, SENSOR)
        self._arm = self._node.create_client(Trigger, "vla_safety/arm")
        self._reset = self._node.create_client(Trigger, "vla_safety/reset")
        self._execute = ActionClient(self._node, ExecuteTask, "vla_policy/execute_task")
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        rate = max(camera.rate for camera in robot.cameras.values())
        self._node.create_timer(1 / robot.joint_states.rate, self._publish_joints, clock=steady)
        self._node.create_timer(1 / rate, self._publish_images, clock=steady)

    def _subscribe(self) -> None:
        subscribe = self._node.create_subscription
        subscribe(JointTrajectory, self._robot.controller.topic, self._on_command, COMMAND, raw=True)
        subscribe(ActionChunk, "vla_policy/chunk", self._on_chunk, COMMAND, raw=True)
        subscribe(SafetyDecision, "vla_safety/decision", self._on_decision, EVENT)
        subscribe(PolicyStatus, "vla_policy/status", lambda m: setattr(self, "_status", m), LATCHED)
        subscribe(SafetyState, "vla_safety/state", lambda m: setattr(self, "_state", m), LATCHED)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    # -- notes

    def _forget(self) -> None:
        self._stamps: dict[int, int] = {}
        self._chunks: list[tuple[bytes, int]] = []  # as they came, and when they were published
        self._commands: list[tuple[int, int]] = []
        self._decisions: list[tuple[int, int, int, int]] = []

    def notes(self) -> dict[str, Any]:
        """Since the last call, as `figures.Seen` for JSON."""
        chunks = {}
        for data, published in self._chunks:
            chunk = deserialize_message(data, ActionChunk)
            chunks[int(chunk.sequence)] = to_ns(chunk.header.stamp), published, to_ns(chunk.inference_time)
        taken = {
            "stamps": self._stamps,
            "chunks": chunks,
            "commands": self._commands,
            "decisions": self._decisions,
        }
        self._forget()
        return taken

    def _steady(self, wall_ns: int) -> int:
        """The middleware stamps by the wall clock."""
        return wall_ns - self._offset

    def _on_chunk(self, message: bytes, info: Any) -> None:
        self._chunks.append((message, self._steady(info["source_timestamp"])))

    def _on_decision(self, message: SafetyDecision, info: Any) -> None:
        if message.source == "policy":
            decided = self._steady(info["source_timestamp"])
            self._decisions.append((decided, int(message.sequence), int(message.verdict), to_ns(message.latency)))

    def _on_command(self, message: bytes, info: Any) -> None:
        self._commands.append((self._steady(info["source_timestamp"]), self._steady(info["received_timestamp"])))
        stamp, _, plan = trajectory_from_bytes(message)
        self._plans = [*self._plans[-1:], (stamp, plan)]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == _POLICY:
                self._counts = {pair.key: pair.value for pair in status.values}
                self._reports += 1

    # -- streams

    def _publish_joints(self) -> None:
        now = time.time_ns()
        for stamp, plan in reversed(self._plans):
            at = (now - stamp) * 1e-9
            if at >= plan.start:
                state = plan.sample(at)
                self._position, self._velocity = state.positions[0], state.velocities[0]
                if at >= plan.end:
                    self._velocity = np.zeros_like(self._velocity)
                break
        message = self._joint_state
        message.header.stamp = time_msg(now)
        message.position = array.array("d", self._position.tobytes())
        message.velocity = array.array("d", self._velocity.tobytes())
        self._joints.publish(message)

    def _publish_images(self) -> None:
        if not self.filming:
            return
        taken, stamp = time.monotonic_ns(), time.time_ns()
        self._offset = stamp - taken
        self._stamps[stamp] = taken
        for publisher, pictures in self._images:
            # A camera's driver has its message ready; making one anew here would count as the stack's.
            picture = pictures[self.sent % PICTURES]
            picture.header.stamp = time_msg(stamp)
            publisher.publish(picture)
        self.sent += 1

    # -- the operator

    def _spin(self, until: Callable[[], Any], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not until():
            if time.monotonic() > deadline:
                raise WorldError(f"{what} within {timeout:g} s ({self._standing()})")
            self._executor.spin_once(timeout_sec=0.1)

    def _spin_for(self, duration: float) -> None:
        end = time.monotonic() + duration
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def _standing(self) -> str:
        policy = "silent" if self._status is None else f"state {self._status.state}: {self._status.reason or '-'}"
        safety = "silent" if self._state is None else f"mode {self._state.mode}: {self._state.reason or '-'}"
        return f"policy {policy}; filter {safety}"

    def start(self) -> None:
        """Waits for policy and filter, and arms."""
        over = (PolicyStatus.READY, PolicyStatus.FAILED)
        self._spin(lambda: self._status and self._status.state in over, START_TIMEOUT, "no policy ready")
        if self._status is None or self._status.state != PolicyStatus.READY:
            raise WorldError(f"the policy has failed ({self._standing()})")
        self._spin(lambda: self._state is not None, START_TIMEOUT, "no filter")
        self._insist_on_arming()
        wanted = [f"images of {name}" for name in self._robot.cameras]
        self._spin(lambda: all(key in self._counts for key in wanted), ANSWER_TIMEOUT, "no count of images")

    def _insist_on_arming(self) -> None:
        self._spin(self._arm.service_is_ready, ANSWER_TIMEOUT, "no service to arm")
        self._spin(self._reset.service_is_ready, ANSWER_TIMEOUT, "no service to reset")
        deadline, said = time.monotonic() + ARM_TIMEOUT, ""
        while self._state is None or self._state.mode not in _ARMED:
            if time.monotonic() > deadline:
                raise WorldError(f"the filter refuses to arm for {ARM_TIMEOUT:g} s: {said}")
            latched = self._state is not None and self._state.mode == SafetyState.ESTOP
            future = (self._reset if latched else self._arm).call_async(Trigger.Request())
            self._spin(future.done, ANSWER_TIMEOUT, "no answer to arm or reset")
            said = future.result().message
            self._spin_for(0.3)

    def count(self) -> dict[str, int]:
        """Images of each camera that the policy node has received, once none is on its way any more."""
        self.filming = False
        before = None
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while before != (before := self._received()):
            if time.monotonic() > deadline:
                raise WorldError("the count of images does not come to rest although none is sent")
            seen = self._reports
            self._spin(lambda seen=seen: self._reports >= seen + 2, ANSWER_TIMEOUT, "no diagnostics of the policy")
        self.filming = True
        return before

    def _received(self) -> dict[str, int]:
        return {name: int(self._counts[f"images of {name}"]) for name in self._robot.cameras}

    def delays(self) -> dict[str, str]:
        """The policy's own view of how long images travel, in words."""
        return {key: value for key, value in self._counts.items() if key.startswith("image delay")}

    def task(self, instruction: str, seconds: float) -> dict[str, Any]:
        """A task until `seconds` have counted; returns the notes. After a stop (a machine that is too busy to keep the
        streams fresh) it begins again."""
        notes: dict[str, Any] = {"stamps": {}, "chunks": {}, "commands": [], "decisions": []}
        stops, counted = 0, 0.0
        while counted < seconds - 1e-6:
            if stops > MOST_STOPS:
                raise WorldError(f"stopped {stops} times in one phase; this machine is too busy ({self._standing()})")
            more, taken = self._attempt(instruction, seconds - counted)
            counted += more
            stops += counted < seconds - 1e-6
            for name, found in taken.items():
                if isinstance(found, dict):
                    notes[name].update(found)
                else:
                    notes[name] += found
        return {**notes, "stops": stops}

    def _attempt(self, instruction: str, seconds: float) -> tuple[float, dict[str, Any]]:
        """One goal; returns the seconds that counted, and the notes of them."""
        self._insist_on_arming()
        self._spin(self._execute.server_is_ready, ANSWER_TIMEOUT, "no action server")
        goal = ExecuteTask.Goal(instruction=instruction, timeout=duration_msg(seconds + 60.0))
        sent = self._execute.send_goal_async(goal)
        self._spin(sent.done, ANSWER_TIMEOUT, "no answer to a goal")
        result = sent.result().get_result_async()
        self._spin_for(SETTLE)
        self.notes()
        began = time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0 and not result.done():
            self._executor.spin_once(timeout_sec=left)
        counted, taken = time.monotonic() - began, self.notes()
        if not result.done():
            self._spin(sent.result().cancel_goal_async().done, ANSWER_TIMEOUT, "no answer to a cancellation")
            self._spin(result.done, ANSWER_TIMEOUT, "no end of a task")
        self._spin(lambda: np.abs(self._velocity).max() < AT_REST, ANSWER_TIMEOUT, "the robot does not come to rest")
        stopped = result.result().status != GoalStatus.STATUS_CANCELED
        return (0.999 if stopped else 1.0) * min(counted, seconds), taken


def _offset() -> int:
    """Wall clock minus CLOCK_MONOTONIC [ns]."""
    return time.time_ns() - time.monotonic_ns()


def _still(robot: Robot) -> Trajectory:
    rows = np.tile(np.array(robot.home), (2, 1))
    return Trajectory(np.array([0.0, 1e-3]), rows, np.zeros_like(rows))


def pictures(camera: Camera, seed: int) -> list[Image]:
    """Messages of random pixels, ready but for their stamps."""
    random = np.random.default_rng(seed)
    shape = (camera.height, camera.width, 3)
    pixels = (random.integers(0, 256, shape, dtype=np.uint8) for _ in range(PICTURES))
    return [image_msg(each, camera.frame, 0) for each in pixels]


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def end_with_parent() -> None:
    """The benchmark holds the other end of stdin; when it is gone, nobody wants this process any more."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: the interpreter could not end while a thread reads it
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """The command line."""
    robot, out, plan = load_robot(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    end_with_parent()
    rclpy.init()
    world = World(robot)
    drift = -_offset()
    try:
        world.start()
        before, sent = world.count(), world.sent
        phases = []
        for number, phase in enumerate(plan):
            _say(event="begin", phase=number)
            notes = world.task(phase["instruction"], phase["seconds"])
            phases.append({"instruction": phase["instruction"], "delays": world.delays(), **notes})
            _say(event="end", phase=number)
        sent = world.sent - sent
        after = world.count()
    except VlaError as error:
        _say(event="error", reason=str(error))
        sys.exit(1)
    delivered = {name: (after[name] - before[name]) / max(1, sent) for name in after}
    clock_ms = (drift + _offset()) * 1e-6
    out.write_text(json.dumps({"phases": phases, "sent": sent, "delivered": delivered, "clock_drift_ms": clock_ms}))
    _say(event="done")
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
