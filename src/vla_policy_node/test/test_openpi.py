"""Our openpi client against openpi's own server (PyPI `openpi-server`), as real processes; and against hostile ones."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from remote import FR3, Server, aloha, answered, free_port, observation, remote_backend
from websockets.sync.server import serve

from vla_contract.errors import ConfigError, InferenceError, Unavailable
from vla_contract.policy import check_fit
from vla_policy_node.backends.encodings import pack_openpi, unpack_openpi


def client(port, robot=FR3, policy="openpi_droid", **changes):
    return remote_backend(policy, port, robot, **changes)


SEEN = observation()
UNBOUND = {"space": "joint_delta", "relative_to": "previous", "gripper": {}}
UNASKED = client(1, action=UNBOUND)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("openpi_server", reason="openpi-server is not installed")
    process = Server(str(Path(__file__).parent / "openpi_policy_server.py"), "{port}")
    yield process
    process.kill()


@pytest.fixture
def droid(server):
    backend = client(server.port)
    yield backend
    backend.close()


@pytest.fixture
def hasty(server):
    backend = client(server.port, timeout=0.3)
    yield backend
    backend.close()


def expected_positions(seen):
    """What `openpi_policy_server.py` answers, read by DROID's layout: 0.2 rad for 1, summed up; gripper 1 is closed."""
    rows = np.repeat(0.01 * np.arange(1, 11)[:, None], 7, axis=1)
    rows[:, 0] = seen.positions[0]
    positions = seen.positions + np.hstack([np.cumsum(0.2 * rows, axis=0), np.zeros((10, 1))])
    positions[:, 7] = 0.04 if seen.positions[7] > 0.02 else 0.0
    return positions


# Policy files that ship


@pytest.mark.parametrize(
    ("policy", "robot", "cameras", "state", "action"),
    [
        ("openpi_droid", FR3, {"front", "wrist"}, 8, 8),
        ("openpi_libero", FR3, {"front", "wrist"}, 8, 7),
        ("openpi_aloha", aloha(), {"cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"}, 14, 14),
        ("served", FR3, {"front", "wrist"}, 16, 8),
    ],
)
def test_policy_files_that_ship_fit_their_robot_and_need_no_server_to_be_read(policy, robot, cameras, state, action):
    metadata = client(free_port(), robot, policy).metadata
    check_fit(metadata, robot)
    assert set(metadata.cameras) == cameras
    assert (len(metadata.state), len(metadata.action)) == (state, action)
    assert metadata.training == {"normalisation": "on the server"}


def test_messages_hold_exactly_the_keys_shapes_and_types_of_the_protocol():
    seen = observation()
    message = client(1)._inputs.compose(seen)
    assert {key: (value.dtype.name, value.shape) for key, value in message.items() if key != "prompt"} == {
        "observation/exterior_image_1_left": ("uint8", (224, 224, 3)),
        "observation/wrist_image_left": ("uint8", (224, 224, 3)),
        "observation/joint_position": ("float32", (7,)),
        "observation/gripper_position": ("float32", (1,)),
    }
    assert message["prompt"] == seen.instruction
    libero = client(1, policy="openpi_libero")._inputs.compose(seen)
    assert libero["observation/state"].shape == (8,)
    two_arms = client(1, aloha(), "openpi_aloha")._inputs.compose(observation(aloha()))
    assert two_arms["images"]["cam_low"].shape == (3, 224, 224) and two_arms["state"].shape == (14,)


# Against the real server


