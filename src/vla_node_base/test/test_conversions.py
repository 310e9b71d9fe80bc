"""Values survive the way through messages; what is malformed is refused, never repaired."""

import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.msg import ActionChunk as ActionChunkMsg

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, VlaError
from vla_contract.interpolation import Trajectory
from vla_node_base import conversions as c


@given(st.integers(0, 2**31 * c.NS - 1))
def test_times(ns):
    assert c.to_ns(c.time_msg(ns)) == ns


@given(st.floats(-1e6, 1e6))
def test_durations(value):
    assert c.seconds(c.duration_msg(value)) == pytest.approx(value, abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2), st.data())
def test_chunks_survive_the_wire(points, joints, derivatives, data):
    columns = [
        data.draw(arrays(np.float64, (points, joints), elements=st.floats(-1e3, 1e3))) for _ in range(1 + derivatives)
    ]
    trajectory = Trajectory(np.arange(points) * 0.1, *columns)
    chunk = ActionChunk(5, tuple("abcde"[:joints]), trajectory, 7, "p", "d", "t", "do", 0.25, 0.5)
    wire = deserialize_message(serialize_message(c.chunk_msg(chunk, "base")), ActionChunkMsg)
    back = c.chunk_from_msg(wire)
    assert wire.header.frame_id == "base"
    assert (back.stamp_ns, back.joint_names, back.sequence, back.task_id) == (5, chunk.joint_names, 7, "t")
    for name in ("positions", "velocities", "accelerations"):
        np.testing.assert_array_equal(getattr(back.trajectory, name), getattr(trajectory, name))
    np.testing.assert_allclose(back.trajectory.times, trajectory.times, atol=1e-9)


def message(rows, joints="ab"):
    trajectory = Trajectory(
        np.arange(len(rows)) * 0.1, np.zeros((len(rows), len(joints))), np.zeros((len(rows), len(joints)))
    )
    made = c.trajectory_msg(trajectory, joints)
    for point, row in zip(made.points, rows, strict=True):
        point.positions = array.array("d", row)
    return made


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (JointTrajectory(joint_names=["a"]), "no points"),
        (message([[1, 2], [1]]), r"points\[1\].positions has 1 values for 2 joints"),
        (message([[1, float("nan")]]), r"positions\[0, 1\] is nan"),
    ],
)
def test_malformed_trajectories(made, words):
    with pytest.raises(ChunkError, match=words):
        c.trajectory_from_msg(made)


def test_ragged_velocities():
    made = message([[1, 2], [1, 2]])
    made.points[1].velocities = array.array("d")
    with pytest.raises(ChunkError, match=r"points\[1\].velocities has 0 values"):
        c.trajectory_from_msg(made)


def test_images_are_views_of_rgb():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    made = c.image_msg(pixels, "front", 12)
    view = c.image_view(made)
    np.testing.assert_array_equal(view, pixels)
    assert np.shares_memory(view, np.frombuffer(made.data, dtype=np.uint8))
    made.encoding = "bgr8"
    np.testing.assert_array_equal(c.image_view(made), pixels[..., ::-1])


def test_padded_and_grey_images():
    padded = Image(height=2, width=2, encoding="mono8", step=3, data=array.array("B", [1, 2, 0, 3, 4, 0]))
    np.testing.assert_array_equal(c.image_view(padded)[..., 1], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "16UC1"}, "encoding '16UC1' is not supported; use one of rgb8"),
        ({"data": array.array("B", [0])}, "has 1 bytes, expected 45"),
        ({"step": 4}, "expected 12, step >= 15"),
    ],
)
def test_broken_images(change, words):
    made = c.image_msg(np.zeros((3, 5, 3), dtype=np.uint8), "front", 0)
    for key, value in change.items():
        setattr(made, key, value)
    with pytest.raises(VlaError, match=words):
        c.image_view(made)
