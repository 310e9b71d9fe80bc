"""Our server on a real Ray Serve, driven by openpi's own client: `./vla interop`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from vla_contract.errors import InferenceError
from vla_policy_node.backends import load_backend, locate
from vla_policy_node.core.model_inputs import ModelInputs, robot_layout

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))

from remote import FR3, Server, answered, free_port, listens, observation, remote_backend, until
from tiny import PI0_OPTIONS, pi0_metadata, pi0_model, write_tokenizer

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: ./vla setup --with serve installs it"),
    # openpi-client 0.1.2 opens its connection in the old way.
    pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning"),
]
PACKAGE = Path(__file__).parents[1]
WATCHED = ModelInputs(robot_layout(FR3, ("front", "wrist")), FR3)
CLIENTS, TURNS = 4, 5
WAIT = "0.1"  # s that a batch waits; long, so that batches form on a busy machine


def served(file, *options):
    command = ["-m", "vla_policy_node.serve", str(FR3.path), str(file), "--port", "{port}", "--ray"]
    return Server(*command, "--batch-wait", WAIT, *options, patience=300.0)


def end(server):
    """By a signal, so that Ray ends too; waits for it."""
    server.signal(signal.SIGTERM)
    assert server.process.wait(120) == 0


def policy_file(folder, backend, checkpoint, options):
    path = folder / f"{backend}.yaml"
    path.write_text(yaml.safe_dump({"backend": backend, "checkpoint": str(checkpoint), "options": options}))
    return path


@pytest.fixture(scope="module")
def pi0(tmp_path_factory):
    """Checkpoint folder of a tiny π0, which draws new noise for each chunk of an episode."""
    folder = tmp_path_factory.mktemp("pi0")
    pi0_model().save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "policy.json").write_text(json.dumps(pi0_metadata()))
    return folder


@pytest.fixture(scope="module")
def flow_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    server = served(policy_file(folder, "flow", PACKAGE / "models" / "flow", {"threads": 1}))
    yield server
    end(server)


def openpi_client(port):
    """The real one."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    return WebsocketClientPolicy("127.0.0.1", port)


def seen(client, turn):
    return observation(seed=10 * client + turn)


def converse(port):
    """What `CLIENTS` clients at the same time are answered in `TURNS` turns, and the sizes of the batches."""
    together = threading.Barrier(CLIENTS)

    def one(client):
        connection, actions, sizes = openpi_client(port), [], []
        for turn in range(TURNS):
            together.wait(120)
            reply = connection.infer(WATCHED.compose(seen(client, turn)))
            actions.append(reply["actions"])
            sizes.append(reply["server_timing"]["batch"])
        return actions, sizes

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(one, range(CLIENTS)))
    return [actions for actions, _ in answers], np.array([sizes for _, sizes in answers])


def check(answers, load):
    """Each client was answered as by a policy that it has for itself."""
    for client, actions in enumerate(answers):
        alone = load()
        for turn, rows in enumerate(actions):
            assert np.abs(rows - alone.infer(seen(client, turn), None).positions).max() <= 1e-5


def test_robots_that_share_a_policy_are_answered_in_batches_as_if_each_were_alone(flow_server):
    answers, sizes = converse(flow_server.port)
    check(answers, lambda: load_backend(locate("flow"), PACKAGE / "models" / "flow", FR3, {"threads": 1}))
    assert sizes.mean() > 1 and sizes.max() <= CLIENTS, f"batches of {sizes.tolist()}"


def test_clients_go_on_after_the_server_was_killed(flow_server):
    backend, before = remote_backend("served", flow_server.port), observation()
    expected = backend.infer(before).positions
    flow_server.kill()
    with pytest.raises(InferenceError, match="next attempt in"):
        backend.infer(before)
    flow_server.start()
    assert np.abs(answered(backend, before).positions - expected).max() <= 1e-5
    backend.close()
    answers, _ = converse(flow_server.port)
    assert np.isfinite(answers).all()


def test_a_copy_of_the_policy_that_dies_is_replaced(flow_server):
    (replica,) = [pid for pid, name in children(flow_server.process.pid) if name.startswith("ray::ServeReplica")]
    backend = remote_backend("served", flow_server.port)
    backend.infer(observation())
    os.kill(replica, signal.SIGKILL)
    assert answered(backend, observation()).positions.shape == (16, 8)
    backend.close()
    assert flow_server.process.poll() is None


def test_episodes_do_not_mix_though_two_copies_answer_them(pi0, tmp_path):
    server = served(policy_file(tmp_path, "pi0", pi0, PI0_OPTIONS), "--replicas", "2", "--batch", "3")
    try:
        answers, sizes = converse(server.port)
        check(answers, lambda: load_backend(locate("pi0"), pi0, FR3, PI0_OPTIONS))
        assert np.abs(np.diff([rows[0] for rows in answers[0]], axis=0)).max() > 1e-3, "chunks differ from turn to turn"
        assert sizes.max() <= 3
    finally:
        end(server)


@pytest.fixture
def cluster(tmp_path):
    """Address of a Ray that somebody else started, with its token."""
    port, options = free_port(), ("--include-dashboard=false", "--num-cpus=4", "--disable-usage-stats", "--block")
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", *options]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen([*command, "--object-store-memory=200000000"], stdout=log, stderr=log)
        until(lambda: listens(port))
        yield f"127.0.0.1:{port}"
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def test_a_running_cluster_is_used_and_the_policy_is_taken_off_it(cluster, tmp_path):
    file = policy_file(tmp_path, "flow", PACKAGE / "models" / "flow", {"threads": 1})
    server = served(file, "--ray-address", cluster)
    answers, sizes = converse(server.port)
    check(answers, lambda: load_backend(locate("flow"), PACKAGE / "models" / "flow", FR3, {"threads": 1}))
    assert sizes.mean() > 1
    end(server)
    ask = (
        f"import ray; ray.init(address='{cluster}', logging_level=40); from ray import serve; "
        "print('left:', list(serve.status().applications))"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=120, env=environment)
    assert "left: []" in said.stdout, said.stderr


def test_a_policy_that_cannot_be_loaded_ends_the_command_with_the_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    file = policy_file(tmp_path, "flow", tmp_path / "empty", {})
    command = [sys.executable, "-m", "vla_policy_node.serve", str(FR3.path), str(file), "--port", "0", "--ray"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 2
    assert "cannot be served on Ray" in ended.stderr and "has no readable policy.json" in ended.stderr


def children(pid):
    """Processes below a process: (pid, command line)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (ValueError, OSError):
            continue  # no process, or gone meanwhile
    found, front = [], {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found += front
    return [(child, _name(child)) for child in found]


def _name(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_a_copy_of_a_policy_with_an_interpreter_of_its_own_answers_from_there(tmp_path):
    """Here it is the same Python, as a process beside the copy."""
    times = np.arange(0, 5, 0.1)
    np.savez(
        tmp_path / "still.npz", joint_names=np.array(FR3.joints), times=times, positions=np.tile(FR3.home, (50, 1))
    )
    file = policy_file(tmp_path, "replay", tmp_path / "still.npz", {"cameras": ["front"], "horizon": 16, "dt": 0.1})
    file.write_text(file.read_text() + f"interpreter: {sys.executable}\n")
    server = served(file)
    try:
        client = remote_backend("served", server.port, horizon=16, dt=0.1, inputs=robot_layout(FR3, ("front",)))
        positions = answered(client, observation()).positions
        assert positions.shape == (16, 8) and np.allclose(positions[-1], FR3.home, atol=0.05)
        client.close()
    finally:
        end(server)
