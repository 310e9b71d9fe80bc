"""Planner, override, dead-man signal and retreat through the node as a real process."""

import signal
import time

import numpy as np
import pytest
from rig import HOME, ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402
from vla_msgs.msg import SafetyDecision, SafetyState  # noqa: E402

from vla_node_base.conversions import duration_msg  # noqa: E402
from vla_node_base.qos import COMMAND  # noqa: E402

AWAY = HOME + np.array([0.3, 0, 0, 0, 0, 0, 0, -0.01])


def trajectory(bench, goal, duration=2.0):
    """From where the robot is commanded to `goal`; its stamp is zero: now."""
    start = HOME if bench.curve is None else bench.curve[1].positions[-1]
    message = JointTrajectory(joint_names=list(ROBOT.joints))
    for s in np.linspace(0, 1, 21)[1:]:
        shape = (10 * s**3 - 15 * s**4 + 6 * s**5) * (goal - start)
        rate = (30 * s**2 - 60 * s**3 + 30 * s**4) * (goal - start) / duration
        point = JointTrajectoryPoint(positions=(start + shape).tolist(), velocities=rate.tolist())
        point.time_from_start = duration_msg(0.8 + s * duration)
        message.points.append(point)
    return message


def judged(bench, source):
    decisions = [d for d in bench.decisions if d.source == source]
    return decisions[-1] if decisions else None


def test_i11_i20_a_planner_moves_it_an_estop_stops_it_a_held_retreat_leads_it_back(bench):
    planner = bench.node.create_publisher(JointTrajectory, "/vla_safety/planner", COMMAND)
    bench.mode(SafetyState.DISARMED)
    assert not bench.call("retreat").success, "there is no path yet"
    bench.arm()
    bench.mode(SafetyState.ARMED)
    bench.until(lambda: planner.get_subscription_count() == 1, "discovery")
    planner.publish(trajectory(bench, AWAY))
    bench.until(lambda: judged(bench, "planner") is not None, "a decision")
    assert judged(bench, "planner").verdict <= SafetyDecision.SLOWED, judged(bench, "planner")
    bench.send_chunk(AWAY, sequence=7)
    bench.until(lambda: judged(bench, "policy") is not None, "a decision")
    assert (judged(bench, "policy").reason, judged(bench, "policy").subject) == ("authority", "planner")
    bench.until(lambda: abs(bench.curve[1].positions[-1][0] - HOME[0]) > 0.1, "motion")
    assert bench.call("estop").success
    bench.mode(SafetyState.ESTOP)
    bench.until(lambda: bench.call("retreat").success, "rest")
    while bench.call("retreat").success:  # a person who holds the button
        assert bench.state.mode == SafetyState.ESTOP
    assert np.allclose(bench.curve[1].positions[-1], HOME, atol=2e-3) or judged(bench, "retreat").reason == (
        "retreat_released"
    ), "a slow test machine may let go"
    assert not any(bench.commands[-1].points[-1].velocities)
    bench.until(lambda: bench.call("reset").success, "reset")
    bench.arm()


def with_a_dead_man(bench, settings):
    """Armed with `settings` among the watchdogs; the publishers of override and dead-man signal."""
    path = bench.tmp_path / "cell.yaml"
    path.write_text(path.read_text().replace("watchdogs:", f"watchdogs:\n  {settings}"))
    override = bench.node.create_publisher(JointTrajectory, "/vla_safety/override", COMMAND)
    switch = bench.node.create_publisher(Bool, "/vla_safety/deadman", COMMAND)
    bench.mode(SafetyState.DISARMED)
    assert bench.call("reload").success
    bench.arm()
    bench.until(lambda: override.get_subscription_count() and switch.get_subscription_count(), "discovery")
    return override, switch


