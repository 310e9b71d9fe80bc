"""Ground truth: for scripted experts in the simulator, and for nobody else."""

import pytest
from conftest import write_policy
from rig import LockstepRig, Rig
from vla_msgs.msg import ObjectState, PolicyStatus, SceneState

from vla_node_base.domains import free_domain
from vla_node_base.qos import LATCHED


@pytest.fixture
def policy(tmp_path):
    return write_policy(tmp_path, backend="oracle:load", checkpoint=".", options={})


def test_on_a_robot_it_is_refused(robot, policy):
    with free_domain() as domain:
        rig = Rig(robot.path, policy, domain)
        try:
            status = rig.wait_state(PolicyStatus.FAILED)
            assert "'oracle' reads the simulator's ground truth, and use_sim_time is off" in status.reason
        finally:
            rig.close()


def test_in_the_simulator_it_sees(robot, policy):
    with free_domain() as domain:
        rig = LockstepRig(robot.path, policy, domain, ["use_sim_time:=true", "lockstep:=true"])
        truth = rig.node.create_publisher(SceneState, "/vla_sim/ground_truth", LATCHED)
        cube = ObjectState(name="red_cube")
        cube.pose.position.x = 0.7
        truth.publish(SceneState(objects=[cube]))
        try:
            rig.wait_state(PolicyStatus.READY)
            rig.spin(lambda: rig._clock.get_subscription_count() >= 2)
            rig.publish()
            rig.send()
            rig.run_until(lambda: rig.chunks and abs(rig.chunks[-1][1].trajectory.points[-1].positions[0] - 0.7) < 0.02)
        finally:
            rig.close()
