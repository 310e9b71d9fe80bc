"""Our in-process backend for LeRobot's policies at tiny size, in LeRobot's environment: `./vla interop`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "test"))

from remote import FR3, HOME, Server, answered, remote_backend

from vla_contract.observation import Observation
from vla_policy_node.core.model_inputs import robot_layout

PACKAGE = Path(__file__).parents[1]
PYTHON = os.environ.get("VLA_INTEROP_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="LeRobot's environment is not there: ./vla interop makes it")
COUNT = 3


def run(script, *arguments):
    names = ("PATH", "HOME", "LANG", "TMPDIR")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    paths = [str(PACKAGE.parent / name) for name in ("vla_contract", "vla_kinematics", "vla_policy_node")]
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [PYTHON, str(Path(__file__).parent / script), *map(str, arguments)]
    subprocess.run(command, check=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Observations, LeRobot's own answers and ours."""
    path, random = tmp_path_factory.mktemp("lerobot"), np.random.default_rng(1)
    state = (HOME + random.uniform(-0.01, 0, (COUNT, 8))).astype(np.float32)
    image = random.integers(0, 256, (COUNT, 96, 96, 3), dtype=np.uint8)
    np.savez(path / "observations.npz", state=state, image=image)
    run("tiny_act.py", path)
    shutil.copytree(path / "checkpoint", path / "served")  # what follows spoils it on purpose
    run("run_policy.py", path, FR3.path)
    run("tiny_smolvla.py", path, FR3.path)
    yield path
    shutil.rmtree(path)


def test_our_backend_answers_what_lerobot_computes_itself(folder):
    expected = np.load(folder / "actions.npz")["actions"]
    answers = np.load(folder / "positions.npz")["positions"]
    assert answers.shape == expected.shape == (COUNT, 16, 8)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-3, "the policy looks at what it is shown"
    assert np.abs(answers - expected).max() <= 1e-5


def test_what_is_done_for_speed_changes_the_answer_a_little_or_not_at_all(folder):
    found = json.loads((folder / "said.json").read_text())["variants"]
    assert found["compile default"] <= 1e-4 and found["dtype float32"] == 0.0
    assert 0.0 < found["dtype bfloat16"] <= 0.05
    assert 0.0 < found["quantise int8"] <= 0.05


@pytest.mark.parametrize(("kind", "steps", "horizon"), [("diffusion", 1, 8), ("vqbet", 4, 6)])
def test_a_policy_that_looks_back_sees_what_it_sees_under_lerobot(folder, kind, steps, horizon):
    said = json.loads((folder / "said.json").read_text())[kind]
    assert (said["steps"], said["horizon"]) == (steps, horizon)
    assert said["neglect"] > 1e-4, "the policy looks at its past"
    assert said["difference"] <= 1e-5


def test_smolvla_answers_what_it_answers_under_lerobot(folder):
    said = json.loads((folder / "smolvla.json").read_text())
    assert said["spread"] > 1e-3, "the policy looks at what it is shown"
    assert said["difference"] <= 1e-5
    assert said["compiled"] <= 1e-4


def test_a_language_model_that_is_not_there_is_named(folder):
    refused = json.loads((folder / "smolvla.json").read_text())["refused"]
    assert "LeRobot cannot load checkpoint" in refused and "option backbone" in refused


def test_it_is_served_to_openpi_s_clients_from_lerobot_s_interpreter(folder):
    """The server runs in ROS's environment, the policy in LeRobot's."""
    layout = {
        "observation.images.front": {"camera": "front", "height": 96, "width": 96},
        "observation.state": {"state": ["joint_position"], "joints": list(FR3.joints)},
    }
    action = {"space": "joint_position", "joints": list(FR3.joints)}
    content = {
        "backend": "lerobot",
        "checkpoint": str(folder / "served"),
        "interpreter": PYTHON,
        "load_timeout": 300.0,
        "options": {"inputs": layout, "action": action, "dt": 0.05, "device": "cpu"},
    }
    file = folder / "act.yaml"
    file.write_text(yaml.safe_dump(content))
    given, expected = np.load(folder / "observations.npz"), np.load(folder / "actions.npz")["actions"]
    command = ("-m", "vla_policy_node.serve", str(FR3.path), str(file), "--port", "{port}")
    server = Server(*command, patience=300.0)
    try:
        inputs = robot_layout(FR3, ("front",))
        client = remote_backend("served", server.port, horizon=16, dt=0.05, inputs=inputs, timeout=60.0)
        for state, image, rows in zip(given["state"], given["image"], expected, strict=True):
            positions = state.astype(np.float64)
            seen = Observation(1, {"front": image}, positions, np.zeros_like(positions), "pick")
            assert np.abs(answered(client, seen).positions - rows).max() <= 1e-5
        client.close()
    finally:
        server.kill()


def test_what_does_not_fit_is_refused(folder):
    said = json.loads((folder / "said.json").read_text())
    assert "inputs.observation.images.front: the checkpoint has (3, 96, 96)" in said["size"]
    assert "statistics.observation.state: mean and std missing, needed for MEAN_STD" in said["statistics"]
