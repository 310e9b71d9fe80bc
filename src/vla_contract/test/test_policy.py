"""Preflight: a checkpoint that does not fit its robot, or itself, is refused by name."""

import json

import pytest
import yaml
from test_robot import ROBOT

from vla_contract.errors import ConfigError, MismatchError
from vla_contract.policy import check_fit, file_digest, load_metadata
from vla_contract.robot import load_robot

STATISTICS = {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
POLICY = {
    "name": "p",
    "cameras": {"front": {"height": 96, "width": 96}},
    "joints": ["a", "b"],
    "state": ["joint_position.a[rad]", "joint_position.b[m]"],
    "action_space": "joint_position",
    "action": ["a[rad]", "b[m]"],
    "horizon": 16,
    "dt": 0.1,
    "statistics": {"state": STATISTICS, "action": STATISTICS},
}


@pytest.fixture
def robot(tmp_path):
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(ROBOT))
    return load_robot(tmp_path / "two.yaml")


def checkpoint(folder, **changes):
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "policy.json").write_text(json.dumps({**POLICY, **changes}))
    return folder


def test_fits(tmp_path, robot):
    metadata = load_metadata(checkpoint(tmp_path))
    assert metadata.digest == file_digest(tmp_path / "model.safetensors") and len(metadata.digest) == 64
    check_fit(metadata, robot)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {"top": {"height": 1, "width": 1}}}, "camera 'top': the policy expects it, two.yaml has front"),
        ({"joints": ["b", "a"]}, r"joints: the policy expects \['b', 'a'\]"),
        (
            {"action_space": "ee_delta", "tool_frame": "hand"},
            "tool_frame: the policy moves 'hand', two.yaml has 'tool'",
        ),
        ({"statistics": {"state": STATISTICS}}, "statistics.action: missing, expected mean and std of 2"),
        ({"statistics": {"state": STATISTICS, "action": {"mean": [0], "std": [1, 1]}}}, "action.mean: 1 entries"),
        ({"statistics": {"state": STATISTICS, "action": {"mean": [0, 0], "std": [1, 0]}}}, "positive deviations"),
    ],
)
def test_misfits_are_named(tmp_path, robot, changes, words):
    with pytest.raises(MismatchError, match=words):
        check_fit(load_metadata(checkpoint(tmp_path, **changes)), robot)


def test_all_misfits_at_once(tmp_path, robot):
    with pytest.raises(MismatchError) as error:
        check_fit(load_metadata(checkpoint(tmp_path, joints=["b", "a"], statistics={})), robot)
    assert len(error.value.misfits) == 3


def test_i18_changed_weights_are_refused(tmp_path):
    digest = load_metadata(checkpoint(tmp_path)).digest
    checkpoint(tmp_path, digest=digest)
    for bit in range(8 * len(b"weights")):
        flipped = bytearray(b"weights")
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "model.safetensors").write_bytes(bytes(flipped))
        with pytest.raises(ConfigError, match="the weights were changed"):
            load_metadata(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("policy.json", None, "no readable policy.json"),
        ("policy.json", "{", "is not JSON"),
        ("policy.json", "{}", "name: Field required"),
        ("model.safetensors", None, "cannot be read"),
    ],
)
def test_broken_checkpoints(tmp_path, file, content, words):
    checkpoint(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_metadata(tmp_path)


def test_what_a_policy_looks_back_at(tmp_path, robot):
    assert load_metadata(checkpoint(tmp_path)).history is None
    found = load_metadata(checkpoint(tmp_path, history={"steps": 4, "dt": 0.1}))
    assert found.history.span == pytest.approx(0.4)
    check_fit(found, robot)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"steps": 0, "dt": 0.1}, "history.steps"),
        ({"steps": 16, "dt": 0.1}, "history.steps"),
        ({"steps": 2, "dt": 0.0}, "history.dt"),
        ({"steps": 11, "dt": 0.5}, r"11 steps of 0.5 s are 5.5 s \(> 5 s\)"),
    ],
)
def test_a_history_that_nobody_can_keep_is_refused(tmp_path, history, words):
    with pytest.raises(ConfigError, match=words):
        load_metadata(checkpoint(tmp_path, history=history))


def test_a_camera_too_slow_for_the_history_is_named(tmp_path, robot):
    rate = robot.cameras["front"].rate
    found = load_metadata(checkpoint(tmp_path, history={"steps": 1, "dt": 0.5 / rate}))
    with pytest.raises(MismatchError, match=f"camera 'front': {rate:g} Hz in two.yaml, .* {2 * rate:.3g} Hz or more"):
        check_fit(found, robot)
