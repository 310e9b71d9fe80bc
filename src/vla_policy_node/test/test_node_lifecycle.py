"""Who manages the node may ask for anything at any time; with real processes."""

import signal
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from conftest import write_policy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rig import Rig
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import PolicyStatus

from vla_node_base.conversions import chunk_from_msg
from vla_node_base.domains import free_domain
from vla_policy_node.subtasks import LONGEST

Result = ExecuteTask.Result
CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


@contextmanager
def started(robot, folder):
    with free_domain() as domain, closing(Rig(robot.path, write_policy(folder), domain)) as rig:
        rig.wait_state(PolicyStatus.READY)
        yield rig


def answer(rig, kind, name, request):
    client = rig.node.create_client(kind, f"/vla_policy/{name}")
    rig.spin(client.service_is_ready)
    future = client.call_async(request)
    rig.spin(future.done)
    rig.node.destroy_client(client)
    return future.result()


def change(rig, transition):
    return answer(rig, ChangeState, "change_state", ChangeState.Request(transition=Transition(id=transition))).success


def test_deactivated_in_mid_task_it_leads_the_arm_to_rest(robot, recording, tmp_path):
    with started(robot, tmp_path) as rig:
        handle = rig.send()
        rig.spin(lambda: len(rig.chunks) >= 3)
        assert change(rig, DEACTIVATE)
        _, result = rig.result(handle)
        assert result.outcome == Result.STOPPED and "deactivated" in result.message
        last = chunk_from_msg(rig.chunks[-1][1]).trajectory
        assert np.abs(last.velocities[-1]).max() < 1e-9 and last.end - last.start < 1.5
        assert "not active" in rig.result(rig.send())[1].message
        assert change(rig, ACTIVATE)
        rig.plan = None
        assert rig.result(rig.send())[1].outcome == Result.SUCCEEDED


@pytest.mark.parametrize("end", ["clean up", "shut down", "signal"])
def test_who_waits_for_a_result_gets_it_before_the_node_ends(robot, recording, tmp_path, end):
    with started(robot, tmp_path) as rig:
        handle = rig.send()
        rig.spin(lambda: len(rig.chunks) >= 2)
        result = handle.get_result_async()
        rig.spin_for(0.3)  # the request has reached the node
        if end == "signal":
            rig.process.send_signal(signal.SIGINT)
        else:
            client = rig.node.create_client(ChangeState, "/vla_policy/change_state")
            rig.spin(client.service_is_ready)
            steps = (DEACTIVATE, CLEANUP) if end == "clean up" else (Transition.TRANSITION_ACTIVE_SHUTDOWN,)
            for step in steps:  # at once, one behind the other
                client.call_async(ChangeState.Request(transition=Transition(id=step)))
        deadline = time.monotonic() + 20
        while not result.done() and time.monotonic() < deadline:
            rig.executor.spin_once(timeout_sec=0.05)
        assert result.done() and result.result().result.outcome == Result.STOPPED


def test_configured_again_it_works_as_before(robot, recording, tmp_path):
    with started(robot, tmp_path) as rig:
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="ensemble")
        request = SetParameters.Request(parameters=[Parameter(name="strategy", value=value)])
        assert answer(rig, SetParameters, "set_parameters", request).results[0].successful
        for _ in range(2):
            assert [change(rig, step) for step in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE)] == [True] * 4
        rig.statuses.clear()
        rig.wait_state(PolicyStatus.READY)
        assert rig.result(rig.send())[1].outcome == Result.SUCCEEDED
        said = rig.output()
        assert "task refused" not in said, "one server answers a goal, not those of earlier lives as well"
        assert "unknown strategy" not in said and "Traceback" not in said


def test_a_transition_that_its_state_does_not_allow_is_refused(robot, recording, tmp_path):
    with started(robot, tmp_path) as rig:
        for step in (CONFIGURE, CLEANUP, ACTIVATE, 250):
            assert not change(rig, step)
            assert f"transition {step} is refused, the node stays as it is" in rig.output()
        assert rig.result(rig.send())[1].outcome == Result.SUCCEEDED


def test_goals_that_make_no_sense_are_refused_with_the_reason(robot, recording, tmp_path):
    with started(robot, tmp_path) as rig:
        long = rig.result(rig.send("wave " * LONGEST))[1]
        assert long.outcome == Result.REFUSED and f"{5 * LONGEST} characters (> {LONGEST})" in long.message
        back = rig.result(rig.send(timeout=-3.0))[1]
        assert back.outcome == Result.REFUSED and "the timeout is -3 s" in back.message
