"""The bytes of LeRobot's asynchronous inference (`src/lerobot/transport/services.proto`, `async_inference/helpers.py`).

Its messages are small protobuf frames around Python pickles. A pickle is a program, so:

* what we send is written opcode by opcode, without LeRobot and without running anything of ours;
* what we receive may name a handful of things and nothing else (the hole is CVE-2026-25874): the record of an action,
  which becomes a record of our own; a tensor, whose place in its storage is checked; an ordered dictionary; and a
  storage, which is read by torch's own reader for weights. Every other name is refused before it is looked up.
"""

import io
import math
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import InferenceError

HELPERS = "lerobot.async_inference.helpers"
PIECE = 2 * 1024 * 1024  # bytes of one frame of an observation
_BEGIN, _MIDDLE, _END = 1, 2, 3  # TransferState
_MOST = 1 << 20  # numbers of an answer; a thousand actions of the widest robots have fewer
_PROTOCOL = b"\x80\x03"  # 3: read by every Python 3


class Record:
    """A dataclass of LeRobot's, by its name; written without importing it."""

    def __init__(self, name: str, fields: Mapping[str, Any]):
        self.name, self.fields = name, dict(fields)


class TimedAction:
    """What LeRobot's TimedAction becomes: `timestamp` s, `timestep`, `action` a tensor."""

    timestamp: float
    timestep: int
    action: Any


# Pickles that are written


def dumps(value: Any) -> bytes:
    """A pickle of maps, lists, tuples, text, numbers, bytes, None, uint8 and float arrays, and Records."""
    out = io.BytesIO()
    out.write(_PROTOCOL)
    _write(out, value)
    out.write(b".")
    return out.getvalue()


def _write(out: io.BytesIO, value: Any) -> None:
    if value is None:
        out.write(b"N")
    elif isinstance(value, bool):
        out.write(b"\x88" if value else b"\x89")
    elif isinstance(value, int):
        number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        out.write(b"\x8a" + bytes([len(number)]) + number)
    elif isinstance(value, float):
        out.write(b"G" + struct.pack(">d", value))
    elif isinstance(value, str):
        text = value.encode()
        out.write(b"X" + struct.pack("<I", len(text)) + text)
    elif isinstance(value, bytes):
        out.write(b"B" + struct.pack("<I", len(value)) + value)
    elif isinstance(value, dict):
        out.write(b"}(")
        for key, item in value.items():
            _write(out, key)
            _write(out, item)
        out.write(b"u")
    elif isinstance(value, list | tuple):
        out.write(b"](" if isinstance(value, list) else b"(")
        for item in value:
            _write(out, item)
        out.write(b"e" if isinstance(value, list) else b"t")
    elif isinstance(value, np.ndarray) and value.dtype.kind in "uif":
        out.write(b"cnumpy\nndarray\n")  # numpy.ndarray(shape, type, data)
        _write(out, (value.shape, value.dtype.str, np.ascontiguousarray(value).tobytes()))
        out.write(b"R")
    elif isinstance(value, Record):
        out.write(f"c{HELPERS}\n{value.name}\n".encode() + b")\x81")  # made empty, then given its fields
        _write(out, value.fields)
        out.write(b"b")
    else:
        raise TypeError(f"a {type(value).__name__} has no place in a message to LeRobot")


# Pickles that are read


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "TimedAction" and module in (HELPERS, "lerobot.scripts.server.helpers"):
            return TimedAction
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        raise pickle.UnpicklingError(f"it names {module}.{name}, which an answer has no need of")

    def persistent_load(self, identifier: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {identifier!r} outside of itself")


def _storage(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    """`torch._utils._rebuild_tensor_v2` for a view that lies inside its storage."""
    import torch

    if not isinstance(storage, torch.storage.TypedStorage) or len(size) != len(stride):
        raise pickle.UnpicklingError("it holds a malformed tensor")
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError(f"it holds a tensor at {numbers}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch still pickles the storages that it calls deprecated
        length = len(storage)
    if 0 not in size and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= length:
        raise pickle.UnpicklingError(f"it holds a tensor {size} beyond the end of its {length} numbers")
    if math.prod(size) > length:  # a stride of 0: few numbers that fill any memory once they are copied
        raise pickle.UnpicklingError(f"it holds a tensor {size} of only {length} numbers")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def loads_actions(data: bytes) -> list[tuple[int, NDArray[np.float64]]]:
    """Time step and row (A,) of each action of an answer.

    Raises:
        InferenceError: when it is malformed, or names anything that an answer has no need of; nothing of it has run.
    """
    try:
        answer = _Reader(io.BytesIO(data)).load()
    except Exception as error:  # pickle and torch promise no type of exception for bytes that somebody made up
        raise InferenceError(f"the reply is refused: {error or type(error).__name__}") from error
    if not isinstance(answer, list) or not all(isinstance(item, TimedAction) for item in answer):
        raise InferenceError(f"the reply is a {type(answer).__name__}, expected a list of actions")
    try:
        numbers = sum(item.action.numel() for item in answer)  # many actions may be of the same storage
        if numbers > _MOST:
            raise ValueError(f"{len(answer)} actions of {numbers} numbers, expected at most {_MOST}")
        return [(int(item.timestep), np.asarray(item.action.double().numpy()).reshape(-1)) for item in answer]
    except Exception as error:  # as above
        raise InferenceError(f"the reply holds a malformed action: {error or type(error).__name__}") from error


# Protobuf frames


def setup_frame(pickled: bytes) -> bytes:
    """PolicySetup."""
    return b"\x0a" + _varint(len(pickled)) + pickled


def observation_frames(pickled: bytes) -> Iterator[bytes]:
    """The stream of Observation frames that carries a pickle."""
    pieces = [pickled[start : start + PIECE] for start in range(0, len(pickled), PIECE)]
    for k, piece in enumerate(pieces):
        state = _END if k == len(pieces) - 1 else _BEGIN if k == 0 else _MIDDLE
        yield b"\x08" + _varint(state) + b"\x12" + _varint(len(piece)) + piece


def actions_data(frame: bytes) -> bytes:
    """The pickle in an Actions frame; empty: the server has none.

    Raises:
        InferenceError: when it is no such frame.
    """
    data, at = b"", 0
    while at < len(frame):
        tag, at = _read_varint(frame, at)
        if tag != 0x0A:
            raise InferenceError(f"the reply has a field of tag {tag}, expected actions")
        length, at = _read_varint(frame, at)
        if at + length > len(frame):
            raise InferenceError(f"the reply ends after {len(frame)} bytes, {at + length} were announced")
        data, at = frame[at : at + length], at + length
    return data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise InferenceError("the reply ends inside a number")
