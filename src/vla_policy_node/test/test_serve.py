"""Our server driven by openpi's own client (PyPI `openpi-client`), as real processes."""

import mmap
import os
import queue
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from remote import BRINGUP, FR3, HOME, QUICK, Server, answered, observation, remote_backend, until

from vla_contract.errors import InferenceError
from vla_contract.robot import read_yaml
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.model_inputs import ModelInputs, robot_layout
from vla_policy_node.worker.client import Worker
from vla_policy_node.worker.events import Answer, Ready, Refusal
from vla_policy_node.worker.images import SharedImages

# openpi-client 0.1.2 opens its connection in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")

WATCHED = ModelInputs(robot_layout(FR3, ("front", "wrist")), FR3)


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory):
    """A recorded motion, served without any model."""
    folder = tmp_path_factory.mktemp("policy")
    times = np.arange(0, 5, 0.1)
    positions = HOME + 0.1 * np.sin(times)[:, None] * np.ones(8) * [1, 1, 1, 1, 1, 1, 1, 0]
    np.savez(folder / "wave.npz", joint_names=np.array(FR3.joints), times=times, positions=positions)
    options = {"cameras": ["front", "wrist"], "horizon": 16, "dt": 0.1}
    path = folder / "replay.yaml"
    path.write_text(yaml.safe_dump({"backend": "replay", "checkpoint": "wave.npz", "options": options}))
    return path


@pytest.fixture(scope="module")
def server(policy_file):
    process = Server("-m", "vla_policy_node.serve", str(FR3.path), str(policy_file), "--port", "{port}")
    yield process
    process.kill()


def openpi_client(port, key=None):
    """The real one."""
    real = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    return real.WebsocketClientPolicy("127.0.0.1", port, api_key=key)


def our_client(port, **changes):
    return remote_backend("served", port, **changes)


def children(pid):
    """Of all its threads."""
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def get(port, path="/healthz"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.status, answer.read()


# Real processes


def test_openpi_s_client_learns_what_to_send_and_gets_joint_positions(server):
    client = openpi_client(server.port)
    greeting = client.get_server_metadata()
    assert greeting["joints"] == list(FR3.joints) and greeting["action_space"] == "joint_position"
    assert (greeting["horizon"], greeting["dt"]) == (16, 0.1)
    assert greeting["inputs"]["observation/image/front"]["shape"] == ["height", "width", 3]
    message = WATCHED.compose(observation())
    assert set(greeting["inputs"]) == set(message)
    for turn in range(3):
        reply = client.infer(message)
        assert reply["actions"].shape == (16, 8) and reply["actions"].dtype == np.float64
        assert np.isfinite(reply["actions"]).all() and 0 <= reply["progress"] <= 1
        assert reply["server_timing"]["infer_ms"] > 0 and ("prev_total_ms" in reply["server_timing"]) == (turn > 0)


def test_openpi_s_client_is_told_what_was_wrong(server):
    client = openpi_client(server.port)
    message = WATCHED.compose(observation())
    del message["prompt"]
    with pytest.raises(RuntimeError, match="the observation lacks 'prompt'; it holds observation/image/front"):
        client.infer(message)
    assert openpi_client(server.port).infer(WATCHED.compose(observation()))["actions"].shape == (16, 8)


def test_many_of_openpi_s_clients_are_served_over_many_connections(server):
    def converse(number):
        client = openpi_client(server.port)
        for turn in range(3):
            seen = observation(seed=10 * number + turn)
            first = client.infer(WATCHED.compose(seen))["actions"][0]
            assert np.abs(first - seen.positions).max() < 0.05, "the lead-in starts where this robot is"
        return number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(converse, range(16))) == list(range(16))


def test_our_client_goes_on_after_the_server_was_killed(server):
    backend = our_client(server.port)
    assert backend.infer(observation()).positions.shape == (16, 8)
    for _ in range(2):
        server.kill()
        with pytest.raises(InferenceError, match="next attempt in"):
            backend.infer(observation())
        server.start()
        assert answered(backend, observation()).positions.shape == (16, 8)
    backend.close()


