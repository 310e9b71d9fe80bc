"""LeRobot's policies in this process, as far as it goes without LeRobot; `./vla interop` has the rest."""

import importlib.util
from collections import deque
from types import SimpleNamespace

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


def test_queues_hold_what_came_with_the_inference_and_nothing_else():
    import torch

    from vla_policy_node.backends.lerobot import with_history

    keys = ("observation.state", "observation.images")
    policy = SimpleNamespace(
        _queues={**{key: deque(maxlen=3) for key in keys}, "action": deque(maxlen=4)},
        config=SimpleNamespace(image_features={"observation.images.front": None, "observation.images.wrist": None}),
    )

    def frame(k):
        pictures = {key: torch.full((1, 3, 2, 2), float(k)) for key in policy.config.image_features}
        return {"observation.state": torch.full((1, 8), float(k)), **pictures, "task": ["go"], "action": None}

    for k in (0, 20, 40):  # inferences
        batch = with_history(policy, [frame(k), frame(k + 1), frame(k + 2)])
        for key in keys:
            assert [float(one.mean()) for one in policy._queues[key]] == [k, k + 1, k + 2]
        assert policy._queues["observation.images"][0].shape == (1, 2, 3, 2, 2)
        # LeRobot stacks the queue of each key of the batch: an empty one, the actions', would be an error.
        assert "action" not in batch and batch["observation.images"].mean() == k + 2 and not policy._queues["action"]


def test_a_policy_without_queues_gets_the_batch_as_it_is():
    from vla_policy_node.backends.lerobot import with_history

    frame = {"observation.state": 1}
    assert with_history(SimpleNamespace(config=None), [frame]) is frame
