"""NumPy arrays inside the messages of policy servers: three families, none of which can carry code.

* openpi: msgpack, arrays as maps with *binary* keys (`b"__ndarray__"`, `b"data"`, `b"dtype"`, `b"shape"`).
* GR00T: msgpack; N1.5 and N1.6 carry the bytes of `numpy.save` under `__ndarray_class__`, N1.7 the maps of
  msgpack-numpy (`b"nd"`). All are read; the N1.6 form is written, because every server so far reads it.
* OpenVLA: JSON, arrays as maps with base64 text (json-numpy).

Only booleans, integers, floats and text are read: object, structured and void types, which are the way to pickles, are
refused. Every decoder raises InferenceError and nothing else, whatever the bytes are.
"""

import base64
import binascii
import io
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import InferenceError

_KINDS = "biufUS"
_LONGEST_TYPE = 16  # letters of a type's name
_MOST_AXES, _LONGEST_AXIS = 8, 1 << 26  # of an array; an image has 3 axes, with batch and time 5
_MARKERS = ("__ndarray__", "__npgeneric__", "__ndarray_class__", "nd", "__numpy__")


def pack_openpi(message: Mapping[str, Any]) -> bytes:
    """Bytes of an openpi message. Raises TypeError on a value that it cannot carry."""
    return _packed(message, _openpi_array)


def unpack_openpi(data: bytes) -> dict[str, Any]:
    """An openpi message; its arrays are read-only.

    Raises:
        InferenceError: when it is malformed, no map, or holds an array that is refused.
    """
    return _unpacked(data, _array_of_openpi)


def pack_gr00t(message: Mapping[str, Any]) -> bytes:
    """Bytes of a GR00T message in the form of N1.6. Raises TypeError on a value that it cannot carry."""
    return _packed(message, _npy_map)


def unpack_gr00t(data: bytes) -> Any:
    """A GR00T message of any version: a map or a list. Modality configurations come as plain maps.

    Raises:
        InferenceError: as `unpack_openpi`, and when an array was not recognised.
    """
    return _unpacked(data, _array_of_gr00t, anything=True)


def dumps_json(message: Any) -> str:
    """JSON text with json-numpy arrays. Raises TypeError on a value that it cannot carry."""
    return json.dumps(message, default=_base64_map)


def loads_json(text: str | bytes) -> Any:
    """What JSON text with json-numpy arrays means.

    Raises:
        InferenceError: when it is malformed or holds an array that is refused.
    """
    try:
        return json.loads(text, object_hook=_array_of_json)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InferenceError(f"the message is not JSON: {error}") from error


def _packed(message: Any, default: Callable[[Any], Any]) -> bytes:
    return bytes(msgpack.packb(message, default=default))


def _unpacked(data: bytes, hook: Callable[[dict[Any, Any]], Any], anything: bool = False) -> Any:
    try:
        message = msgpack.unpackb(data, object_hook=hook)
    except InferenceError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise InferenceError(
            f"the message of {len(data)} bytes is not msgpack: {error or type(error).__name__}"
        ) from error
    if not anything and not isinstance(message, dict):
        raise InferenceError(f"the message is a {type(message).__name__}, expected a map")
    return message


def _openpi_array(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        _checked_dtype(value.dtype.str)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _checked_dtype(value.dtype.str)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} has no place in an openpi message")


