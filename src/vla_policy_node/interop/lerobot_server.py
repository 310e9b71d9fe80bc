"""Our client against LeRobot's own policy server with a tiny ACT, in LeRobot's environment: `./vla interop`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_contract.errors import InferenceError
from vla_contract.observation import Observation
from vla_policy_node.backends import load_backend, locate

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))

from remote import FR3, HOME, STAMP, free_port, listens, until

PYTHON = os.environ.get("VLA_INTEROP_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="LeRobot's environment is not there: ./vla interop makes it")
COUNT = 4


class LerobotServer:
    """`python -m lerobot.async_inference.policy_server`."""

    def __init__(self, folder: Path):
        self.port, self._folder = free_port(), folder
        self.start()

    def start(self) -> None:
        names = ("PATH", "HOME", "LANG", "TMPDIR")
        environment = {name: os.environ[name] for name in names if name in os.environ} | {"HF_HUB_OFFLINE": "1"}
        command = [PYTHON, "-m", "lerobot.async_inference.policy_server", "--host=127.0.0.1", f"--port={self.port}"]
        self.process = subprocess.Popen(command, cwd=self._folder, env=environment)

        def up() -> bool:
            assert self.process.poll() is None, "LeRobot's server ended at once"
            return listens(self.port)

        until(up, 180.0)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def observations():
    random = np.random.default_rng(0)
    # The robot hardly moves: LeRobot's server would leave such observations out if they did not say `must_go`.
    positions = HOME + random.uniform(-0.01, 0, (COUNT, 8))
    images = random.integers(0, 256, (COUNT, 96, 96, 3), dtype=np.uint8)
    return [
        Observation(STAMP + k, {"front": image}, q, np.zeros(8), "put the red cube in the tray")
        for k, (q, image) in enumerate(zip(positions, images, strict=True))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, observations):
    """The checkpoint, and LeRobot's own answers to the observations."""
    path = tmp_path_factory.mktemp("lerobot")
    states = np.array([o.positions for o in observations], dtype=np.float32)
    np.savez(path / "observations.npz", state=states, image=np.array([o.images["front"] for o in observations]))
    subprocess.run([PYTHON, str(Path(__file__).parent / "tiny_act.py"), str(path)], check=True, timeout=300)
    return path


@pytest.fixture(scope="module")
def server(folder):
    running = LerobotServer(folder)
    yield running
    running.kill()


def client(server, checkpoint, **changes):
    options = {
        "port": server.port,
        "policy_type": "act",
        "pretrained": str(checkpoint),
        "device": "cpu",
        "timeout": 30.0,
        "first_timeout": 60.0,
        "shortest_retry": 0.05,
        "longest_retry": 0.2,
        "inputs": {
            "observation.images.front": {"camera": "front", "height": 96, "width": 96},
            "observation.state": {"state": ["joint_position"], "joints": list(FR3.joints)},
            "task": {"text": "instruction"},
        },
        "action": {"space": "joint_position", "joints": list(FR3.joints)},
        "horizon": 16,
        "dt": 0.1,
    }
    return load_backend(locate("lerobot_async"), Path("."), FR3, {**options, **changes})


def test_lerobot_s_server_gives_our_client_what_lerobot_computes_itself(server, folder, observations):
    expected = np.load(folder / "actions.npz")["actions"]
    backend = client(server, folder / "checkpoint")
    answers = np.array([backend.infer(seen).positions for seen in observations])
    assert answers.shape == expected.shape == (COUNT, 16, 8)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-3, "the policy looks at what it is shown"
    assert np.abs(answers - expected).max() <= 1e-5
    backend.close()


def test_a_checkpoint_that_is_not_there_is_named(server, folder, observations):
    backend = client(server, folder / "nothing")
    with pytest.raises(InferenceError, match="could not load"):
        backend.infer(observations[0])
    backend.close()


def test_a_killed_server_is_used_again_when_it_is_back(server, folder, observations):
    backend = client(server, folder / "checkpoint")
    before = backend.infer(observations[0]).positions
    server.kill()
    with pytest.raises(InferenceError, match="cannot connect"):
        backend.infer(observations[0])
    server.start()
    again = []

    def answered():
        try:
            again.append(backend.infer(observations[0]).positions)
        except InferenceError:
            return False
        return True

    until(answered, 60.0)
    assert np.allclose(again[0], before, atol=1e-6)
    backend.close()
