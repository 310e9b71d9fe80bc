"""Laws of the tool's kinematics on a bare FR3."""

import time

import numpy as np
import pytest
from fr3_urdf import HOME, LOWER, NAMES, UPPER, fr3_urdf
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_contract.errors import ConfigError, InferenceError
from vla_kinematics import ToolKinematics

KINEMATICS = ToolKinematics(fr3_urdf(), NAMES, "tool", HOME)
IN_LIMITS = st.tuples(*(st.floats(low, high) for low, high in zip(LOWER, UPPER, strict=True)))


@given(IN_LIMITS)
@settings(max_examples=50, deadline=None)
def test_forward_is_a_rigid_pose_within_the_arm_s_length(arm):
    position, rotation = KINEMATICS.forward((*arm, 0.02))
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.isclose(np.linalg.det(rotation), 1.0)
    assert np.linalg.norm(position - [0, 0, 0.333]) < 1.2


@given(st.tuples(st.floats(0.35, 0.62), st.floats(-0.28, 0.28), st.floats(0.05, 0.4)))
@settings(max_examples=50, deadline=None)
def test_following_reaches_every_point_of_the_workspace_within_the_limits(goal):
    position, rotation = KINEMATICS.forward(HOME)
    path = position + np.linspace(0, 1, 17)[1:, None] * (np.array(goal) - position)
    followed = KINEMATICS.follow(HOME, path, rotation)
    assert followed.residuals.max() < 1e-3
    assert followed.tilts.max() < 1e-3
    for point, joints in zip(path, followed.positions, strict=True):
        assert np.allclose(KINEMATICS.forward(joints)[0], point, atol=1e-3)
    arm = followed.positions[:, :7]
    assert (arm >= np.array(LOWER) - 1e-9).all() and (arm <= np.array(UPPER) + 1e-9).all()
    assert (followed.positions[:, 7] == HOME[7]).all(), "the gripper joint is passed through"


@given(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3)))
@settings(max_examples=30, deadline=None)
def test_residuals_tell_the_true_distance_for_any_point(goal):
    followed = KINEMATICS.follow(HOME, [goal])
    reached = KINEMATICS.forward(followed.positions[0])[0]
    assert np.isclose(followed.residuals[0], np.linalg.norm(reached - goal), atol=1e-9)


def test_an_unreachable_point_is_reported():
    position, rotation = KINEMATICS.forward(HOME)
    far = np.array([1.4, 0.0, 0.4])
    followed = KINEMATICS.follow(HOME, position + np.linspace(0, 1, 11)[:, None] * (far - position), rotation)
    assert followed.residuals[0] < 1e-3
    assert followed.residuals[-1] > 0.3


def test_a_standing_tool_lets_the_elbow_go_home():
    bent = np.array(HOME) + [0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0]
    position, rotation = KINEMATICS.forward(bent)
    followed = KINEMATICS.follow(bent, np.tile(position, (40, 1)), rotation)
    assert followed.residuals.max() < 1e-3
    first, last = followed.positions[0] - bent, followed.positions[-1] - bent
    assert np.abs(first).max() < 0.05 < np.abs(last).max()


def test_joint_order_is_the_caller_s():
    reversed_names = NAMES[::-1]
    other = ToolKinematics(fr3_urdf(), reversed_names, "tool", HOME[::-1])
    assert np.allclose(other.forward(HOME[::-1])[0], KINEMATICS.forward(HOME)[0])


def test_sixteen_points_take_less_than_ten_milliseconds():
    position, _ = KINEMATICS.forward(HOME)
    path = position + np.linspace(0, 1, 17)[1:, None] * np.array([0.05, 0.2, -0.2])
    times = []
    for _ in range(20):
        start = time.perf_counter()
        KINEMATICS.follow(HOME, path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.010


@pytest.mark.parametrize(
    ("names", "frame", "message"),
    [
        (("elbow", *NAMES), "tool", "unknown joint 'elbow'; known: .*fr3_joint1"),
        (NAMES, "claw", "unknown frame 'claw'; known: .*tool"),
        (NAMES[1:], "tool", r"moves with joints \['fr3_joint1'\]"),
    ],
)
def test_names_that_do_not_fit_the_urdf_are_refused(names, frame, message):
    with pytest.raises(ConfigError, match=message):
        ToolKinematics(fr3_urdf(), names, frame)


def test_a_broken_urdf_is_refused():
    with pytest.raises(ConfigError, match="cannot be parsed"):
        ToolKinematics("<robot", NAMES, "tool")


@pytest.mark.parametrize("start", [HOME[:3], (*HOME[:7], float("nan"))])
def test_malformed_postures_are_refused(start):
    with pytest.raises(InferenceError, match="finite numbers"):
        KINEMATICS.follow(start, [[0.4, 0, 0.3]])


def test_each_point_may_have_its_own_orientation():
    position, rotation = KINEMATICS.forward(HOME)
    angles = np.linspace(0, 0.6, 9)
    turns = np.array([[[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] for a in angles])
    followed = KINEMATICS.follow(HOME, np.tile(position, (9, 1)), turns @ rotation)
    assert followed.residuals.max() < 1e-3 and followed.tilts.max() < 1e-3
    for turn, joints in zip(turns, followed.positions, strict=True):
        assert np.allclose(KINEMATICS.forward(joints)[1], turn @ rotation, atol=2e-3)


@pytest.mark.parametrize("rotation", [np.eye(2), np.full((3, 3), np.nan), np.zeros((2, 3, 3))])
def test_malformed_rotations_are_refused(rotation):
    with pytest.raises(InferenceError, match="tool rotation"):
        KINEMATICS.follow(HOME, [[0.4, 0, 0.3]], rotation)


def test_malformed_paths_are_refused():
    with pytest.raises(InferenceError, match="tool path"):
        KINEMATICS.follow(HOME, [[0.4, float("inf"), 0.3]])
