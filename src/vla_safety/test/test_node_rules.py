"""R18, I12: the rules cannot be loosened while the robot is armed, and who tries it is named. With the real node."""

import pytest
from rig import HOME, ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from action_msgs.msg import GoalStatus, GoalStatusArray  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.qos import qos_profile_action_status_default  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vla_msgs.msg import SafetyDecision, SafetyState  # noqa: E402

from vla_node_base.qos import COMMAND  # noqa: E402


def moving(bench):
    """Armed, and on the way to a goal."""
    bench.mode(SafetyState.DISARMED)
    bench.arm()
    goal = HOME.copy()
    goal[0] += 0.5
    goal[-1] = 0.03
    bench.send_chunk(goal, sequence=1, duration=6.0)
    bench.until(lambda: bench.decisions and bench.decisions[0].verdict <= SafetyDecision.SLOWED, "motion")
    return goal


def stopped_for_it(bench, subject):
    bench.mode(SafetyState.ESTOP)
    bench.until(lambda: bench.decisions[-1].verdict == SafetyDecision.STOPPED, "the stop")
    last = bench.decisions[-1]
    assert last.reason == "rules_changed" and subject in last.subject and last.remedy, last
    assert not any(bench.commands[-1].points[-1].velocities)


def test_r18_a_zone_switched_off_while_moving_stops_and_changes_nothing(bench):
    moving(bench)
    path = bench.tmp_path / "cell.yaml"
    before = path.read_text()
    path.write_text(before[: before.index("  - name: table")] + before[before.index("position_tolerance:") :])
    stopped_for_it(bench, "safety file (cell.yaml)")
    assert not bench.call("reload").success, "nothing is read again before the robot is disarmed"
    bench.until(lambda: bench.call("reset").success, "reset")
    bench.until(lambda: "was changed since it was read" in bench.call("arm").message, "a refusal")
    after = path.read_text()
    path.write_text(before)
    bench.arm()
    bench.until(lambda: bench.state.mode == SafetyState.ARMED, "armed")
    down = HOME.copy()
    down[1] += 0.9
    down[-1] = 0.03
    bench.send_chunk(down, sequence=9, duration=8.0)
    bench.until(lambda: any(d.sequence == 9 for d in bench.decisions), "a decision")
    judged = next(d for d in bench.decisions if d.sequence == 9)
    assert judged.verdict >= SafetyDecision.TRIMMED, "the zone that was taken out of the file is still in force"
    assert bench.state.mode in (SafetyState.ARMED, SafetyState.HOLD), "to mend the file is no offence"
    assert bench.call("disarm").success
    path.write_text(after)
    bench.until(lambda: bench.call("reload").message == "zones workspace", "the new rules, asked for")
    bench.arm()


def test_i12_a_goal_for_the_controllers_action_stops_and_is_named(bench):
    """MoveIt and others send goals to the same controller: their status says so."""
    topic = f"{ROBOT.controller.topic.rpartition('/')[0]}/follow_joint_trajectory/_action/status"
    status = bench.node.create_publisher(GoalStatusArray, topic, qos_profile_action_status_default)

    def goals(state):
        status.publish(GoalStatusArray(status_list=[GoalStatus(status=state)]))

    bench.mode(SafetyState.DISARMED)
    bench.until(status.get_subscription_count, "discovery")
    goals(GoalStatus.STATUS_EXECUTING)
    bench.until(lambda: "1 goal of follow_joint_trajectory" in bench.call("arm").message, "the refusal")
    assert bench.state.mode == SafetyState.DISARMED, "while disarmed others may move it"
    assert "goal" in bench.call("retreat").message, "but not both at once"
    goals(GoalStatus.STATUS_SUCCEEDED)
    bench.arm()
    bench.mode(SafetyState.ARMED)
    goals(GoalStatus.STATUS_ACCEPTED)
    bench.mode(SafetyState.ESTOP)
    assert bench.state.reason == "bypass" and not bench.call("reset").success
    # A controller that is gone has no goals, even if its successor was there before that was known.
    bench.node.create_publisher(GoalStatusArray, topic, qos_profile_action_status_default)
    bench.node.destroy_publisher(status)
    bench.until(lambda: bench.call("reset").success, "reset")


def test_nobody_arms_while_no_controller_listens(bench):
    """The first commands would be lost. Tools that listen are no controllers, and no more is the policy."""
    bench.mode(SafetyState.DISARMED)
    onlookers = [rclpy.create_node(name) for name in ("vla_policy", "_ros2cli_1")]
    for node in onlookers:
        node.create_subscription(JointTrajectory, ROBOT.controller.topic, lambda _: None, COMMAND)
    bench.arm()  # the bench plays the controller
    assert bench.call("disarm").success
    bench.node.destroy_subscription(bench.controller)
    bench.until(lambda: "no controller listens" in bench.call("arm").message, "the refusal")
    assert bench.state.mode == SafetyState.DISARMED
    for node in onlookers:
        node.destroy_node()


def test_r18_i12_a_parameter_set_while_armed_is_refused_and_stops(bench):
    moving(bench)
    client = bench.node.create_client(SetParameters, "/vla_safety/set_parameters")
    bench.until(client.service_is_ready, "the parameter service")
    value = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True)
    future = client.call_async(SetParameters.Request(parameters=[Parameter(name="shadow", value=value)]))
    bench.until(future.done, "an answer")
    assert not future.result().results[0].successful
    stopped_for_it(bench, "parameter shadow")
