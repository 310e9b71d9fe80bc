"""Our OpenVLA client against a double of the servers, as a real process."""

import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from remote import FR3, Server, aloha, answered, free_port, observation, remote_backend

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.policy import check_fit
from vla_kinematics import ToolKinematics
from vla_policy_node.core.rotations import to_matrix

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


def check(chunk, seen):
    """One centimetre along x, a tenth of a radian about z, in the base frame."""
    place, orientation = KINEMATICS.forward(seen.positions)
    reached, turned = KINEMATICS.forward(chunk.positions[0])
    assert chunk.positions.shape == (1, 8) and chunk.trajectory.times.tolist() == [0.2]
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
    ],
)  # fmt: skip
def test_whatever_a_server_says_the_caller_gets_an_inference_error(body, message):
    class Impostor(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    impostor = HTTPServer(("127.0.0.1", 0), Impostor)
    thread = threading.Thread(target=impostor.serve_forever, args=(0.01,))
    thread.start()
    try:
        with pytest.raises(InferenceError, match=message):
            client(impostor.server_address[1]).infer(observation())
    finally:
        impostor.shutdown()
        thread.join(5)
        impostor.server_close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"path": "act"}, "path"), ({"encoding": "triple"}, "encoding"), ({"unnorm_key": "x"}, "unnorm_key")],
)
def test_options_that_are_wrong_are_refused_before_anything_is_started(changes, message):
    with pytest.raises(ConfigError, match=message):
        client(free_port(), **changes)
