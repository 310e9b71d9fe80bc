"""What models are told: pixels, vectors, names; and that a served layout reads back what was written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from remote import FR3, HOME, STAMP, aloha, observation

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.observation import Observation
from vla_kinematics import ToolKinematics
from vla_policy_node.core.model_inputs import ModelInputs, pad_image, robot_layout


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    goal=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_padding_keeps_aspect_and_gives_the_size_asked_for(size, goal, seed):
    image = np.random.default_rng(seed).integers(1, 256, (*size, 3), dtype=np.uint8)
    padded = pad_image(image, *goal)
    assert padded.shape == (*goal, 3) and padded.dtype == np.uint8
    lit = padded.any(axis=2)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert height >= goal[0] - 1 or width >= goal[1] - 1, "one side fills; rounded down, as openpi does it"
    ratio = max(size[1] / goal[1], size[0] / goal[0])
    assert abs(height - size[0] / ratio) <= 1 and abs(width - size[1] / ratio) <= 1


@given(image=arrays.arrays(np.uint8, st.tuples(st.integers(8, 80), st.integers(8, 80), st.just(3))))
@settings(max_examples=40, deadline=None)
def test_padding_is_pixel_for_pixel_that_of_openpi_s_client(image):
    image_tools = pytest.importorskip("openpi_client.image_tools", reason="openpi-client is not installed")
    assert np.array_equal(pad_image(image, 48, 64), image_tools.resize_with_pad(image, 48, 64))


def test_every_part_of_the_state_has_its_value_and_name():
    seen = observation()
    place, orientation = ToolKinematics(FR3.urdf(), FR3.joints, FR3.tool_frame, FR3.home).forward(seen.positions)
    layout = {
        "state": {
            "state": ["tool_position", "tool_rotation_6d", "gripper_position", "gripper_mirrored", "gripper_open",
                      "gripper_closed", "joint_position", "joint_velocity"],
            "joints": ["fr3_joint2", "fr3_joint1"],
            "dtype": "float64",
        }
    }  # fmt: skip
    inputs = ModelInputs(layout, FR3)
    state = inputs.compose(seen)["state"]
    finger = seen.positions[7]
    expected = [*place, *orientation[:, 0], *orientation[:, 1], finger, -finger, finger / 0.04, 1 - finger / 0.04]
    expected += [*seen.positions[[1, 0]], *seen.velocities[[1, 0]]]
    assert np.allclose(state, expected)
    assert len(inputs.state_names) == len(state)
    assert inputs.state_names[9:15] == (
        "gripper_position", "gripper_mirrored", "gripper_open", "gripper_closed",
        "joint_position:fr3_joint2", "joint_position:fr3_joint1",
    )  # fmt: skip


def test_nested_maps_channel_order_and_turned_images():
    robot = aloha()
    layout = {
        "state": {"state": ["joint_position"]},
        "images": {"cam_high": {"camera": "cam_high", "axes": "chw"}, "cam_low": {"camera": "cam_low", "rotate": 180}},
        "prompt": {"text": "instruction_lower"},
        "unnorm_key": {"value": None},
    }
    seen = observation(robot, instruction="Fold the TOWEL")
    message = ModelInputs(layout, robot).compose(seen)
    assert message["images"]["cam_high"].shape == (3, 224, 224)
    assert np.array_equal(
        message["images"]["cam_high"], pad_image(seen.images["cam_high"], 224, 224).transpose(2, 0, 1)
    )
    turned = np.ascontiguousarray(seen.images["cam_low"][::-1, ::-1])
    assert np.array_equal(message["images"]["cam_low"], pad_image(turned, 224, 224))
    assert message["prompt"] == "fold the towel" and message["unnorm_key"] is None
    assert message["state"].shape == (14,) and message["state"].dtype == np.float32


@given(
    positions=arrays.arrays(np.float64, 8, elements=st.floats(-3, 3)),
    velocities=arrays.arrays(np.float64, 8, elements=st.floats(-3, 3)),
    instruction=st.text(max_size=30),
)
@settings(max_examples=30, deadline=None)
def test_a_served_layout_reads_back_what_was_written(positions, velocities, instruction):
    inputs = ModelInputs(robot_layout(FR3, tuple(FR3.cameras)), FR3)
    seen = Observation(STAMP, observation().images, positions, velocities, instruction)
    back = inputs.parse(inputs.compose(seen), STAMP)
    assert back.stamp_ns == STAMP and back.instruction == instruction
    assert np.array_equal(back.positions, positions) and np.array_equal(back.velocities, velocities)
    assert all(np.array_equal(back.images[name], seen.images[name]) for name in FR3.cameras)


@pytest.mark.parametrize("part", ["gripper_position", "gripper_mirrored", "gripper_open", "gripper_closed"])
@pytest.mark.parametrize("axes", ["hwc", "chw"])
def test_other_layouts_read_back_too(part, axes):
    layout = {
        "observation": {"image": {"camera": "front", "height": None, "width": None, "axes": axes, "rotate": 180}},
        "observation/state": {"state": ["tool_position", "joint_position", part], "dtype": "float64"},
        "prompt": {"text": "instruction"},
    }
    inputs = ModelInputs(layout, FR3)
    inputs.readable(("front",))
    seen = observation()
    back = inputs.parse(inputs.compose(seen), STAMP)
    assert np.allclose(back.positions, seen.positions)
    assert np.array_equal(back.images["front"], seen.images["front"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "the observation lacks 'prompt'"),
        ({"prompt": 3}, "'prompt' is a int, expected text"),
        ({"observation/joint_position": np.zeros(7)}, r"of shape \(7,\): expected finite \(8,\)"),
        ({"observation/joint_position": np.full(8, np.nan)}, "expected finite"),
        ({"observation/joint_position": ["a"] * 8}, "not a vector of numbers"),
        ({"observation/image/front": np.zeros((4, 4, 3), np.float32)}, r"is float32 \(4, 4, 3\), expected uint8"),
        ({"observation/image/front": np.zeros((3, 4, 4), np.uint8)}, "expected uint8"),
    ],
)
def test_observations_that_do_not_fit_are_refused_by_name(change, message):
    inputs = ModelInputs(robot_layout(FR3, tuple(FR3.cameras)), FR3)
    fields = inputs.compose(observation())
    for key, value in change.items():
        if value is None:
            del fields[key]
        else:
            fields[key] = value
    with pytest.raises(InferenceError, match=message):
        inputs.parse(fields, STAMP)


def test_a_camera_that_is_missing_at_run_time_is_named():
    inputs = ModelInputs({"image": {"camera": "front"}}, FR3)
    with pytest.raises(InferenceError, match="unknown camera 'front'; known: wrist"):
        inputs.compose(Observation(0, {"wrist": np.zeros((2, 2, 3), np.uint8)}, HOME, HOME))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "expected a map of entries"),
        ({"image": "front"}, "expected a map with one of the keys camera, state, text, value"),
        ({"image": {"camera": "top"}}, "image: unknown camera 'top'; known: front, wrist"),
        ({"image": {"camera": "front", "hight": 3}}, "hight"),
        ({"state": {"state": ["torque"]}}, "unknown part of the state 'torque'"),
        ({"state": {"state": ["joint_position"], "joints": ["elbow"]}}, "unknown joint 'elbow'"),
        ({"prompt": {"text": "sentence"}}, "prompt"),
        ({"images": {"a": {}}}, "inputs.images.a"),
    ],
)
def test_layouts_that_do_not_fit_the_robot_are_refused(layout, message):
    with pytest.raises(ConfigError, match=message):
        ModelInputs(layout, FR3)


def test_a_robot_without_gripper_tells_no_gripper():
    with pytest.raises(ConfigError, match="names no gripper"):
        ModelInputs({"state": {"state": ["gripper_open"]}}, aloha())


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"s": {"state": ["joint_position"]}, "i": {"camera": "front"}}, "position of fr3_finger_joint1"),
        ({"s": {"state": ["joint_position", "gripper_open"]}}, "no entry tells camera 'front'"),
    ],
)
def test_layouts_that_tell_too_little_cannot_be_served(layout, message):
    with pytest.raises(ConfigError, match=message):
        ModelInputs(layout, FR3).readable(("front",))
