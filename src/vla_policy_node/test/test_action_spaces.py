"""Laws of action spaces: what goes in by one description of a motion comes out by every other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from remote import FR3, HOME, aloha

from vla_contract.errors import ConfigError, InferenceError
from vla_kinematics import ToolKinematics
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout, Decoded, GripperAction
from vla_policy_node.core.rotations import from_matrix, size, to_matrix

KINEMATICS = ToolKinematics(FR3.urdf(), FR3.joints, FR3.tool_frame, FR3.home)
REPRESENTATIONS = (
    "euler_xyz",
    "euler_xyz_intrinsic",
    "axis_angle",
    "rotation_6d",
    "rotation_6d_rows",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "matrix",
)
SMALL = st.floats(-0.3, 0.3)
TURNS = st.lists(st.tuples(*[st.floats(-1.2, 1.2)] * 3), min_size=1, max_size=6)
MOVES = st.lists(st.tuples(*[SMALL] * 6), min_size=1, max_size=6)


def decoder(**layout):
    return ActionDecoder(ActionLayout.model_validate(layout), FR3)


def poses_of(moves):
    """A path of poses (K, 3), (K, 3, 3) around the tool at home."""
    rows = np.array(moves)
    place, orientation = KINEMATICS.forward(HOME)
    return place + rows[:, :3], to_matrix("axis_angle", rows[:, 3:]) @ orientation


# Rotations


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@given(turns=TURNS)
@settings(max_examples=30, deadline=None)
def test_a_rotation_survives_each_representation(representation, turns):
    matrices = to_matrix("axis_angle", turns)
    written = from_matrix(representation, matrices)
    assert written.shape == (len(turns), size(representation))
    assert np.allclose(to_matrix(representation, written), matrices, atol=1e-9)


def test_known_rotations():
    quarter = np.pi / 2
    about_z = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    assert np.allclose(to_matrix("euler_xyz", [[0, 0, quarter]])[0], about_z)
    assert np.allclose(to_matrix("quaternion_wxyz", [[np.sqrt(0.5), 0, 0, np.sqrt(0.5)]])[0], about_z)
    assert np.allclose(to_matrix("quaternion_xyzw", [[0, 0, 2.0, 2.0]])[0], about_z), "length does not matter"
    assert np.allclose(to_matrix("rotation_6d", [[0, 1, 0, -1, 0, 0]])[0], about_z)
    assert np.allclose(to_matrix("rotation_6d_rows", [[0, -1, 0, 1, 0, 0]])[0], about_z)
    roll_then_yaw = to_matrix("euler_xyz", [[quarter, 0, quarter]])[0]
    assert np.allclose(roll_then_yaw, about_z @ to_matrix("axis_angle", [[quarter, 0, 0]])[0]), "fixed axes"


@given(noise=st.lists(st.floats(-0.2, 0.2), min_size=6, max_size=6), turn=st.tuples(*[st.floats(-1, 1)] * 3))
@settings(max_examples=30, deadline=None)
def test_six_numbers_of_a_network_become_a_proper_rotation(noise, turn):
    written = from_matrix("rotation_6d", to_matrix("axis_angle", [turn])) + np.array(noise)
    matrix = to_matrix("rotation_6d", written)[0]
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.isclose(np.linalg.det(matrix), 1.0)


@pytest.mark.parametrize(
    ("representation", "row"),
    [
        ("rotation_6d", [0.0] * 6),
        ("rotation_6d", [1, 0, 0, 2, 0, 0]),
        ("quaternion_xyzw", [0, 0, 0, 0]),
        ("matrix", [1, 0, 0] * 3),
    ],
)
def test_numbers_that_say_no_rotation_are_refused(representation, row):
    with pytest.raises(InferenceError, match="rotation of action 0"):
        to_matrix(representation, [row])


# Joint spaces


@given(path=st.lists(st.tuples(*[st.floats(-2, 2)] * 7), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_positions_and_both_kinds_of_delta_mean_the_same_motion(path):
    targets = np.array(path)
    steps = np.diff(np.vstack([HOME[:7], targets]), axis=0)
    absolute = decoder(space="joint_position").decode(targets, HOME).positions
    from_observation = decoder(space="joint_delta").decode(targets - HOME[:7], HOME).positions
    composed = decoder(space="joint_delta", relative_to="previous").decode(steps, HOME).positions
    assert np.allclose(absolute[:, :7], targets)
    assert np.allclose(from_observation, absolute)
    assert np.allclose(composed, absolute)
    assert (absolute[:, 7] == HOME[7]).all(), "a gripper that the model does not move stays"


def test_joints_may_come_in_the_model_s_own_order_and_leave_some_alone():
    reader = decoder(space="joint_position", joints=["fr3_joint7", "fr3_joint1"])
    decoded = reader.decode([[0.7, 0.1]], HOME).positions[0]
    expected = HOME.copy()
    expected[[6, 0]] = 0.7, 0.1
    assert np.allclose(decoded, expected)


def test_a_unit_of_the_model_is_scaled_and_limited_as_its_own_client_does():
    reader = decoder(space="joint_delta", relative_to="previous", scale=0.2, bound=1.0)
    decoded = reader.decode([[0.5, -3.0, 0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0, 0]], HOME).positions
    assert np.allclose(decoded[:, 0] - HOME[0], [0.1, 0.2])
    assert np.allclose(decoded[:, 1] - HOME[1], -0.2)


def test_two_arms_are_one_row():
    robot = aloha()
    layout = ActionLayout(space="joint_position", scale=tuple(range(1, 15)))
    assert np.allclose(ActionDecoder(layout, robot).decode(np.ones((3, 14)), np.zeros(14)).positions, range(1, 15))


# Tool spaces


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize("relative_to", ["observation", "previous"])
@given(moves=MOVES)
@settings(max_examples=20, deadline=None)
def test_deltas_compose_to_the_poses_that_they_were_taken_from(frame, relative_to, moves):
    places, orientations = poses_of(moves)
    place, orientation = KINEMATICS.forward(HOME)
    rows = []
    for target, turn in zip(places, orientations, strict=True):
        shift, change = target - place, turn @ orientation.T
        if frame == "tool":
            shift, change = orientation.T @ shift, orientation.T @ turn
        rows.append(np.concatenate([shift, from_matrix("axis_angle", change[None])[0]]))
        if relative_to == "previous":
            place, orientation = target, turn
    reader = decoder(space="ee_delta", rotation="axis_angle", frame=frame, relative_to=relative_to)
    got_places, got_orientations = reader.tool_targets(rows, HOME)
    assert np.allclose(got_places, places, atol=1e-9)
    assert np.allclose(got_orientations, orientations, atol=1e-9)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_poses_are_reached_whatever_their_rotation_is_written_in(representation):
    moves = np.linspace(0, 1, 9)[1:, None] * np.array([0.05, 0.08, -0.06, 0.1, -0.1, 0.3])
    places, orientations = poses_of(moves)
    rows = np.hstack([places, from_matrix(representation, orientations)])
    decoded = decoder(space="ee_pose", rotation=representation).decode(rows, HOME)
    assert decoded.residuals.max() < 1e-3 and decoded.tilts.max() < 2e-3
    for joints, target, turn in zip(decoded.positions, places, orientations, strict=True):
        reached, orientation = KINEMATICS.forward(joints)
        assert np.allclose(reached, target, atol=1e-3)
        assert np.allclose(orientation, turn, atol=3e-3)


def test_no_motion_asked_is_no_motion_answered():
    for layout in (
        {"space": "ee_delta", "rotation": "euler_xyz"},
        {"space": "ee_delta", "rotation": "euler_xyz", "frame": "tool", "relative_to": "previous"},
        {"space": "ee_delta_position"},
    ):
        reader = decoder(**layout)
        decoded = reader.decode(np.zeros((4, reader.width)), HOME)
        assert np.abs(decoded.positions - HOME).max() < 5e-3
        assert decoded.residuals.max() < 1e-3


def test_delta_positions_keep_the_orientation():
    decoded = decoder(space="ee_delta_position").decode([[0.0, 0.1, -0.1]], HOME)
    place, orientation = KINEMATICS.forward(HOME)
    reached, turned = KINEMATICS.forward(decoded.positions[0])
    assert np.allclose(reached, place + [0.0, 0.1, -0.1], atol=1e-3)
    assert np.allclose(turned, orientation, atol=1e-3)


@given(reach=st.floats(0.0, 1.5), angle=st.floats(-np.pi, np.pi))
@settings(max_examples=25, deadline=None)
def test_residuals_are_the_true_distance(reach, angle):
    reader = decoder(space="ee_delta_position")
    goal = np.array([reach * np.cos(angle), reach * np.sin(angle), 0.0])
    decoded = reader.decode([goal], HOME)
    target = KINEMATICS.forward(HOME)[0] + goal
    assert np.isclose(decoded.residuals[0], np.linalg.norm(KINEMATICS.forward(decoded.positions[0])[0] - target))


def test_a_path_out_of_reach_is_taken_as_far_as_it_is_reachable():
    reader = decoder(space="ee_delta_position")
    decoded = reader.decode(np.linspace(0, 1, 21)[1:, None] * np.array([1.2, 0, 0]), HOME)
    kept = reader.reachable(decoded)
    assert decoded.shortened(len(kept)).startswith(f"the answer leaves the robot's reach at point {len(kept)} of ")
    assert decoded.shortened(len(decoded.positions)) == ""
    assert 1 <= len(kept) < 20
    assert decoded.residuals[: len(kept)].max() <= 0.02 < decoded.residuals[len(kept)]


def test_a_first_pose_out_of_reach_is_an_error_that_names_the_distance():
    reader = decoder(space="ee_delta_position")
    with pytest.raises(InferenceError, match=r"out of reach: the tool stays \d\.\d+ m"):
        reader.reachable(reader.decode([[1.5, 0, 0]], HOME))


def test_an_orientation_that_is_missed_counts_as_out_of_reach():
    reader = decoder(space="ee_pose", rotation="axis_angle")
    zero = np.zeros(2)
    assert len(reader.reachable(Decoded(np.zeros((2, 8)), zero, np.array([0.0, 0.4])))) == 1


# Gripper


@given(
    values=st.lists(st.floats(-3, 3), min_size=1, max_size=8), ends=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (-1, 1)])
)
@settings(max_examples=50, deadline=None)
def test_the_gripper_stays_between_its_ends_and_moves_evenly(values, ends):
    opened, closed = ends
    layout = {"space": "joint_delta", "gripper": {"open": opened, "closed": closed}}
    rows = np.hstack([np.zeros((len(values), 7)), np.array(values)[:, None]])
    finger = decoder(**layout).decode(rows, HOME).positions[:, 7]
    share = np.clip((np.array(values) - closed) / (opened - closed), 0, 1)
    assert np.allclose(finger, 0.04 * share)


@given(value=st.floats(-2, 2), threshold=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_binary_gripper_has_two_positions_and_inverting_it_swaps_them(value, threshold):
    opens = GripperAction(open=1, closed=0, threshold=threshold).opening([value])[0]
    closes = GripperAction(open=0, closed=1, threshold=threshold).opening([value])[0]
    assert opens in (0.0, 1.0) and closes in (0.0, 1.0)
    if abs(value - threshold) > 1e-9:
        assert opens == (value > threshold) and closes == (value < threshold)


# What does not fit is refused


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 6)), r"shape \(3, 6\): expected \(K, 7\) with the entries fr3_joint1"),
        (np.zeros((0, 7)), "expected"),
        (np.zeros(7), "expected"),
        ([[0, 0, np.nan, 0, 0, 0, 0]], "action 0: 'fr3_joint3' is nan"),
    ],
)
def test_malformed_rows_are_named(rows, message):
    with pytest.raises(InferenceError, match=message):
        decoder(space="joint_position").decode(rows, HOME)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"space": "ee_pose"}, "needs key 'rotation'"),
        ({"space": "joint_delta", "rotation": "axis_angle"}, "has no key 'rotation'"),
        ({"space": "ee_delta_position", "joints": ["fr3_joint1"]}, "drop the key 'joints'"),
        ({"space": "joint_position", "frame": "tool"}, "has no key 'frame'"),
        ({"space": "joint_position", "relative_to": "previous"}, "has no key 'relative_to'"),
        ({"space": "ee_pose", "rotation": "axis_angle", "scale": 0.1}, "drop them"),
        ({"space": "joint_position", "gripper": {"open": 1, "closed": 1}}, "one position only"),
        ({"space": "joint_position", "gripper": {"threshold": 2}}, "threshold 2.0 lies outside"),
        ({"space": "joint_position", "units": "deg"}, "units"),
    ],
)
def test_layouts_that_contradict_themselves_are_refused(layout, message):
    with pytest.raises(ValidationError, match=message):
        ActionLayout.model_validate(layout)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"space": "joint_position", "joints": ["elbow"]}, "unknown joint 'elbow'; known: .*fr3_joint1"),
        ({"space": "joint_position", "joints": ["fr3_joint1", "fr3_joint1"]}, "duplicates"),
        ({"space": "joint_position", "joints": ["fr3_finger_joint1"], "gripper": {}}, "give it one entry"),
        ({"space": "joint_delta", "scale": [1.0, 2.0]}, "2 values for 7 entries"),
    ],
)
def test_layouts_that_do_not_fit_the_robot_are_refused(layout, message):
    with pytest.raises(ConfigError, match=message):
        decoder(**layout)


def test_a_gripper_that_the_robot_lacks_is_refused():
    with pytest.raises(ConfigError, match="has no gripper"):
        ActionDecoder(ActionLayout(space="joint_position", gripper=GripperAction()), aloha())