def _array_of_openpi(entry: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entry:
        return _array(entry.get(b"dtype"), entry.get(b"shape"), entry.get(b"data"))
    if b"__npgeneric__" in entry:
        dtype = _checked_dtype(entry.get(b"dtype"))
        data = entry.get(b"data")
        if not isinstance(data, int | float | str | bytes):
            raise InferenceError(
                f"the message holds a {dtype} scalar that is a {type(data).__name__}, no number or text"
            )
        try:
            return dtype.type(data)
        except (ValueError, TypeError, OverflowError) as error:
            raise InferenceError(f"the message holds a malformed {dtype} scalar: {error}") from error
    return _recognised(entry)


def _npy_map(value: Any) -> dict[str, Any]:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a {type(value).__name__} has no place in a GR00T message")
    _checked_dtype(value.dtype.str)
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _array_of_gr00t(entry: dict[Any, Any]) -> Any:
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in entry.items()}
    if "__ndarray_class__" in fields:
        return _array_of_npy(fields.get("as_npy"))
    if "nd" in fields:
        if fields.get("kind") not in (None, b"", ""):
            raise InferenceError(
                f"the message holds an array of kind {_shown(fields['kind'])}; it could carry code and is refused"
            )
        if fields["nd"] is True:
            return _array(fields.get("type"), fields.get("shape"), fields.get("data"))
        return _array(fields.get("type"), (), fields.get("data"))[()]
    if "__ModalityConfig__" in fields or "__ModalityConfig_class__" in fields:
        config = fields.get("as_json")
        config = loads_json(config) if isinstance(config, str | bytes) else config
        if not isinstance(config, dict):
            raise InferenceError(
                f"the message holds a modality configuration that is a {type(config).__name__}, not a map"
            )
        return config
    return _recognised(entry)


def _base64_map(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} has no place in a JSON message")
    _checked_dtype(value.dtype.str)
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    return {"__numpy__": data, "dtype": value.dtype.str, "shape": value.shape}


def _array_of_json(entry: dict[str, Any]) -> Any:
    if "__numpy__" not in entry:
        return entry
    try:
        data = base64.b64decode(entry["__numpy__"], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InferenceError(f"the message holds an array that is not base64: {error}") from error
    array = _array(entry.get("dtype"), entry.get("shape"), data)
    return array if array.ndim else array[()]


def _recognised(entry: dict[Any, Any]) -> dict[Any, Any]:
    """Fails loudly on an array in a dialect that is not spoken here; as a plain map it would pass for data."""
    for key in entry:
        text = key.decode("ascii", "replace") if isinstance(key, bytes) else key
        if text in _MARKERS:
            raise InferenceError(
                "the message holds an array in an encoding that is not known here (keys "
                f"{_shown(sorted(map(str, entry)))}); is another kind of policy server listening there?"
            )
    return entry


def _checked_dtype(text: object) -> "np.dtype[Any]":
    """Of numbers, booleans or text; `<U0` and the like are refused: they take no bytes, so any shape would fit."""
    try:
        dtype = np.dtype(text) if isinstance(text, str) and len(text) <= _LONGEST_TYPE else None
    except Exception as error:  # NumPy promises no type of exception for words that somebody made up
        raise InferenceError(f"{text!r} is no array type: {error}") from error
    if dtype is None or dtype.kind not in _KINDS or dtype.hasobject or not dtype.itemsize:
        raise InferenceError(f"an array of type {_shown(text)} is refused; numbers, booleans and text only")
    return dtype


def _array_of_npy(data: object) -> NDArray[Any]:
    """What `numpy.save` wrote. Not `numpy.load`: it reserves what the header announces before it looks for the data."""
    if not isinstance(data, bytes):
        raise InferenceError(f"the message holds a .npy array that is a {type(data).__name__}, expected bytes")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # as above
        raise InferenceError(f"the message holds a malformed .npy array: {error or type(error).__name__}") from error
    return _array(dtype.str, shape, data[file.tell() :], "F" if fortran else "C")


def _array(dtype_text: object, shape: object, data: object, order: Literal["C", "F"] = "C") -> NDArray[Any]:
    dtype = _checked_dtype(dtype_text)
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > _MOST_AXES
        or not all(type(size) is int and 0 <= size <= _LONGEST_AXIS for size in shape)
    ):
        raise InferenceError(
            f"the message holds an array of shape {_shown(shape)}, expected at most {_MOST_AXES} sizes "
            f"from 0 to {_LONGEST_AXIS}"
        )
    if not isinstance(data, bytes):
        raise InferenceError(f"the message holds an array whose data are a {type(data).__name__}, expected bytes")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InferenceError(f"the message holds an array of {len(data)} bytes, {dtype} {list(shape)} takes {expected}")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order) if expected else np.zeros(shape, dtype=dtype)


def _shown(value: object) -> str:
    """For a message that a person reads: not what 64 MiB of nonsense look like."""
    return reprlib.repr(value)
