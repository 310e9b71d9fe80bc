"""What is written and read as arrays is what rclpy writes and reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.msg import ActionChunk as ActionChunkMsg

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, VlaError
from vla_contract.interpolation import Trajectory
from vla_node_base.conversions import NS, chunk_msg, image_msg, image_view, trajectory_from_msg, trajectory_msg
from vla_node_base.serialized import chunk_bytes, image_from_bytes, trajectory_from_bytes

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)


@st.composite
def motions(draw, derivatives=True):
    """Joints of any names (so that points begin at every alignment), and a motion of them."""
    joints = tuple(draw(st.lists(NAMES, min_size=1, max_size=9)))
    count = draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.normal(size=(3, count, len(joints)))
    times = np.cumsum(random.uniform(1e-3, 2.0, count)) - 1.0
    return joints, Trajectory(times, *(values if derivatives else values[: draw(st.integers(1, 2))]))


@given(motions(), st.text(max_size=20).filter(lambda text: "\0" not in text), st.integers(0, 2**31 * NS - 1))
def test_chunks_are_those_of_rclpy(motion, instruction, stamp):
    joints, curve = motion
    chunk = ActionChunk(stamp, joints, curve, 7, "stub", "ab", "id", instruction, 0.0123, 0.5)
    message = chunk_msg(chunk, "base")
    data = chunk_bytes(chunk, "base")
    assert deserialize_message(data, ActionChunkMsg) == message


@given(motions(derivatives=False))
def test_chunks_without_derivatives(motion):
    chunk = ActionChunk(5, *motion, confidence=1.0)
    assert deserialize_message(chunk_bytes(chunk, "base"), ActionChunkMsg) == chunk_msg(chunk, "base")


@given(motions(), st.integers(0, 2**31 * NS - 1))
def test_trajectories_are_those_of_rclpy(motion, stamp):
    joints, curve = motion
    found = trajectory_from_bytes(bytes(serialize_message(trajectory_msg(curve, joints, stamp))))
    assert found[:2] == (stamp, joints)
    np.testing.assert_allclose(found[2].times, curve.times, rtol=0, atol=1e-9)
    for name in ("positions", "velocities", "accelerations"):
        np.testing.assert_array_equal(getattr(found[2], name), getattr(curve, name))


@given(motions(derivatives=False))
def test_trajectories_without_derivatives(motion):
    joints, curve = motion
    _, names, found = trajectory_from_bytes(bytes(serialize_message(trajectory_msg(curve, joints))))
    assert names == joints and found.accelerations is None
    np.testing.assert_array_equal(found.positions, curve.positions)


@given(motions(), st.data())
def test_points_that_are_not_alike(motion, data):
    """One value too many somewhere: the words are those of the usual conversion."""
    joints, curve = motion
    message = trajectory_msg(curve, joints)
    point = data.draw(st.sampled_from(message.points))
    field = data.draw(st.sampled_from(["positions", "velocities", "accelerations"]))
    setattr(point, field, [0.0] * (len(joints) + 1))
    with pytest.raises(ChunkError, match=rf"points\[\d\].{field} has"):
        trajectory_from_bytes(bytes(serialize_message(message)))


@given(motions(), st.data())
def test_what_is_cut_off_is_left_to_rclpy(motion, data):
    joints, curve = motion
    whole = bytes(serialize_message(trajectory_msg(curve, joints)))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        expected = trajectory_from_msg(deserialize_message(cut, JointTrajectory))
    except Exception as error:
        with pytest.raises(type(error)):
            trajectory_from_bytes(cut)
    else:
        np.testing.assert_array_equal(trajectory_from_bytes(cut)[2].positions, expected.positions)


def test_no_points():
    with pytest.raises(ChunkError, match="no points"):
        trajectory_from_bytes(bytes(serialize_message(JointTrajectory(joint_names=["a"]))))


@given(st.integers(1, 5), st.integers(1, 7), NAMES, st.integers(0, 2**31 * NS - 1), st.sampled_from(["rgb8", "mono8"]))
def test_images_are_those_of_rclpy(height, width, frame, stamp, encoding):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    message = image_msg(pixels, frame, stamp)
    message.encoding, message.step = encoding, message.step * (1 if encoding == "rgb8" else 3)
    message.data = message.data * (1 if encoding == "rgb8" else 3)
    found = image_from_bytes(bytes(serialize_message(message)))
    for name in ("height", "width", "encoding", "step"):
        assert getattr(found, name) == getattr(message, name)
    assert (found.stamp_ns, found.frame_id) == (stamp, frame)
    np.testing.assert_array_equal(image_view(found), image_view(message))


@given(st.data())
def test_half_an_image_is_refused(data):
    whole = bytes(serialize_message(image_msg(np.full((2, 2, 3), 7, np.uint8), "frame", 5)))
    needed = whole.rindex(bytes([7] * 12)) + 12  # what comes behind the pixels is nobody's
    with pytest.raises(VlaError, match="not whole"):
        image_from_bytes(whole[: data.draw(st.integers(4, needed - 1))])
