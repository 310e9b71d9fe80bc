"""Trajectories and images to and from serialised messages, without a Python object for each point, field and pixel.

ROS 2 carries messages as CDR (OMG DDSI-RTPS 2.5, section 10; XCDR version 1): four bytes that name the byte order, then
the fields one after the other, each aligned to its size. Points that all have positions, velocities and accelerations
of the same joints therefore lie in memory at a constant stride, which NumPy reads and writes at once. Whatever looks
different is left to rclpy's own conversion, so what comes out is always the same; it only takes ten times as long.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory

from vla_contract.chunk import ActionChunk
from vla_contract.errors import VlaError
from vla_contract.interpolation import Trajectory
from vla_node_base.conversions import NS, chunk_msg, to_ns, trajectory_from_msg

Array = NDArray[np.float64]

_LITTLE_ENDIAN = b"\0\1\0\0"
_ORIGIN = 4  # alignment counts from behind the byte order
_COUNT = struct.Struct("<I")
_STAMP = struct.Struct("<iI")
_SIZE = struct.Struct("<II")
_LONG = struct.Struct("<Q")
_FLOAT = struct.Struct("<f")


@lru_cache(maxsize=8)
def _point(joints: int) -> np.dtype[np.void]:
    """A JointTrajectoryPoint that begins four bytes behind a multiple of eight, as all but the first one do."""
    values, size = f"({joints},)<f8", 8 * joints
    fields = {
        "positions": ("<u4", 0),
        "position": (values, 4),
        "velocities": ("<u4", 4 + size),
        "velocity": (values, 12 + size),
        "accelerations": ("<u4", 12 + 2 * size),
        "acceleration": (values, 20 + 2 * size),
        "effort": ("<u4", 20 + 3 * size),
        "sec": ("<i4", 24 + 3 * size),
        "nanosec": ("<u4", 28 + 3 * size),
    }
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype(
        {"names": list(fields), "formats": list(formats), "offsets": list(offsets), "itemsize": 32 + 3 * size}
    )


class _Writer:
    """Fields, one after the other."""

    def __init__(self) -> None:
        self._data = bytearray(_LITTLE_ENDIAN)

    def number(self, layout: struct.Struct, *values: float) -> None:
        """Numbers of one size, aligned to it."""
        self.align(4 if layout is not _LONG else 8)
        self._data += layout.pack(*values)

    def text(self, value: str) -> None:
        """A string; it ends in a zero."""
        raw = value.encode() + b"\0"
        self.number(_COUNT, len(raw))
        self._data += raw

    def align(self, size: int) -> None:
        self._data += bytes((_ORIGIN - len(self._data)) % size)

    def points(self, curve: Trajectory, velocities: Array, accelerations: Array) -> bytes:
        """Everything, with the points as the last field."""
        count, joints = curve.positions.shape
        points = np.zeros(count, _point(joints))
        points["positions"] = points["velocities"] = points["accelerations"] = joints
        points["position"], points["velocity"], points["acceleration"] = curve.positions, velocities, accelerations
        ns = np.rint(curve.times * NS).astype(np.int64)
        points["sec"], points["nanosec"] = ns // NS, ns % NS
        body = points.tobytes()
        self.number(_COUNT, count)
        if (len(self._data) - _ORIGIN) % 8 == 0:
            body = body[: _COUNT.size] + bytes(4) + body[_COUNT.size :]
        return bytes(self._data) + body


def chunk_bytes(chunk: ActionChunk, frame: str) -> bytes:
    """`conversions.chunk_msg`, serialised."""
    curve = chunk.trajectory
    if curve.velocities is None or curve.accelerations is None:
        return bytes(serialize_message(chunk_msg(chunk, frame)))
    out = _Writer()
    out.number(_STAMP, chunk.stamp_ns // NS, chunk.stamp_ns % NS)
    out.text(frame)
    out.number(_LONG, chunk.sequence)
    for text in (chunk.policy, chunk.policy_digest, chunk.task_id, chunk.instruction):
        out.text(text)
    took = round(chunk.inference_time * NS)
    out.number(_STAMP, took // NS, took % NS)
    out.number(_FLOAT, float(np.float32(chunk.confidence)))
    out.number(_STAMP, 0, 0)  # a chunk's trajectory has no stamp and no frame of its own
    out.text("")
    out.number(_COUNT, len(chunk.joint_names))
    for name in chunk.joint_names:
        out.text(name)
    return out.points(curve, curve.velocities, curve.accelerations)


def trajectory_from_bytes(data: bytes) -> tuple[int, tuple[str, ...], Trajectory]:
    """Stamp [ns], joints and curve of a serialised JointTrajectory.

    Raises:
        ChunkError: as `conversions.trajectory_from_msg`.
    """
    try:
        found = _read(data)
    except (struct.error, ValueError):
        found = None  # not whole: the message says what is wrong with it
    if found is not None:
        return found
    message = deserialize_message(data, JointTrajectory)
    return to_ns(message.header.stamp), tuple(message.joint_names), trajectory_from_msg(message)


def _read(data: bytes) -> tuple[int, tuple[str, ...], Trajectory] | None:
    """None: the points are not all alike."""
    if not data.startswith(_LITTLE_ENDIAN):
        return None
    sec, nanosec = _STAMP.unpack_from(data, _ORIGIN)
    at = _aligned(_text(data, _ORIGIN + _STAMP.size)[1])
    (number,), at = _COUNT.unpack_from(data, at), at + _COUNT.size
    names = []
    for _ in range(number):
        name, at = _text(data, at)
        names.append(name)
    at = _aligned(at)
    (count,), at = _COUNT.unpack_from(data, at), at + _COUNT.size
    if (at - _ORIGIN) % 8 == 0:
        data, at = data[at : at + 4] + data[at + 8 :], 0
    layout = _point(number)
    if count == 0 or number == 0 or len(data) - at < count * layout.itemsize:
        return None
    points = np.frombuffer(data, layout, count, at)
    same = all((points[key] == number).all() for key in ("positions", "velocities", "accelerations"))
    if not same or points["effort"].any():
        return None
    times = points["sec"] + points["nanosec"] * 1e-9
    curve = Trajectory(times, *(np.ascontiguousarray(points[key]) for key in ("position", "velocity", "acceleration")))
    return sec * NS + nanosec, tuple(names), curve


@dataclass(frozen=True)
class ImageBytes:
    """A `conversions.Picture` whose `data` is a view into the message that it came in: nothing was copied."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    encoding: str
    step: int
    data: memoryview


