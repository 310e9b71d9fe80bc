"""Encoding is the inverse of decoding, in every action space."""

import numpy as np
import pytest
from remote import FR3, HOME

from vla_policy_node.core.action_encoding import ActionEncoder
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout

GRIPPER = {"open": -1.0, "closed": 1.0}
JOINT = [
    {"space": "joint_position"},
    {"space": "joint_position", "joints": ["fr3_joint3", "fr3_joint1"]},
    {"space": "joint_delta"},
    {"space": "joint_delta", "relative_to": "previous", "scale": 0.2},
]
TOOL = [
    {"space": "ee_delta_position", "scale": 0.05},
    {"space": "ee_pose", "rotation": "rotation_6d"},
    *(
        {"space": "ee_delta", "rotation": rotation, "frame": frame, "relative_to": relative}
        for rotation in ("euler_xyz", "axis_angle", "rotation_6d_rows")
        for frame in ("base", "tool")
        for relative in ("observation", "previous")
    ),
]


def motion(seed=0):
    random = np.random.default_rng(seed)
    path = HOME + np.cumsum(random.normal(0, 0.02, (6, 8)), axis=0)
    path[:, 7] = random.uniform(0, 0.04, 6)
    return path


@pytest.mark.parametrize("layout", JOINT)
def test_joint_motion_comes_back(layout):
    layout = ActionLayout.model_validate({**layout, "gripper": GRIPPER})
    path = motion()
    if layout.joints:
        moved = [FR3.joints.index(joint) for joint in layout.joints] + [7]
        path = np.where(np.isin(np.arange(8), moved), path, HOME)
    rows, comparable = ActionEncoder(layout, FR3).encode(path, HOME)
    np.testing.assert_allclose(ActionDecoder(layout, FR3).decode(rows, HOME).positions, path, atol=1e-9)
    assert comparable.all() and comparable.shape == (rows.shape[1],)


@pytest.mark.parametrize("layout", TOOL)
def test_tool_motion_comes_back(layout):
    from vla_kinematics import ToolKinematics

    layout = ActionLayout.model_validate({**layout, "gripper": GRIPPER})
    rows, comparable = ActionEncoder(layout, FR3).encode(motion(), HOME)
    places, orientations = ActionDecoder(layout, FR3).tool_targets(rows, HOME)
    kinematics = ToolKinematics(FR3.urdf(), FR3.joints, FR3.tool_frame, FR3.home)
    expected = [kinematics.forward(joints) for joints in motion()]
    np.testing.assert_allclose(places, [place for place, _ in expected], atol=1e-9)
    if layout.rotation is not None:
        np.testing.assert_allclose(orientations, [turn for _, turn in expected], atol=1e-9)
    assert comparable.all()


def test_rotations_that_jump_are_not_compared_and_bounds_are_kept():
    layout = ActionLayout.model_validate({"space": "ee_pose", "rotation": "euler_xyz", "gripper": GRIPPER})
    assert ActionEncoder(layout, FR3).encode(motion(), HOME).comparable.tolist() == [True] * 3 + [False] * 3 + [True]
    layout = ActionLayout.model_validate({"space": "joint_delta", "scale": 0.01, "bound": 1.0})
    assert np.abs(ActionEncoder(layout, FR3).encode(motion(), HOME).rows).max() == 1.0
