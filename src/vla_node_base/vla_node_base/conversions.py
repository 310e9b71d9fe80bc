"""Between ROS messages and the suite's own values. Wrong sizes raise ChunkError or ConfigError, nothing is repaired."""

import array
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Duration, Time
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from vla_msgs.msg import ActionChunk as ActionChunkMsg

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, VlaError
from vla_contract.interpolation import Trajectory

NS = 1_000_000_000
_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def to_ns(stamp: Time | Duration) -> int:
    """Nanoseconds of a ROS time or duration."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def time_msg(ns: int) -> Time:
    """A ROS time of `ns` nanoseconds."""
    return Time(sec=ns // NS, nanosec=ns % NS)


def duration_msg(seconds: float) -> Duration:
    """A ROS duration of `seconds`."""
    ns = round(seconds * NS)
    return Duration(sec=ns // NS, nanosec=ns % NS)


def seconds(duration: Duration) -> float:
    """Seconds of a ROS duration."""
    return int(duration.sec) + int(duration.nanosec) * 1e-9


def trajectory_msg(trajectory: Trajectory, joints: Sequence[str], stamp_ns: int = 0) -> JointTrajectory:
    """A JointTrajectory whose times count from `stamp_ns` (0: from its receipt)."""
    message = JointTrajectory(joint_names=list(joints))
    message.header.stamp = time_msg(stamp_ns)
    velocities, accelerations = trajectory.velocities, trajectory.accelerations
    for k, t in enumerate(trajectory.times.tolist()):
        point = JointTrajectoryPoint(time_from_start=duration_msg(t))
        # array.array passes rclpy's field check without a look at every element.
        point.positions = array.array("d", trajectory.positions[k].tobytes())
        if velocities is not None:
            point.velocities = array.array("d", velocities[k].tobytes())
        if accelerations is not None:
            point.accelerations = array.array("d", accelerations[k].tobytes())
        message.points.append(point)
    return message


def trajectory_from_msg(message: JointTrajectory) -> Trajectory:
    """The curve that a JointTrajectory stands for.

    Raises:
        ChunkError: when there is no point, a point has another number of values than there are joints, some points
            have velocities or accelerations and others not, a number is not finite, or times do not increase.
    """
    n = len(message.joint_names)
    if not message.points:
        raise ChunkError("trajectory has no points, expected at least one")
    columns: dict[str, NDArray[np.float64] | None] = {}
    for field in ("positions", "velocities", "accelerations"):
        rows = [getattr(point, field) for point in message.points]
        if field != "positions" and not any(len(row) for row in rows):
            columns[field] = None
            continue
        for k, row in enumerate(rows):
            if len(row) != n:
                raise ChunkError(f"points[{k}].{field} has {len(row)} values for {n} joints")
        columns[field] = np.array(rows, dtype=np.float64)
    times = np.array([seconds(point.time_from_start) for point in message.points])
    positions = columns["positions"]
    assert positions is not None
    return Trajectory(times, positions, columns["velocities"], columns["accelerations"])


def chunk_msg(chunk: ActionChunk, frame: str) -> ActionChunkMsg:
    """An ActionChunk message; `frame` is the robot's base frame."""
    message = ActionChunkMsg(
        sequence=chunk.sequence,
        policy=chunk.policy,
        policy_digest=chunk.policy_digest,
        task_id=chunk.task_id,
        instruction=chunk.instruction,
        inference_time=duration_msg(chunk.inference_time),
        confidence=chunk.confidence,
        trajectory=trajectory_msg(chunk.trajectory, chunk.joint_names),
    )
    message.header.stamp = time_msg(chunk.stamp_ns)
    message.header.frame_id = frame
    return message


def chunk_from_msg(message: ActionChunkMsg) -> ActionChunk:
    """The chunk that a message carries.

    Raises:
        ChunkError: see `trajectory_from_msg`.
    """
    return ActionChunk(
        stamp_ns=to_ns(message.header.stamp),
        joint_names=tuple(message.trajectory.joint_names),
        trajectory=trajectory_from_msg(message.trajectory),
        sequence=message.sequence,
        policy=message.policy,
        policy_digest=message.policy_digest,
        task_id=message.task_id,
        instruction=message.instruction,
        inference_time=seconds(message.inference_time),
        confidence=message.confidence,
    )


class Picture(Protocol):
    """What counts of an image message; `sensor_msgs/Image` has it, and `serialized.ImageBytes`."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def encoding(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def data(self) -> Any: ...


def image_view(message: Picture) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of an image message; a view without a copy for rgb8 and bgr8.

    Raises:
        VlaError: on an encoding that is not 8-bit colour or grey, or a buffer of the wrong size.
    """
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise VlaError(f"image encoding '{message.encoding}' is not supported; use one of {', '.join(_CHANNELS)}")
    if message.step < message.width * channels or len(message.data) != message.step * message.height:
        raise VlaError(
            f"image of {message.width}x{message.height} {message.encoding} with step {message.step} has "
            f"{len(message.data)} bytes, expected {message.step * message.height}, step >= {message.width * channels}"
        )
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[..., 2::-1] if message.encoding.startswith("bgr") else pixels[..., :3]


def image_msg(pixels: NDArray[np.uint8], frame: str, stamp_ns: int) -> Image:
    """An rgb8 image message of uint8 (H, W, 3)."""
    height, width, _ = pixels.shape
    message = Image(height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width)
    message.header.stamp = time_msg(stamp_ns)
    message.header.frame_id = frame
    message.data = array.array("B", pixels.tobytes())
    return message
