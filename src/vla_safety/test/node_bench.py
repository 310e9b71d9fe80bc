"""The node as a real process, with a robot that follows perfectly played by the test."""

import contextlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rig import BRINGUP, HOME, ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vla_msgs.msg import ActionChunk, SafetyDecision, SafetyState  # noqa: E402

from vla_contract.chunk import ActionChunk as Chunk  # noqa: E402
from vla_contract.interpolation import Trajectory  # noqa: E402
from vla_node_base.conversions import chunk_msg, to_ns, trajectory_from_msg  # noqa: E402
from vla_node_base.domains import free_domain  # noqa: E402
from vla_node_base.qos import COMMAND, EVENT, LATCHED, SENSOR  # noqa: E402


class Bench:
    """The filter's process, and everything around it in one node. The watchdogs are wide: test machines are busy."""

    def __init__(self, tmp_path, robot=ROBOT.path):
        safety = (BRINGUP / "config/safety/cell.yaml").read_text()
        (tmp_path / "cell.yaml").write_text(
            safety.replace("watchdogs:", "watchdogs:\n  joint_state_timeout: 2.0\n  joint_state_age: 2.0")
            + "cycle: {lead: 0.4, segment: 0.8}\n"
        )
        command = [
            sys.executable, "-c", "from vla_safety.node import main; main()", "--ros-args",
            "-p", f"robot:={robot}", "-p", f"safety:={tmp_path}/cell.yaml", "-p", f"audit_dir:={tmp_path}/audit",
            "-p", f"state_dir:={tmp_path}/state",
        ]  # fmt: skip
        self.tmp_path, self.command = tmp_path, command
        self.process = subprocess.Popen(command)
        rclpy.init()
        self.node = node = rclpy.create_node("bench")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(node)
        self.state: SafetyState | None = None
        self.decisions: list[SafetyDecision] = []
        self.commands: list[JointTrajectory] = []
        self.curve = None
        self.said = "none"
        node.create_subscription(SafetyState, "/vla_safety/state", self._on_state, LATCHED)
        node.create_subscription(SafetyDecision, "/vla_safety/decision", self.decisions.append, EVENT)
        self.controller = node.create_subscription(JointTrajectory, ROBOT.controller.topic, self._on_command, COMMAND)
        self.chunks = node.create_publisher(ActionChunk, "/vla_policy/chunk", COMMAND)
        self.button = node.create_publisher(Bool, "/vla_safety/estop_input", COMMAND)
        self.joints = node.create_publisher(JointState, ROBOT.joint_states.topic, SENSOR)
        node.create_timer(0.02, self._publish_joints)

    def _on_state(self, message):
        self.state = message

    def _on_command(self, message):
        self.commands.append(message)
        self.curve = (to_ns(message.header.stamp), trajectory_from_msg(message))

    def _publish_joints(self):
        now = self.node.get_clock().now()
        message = JointState(name=list(ROBOT.joints), position=HOME.tolist(), velocity=[0.0] * len(HOME))
        message.header.stamp = now.to_msg()
        if self.curve is not None:
            stamp, curve = self.curve
            at = (now.nanoseconds - stamp) * 1e-9
            sample = curve.sample(max(at, curve.start))
            message.position = sample.positions[0].tolist()
            message.velocity = sample.velocities[0].tolist()
        self.joints.publish(message)

    def until(self, condition, what, timeout=60.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen in {timeout} s; last answer: {self.said}"
            assert self.process.poll() is None, f"the filter ended with {self.process.returncode}"
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, name):
        client = self.node.create_client(Trigger, f"/vla_safety/{name}")
        self.until(client.service_is_ready, f"service {name}")
        future = client.call_async(Trigger.Request())
        self.until(future.done, f"answer of {name}")
        self.said = f"{name}: {future.result().message}"
        return future.result()

    def arm(self):
        self.until(lambda: self.call("arm").success, "arming")

    def mode(self, mode):
        self.until(lambda: self.state is not None and self.state.mode == mode, f"mode {mode}")

    def send_chunk(self, goal, sequence=1, duration=2.0):
        now = self.node.get_clock().now().nanoseconds
        s = np.linspace(0, 1, 21)[1:, None]
        start = HOME if self.curve is None else self.curve[1].positions[-1]
        shape = 10 * s**3 - 15 * s**4 + 6 * s**5
        trajectory = Trajectory((1.0 + s * duration)[:, 0], start + shape * (goal - start))
        self.chunks.publish(chunk_msg(Chunk(now, ROBOT.joints, trajectory, sequence), ROBOT.base_frame))

    def drive(self, goal, sequence):
        """Sends chunks until one has been played to its end: on a busy machine the filter may stop in between."""
        deadline = time.monotonic() + 120
        first = None
        while time.monotonic() < deadline:
            self.send_chunk(goal, sequence)
            self.until(lambda n=sequence: any(d.sequence == n for d in self.decisions), "a decision")
            first = first or next(d for d in self.decisions if d.sequence == sequence)
            self.until(lambda end=time.monotonic() + 5: self.arrived(goal) or time.monotonic() > end, "time")
            if self.arrived(goal):
                return first
            self.mode(SafetyState.HOLD)
            sequence += 1
        raise AssertionError("no chunk was played to its end")

    def arrived(self, goal):
        return bool(np.allclose(self.curve[1].positions[-1], goal, atol=1e-6))

    def close(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self.node.destroy_node()
        rclpy.try_shutdown()
        return code


@contextlib.contextmanager
def running(tmp_path, monkeypatch, robot=ROBOT.path):
    """A bench in a domain of its own, with the robot file `robot`."""
    with free_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        bench = Bench(tmp_path, robot)
        yield bench
        if bench.process.poll() is None:
            bench.close()
        rclpy.try_shutdown()
