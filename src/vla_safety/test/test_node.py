"""The node as a real process, with a robot that follows perfectly played by the test."""

import subprocess

import numpy as np
import pytest
from rig import HOME, ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from std_msgs.msg import Bool  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vla_msgs.msg import SafetyDecision, SafetyState  # noqa: E402

from vla_node_base.qos import COMMAND  # noqa: E402


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


def test_r15_a_button_that_is_toggled_at_50_hz_in_motion_stops_it_once_and_for_all(bench):
    bench.mode(SafetyState.DISARMED)
    bench.arm()
    bench.until(lambda: bench.button.get_subscription_count() == 1, "discovery")
    goal = HOME + np.array([0.5, 0, 0, 0, 0, 0, 0, 0])
    bench.send_chunk(goal, sequence=3, duration=6.0)
    bench.until(lambda: np.abs(bench.curve[1].positions[-1] - HOME).max() > 0.05, "motion")
    said = []

    def toggle():
        bench.button.publish(Bool(data=len(said) % 2 == 0))
        said.append(bench.state.mode)

    timer = bench.node.create_timer(0.02, toggle)
    bench.mode(SafetyState.ESTOP)
    assert bench.state.reason == "estop_input"
    count = len(said)
    bench.until(lambda: len(said) > count + 100, "toggling")
    assert set(said[count:]) == {SafetyState.ESTOP}, "it never flickers"
    assert not bench.call("reset").success and not bench.call("arm").success
    last = bench.commands[-1].points[-1]
    assert not any(last.velocities) and not np.allclose(last.positions, goal, atol=0.05)
    bench.node.destroy_timer(timer)
    bench.button.publish(Bool(data=False))
    bench.until(lambda: bench.call("reset").success, "reset")


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
