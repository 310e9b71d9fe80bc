"""Arrays on the wire: the bytes of the real counterparts, round trips, and hostile bytes."""

import io
import json
import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_contract.errors import InferenceError
from vla_policy_node.backends import encodings

WIRE = json.loads((Path(__file__).parent / "fixtures" / "wire.json").read_text())
IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
ARM = np.linspace(-1, 1, 14, dtype=np.float32).reshape(1, 2, 7)
CODECS = (
    (encodings.pack_openpi, encodings.unpack_openpi),
    (encodings.pack_gr00t, encodings.unpack_gr00t),
    (encodings.dumps_json, encodings.loads_json),
)
DTYPES = st.one_of(
    arrays.boolean_dtypes(), arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes()
)
ARRAYS = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)))
READERS = (encodings.unpack_openpi, encodings.unpack_gr00t, encodings.loads_json)


def recorded(name):
    return bytes.fromhex(WIRE[name])


def test_openpi_observation_is_byte_for_byte_that_of_the_real_client():
    message = {
        "observation/exterior_image_1_left": IMAGE,
        "observation/joint_position": np.linspace(-1, 1, 7, dtype=np.float32),
        "observation/gripper_position": np.array([0.25]),
        "scalar": np.float32(0.5),
        "flag": np.bool_(True),
        "prompt": "put the cube in the tray",
    }
    assert encodings.pack_openpi(message) == recorded("openpi_observation")
    read = encodings.unpack_openpi(recorded("openpi_observation"))
    assert read.keys() == message.keys()
    assert all(np.array_equal(read[key], value) for key, value in message.items())


def test_openpi_reply_of_the_real_library_is_read():
    read = encodings.unpack_openpi(recorded("openpi_reply"))
    assert np.array_equal(read["actions"], np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8))
    assert read["server_timing"] == {"infer_ms": 12.5}


@pytest.mark.parametrize("version", ["n16", "n17"])
def test_gr00t_replies_of_both_current_encodings_are_read(version):
    actions, info = encodings.unpack_gr00t(recorded(f"gr00t_{version}_reply"))
    assert info == {}
    assert np.array_equal(actions["single_arm"], ARM) and actions["single_arm"].dtype == np.float32
    assert np.array_equal(actions["gripper"], [[[0.0], [1.0]]])


def test_gr00t_replies_of_the_flat_kind_are_read():
    actions = encodings.unpack_gr00t(recorded("gr00t_n15_reply"))
    assert np.array_equal(actions["action.single_arm"], ARM[0])


@pytest.mark.parametrize("version", ["n15", "n16", "n17"])
def test_gr00t_modality_configurations_become_plain_maps(version):
    config = encodings.unpack_gr00t(recorded(f"gr00t_{version}_config"))["action"]
    assert config == {"delta_indices": list(range(16)), "modality_keys": ["single_arm", "gripper"]}


def test_gr00t_is_written_in_the_form_that_every_server_reads():
    written = msgpack.unpackb(encodings.pack_gr00t({"x": ARM}))
    assert written["x"].keys() == {"__ndarray_class__", "as_npy"}
    assert encodings.pack_gr00t({"x": ARM}) == msgpack.packb({"x": written["x"]})


def test_json_numpy_text_of_the_real_library_is_read():
    read = encodings.loads_json(WIRE["json_numpy"])
    assert np.array_equal(read["image"], IMAGE) and read["image"].dtype == np.uint8
    assert np.array_equal(read["action"], np.linspace(-1, 1, 7))
    assert read["scalar"] == 0.5 and read["instruction"] == "lift"
    message = {"image": IMAGE, "instruction": "lift", "action": np.linspace(-1, 1, 7), "scalar": np.float64(0.5)}
    assert json.loads(encodings.dumps_json(message)) == json.loads(WIRE["json_numpy"])


@pytest.mark.parametrize(("write", "read"), CODECS)
@given(array=ARRAYS)
@settings(max_examples=40, deadline=None)
def test_every_array_of_numbers_survives(write, read, array):
    back = np.asarray(read(write({"x": array, "more": {"y": [array]}}))["x"])
    assert back.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and back.shape == array.shape
    assert back.astype(array.dtype).tobytes() == array.tobytes()


@pytest.mark.parametrize("write", [encodings.pack_openpi, encodings.pack_gr00t, encodings.dumps_json])
@pytest.mark.parametrize(
    "value", [np.array([object()]), np.zeros(2, dtype="f4,i4"), np.zeros(2, dtype=complex), object()]
)
def test_what_has_no_place_in_a_message_is_not_written(write, value):
    with pytest.raises((InferenceError, TypeError)):
        write({"x": value})


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code that a server sent was executed",))


BOMB = pickle.dumps(np.array([Bomb()], dtype=object))


