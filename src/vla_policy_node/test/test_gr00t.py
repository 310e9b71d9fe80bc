"""Our GR00T client against a double of the server, as a real process, in the encodings of its three versions."""

import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import zmq
from remote import FR3, Server, answered, free_port, observation, remote_backend

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.policy import check_fit
from vla_policy_node.backends.encodings import pack_gr00t, unpack_gr00t

DOUBLE = str(Path(__file__).parent / "gr00t_policy_server.py")
VERSIONS = ("n1.5", "n1.6", "n1.7")


def client(port, version="n1.6", **changes):
    return remote_backend("gr00t", port, version="n1.6" if version == "n1.7" else version, **changes)


@pytest.fixture(scope="module")
def servers():
    running = {version: Server(DOUBLE, "{port}", version) for version in VERSIONS}
    yield running
    for server in running.values():
        server.kill()


@pytest.fixture
def backend(servers):
    client_of_it = client(servers["n1.6"].port)
    yield client_of_it
    client_of_it.close()


@pytest.fixture
def hasty(servers):
    client_of_it = client(servers["n1.6"].port, timeout=0.3, connect_timeout=0.3)
    yield client_of_it
    client_of_it.close()


def expected_positions(seen):
    positions = seen.positions + 0.01 * np.arange(1, 17)[:, None] * np.ones(8)
    positions[:, 7] = 0.04 if "open" in seen.instruction else 0.0
    return positions


def test_the_policy_file_that_ships_fits_its_robot_and_needs_no_server_to_be_read():
    metadata = client(free_port()).metadata
    check_fit(metadata, FR3)
    assert set(metadata.cameras) == {"front", "wrist"} and metadata.action[-1] == "gripper"


@pytest.mark.parametrize("version", VERSIONS)
def test_observations_go_out_and_actions_come_back_in_every_version(servers, version):
    backend = client(servers[version].port, version)
    for seed, instruction in enumerate(("open the gripper", "take the cube", "open again")):
        seen = observation(seed=seed, instruction=instruction)
        chunk = backend.infer(seen)
        assert chunk.joint_names == FR3.joints and chunk.stamp_ns == seen.stamp_ns
        assert np.allclose(chunk.trajectory.times, 0.05 * np.arange(1, 17))
        assert np.allclose(chunk.positions, expected_positions(seen), atol=1e-6)
    backend.close()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("fail", "could not serve 'get_action': this task always fails"),
        ("short", r"action 'arm' has shape \(3, 7\), expected at least 16 rows"),
        ("no arm", "action 'arm' is a NoneType, expected an array of numbers; it holds gripper, base"),
        ("other dialect", "an encoding that is not known here"),
    ],
)
def test_a_server_that_goes_wrong_is_an_error_and_the_next_observation_goes_through(backend, task, message):
    backend.infer(observation())
    with pytest.raises(InferenceError, match=message):
        backend.infer(observation(instruction=task))
    seen = observation(seed=1)
    assert np.allclose(answered(backend, seen).positions, expected_positions(seen), atol=1e-6)


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next(hasty):
    answered(hasty, observation())
    with pytest.raises(InferenceError, match=r"no answer for 0\.3 s"):
        hasty.infer(observation(instruction="slow"))
    seen = observation(seed=1, instruction="open")
    assert np.allclose(answered(hasty, seen).positions, expected_positions(seen), atol=1e-6)


def test_a_new_episode_is_announced_once_and_before_its_first_observation(servers, backend):
    def resets():
        return backend.connection.ask(backend._request(backend._inputs.compose(observation())))[1]["resets"]

    before = resets()
    backend.reset()
    backend.reset()
    assert resets() == before, "the server may be away when the task begins"
    backend.infer(observation())
    backend.infer(observation())
    assert resets() == before + 1


