"""The node refuses what preflight refuses, and says what a strategy cannot do; with real processes."""

from contextlib import closing

from conftest import write_policy
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rig import Rig
from vla_msgs.msg import PolicyStatus

from vla_node_base.domains import free_domain

REMOTE = {
    "inputs": {"seen": {"camera": "no_such_camera"}, "told": {"text": "instruction"}},
    "action": {"space": "joint_position", "joints": ["nope"]},
    "horizon": 8,
    "dt": 0.1,
}


def test_a_server_s_policy_file_that_does_not_fit_refuses_activation(robot, tmp_path):
    policy = write_policy(tmp_path, backend="openpi", checkpoint=".", options=REMOTE)
    with free_domain() as domain, closing(Rig(robot.path, policy, domain)) as rig:
        assert rig.process.wait(timeout=30) == 2
        said = rig.output()
        assert "unknown camera 'no_such_camera'; known: front, wrist" in said and "unknown joint 'nope'" in said


def test_rtc_without_effect_is_said_once(robot, recording, tmp_path):
    words = "strategy rtc has no effect: backend 'replay' cannot be told the motion"
    with free_domain() as domain, closing(Rig(robot.path, write_policy(tmp_path), domain)) as rig:
        rig.wait_state(PolicyStatus.READY)
        assert words not in rig.output()
        client = rig.node.create_client(SetParameters, "/vla_policy/set_parameters")
        rig.spin(client.service_is_ready)
        for strategy in ("rtc", "", "rtc"):
            value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=strategy)
            future = client.call_async(SetParameters.Request(parameters=[Parameter(name="strategy", value=value)]))
            rig.spin(future.done)
            assert future.result().results[0].successful
        rig.spin(lambda: words in rig.output())
        assert rig.output().count(words) == 1


def test_rtc_in_the_policy_file_is_said_when_the_policy_is_ready(robot, recording, tmp_path):
    policy = write_policy(tmp_path, schedule={"strategy": "rtc"})
    with free_domain() as domain, closing(Rig(robot.path, policy, domain)) as rig:
        rig.spin(lambda: "strategy rtc has no effect" in rig.output())
