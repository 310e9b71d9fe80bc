import numpy as np
import pinocchio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS, ROBOT

from vla_contract.errors import ConfigError
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.urdf import parse_urdf

MODEL = RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints)
PIN = pinocchio.buildModelFromXML(ROBOT.urdf())
DATA = PIN.createData()
N = len(HOME)


def pin_pose(q, link):
    full = pinocchio.neutral(PIN)
    for name, value in [*zip(ROBOT.joints, q, strict=True), ("fr3_finger_joint2", q[-1])]:
        full[PIN.joints[PIN.getJointId(name)].idx_q] = value
    pinocchio.framesForwardKinematics(PIN, DATA, full)
    pose = DATA.oMf[PIN.getFrameId(link)]
    return pose.rotation, pose.translation


def random_q(seed, count):
    return np.random.default_rng(seed).uniform(LIMITS.min_position, LIMITS.max_position, (count, N))


def test_every_link_is_where_pinocchio_says():
    qs = random_q(1, 20)
    placement = MODEL.place(qs)
    for link in MODEL.links:
        rotations, origins = MODEL.link_pose(link, placement)
        for k, q in enumerate(qs):
            rotation, origin = pin_pose(q, link)
            assert np.allclose(rotations[k], rotation, atol=1e-12) and np.allclose(origins[k], origin, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-6, 0.3))
def test_i14_no_point_moves_further_than_the_reach_says(seed, size):
    rng = np.random.default_rng(seed)
    q = rng.uniform(LIMITS.min_position, LIMITS.max_position)
    step = rng.normal(0, size, N)
    step[-1] = np.clip(q[-1] + step[-1], 0, 0.04) - q[-1]
    points = MODEL.place(np.array([q, q + step])).points
    moved = np.linalg.norm(points[1] - points[0], axis=1)
    allowed = np.repeat(MODEL.reach @ np.abs(step), MODEL.body_sizes)
    assert (moved <= allowed + 1e-12).all()


def test_a_missing_joint_is_named():
    with pytest.raises(ConfigError, match="unknown joint 'nope'"):
        RobotModel(parse_urdf(ROBOT.urdf()), [*ROBOT.joints, "nope"])
    with pytest.raises(ConfigError, match="fr3_joint7' moves, but is not in the robot file"):
        RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints[:6] + ROBOT.joints[7:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<robot", "<robot><<"), "not XML"),
        (('type="prismatic"', 'type="planar"'), "type 'planar'"),
        (("<box size=", "<mesh filename="), "kind 'mesh'"),
    ],
)
def test_a_wrong_urdf_is_refused_with_what_is_wrong(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_urdf(ROBOT.urdf().replace(*change, 1) if change[0] != "<box size=" else ROBOT.urdf().replace(*change))
