"""Our OpenVLA client against a double of the servers, as a real process."""

import json
import select
import shutil
import signal
import socketserver
import ssl
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remote import FR3, Server, aloha, answered, free_port, observation, remote_backend, until

from vla_contract.errors import ConfigError, InferenceError, Unavailable
from vla_contract.policy import check_fit
from vla_kinematics import ToolKinematics
from vla_policy_node.backends.encodings import dumps_json
from vla_policy_node.core.rotations import to_matrix

SEEN = observation()
KINEMATICS = ToolKinematics(FR3.urdf(), FR3.joints, FR3.tool_frame, FR3.home)


def client(port, policy="openvla", robot=FR3, **changes):
    return remote_backend(policy, port, robot, **changes)


@pytest.fixture(scope="module")
def server():
    process = Server(str(Path(__file__).parent / "openvla_policy_server.py"), "{port}")
    yield process
    process.kill()


@pytest.fixture
def hasty(server):
    backend = client(server.port, timeout=0.3)
    yield backend
    backend.close()


def response(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture
def scripted():
    """Starts a server in this process; `answer(connection, body)` says what it writes for a question."""
    started = []

    def start(answer, tls=None):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while line := self.rfile.readline():
                    length = 0
                    while line not in (b"", b"\r\n"):
                        name, _, value = line.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                        line = self.rfile.readline()
                    answer(self.connection, self.rfile.read(length))

        class Quiet(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def get_request(self):
                connection, address = super().get_request()
                return (tls.wrap_socket(connection, server_side=True) if tls else connection), address

            def handle_error(self, request, address):
                pass  # the client hung up

        server = Quiet(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return server.server_address[1]

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join(5)
        server.server_close()


def check(chunk, seen):
    """One centimetre along x, a tenth of a radian about z, in the base frame; held for a second."""
    place, orientation = KINEMATICS.forward(seen.positions)
    reached, turned = KINEMATICS.forward(chunk.positions[0])
    assert np.allclose(chunk.trajectory.times, [0.2, 0.4, 0.6, 0.8, 1.0])
    assert (chunk.positions == chunk.positions[0]).all() and chunk.positions.shape == (5, 8)
    assert np.allclose(reached, place + [0.01, 0, 0], atol=1e-3)
    assert np.allclose(turned, to_matrix("euler_xyz", [[0, 0, 0.1]])[0] @ orientation, atol=3e-3)
    assert chunk.positions[0, 7] == (0.04 if "open" in seen.instruction else 0.0)


@pytest.mark.parametrize(("policy", "robot"), [("openvla", FR3), ("openvla_oft", aloha())])
def test_policy_files_that_ship_fit_their_robot_and_need_no_server_to_be_read(policy, robot):
    check_fit(client(free_port(), policy, robot).metadata, robot)


@pytest.mark.parametrize("encoding", ["single", "double"])
def test_observations_go_out_and_one_action_comes_back(server, encoding):
    backend = client(server.port, encoding=encoding)
    for seed, instruction in enumerate(("take the cube", "open the gripper")):
        seen = observation(seed=seed, instruction=instruction)
        check(backend.infer(seen), seen)
    backend.close()


@pytest.mark.parametrize("encoding", ["single", "double"])
def test_oft_answers_a_chunk(server, encoding):
    robot = aloha()
    backend = client(server.port, "openvla_oft", robot, encoding=encoding)
    seen = observation(robot)
    chunk = backend.infer(seen)
    assert np.allclose(chunk.positions, seen.positions + 0.01 * np.arange(1, 26)[:, None])
    assert np.allclose(chunk.trajectory.times, 0.04 * np.arange(1, 26))
    backend.close()


@pytest.mark.parametrize("encoding", ["single", "double"])
@pytest.mark.parametrize(
    ("sentence", "message"),
    [("fail", "the server could not infer; its log says why"), ("words", "the reply is a dict, expected an action")],
)
def test_a_server_that_fails_is_an_error_and_the_next_observation_goes_through(server, encoding, sentence, message):
    backend = client(server.port, encoding=encoding)
    with pytest.raises(InferenceError, match=message):
        backend.infer(observation(instruction=sentence))
    seen = observation(seed=1)
    check(backend.infer(seen), seen)
    backend.close()


def test_an_address_that_nobody_serves_is_named(server):
    backend = client(server.port, path="/predict")
    with pytest.raises(InferenceError, match="HTTP 404 Not Found: .*detail"):
        backend.infer(observation())
    backend.close()


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next(hasty):
    hasty.infer(observation())
    with pytest.raises(InferenceError, match=r"no answer for 0\.3 s"):
        hasty.infer(observation(instruction="slow"))
    seen = observation(seed=1, instruction="open")
    check(answered(hasty, seen), seen)


def test_a_server_that_is_killed_is_named_at_once_and_used_again_when_it_is_back(server, hasty):
    hasty.infer(observation())
    server.kill()
    with pytest.raises(InferenceError, match=rf"http://127\.0\.0\.1:{server.port}/act: cannot connect: .*refused"):
        hasty.infer(observation())
    server.start()
    seen = observation(seed=2)
    check(answered(hasty, seen), seen)
    server.kill()
    server.start()
    check(hasty.infer(seen), seen)


def test_a_server_that_freezes_costs_the_time_out_and_no_more(server, hasty):
    hasty.infer(observation())
    server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(InferenceError, match=r"no answer for 0\.3 s"):
            hasty.infer(observation())
    finally:
        server.signal(signal.SIGCONT)
    seen = observation(seed=2)
    check(answered(hasty, seen), seen)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not json", "not JSON"),
        (b"[]", r"shape \(1, 0\)"),
        (b"null", "expected an action"),
        (b'[[1, 2], [3]]', "not rows of numbers"),
        (b'[["a", "b"]]', "not rows of numbers"),
        (b"[[0, 0, 0, 0, 0, 0]]", r"shape \(1, 6\): expected \(K, 7\)"),
        (b"[[0, 0, NaN, 0, 0, 0, 0]]", r"'dz\[m\]' is nan"),
        (b'{"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}', "refused"),
        (b'"\\"error\\""', "could not infer"),
        (b"[[1" + b"0" * 400 + b", 0, 0, 0, 0, 0, 0]]", "not rows of numbers: int too large"),
        (b"[[1e400, 0, 0, 0, 0, 0, 0]]", r"'dx\[m\]' is inf"),
        (b"[[1e30, 0, 0, 0, 0, 0, 0]]", r"answers no motion .* from 0 to 1e\+30; correct `action.scale`"),
        (b"[[1e308, 1e308, 0, 0, 0, 0, 0]]", "answers no motion"),
        (b'{"__numpy__": "", "dtype": "<U0", "shape": [1099511627776]}', "refused"),
    ],
)  # fmt: skip
def test_whatever_a_server_says_the_caller_gets_an_inference_error(scripted, body, message):
    backend = client(scripted(lambda connection, _: connection.sendall(response(body))))
    with pytest.raises(InferenceError, match=message):
        backend.infer(SEEN)
    backend.close()


NUMBERS = st.one_of(st.floats(), st.integers(-(10**320), 10**320), st.integers(-2, 2))
ROWS = st.lists(st.lists(NUMBERS, min_size=7, max_size=7), min_size=1, max_size=2)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
UNASKED = client(1)


@given(ROWS | ANYTHING)
@settings(max_examples=150, deadline=None)
def test_any_json_gives_a_motion_or_an_inference_error(answer):
    UNASKED.connection.ask = lambda *_, **__: json.dumps(answer).encode()
    try:
        assert np.isfinite(UNASKED.infer(SEEN).positions).all()
    except InferenceError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"["),
    ],
    ids=["headers", "continue", "body", "chunks", "no length"],
)
def test_an_answer_that_comes_drop_by_drop_is_cut_off_at_the_time_out(scripted, head, piece):
    over = threading.Event()

    def drip(connection, _):
        connection.sendall(head)
        while not over.wait(0.05):
            connection.sendall(piece)

    backend = client(scripted(drip), timeout=0.2, first_timeout=0.2)
    try:
        with pytest.raises(Unavailable, match=r"no answer for 0\.2 s; next attempt"):
            backend.infer(SEEN)
    finally:
        over.set()
        backend.close()