def test_observations_go_out_and_actions_come_back(droid):
    for seed in range(3):
        seen = observation(seed=seed)
        chunk = droid.infer(seen)
        assert chunk.stamp_ns == seen.stamp_ns and chunk.joint_names == FR3.joints and chunk.policy == "pi_droid"
        assert np.allclose(chunk.trajectory.times, np.arange(1, 11) / 15, atol=1e-6)
        assert np.allclose(chunk.positions, expected_positions(seen), atol=1e-6)
    assert droid.connection.link.server_metadata == {"model": "test"}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("fail", "the server could not infer: ValueError: this prompt always fails"),
        ("short", r"actions of shape \(3, 8\), expected at least \(10, 8\)"),
        ("wide", r"shape \(10, 16\): expected \(K, 8\)"),
        ("nan", "action 2: 'd_fr3_joint2' is nan"),
        ("text", "the reply's 'actions' are a NoneType, expected an array of numbers; it holds text"),
    ],
)
def test_a_server_that_goes_wrong_is_an_error_and_the_next_observation_goes_through(droid, prompt, message):
    droid.infer(observation())
    with pytest.raises(InferenceError, match=message):
        droid.infer(observation(instruction=prompt))
    seen = observation(seed=1)
    assert np.allclose(answered(droid, seen).positions, expected_positions(seen), atol=1e-6)


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next(hasty):
    hasty.infer(observation())
    with pytest.raises(InferenceError, match=r"no answer for 0\.3 s"):
        hasty.infer(observation(instruction="slow", seed=1))
    seen = observation(seed=2)
    assert np.allclose(answered(hasty, seen).positions, expected_positions(seen), atol=1e-6)


def test_many_connections_each_get_their_own_answers(server):
    def converse(number):
        backend = client(server.port)
        for turn in range(4):
            seen = observation(seed=100 * number + turn)
            assert np.allclose(backend.infer(seen).positions, expected_positions(seen), atol=1e-6)
        backend.close()
        return number

    with ThreadPoolExecutor(12) as pool:
        assert sorted(pool.map(converse, range(24))) == list(range(24))


def test_a_server_that_is_killed_is_named_at_once_and_used_again_when_it_is_back(server, droid):
    droid.infer(observation())
    for seed in range(2):
        server.kill()
        with pytest.raises(InferenceError, match=rf"ws://127\.0\.0\.1:{server.port}.*next attempt in"):
            droid.infer(observation(seed=seed))
        server.start()
        seen = observation(seed=10 + seed)
        assert np.allclose(answered(droid, seen).positions, expected_positions(seen), atol=1e-6)


def test_a_server_that_was_replaced_between_two_observations_costs_none(server, droid):
    droid.infer(observation())
    server.kill()
    server.start()
    seen = observation(seed=3)
    assert np.allclose(droid.infer(seen).positions, expected_positions(seen), atol=1e-6)


def test_a_server_that_freezes_costs_the_time_out_and_no_more(server, hasty):
    hasty.infer(observation())
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(InferenceError, match=r"no answer for 0\.3 s"):
            hasty.infer(observation(seed=1))
    finally:
        server.signal(signal.SIGCONT)
    seen = observation(seed=2)
    assert np.allclose(answered(hasty, seen).positions, expected_positions(seen), atol=1e-6)


# Against servers that no client should trust


