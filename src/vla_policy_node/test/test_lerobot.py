"""LeRobot's policies in this process, as far as it goes without LeRobot; `./vla interop` has the rest."""

import importlib.util

import pytest
from remote import FR3

from vla_contract.errors import ConfigError
from vla_policy_node.backends import load_backend, locate

pytest.importorskip("torch")

OPTIONS = {
    "inputs": {
        "observation.images.front": {"camera": "front", "height": 96, "width": 96},
        "observation.state": {"state": ["joint_position"], "joints": list(FR3.joints)},
        "task": {"text": "instruction"},
    },
    "action": {"space": "joint_position", "joints": list(FR3.joints)},
    "dt": 0.05,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"type": "act"}')
    return tmp_path


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is installed")
def test_without_lerobot_the_remedy_is_named(checkpoint):
    with pytest.raises(ConfigError, match="needs Python package 'lerobot' 0.4 or newer.*name an interpreter"):
        load_backend(locate("lerobot"), checkpoint, FR3, OPTIONS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dt": 0}, "dt"),
        ({"chunk": 3}, "chunk"),
        ({"inputs": {**OPTIONS["inputs"], "observation.images.top": {"camera": "top"}}}, "unknown camera 'top'"),
    ],
)
def test_options_that_are_wrong_are_refused(checkpoint, changes, told):
    with pytest.raises(ConfigError, match=told):
        load_backend(locate("lerobot"), checkpoint, FR3, {**OPTIONS, **changes})


def test_a_name_of_the_hub_is_no_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"config.json' cannot be read"):
        load_backend(locate("lerobot"), tmp_path / "lerobot" / "smolvla_base", FR3, OPTIONS)