def image_from_bytes(data: bytes) -> ImageBytes:
    """From a serialised `sensor_msgs/Image`.

    Raises:
        VlaError: when it is none.
    """
    if not data.startswith(_LITTLE_ENDIAN):
        image = deserialize_message(data, Image)
        stamp, frame = to_ns(image.header.stamp), image.header.frame_id
        size = image.height, image.width
        return ImageBytes(stamp, frame, *size, image.encoding, image.step, memoryview(image.data))
    try:
        sec, nanosec = _STAMP.unpack_from(data, _ORIGIN)
        frame, at = _text(data, _ORIGIN + _STAMP.size)
        at = _aligned(at)
        height, width = _SIZE.unpack_from(data, at)
        encoding, at = _text(data, at + _SIZE.size)
        at = _aligned(at + 1)  # behind a byte that says how the machine orders them
        step, length = _SIZE.unpack_from(data, at)
    except (struct.error, ValueError) as error:
        raise VlaError(f"serialised image is not whole: {error}") from error
    begin = at + _SIZE.size
    if len(data) < begin + length:
        raise VlaError(f"serialised image is not whole: {len(data)} bytes, expected {begin + length}")
    return ImageBytes(
        sec * NS + nanosec, frame, height, width, encoding, step, memoryview(data)[begin : begin + length]
    )


def _text(data: bytes, at: int) -> tuple[str, int]:
    """The text at `at`, and where it ends."""
    begin = _aligned(at) + _COUNT.size
    (length,) = _COUNT.unpack_from(data, begin - _COUNT.size)
    return data[begin : begin + length - 1].decode(), begin + length


def _aligned(at: int) -> int:
    """Where the next field of four bytes lies."""
    return at + (_ORIGIN - at) % 4