@pytest.mark.parametrize(
    "entry",
    [
        {b"__ndarray__": True, b"data": BOMB, b"dtype": "|O", b"shape": [1]},
        {b"__npgeneric__": True, b"data": BOMB, b"dtype": "O"},
        {b"__ndarray__": True, b"data": b"", b"dtype": "f4,O", b"shape": [0]},
        {b"__ndarray__": True, b"data": b"12", b"dtype": "<f4", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [-1]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [2**62, 2**62]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "no such type", b"shape": [0]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<U0", b"shape": [2**40]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0, 2**62, 2**62]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0] * 70},
        {b"__npgeneric__": True, b"data": [1.0], b"dtype": "<f4"},
        {"__ndarray__": True, "data": b"1234", "dtype": "<f4", "shape": [1]},
        {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1], b"data": b"1234"},
    ],
)
def test_openpi_refuses_arrays_that_are_dangerous_malformed_or_of_another_dialect(entry):
    with pytest.raises(InferenceError):
        encodings.unpack_openpi(msgpack.packb({"actions": entry}))


def _npy(array, **header):
    """As `numpy.save` writes it; `header`: what it says of the array instead."""
    file = io.BytesIO()
    said = {**np.lib.format.header_data_from_array_1_0(array), **header}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + array.tobytes()


def test_arrays_of_gr00t_in_either_order_of_the_axes_are_read():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    read = encodings.unpack_gr00t(encodings.pack_gr00t({"x": array}))["x"]
    assert np.array_equal(read, array) and read.shape == (2, 3)


def _npy_with_pickle():
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "entry",
    [
        {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": BOMB},
        {b"nd": True, b"type": [["a", "|O"]], b"kind": b"V", b"shape": [1], b"data": BOMB},
        {b"nd": True, b"type": "|O", b"shape": [1], b"data": BOMB},
        {"__ndarray_class__": True, "as_npy": _npy_with_pickle()},
        {"__ndarray_class__": True, "as_npy": BOMB},
        {"__ndarray_class__": True, "as_npy": b"PK\x03\x04" + bytes(40)},
        {"__ndarray_class__": True},
        {"__ndarray_class__": True, "as_npy": _npy(np.zeros(1), shape=(2**40,))},
        {"__ndarray_class__": True, "as_npy": _npy(np.zeros(0), descr="<U0", shape=(2**40,))},
        {"__ndarray_class__": True, "as_npy": _npy(np.zeros(1), shape=(-1,))},
        {"__ndarray_class__": True, "as_npy": _npy(np.zeros(1))[:-1]},
        {"__ndarray_class__": True, "as_npy": 3},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [1]},
        {"__ModalityConfig__": True, "as_json": [1]},
    ],
)
def test_gr00t_refuses_arrays_that_are_dangerous_malformed_or_of_another_dialect(entry):
    with pytest.raises(InferenceError):
        encodings.unpack_gr00t(msgpack.packb([{"arm": entry}, {}]))


@pytest.mark.parametrize(
    "entry",
    [
        {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]},
        {"__numpy__": "!", "dtype": "<f4", "shape": [1]},
        {"__numpy__": "AAAA", "dtype": [["a", "<f4"]], "shape": [1]},
        {"__numpy__": 3, "dtype": "<f4", "shape": [1]},
        {"__numpy__": "AAAA"},
        {"__numpy__": "", "dtype": "<U0", "shape": [2**40]},
        {"__numpy__": "", "dtype": "<f4", "shape": [10**300, 0]},
        {"__numpy__": "", "dtype": "f4," * 9, "shape": [0]},
    ],
)
def test_json_refuses_arrays_that_are_dangerous_or_malformed(entry):
    with pytest.raises(InferenceError):
        encodings.loads_json(json.dumps({"action": entry}))


@pytest.mark.parametrize("read", READERS)
@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes_give_a_message_or_an_inference_error(read, data):
    try:
        read(data)
    except InferenceError:
        pass


@pytest.mark.parametrize("name", [name for name in WIRE if name.startswith(("openpi", "gr00t"))])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_recorded_bytes_with_faults_give_a_message_or_an_inference_error(name, data):
    message = bytearray(recorded(name))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    read = encodings.unpack_openpi if name.startswith("openpi") else encodings.unpack_gr00t
    try:
        read(bytes(message[: data.draw(st.integers(1, len(message)))]))
    except InferenceError:
        pass


KEYS = (b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", b"nd", b"type", b"kind", "as_npy")
TYPES = ("<f4", "|O", "|V8", "<U4", "<U0", "|S0", "<c8", "f4,f4", "<M8[s]")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.text(max_size=4),
    st.binary(max_size=8),
    st.lists(st.integers(-2, 5), max_size=3),
    st.lists(st.integers(0, 2**63), max_size=3),
    st.sampled_from(TYPES),
)


@given(entry=st.dictionaries(st.sampled_from(KEYS), VALUES))
@settings(max_examples=150, deadline=None)
def test_made_up_array_maps_give_a_message_or_an_inference_error(entry):
    for read in READERS[:2]:
        try:
            read(msgpack.packb({"x": entry}))
        except InferenceError:
            pass