def test_a_worker_process_goes_on_after_the_server_was_killed(server, tmp_path):
    """The chain of the running node: its worker, our client, a server elsewhere."""
    options = read_yaml(BRINGUP / "config" / "policies" / "served.yaml", "policy file")["options"]
    path = tmp_path / "served.yaml"
    path.write_text(yaml.safe_dump({"backend": "openpi", "options": {**options, "port": server.port, **QUICK}}))
    events: queue.Queue[object] = queue.Queue()
    shapes = {name: (camera.height, camera.width) for name, camera in FR3.cameras.items()}
    worker = Worker(load_policy_file(path).worker(FR3.path), shapes, events.put)

    def event():
        worker.infer(observation())
        return events.get(timeout=20)

    try:
        worker.start()
        assert isinstance(events.get(timeout=60), Ready)
        assert isinstance(event(), Answer)
        server.kill()
        refusal = event()
        assert isinstance(refusal, Refusal) and "next attempt in" in refusal.reason
        server.start()
        until(lambda: isinstance(event(), Answer))
        assert worker.restarts == 0, "an outage of the server is no failure of the worker"
    finally:
        worker.close()


def test_health_is_told_over_plain_http_and_a_signal_ends_the_server(server):
    assert get(server.port) == (200, b"OK\n")
    server.signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    server.start()


def test_a_server_with_a_key_lets_nobody_else_in(policy_file):
    process = Server(
        "-m", "vla_policy_node.serve", str(FR3.path), str(policy_file), "--port", "{port}",
        environment={"VLA_SERVE_KEY": "open sesame"},
    )  # fmt: skip
    try:
        assert get(process.port) == (200, b"OK\n")
        with pytest.raises(Exception, match="401"):
            openpi_client(process.port)
        with pytest.raises(InferenceError, match="HTTP 401; the server refuses the API key"):
            our_client(process.port).infer(observation())
        reply = openpi_client(process.port, "open sesame").infer(WATCHED.compose(observation()))
        assert reply["actions"].shape == (16, 8)
        key = policy_file.parent / "key"
        key.write_text("open sesame\n")
        assert our_client(process.port, api_key_file=str(key)).infer(observation()).positions.shape == (16, 8)
    finally:
        process.kill()


def test_the_command_line_says_what_is_wrong(policy_file):
    command = [sys.executable, "-m", "vla_policy_node.serve", str(FR3.path), str(policy_file), "--host", "0.0.0.0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "opens the policy to the network" in ended.stderr


def test_a_policy_with_an_interpreter_of_its_own_is_served_from_there(policy_file, tmp_path):
    """Here it is the same Python, as a process of its own; `./vla interop` has one with LeRobot."""
    content = yaml.safe_load(policy_file.read_text()) | {"interpreter": sys.executable}
    content["checkpoint"] = str(policy_file.parent / content["checkpoint"])
    foreign = tmp_path / "foreign.yaml"
    foreign.write_text(yaml.safe_dump(content))
    here = Server("-m", "vla_policy_node.serve", str(FR3.path), str(policy_file), "--port", "{port}")
    there = Server("-m", "vla_policy_node.serve", str(FR3.path), str(foreign), "--port", "{port}")
    try:
        seen = WATCHED.compose(observation())
        expected = openpi_client(here.port).infer(seen)["actions"]
        assert np.array_equal(openpi_client(there.port).infer(seen)["actions"], expected)
        client = our_client(there.port)
        answered(client, observation())
        (child,) = children(there.process.pid)
        os.kill(child, signal.SIGKILL)
        refused, chunks = [], []

        def attempt():
            try:
                chunks.append(client.infer(observation(), None))
            except InferenceError as error:
                refused.append(str(error))
            return chunks

        until(attempt)
        assert any("process has ended and starts again" in reason for reason in refused), refused
        assert np.allclose(chunks[0].positions, expected, atol=1e-6) and children(there.process.pid) != [child]
        client.close()
    finally:
        here.kill()
        there.kill()


def test_images_of_any_size_reach_a_policy_with_an_interpreter_of_its_own():
    shapes = {"front": (8, 6)}
    images = SharedImages(shapes, exact=False)
    memory = np.frombuffer(mmap.mmap(images.fd, 0), dtype=np.uint8)
    for height, width in ((8, 6), (3, 5), (1, 48), (12, 4)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        offset, *size = images.put("front", image)
        assert size == [height, width]
        assert np.array_equal(memory[offset : offset + image.size].reshape(image.shape), image)
    for wrong in ((8, 7, 3), (8, 6), (8, 6, 4), (0, 6, 3)):
        with pytest.raises(InferenceError, match="has shape"):
            images.put("front", np.zeros(wrong, np.uint8))
    with pytest.raises(InferenceError, match="has shape"):
        SharedImages(shapes).put("front", np.zeros((3, 5, 3), np.uint8))
