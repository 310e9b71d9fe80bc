"""Our client of LeRobot's policy server against a double of it, as a real process; and the pickles that it refuses."""

import functools
import io
import json
import pickle
import signal
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from remote import FR3, Server, answered, free_port, observation, remote_backend

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.policy import check_fit
from vla_policy_node.backends import lerobot_wire as wire


def client(port, **changes):
    return remote_backend("lerobot_async", port, **changes)


@pytest.fixture(scope="module")
def server():
    process = Server(str(Path(__file__).parent / "lerobot_policy_server.py"), "{port}")
    yield process
    process.kill()


@pytest.fixture
def backend(server):
    client_of_it = client(server.port)
    yield client_of_it
    client_of_it.close()


def check(chunk, seen):
    expected = seen.positions + 0.01 * np.arange(1, 17)[:, None]
    expected[:, 7] = np.clip(expected[:, 7], 0.0, 0.04)
    assert np.allclose(chunk.positions, expected, atol=1e-6) and chunk.stamp_ns == seen.stamp_ns


# With a server


def test_the_policy_file_that_ships_fits_its_robot_and_needs_no_server_to_be_read():
    check_fit(client(free_port()).metadata, FR3)


def test_observations_go_out_and_actions_come_back_though_the_robot_stands_still(backend):
    for seed in (0, 0, 1):
        seen = observation(seed=seed)
        check(backend.infer(seen), seen)


def test_large_pictures_travel_in_pieces(backend, monkeypatch):
    monkeypatch.setattr(wire, "PIECE", 1000)
    seen = observation(seed=4)
    check(backend.infer(seen), seen)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("fail", "no actions for the observation; its log says why"),
        ("short", r"actions of shape \(3, 8\), expected at least \(16, 8\)"),
        ("bomb", "it names builtins.eval, which an answer has no need of"),
        ("words", "the reply is a dict, expected a list of actions"),
    ],
)
def test_a_server_that_goes_wrong_is_an_error_and_the_next_observation_goes_through(backend, task, message):
    with pytest.raises(InferenceError, match=message):
        backend.infer(observation(instruction=task))
    seen = observation(seed=1)
    check(backend.infer(seen), seen)


def test_a_checkpoint_that_the_server_cannot_load_is_named(server):
    backend = client(server.port, pretrained="missing")
    with pytest.raises(InferenceError, match="could not load 'missing': .*no such checkpoint"):
        backend.infer(observation())
    backend.close()


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next(server):
    hasty = client(server.port, timeout=0.3)
    answered(hasty, observation())
    with pytest.raises(InferenceError, match=r"no answer for 0\.\d+ s"):
        hasty.infer(observation(instruction="slow"))
    seen = observation(seed=2)
    check(answered(hasty, seen), seen)
    hasty.close()


def test_a_server_that_freezes_or_is_killed_is_used_again_when_it_is_back(server):
    hasty = client(server.port, timeout=0.3)
    answered(hasty, observation())
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(InferenceError, match="no answer for"):
            hasty.infer(observation())
    finally:
        server.signal(signal.SIGCONT)
    check(answered(hasty, observation(seed=1)), observation(seed=1))
    server.kill()
    with pytest.raises(InferenceError, match=rf"grpc://127\.0\.0\.1:{server.port}: cannot connect"):
        hasty.infer(observation())
    server.start()
    check(answered(hasty, observation(seed=2)), observation(seed=2))
    hasty.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_type": "rt1"}, "policy_type"),
        ({"inputs": {"state": {"state": ["joint_position"]}}}, "'state' is no entry of LeRobot's; expected"),
        ({"inputs": {"task": {"text": "instruction"}}}, "'observation.state' is missing"),
        ({"inputs": {"observation.images.a": {"camera": "front", "axes": "chw"}}}, "no entry of LeRobot's"),
    ],
)
def test_options_that_are_wrong_are_refused_before_anything_is_started(changes, message):
    with pytest.raises(ConfigError, match=message):
        client(free_port(), **changes)


# Pickles

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=10,
)


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_what_python_reads(value):
    assert pickle.loads(wire.dumps(value)) == value


@given(arrays.arrays(st.sampled_from([np.uint8, np.float32, np.int64]), arrays.array_shapes(max_dims=3, max_side=4)))
@settings(max_examples=40, deadline=None)
def test_arrays_are_written_as_numpy_reads_them(array):
    back = pickle.loads(wire.dumps({"image": array}))["image"]
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


def test_what_has_no_place_in_a_message_is_not_written():
    for value in (object(), {1, 2}, np.array([object()]), torch.zeros(2)):
        with pytest.raises(TypeError, match="no place"):
            wire.dumps(value)