def test_i11_an_override_needs_the_dead_man_signal(bench):
    override, switch = with_a_dead_man(bench, "deadman: 30.0\n  override_timeout: 60.0")
    override.publish(trajectory(bench, AWAY))
    bench.until(lambda: judged(bench, "override") is not None, "a decision")
    assert judged(bench, "override").reason == "deadman_silent"
    switch.publish(Bool(data=True))

    def taken():
        override.publish(trajectory(bench, AWAY))
        count = len(bench.decisions)
        bench.until(lambda: len(bench.decisions) > count, "a decision")
        return judged(bench, "override").verdict <= SafetyDecision.SLOWED

    bench.until(taken, "the override")
    bench.mode(SafetyState.OVERRIDE)
    switch.publish(Bool(data=False))
    bench.mode(SafetyState.DISARMED)
    assert bench.state.reason == "deadman_released"


def test_i11_i15_a_dead_man_signal_that_comes_late_holds_nothing(bench):
    override, switch = with_a_dead_man(bench, "deadman: 1.0")
    bench.process.send_signal(signal.SIGSTOP)
    switch.publish(Bool(data=True))
    end = time.monotonic() + 1.5
    bench.until(lambda: time.monotonic() > end, "time")
    bench.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 4  # what was lost meanwhile is sent again after 3 s
    while time.monotonic() < end:
        count = len(bench.decisions)
        message = trajectory(bench, AWAY)
        message.header.stamp = bench.node.get_clock().now().to_msg()
        override.publish(message)
        bench.until(lambda n=count: len(bench.decisions) > n, "a decision")
        assert judged(bench, "override") is None or judged(bench, "override").verdict == SafetyDecision.REFUSED
    assert bench.state.mode in (SafetyState.ARMED, SafetyState.HOLD)


def test_i15_an_override_that_waited_while_the_filter_was_frozen_moves_nothing(bench):
    """A trajectory without a stamp is meant for now; one from before the freeze must not be taken for one."""
    override = bench.node.create_publisher(JointTrajectory, "/vla_safety/override", COMMAND)
    bench.mode(SafetyState.DISARMED)
    bench.arm()
    bench.until(lambda: override.get_subscription_count() == 1, "discovery")
    bench.process.send_signal(signal.SIGSTOP)
    override.publish(trajectory(bench, AWAY))
    end = time.monotonic() + 1.5  # longer than max_stamp_age
    bench.until(lambda: time.monotonic() > end, "time")
    bench.process.send_signal(signal.SIGCONT)
    bench.until(lambda: judged(bench, "override") is not None, "a decision")
    assert judged(bench, "override").reason == "stale_stamp"
    assert np.allclose(bench.curve[1].positions[-1], HOME, atol=1e-6)


def test_reduced_speed_slows_what_moves_and_is_kept_by_a_reload(bench):
    planner = bench.node.create_publisher(JointTrajectory, "/vla_safety/planner", COMMAND)
    switch = bench.node.create_client(SetBool, "/vla_safety/reduced_speed")
    bench.mode(SafetyState.DISARMED)
    bench.until(switch.service_is_ready, "the service")

    def switched(on):
        future = switch.call_async(SetBool.Request(data=on))
        bench.until(future.done, "an answer")
        assert future.result().success, future.result().message
        return future.result().message

    def next_decision(goal):
        count = len(bench.decisions)
        planner.publish(trajectory(bench, goal, duration=1.0))
        bench.until(lambda: any(d.source == "planner" for d in bench.decisions[count:]), "a decision")
        return next(d for d in bench.decisions[count:] if d.source == "planner")

    assert "reduced speed on: taken" in switched(True)
    bench.until(lambda: bench.call("reload").success, "the reload")
    bench.arm()
    bench.until(lambda: planner.get_subscription_count() == 1, "discovery")
    first = next_decision(AWAY)
    assert (first.verdict, first.reason) == (SafetyDecision.SLOWED, "link_speed"), first
    bench.until(lambda: bench.arrived(AWAY), "arrival")
    switched(False)
    assert next_decision(HOME - np.array([0] * 7 + [0.01])).reason != "link_speed"
