"""The node as a real process, with a robot that follows perfectly played by the test."""

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

NS = 10**9


class Bench:
    """The filter's process, and everything around it in one node. The watchdogs are wide: test machines are busy."""

    def __init__(self, tmp_path):
        safety = (BRINGUP / "config/safety/cell.yaml").read_text()
        (tmp_path / "cell.yaml").write_text(
            safety.replace("watchdogs:", "watchdogs:\n  joint_state_timeout: 2.0\n  joint_state_age: 2.0")
            + "cycle: {lead: 0.4, segment: 0.8}\n"
        )
        command = [
            sys.executable, "-c", "from vla_safety.node import main; main()", "--ros-args",
            "-p", f"robot:={ROBOT.path}", "-p", f"safety:={tmp_path}/cell.yaml", "-p", f"audit_dir:={tmp_path}/audit",
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
            assert time.monotonic() < end, f"{what} did not happen in {timeout} s"
            assert self.process.poll() is None, f"the filter ended with {self.process.returncode}"
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, name):
        client = self.node.create_client(Trigger, f"/vla_safety/{name}")
        self.until(client.service_is_ready, f"service {name}")
        future = client.call_async(Trigger.Request())
        self.until(future.done, f"answer of {name}")
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


@pytest.fixture
def bench(tmp_path, monkeypatch):
    with free_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        bench = Bench(tmp_path)
        yield bench
        if bench.process.poll() is None:
            bench.close()
        rclpy.try_shutdown()


def test_a_chunk_becomes_verified_motion(bench):
    bench.mode(SafetyState.DISARMED)
    bench.send_chunk(HOME)
    bench.until(lambda: bench.decisions, "a decision")
    assert (bench.decisions[0].verdict, bench.decisions[0].reason) == (SafetyDecision.REFUSED, "mode")
    assert not bench.commands
    bench.arm()
    bench.mode(SafetyState.ARMED)
    goal = HOME + np.array([0.3, 0, 0, 0, 0, 0, 0, -0.01])
    decision = bench.drive(goal, sequence=2)
    assert decision.verdict == SafetyDecision.ACCEPTED, decision
    assert decision.source == "policy" and decision.points_requested == 20 and decision.points_accepted > 10
    for message in bench.commands:
        assert list(message.joint_names) == list(ROBOT.joints)
        last = message.points[-1]
        assert not any(last.velocities) and not any(last.accelerations), "every message ends at rest"
    assert bench.state.self_clearance > 0 and bench.state.zone_clearance > 0 and bench.state.accepted >= 1
    # The e-stop latches, survives a restart, and is reset by people.
    assert bench.call("estop").success
    bench.mode(SafetyState.ESTOP)
    bench.process.kill()
    bench.process.wait()
    bench.state = None
    bench.process = subprocess.Popen(bench.command)
    bench.mode(SafetyState.ESTOP)
    assert not bench.call("arm").success
    bench.until(lambda: bench.call("reset").success, "reset")
    bench.mode(SafetyState.DISARMED)
    assert bench.close() == 0
    from vla_safety.recording import replay

    records = sorted((bench.tmp_path / "audit").iterdir())
    assert len(records) == 2
    result = replay(records[0])
    assert result.different is None and result.decisions >= 3


def test_i12_r09_another_publisher_on_the_controllers_topic_stops(bench):
    bench.mode(SafetyState.DISARMED)
    bench.arm()
    rogue = rclpy.create_node("rogue")
    publisher = rogue.create_publisher(JointTrajectory, ROBOT.controller.topic, COMMAND)
    bench.mode(SafetyState.ESTOP)
    assert bench.state.reason == "bypass"
    assert "rogue" in bench.call("reset").message
    rogue.destroy_publisher(publisher)
    rogue.destroy_node()
    bench.until(lambda: bench.call("reset").success, "reset")
    # A button stops as well, and blocks the reset while it is pressed.
    bench.arm()
    bench.until(lambda: bench.button.get_subscription_count() == 1, "discovery")
    bench.button.publish(Bool(data=True))
    bench.mode(SafetyState.ESTOP)
    assert bench.state.reason == "estop_input" and not bench.call("reset").success
    bench.button.publish(Bool(data=False))
    bench.until(lambda: bench.call("reset").success, "reset")
    # A wrong safety file is refused whole, a right one is taken.
    path = bench.tmp_path / "cell.yaml"
    good = path.read_text()
    path.write_text(good.replace("keep_in", "keep_inn"))
    answer = bench.call("reload")
    assert not answer.success and "the old zones stay" in answer.message and "keep_inn" in answer.message
    path.write_text(good)
    assert bench.call("reload").message == "zones workspace, table"
