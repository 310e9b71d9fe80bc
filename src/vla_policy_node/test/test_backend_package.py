"""A backend of somebody else's package, really installed: found by its name, and loaded by a worker process."""

import os
import queue
import subprocess
import sys
import textwrap
from importlib.metadata import version

import numpy as np
import pytest
from conftest import CAMERAS, write_policy

from vla_contract.errors import ConfigError
from vla_contract.observation import Observation
from vla_policy_node.backends import locate
from vla_policy_node.config import load_policy_file
from vla_policy_node.preflight import preflight, probe_worker, strategy_warning
from vla_policy_node.worker.client import Worker
from vla_policy_node.worker.events import Answer, Ready

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-robot-brain"
version = "1.0"
[project.entry-points."vla_policy_node.backends"]
brain = "my_robot_brain.backend:load"
[tool.setuptools]
packages = ["my_robot_brain"]
"""
BACKEND = """
from vla_policy_node.backends.replay import load as replay


def load(checkpoint, robot, options):
    policy = replay(checkpoint, robot, {"cameras": ["front"]})
    policy.metadata = policy.metadata.model_copy(update={"name": options["name"], "follows_prefix": True})
    return policy
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that pip has installed the package into."""
    if int(version("setuptools").split(".")[0]) < 71:  # the first that makes wheels by itself
        pytest.importorskip("wheel")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "my_robot_brain").mkdir()
    (source / "my_robot_brain" / "__init__.py").touch()
    (source / "my_robot_brain" / "backend.py").write_text(textwrap.dedent(BACKEND))
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def policy(installed, recording, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]))
    schedule = {"strategy": "rtc"}
    return load_policy_file(write_policy(tmp_path, backend="brain", options={"name": "brain"}, schedule=schedule))


def test_it_is_found_by_its_name(policy, robot):
    assert locate("brain") == "my_robot_brain.backend:load"
    assert preflight(robot, policy) is None and strategy_warning(policy, "rtc", None) == ""
    assert probe_worker(policy.worker(robot.path))[1] == {}


def test_without_the_package_its_name_is_refused(recording, tmp_path, robot):
    policy = load_policy_file(write_policy(tmp_path, backend="brain"))
    with pytest.raises(ConfigError, match="unknown backend 'brain'.*install the package that brings it"):
        policy.worker(robot.path)


def test_a_worker_loads_it(policy, robot):
    events = queue.Queue()
    worker = Worker(policy.worker(robot.path), CAMERAS, events.put)
    try:
        worker.start()
        ready = events.get(timeout=60)
        assert isinstance(ready, Ready), ready
        assert ready.metadata.name == "brain" and ready.metadata.follows_prefix
        assert strategy_warning(policy, "rtc", ready.metadata) == ""
        image = {"front": np.zeros((*CAMERAS["front"], 3), np.uint8)}
        worker.infer(Observation(10**9, image, np.array([0.0, 0.5, 0.04]), np.zeros(3), "wave"))
        answer = events.get(timeout=60)
        assert isinstance(answer, Answer) and answer.chunk.positions.shape == (16, 3)
    finally:
        worker.close()
