"""What node and worker say to each other: length-prefixed msgpack. Nothing that is received is ever executed.

Runs under both interpreters, so it needs NumPy and msgpack only. Images do not pass here: they lie in shared memory.
"""

import socket
import struct
from typing import Any

import msgpack
import numpy as np

from vla_contract.chunk import ActionChunk, BaseMotion
from vla_contract.errors import ChunkError, VlaError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation

_LENGTH = struct.Struct("<I")
_ARRAY = 1  # msgpack extension code
_KINDS = "fiub"
LONGEST = 64 * 1024 * 1024  # bytes of one frame
MOST_POINTS = 2000  # of a chunk; the longest that policies are trained for have some hundreds


class WireError(VlaError):
    """Something that cannot be sent, or that is not ours."""


def pack(message: dict[str, Any]) -> bytes:
    """One frame.

    Raises:
        WireError: when it is too long, or holds what frames cannot.
    """
    try:
        payload = msgpack.packb(message, default=_pack_array)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(
            f"cannot be sent: {error}; use numbers of 64 bits, text, bytes, lists, maps and arrays"
        ) from error
    if len(payload) > LONGEST:
        raise WireError(f"cannot be sent: it has {len(payload)} bytes (> {LONGEST}); say less in one message")
    return _LENGTH.pack(len(payload)) + payload


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Reads one frame; None: the other side has closed.

    Raises:
        WireError: on a frame that is too long, or holds something else than a map.
    """
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    payload = _exactly(connection, _length(head))
    return None if payload is None else _unpack(payload)


def take(read: bytearray) -> dict[str, Any] | None:
    """Takes the first frame off the bytes that were read; None: it is not whole yet. Raises as `receive`."""
    if len(read) < _LENGTH.size:
        return None
    end = _LENGTH.size + _length(read[: _LENGTH.size])
    if len(read) < end:
        return None
    payload = bytes(read[_LENGTH.size : end])
    del read[:end]
    return _unpack(payload)


def _length(head: bytes | bytearray) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > LONGEST:
        raise WireError(f"frame of {length} bytes (> {LONGEST})")
    return int(length)


def _unpack(payload: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(payload, ext_hook=_unpack_array)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"frame is not msgpack: {error}") from error
    if not isinstance(message, dict):
        raise WireError(f"frame holds {type(message).__name__}, expected a map")
    return message


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _pack_array(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _KINDS:
        what = f"the number {value}" if isinstance(value, int) else f"a {type(value).__name__}"
        raise TypeError(f"it holds {what}")
    return msgpack.ExtType(_ARRAY, msgpack.packb((value.dtype.str, value.shape, value.tobytes())))


def _unpack_array(code: int, data: bytes) -> Any:
    if code != _ARRAY:
        raise ValueError(f"extension {code} is not known")
    dtype, shape, raw = msgpack.unpackb(data)
    if np.dtype(dtype).kind not in _KINDS:
        raise ValueError(f"array of {dtype} is not accepted")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def state_map(observation: Observation) -> dict[str, Any]:
    """What of an observation is neither an image nor the same for all of an inference."""
    return {
        "stamp_ns": int(observation.stamp_ns),
        "positions": observation.positions,
        "velocities": observation.velocities,
    }


def trajectory_map(trajectory: Trajectory | None) -> dict[str, Any] | None:
    """A trajectory for a frame."""
    if trajectory is None:
        return None
    return {key: getattr(trajectory, key) for key in ("times", "positions", "velocities", "accelerations")}


def trajectory_of(values: dict[str, Any] | None) -> Trajectory | None:
    """The inverse of `trajectory_map`.

    Raises:
        ChunkError: when it is malformed.
    """
    return None if values is None else Trajectory(**values)


def chunk_map(chunk: ActionChunk) -> dict[str, Any]:
    """What counts of a backend's chunk."""
    return {
        "stamp_ns": int(chunk.stamp_ns),
        "joint_names": list(chunk.joint_names),
        "trajectory": trajectory_map(chunk.trajectory),
        "confidence": float(chunk.confidence),
        "progress": float(chunk.progress),
        "inference_time": float(chunk.inference_time),
        "base": None if chunk.base is None else {"times": chunk.base.times, "twists": chunk.base.twists},
        "shortened": chunk.shortened,
    }


def chunk_of(values: dict[str, Any]) -> ActionChunk:
    """The inverse of `chunk_map`.

    Raises:
        ChunkError: when a motion is malformed, missing or has more than `MOST_POINTS` points.
    """
    if values["trajectory"] is None:
        raise ChunkError("there is no trajectory; answer at least one point")
    for motion in ("trajectory", "base"):
        # Looked at first: what comes after it takes time that grows faster than the number of points.
        if values[motion] is not None and (count := len(values[motion]["times"])) > MOST_POINTS:
            raise ChunkError(
                f"{motion} has {count} points (> {MOST_POINTS}); lower the policy's horizon, or answer fewer points"
            )
    trajectory = Trajectory(**values["trajectory"])
    return ActionChunk(
        stamp_ns=values["stamp_ns"],
        joint_names=tuple(values["joint_names"]),
        trajectory=trajectory,
        confidence=values["confidence"],
        progress=values["progress"],
        inference_time=values["inference_time"],
        base=None if values["base"] is None else BaseMotion(**values["base"]),
        shortened=str(values["shortened"]),
    )