def _action(action, step=0):
    """A pickle like LeRobot's, of a class that bears LeRobot's name here only while it is written."""
    record = wire.dumps(wire.Record("TimedAction", {"timestamp": 0.0, "timestep": step, "action": None}))
    tensor = pickle.dumps(action, protocol=3)[2:-1]
    head, tail = record[2:-1].split(b"X\x06\x00\x00\x00actionN")
    return b"\x80\x03](" + head + b"X\x06\x00\x00\x00action" + tensor + tail + b"e."


def test_the_reply_of_the_real_lerobot_is_read():
    recorded = json.loads((Path(__file__).parent / "fixtures" / "wire.json").read_text())["lerobot_reply"]
    (first, upper), (second, lower) = wire.loads_actions(bytes.fromhex(recorded))
    assert (first, second) == (7, 8)
    assert np.allclose([upper, lower], np.linspace(-1, 1, 6).reshape(2, 3))


def test_tensors_of_every_kind_of_number_are_read():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        base = torch.arange(12, dtype=dtype).reshape(3, 4)
        for row in (base[1], base[:, 2], base.T[0]):
            ((step, read),) = wire.loads_actions(_action(row, 7))
            assert step == 7 and np.array_equal(read, row.double().numpy())


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2**40, 2**40), (0, 1)), (-1, (2,), (1,))]
)
def test_tensors_that_reach_beyond_their_storage_are_refused(offset, size, stride):
    rebuilt = _Call(
        torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), offset, size, stride, False, OrderedDict()
    )
    with pytest.raises(InferenceError, match="the reply is refused"):
        wire.loads_actions(_action(rebuilt))


def _view(size, stride):
    """Of four numbers."""
    return _Call(torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), 0, size, stride, False, OrderedDict())


def test_few_numbers_that_claim_to_be_many_are_refused_before_they_fill_the_memory(monkeypatch):
    with pytest.raises(InferenceError, match=r"holds a tensor \(1099511627776,\) of only 4 numbers"):
        wire.loads_actions(_action(_view((2**40,), (0,))))
    monkeypatch.setattr(wire, "_MOST", 3)
    with pytest.raises(InferenceError, match="1 actions of 4 numbers, expected at most 3"):
        wire.loads_actions(_action(_view((4,), (1,))))


@pytest.mark.parametrize("step", [float("inf"), float("nan"), "x", None])
def test_a_time_step_that_is_no_whole_number_is_an_inference_error(step):
    with pytest.raises(InferenceError, match="malformed action"):
        wire.loads_actions(_action(torch.zeros(3), step))


class _Call:
    def __init__(self, function, *arguments):
        self._reduced = (function, arguments)

    def __reduce__(self):
        return self._reduced


@pytest.mark.parametrize(
    "hostile",
    [
        pickle.dumps([_Call(exec, "raise SystemExit(9)")]),
        pickle.dumps([_Call(torch.load, io.BytesIO(b""))]),
        _action(_Call(eval, "1")),
        _action(_Call(getattr, "x", "upper")),
        b"\x80\x03ctorch.storage\n_load_from_bytes\nB\x05\x00\x00\x00wrong\x85R.",
        b"\x80\x03ctorch.storage\nio.BytesIO\n)R.",
        b"cos\nsystem\n(S'exit 9'\ntR.",
        b"",
        b"\x80\x04\x95",
        b"\x80\x03Pidentifier\n.",
    ],
)
def test_pickles_that_name_anything_else_are_refused_before_it_is_looked_up(hostile):
    with pytest.raises(InferenceError, match="the reply is refused|malformed"):
        wire.loads_actions(hostile)


def test_a_pickle_within_a_tensor_is_not_run_either():
    """torch's own storages hold pickles: the hole in the allow-list that forgets it."""
    file = io.BytesIO()
    torch.save(_Call(exec, "raise SystemExit(9)"), file, _use_new_zipfile_serialization=False)
    inner = _Call(torch.storage._load_from_bytes, file.getvalue())
    outer = _Call(torch._utils._rebuild_tensor_v2, inner, 0, (1,), (1,), False, OrderedDict())
    with pytest.raises(InferenceError, match="the reply is refused"):
        wire.loads_actions(_action(outer))


@given(st.binary(max_size=120))
@settings(max_examples=100, deadline=None)
def test_random_frames_give_data_or_an_inference_error(frame):
    try:
        wire.actions_data(frame)
    except InferenceError:
        pass


@functools.cache
def _right_answer() -> bytes:
    """Made once: torch writes an address into it, whose number of digits may change from one to the next."""
    return _action(torch.arange(3.0))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_answers_with_faults_give_rows_or_an_inference_error(data):
    message = bytearray(_right_answer())
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.loads_actions(bytes(message))
    except InferenceError:
        pass


@pytest.mark.parametrize("kind", ["diffusion", "vqbet"])
def test_policies_whose_past_the_server_does_not_keep_are_refused(kind):
    with pytest.raises(ConfigError, match=f"cannot run '{kind}', it keeps no past for it; use backend lerobot"):
        client(1, policy_type=kind)