def test_a_server_that_is_killed_is_named_and_used_again_when_it_is_back(servers, hasty):
    server = servers["n1.6"]
    answered(hasty, observation())
    for seed in range(2):
        server.kill()
        with pytest.raises(InferenceError, match=rf"tcp://127\.0\.0\.1:{server.port}: no answer for"):
            hasty.infer(observation())
        with pytest.raises(InferenceError, match="next attempt in|no answer"):
            hasty.infer(observation())
        server.start()
        seen = observation(seed=seed)
        assert np.allclose(answered(hasty, seen).positions, expected_positions(seen), atol=1e-6)


def test_a_server_that_freezes_costs_the_time_out_and_no_more(servers, hasty):
    answered(hasty, observation())
    servers["n1.6"].signal(signal.SIGSTOP)
    try:
        with pytest.raises(InferenceError, match="no answer for"):
            hasty.infer(observation())
    finally:
        servers["n1.6"].signal(signal.SIGCONT)
    seen = observation(seed=2)
    assert np.allclose(answered(hasty, seen).positions, expected_positions(seen), atol=1e-6)


def test_a_server_that_wants_a_token_gets_it_from_the_file(tmp_path):
    server = Server(DOUBLE, "{port}", "n1.7", "open sesame")
    key = tmp_path / "key"
    key.write_text("open sesame")
    try:
        with pytest.raises(InferenceError, match="Unauthorized: Invalid API token"):
            client(server.port).infer(observation())
        backend = client(server.port, api_key_file=str(key))
        assert backend.infer(observation()).positions.shape == (16, 8)
        backend.close()
    finally:
        server.kill()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": ["left_arm", "gripper"]},
            "action: the server has arm, base, gripper, the policy file gripper, left_arm",
        ),
        ({"horizon": 20}, "action: the server answers 16 rows, the policy file expects 20"),
        (
            {"inputs": {"video": {"front": {"camera": "front"}}, "state": {"arm": {"state": ["joint_position"]}}}},
            "video: the server has front, wrist, the policy file front; state: the server has arm, gripper",
        ),
    ],
)
def test_a_server_with_another_policy_is_refused_with_every_misfit(servers, version, changes, message):
    with pytest.raises(InferenceError, match=message):
        client(servers[version].port, version, **changes).infer(observation())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"images": {"front": {"camera": "front"}}}}, "inputs of the gr00t backend: images; expected video"),
        ({"actions": []}, "actions"),
        ({"version": "n2"}, "version"),
    ],
)
def test_options_that_are_wrong_are_refused_before_anything_is_started(changes, message):
    with pytest.raises(ConfigError, match=message):
        client(free_port(), **changes)


@pytest.fixture
def doubtful():
    """The port of a server in this process that tells no modalities, and says everything twice."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    over = threading.Event()

    def serve():
        while not over.is_set():
            if not router.poll(20):
                continue
            *envelope, message = router.recv_multipart()
            asked, reply = unpack_gr00t(message), {}
            if asked["endpoint"] == "get_action":
                number = float(asked["data"]["observation"]["language"]["task"][0][0])
                reply = [{"arm": np.full((1, 16, 7), number), "gripper": np.ones((1, 16, 1))}, {}]
            for _ in range(2):
                router.send_multipart([*envelope, pack_gr00t(reply)])

    thread = threading.Thread(target=serve)
    thread.start()
    yield port
    over.set()
    thread.join(5)
    router.close(0)


def test_a_server_that_answers_twice_never_answers_the_next_question(doubtful):
    backend = client(doubtful)
    for number in (0.1, 0.2, 0.3, 0.4):
        assert backend.infer(observation(instruction=str(number))).positions[0, 0] == number
    backend.close()


@pytest.mark.parametrize("config", [np.zeros(2), [], "none"])
def test_a_modality_configuration_that_is_no_map_is_an_inference_error(config, monkeypatch):
    backend = client(1)
    monkeypatch.setattr(backend.connection.link, "exchange", lambda *_: config)
    with pytest.raises(InferenceError, match="modality configuration is a .*, expected a map"):
        backend.infer(observation())
    backend.close()


def test_no_server_was_asked_to_end(servers):
    assert all(server.process.poll() is None for server in servers.values())
