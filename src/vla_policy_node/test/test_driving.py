"""The node as a process, on a robot with wheels."""

from contextlib import closing

import numpy as np
import pytest
import yaml
from conftest import write_policy
from geometry_msgs.msg import TwistStamped
from rig import STEADY, Rig
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import PolicyStatus, SafetyState

from vla_node_base.domains import free_domain
from vla_node_base.qos import COMMAND

SUCCEEDED = ExecuteTask.Result.SUCCEEDED


@pytest.fixture
def rig(robot, recording, tmp_path):
    content = yaml.safe_load(robot.path.read_text())
    content["base"] = {"topic": "/wheels", "max_velocity": [0.5, 0.0, 1.0], "max_acceleration": [1.0, 1.0, 2.0]}
    robot.path.write_text(yaml.safe_dump(content))
    with np.load(recording) as archive:
        motion = dict(archive)
    np.savez(recording, **motion, base_twists=np.tile([0.2, 0.0, 0.1], (len(motion["times"]), 1)))
    with free_domain() as domain, closing(Rig(robot.path, write_policy(tmp_path), domain)) as made:
        made.twists, made.mode = [], None
        made.node.create_subscription(TwistStamped, "/wheels", made.twists.append, COMMAND)
        made.node.create_timer(0.1, lambda: made.mode is None or made.safety(made.mode), clock=STEADY)
        made.wait_state(PolicyStatus.READY)
        yield made


def twist(message):
    return np.array([message.twist.linear.x, message.twist.linear.y, message.twist.angular.z])


def test_the_base_drives_with_the_chunks_and_rests_with_the_task(rig):
    rig.mode = SafetyState.ARMED
    handle = rig.send()
    rig.spin(lambda: rig.twists and np.allclose(twist(rig.twists[-1]), [0.2, 0, 0.1]))
    assert rig.twists[-1].header.frame_id == "base_link"
    assert rig.chunks and len(rig.chunks[-1][1].trajectory.joint_names) == 3, "the arm's chunk knows nothing of it"
    _, result = rig.result(handle)
    assert result.outcome == SUCCEEDED, result.message
    rig.spin(lambda: not twist(rig.twists[-1]).any())
    steps = np.diff([twist(message) for message in rig.twists], axis=0)
    assert np.abs(steps[:, 0]).max() <= 0.1 + 1e-9, "1 m/s² and at most 0.1 s between two commands"
    said = len(rig.twists)
    rig.spin_for(0.3)
    assert len(rig.twists) == said, "a robot that rests leaves the topic to others"


def test_without_an_armed_filter_the_base_stands(rig):
    handle = rig.send()
    rig.spin(lambda: len(rig.chunks) >= 3)
    assert not rig.twists, "the filter has said nothing"
    rig.mode = SafetyState.ARMED
    rig.spin(lambda: rig.twists and twist(rig.twists[-1])[0] > 0.1)
    rig.mode = None  # it falls silent
    rig.spin(lambda: not twist(rig.twists[-1]).any(), timeout=5.0)
    handle.cancel_goal_async()
    rig.result(handle)