def test_a_server_that_answers_twice_never_answers_the_next_question(scripted):
    again = threading.Event()

    def twice(connection, body):
        answer = response(dumps_json(np.array([0.0] * 6 + [float(b"open" in body)])).encode())
        connection.sendall(answer)
        again.wait(10)
        connection.sendall(answer)

    backend = client(scripted(twice))
    assert backend.infer(observation(instruction="open")).positions[0, 7] == 0.04
    again.set()
    until(lambda: select.select([backend.connection.link._connection.sock], [], [], 0)[0])
    assert backend.infer(observation(instruction="close")).positions[0, 7] == 0.0
    backend.close()


def test_a_server_that_encrypts_may_say_things_of_its_own_before_it_is_asked(scripted, tmp_path, monkeypatch):
    """TLS sends tickets after the handshake: readable, and no answer."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    action = dumps_json(np.array([0.0] * 6 + [1.0])).encode()
    backend = client(scripted(lambda connection, _: connection.sendall(response(action)), context), tls=True)
    backend.check()
    until(lambda: select.select([backend.connection.link._connection.sock], [], [], 0)[0])
    connected = backend.connection.link._connection
    backend.check()
    assert backend.infer(SEEN).positions[0, 7] == 0.04
    assert backend.connection.link._connection is connected, "there was no reason to connect again"
    backend.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"path": "act"}, "path"), ({"encoding": "triple"}, "encoding"), ({"unnorm_key": "x"}, "unnorm_key")],
)
def test_options_that_are_wrong_are_refused_before_anything_is_started(changes, message):
    with pytest.raises(ConfigError, match=message):
        client(free_port(), **changes)