@pytest.fixture
def impostor():
    """Starts a websocket server in this process that greets and answers as a test wants it."""
    started = []

    def start(greeting, reply=b""):
        def converse(connection):
            connection.send(greeting)
            for _ in connection:
                connection.send(reply)

        server = serve(converse, "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        started.append((server, thread))
        return server.socket.getsockname()[1]

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join(5)


@pytest.mark.parametrize(
    ("greeting", "reply", "message"),
    [
        (b"\xc1", b"", "not msgpack"),
        (pack_openpi({})[:0] + b"\x93\x01\x02\x03", b"", "is a list, expected a map"),
        ("no GPU", b"", "greets with an error: no GPU"),
        (pack_openpi({"joints": ["a", "b"]}), b"", r"policy has joints \['a', 'b'\], the policy file expects"),
        (pack_openpi({"dt": 0.5}), b"", r"policy has dt 0\.5, the policy file expects 0\.0666"),
        (pack_openpi({"horizon": 50}), b"", "policy has horizon 50, the policy file expects 10"),
        (pack_openpi({}), b"garbage", "not msgpack"),
        (pack_openpi({}), pack_openpi({"actions": [[0.0] * 8] * 10}), "'actions' are a list"),
        (pack_openpi({}), pack_openpi({"actions": np.full((10, 8), "x")}), "'actions' are a ndarray"),
        (pack_openpi({"joints": np.array(["a", "b"])}), b"", r"policy has joints \['a' 'b'\], the policy file expects"),
    ],
)
def test_whatever_a_server_says_the_caller_gets_an_inference_error(impostor, greeting, reply, message):
    backend = client(impostor(greeting, reply))
    with pytest.raises(InferenceError, match=message):
        backend.infer(observation())
    backend.close()


@given(arrays.arrays(np.float64, (10, 8), elements=st.floats() | st.sampled_from([1e308, -1e308])))
@settings(max_examples=60, deadline=None)
def test_any_numbers_give_a_motion_or_an_inference_error(rows):
    UNASKED.connection.ask = lambda *_, **__: pack_openpi({"actions": rows})
    try:
        assert np.isfinite(UNASKED.infer(SEEN).positions).all()
    except InferenceError as error:
        assert str(error)


def test_deltas_that_add_up_to_infinity_are_named(impostor):
    backend = client(impostor(pack_openpi({}), pack_openpi({"actions": np.full((10, 8), 1e308)})), action=UNBOUND)
    with pytest.raises(InferenceError, match=r"no motion \(positions\[1, 0\] is inf.*from 1e\+308 to 1e\+308"):
        backend.infer(SEEN)
    backend.close()


# More answers than questions


@pytest.fixture
def chatty():
    """Starts a server that answers the number in the sentence, `times` over; `unasked`: once before any question."""
    started = []

    def start(times=1, unasked=False):
        def converse(connection):
            connection.send(pack_openpi({}))
            if unasked:
                connection.send(b"unasked")
            for message in connection:
                number = float(unpack_openpi(message)["prompt"])
                for _ in range(times):
                    connection.send(pack_openpi({"actions": np.full((10, 7), number)}))

        server = serve(converse, "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        started.append((server, thread))
        return client(server.socket.getsockname()[1], action={"space": "joint_position"})

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join(5)


def arrived(backend):
    """What the server has sent until now is here: a ping's answer comes behind it."""
    assert backend.connection.link._socket.ping().wait(20)


@pytest.mark.parametrize("idle", [False, True], ids=["at work", "idle"])
def test_a_server_that_answers_twice_never_answers_the_next_question(chatty, idle):
    backend = chatty(times=2)
    for number in (0.1, 0.2, 0.3, 0.4):
        assert backend.infer(observation(instruction=str(number))).positions[0, 0] == number
        arrived(backend)
        if idle:
            backend.check()
    backend.close()


def test_a_server_that_answers_before_it_is_asked_is_not_asked(chatty):
    backend = chatty(unasked=True)
    backend.check()
    arrived(backend)
    with pytest.raises(Unavailable, match="sent 7 bytes that nobody had asked for, expected one answer for a question"):
        backend.infer(observation(instruction="0.1"))
    backend.close()


def test_something_else_that_listens_there_is_named():
    import http.server

    other = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=other.serve_forever, args=(0.01,))
    thread.start()
    backend = client(other.server_address[1])
    try:
        with pytest.raises(InferenceError, match="HTTP 501|no openpi server there"):
            backend.infer(observation())
    finally:
        other.shutdown()
        thread.join(5)
        other.server_close()


def test_nobody_there_is_an_error_at_once():
    backend = client(free_port())
    with pytest.raises(InferenceError, match="cannot connect: .*refused"):
        backend.infer(observation())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "http://gpu"}, "expected a bare name or address"),
        ({"timeout": -1}, "timeout"),
        ({"url": "x"}, "url"),
        ({"inputs": {"i": {"camera": "top"}}}, "unknown camera 'top'"),
        ({"action": {"space": "ee_pose"}}, "needs key 'rotation'"),
    ],
)
def test_options_that_are_wrong_are_refused_before_anything_is_started(changes, message):
    with pytest.raises(ConfigError, match=message):
        client(free_port(), **changes)
