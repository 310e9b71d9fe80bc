"""From published checkpoint folders to a policy file and policy.json, with tiny checkpoints."""

import json

import numpy as np
import pytest
import yaml
from remote import BRINGUP, FR3, observation
from safetensors.numpy import save_file
from tiny import JOINTS, PI0_OPTIONS, pi0_metadata, pi0_model, write_tokenizer

from vla_contract.errors import ConfigError, MismatchError, VlaError
from vla_contract.policy import load_metadata
from vla_policy_node.backends import load_backend, locate
from vla_policy_node.config import load_policy_file
from vla_policy_node.import_policy import draft, main, metadata_for, read_statistics, to_fill

pytest.importorskip("torch")
ROBOT = BRINGUP / "config" / "robots" / "fr3_sim.yaml"
OPENVLA_RANGE = {"q01": [-0.01] * 3 + [-0.02] * 3 + [0.0], "q99": [0.01] * 3 + [0.03] * 3 + [1.0]}


@pytest.fixture(scope="module")
def pi0_model_folder(tmp_path_factory):
    pytest.importorskip("transformers.models.pi0", reason="this version of transformers has no π0")
    folder = tmp_path_factory.mktemp("published")
    pi0_model().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def pi0(pi0_model_folder, tmp_path):
    """As openpi's checkpoints have it: statistics of 32 entries, of which the robot uses the first."""
    for path in pi0_model_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    told = pi0_metadata()["statistics"]
    vectors = {"state": told["state"], "actions": told["action"]}
    padded = {name: {key: [*values, *[0.0] * 24] for key, values in each.items()} for name, each in vectors.items()}
    assets = tmp_path / "assets" / "fr3"
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": padded}))
    return tmp_path


@pytest.fixture
def openvla(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "openvla", "norm_stats": {"bridge_orig": {"action": OPENVLA_RANGE}, "other": {}}})
    )
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def lerobot(tmp_path):
    features = {
        "observation.images.top": {"type": "VISUAL", "shape": [3, 96, 128]},
        "observation.state": {"type": "STATE", "shape": [8]},
    }
    config = {"type": "smolvla", "input_features": features, "chunk_size": 50, "vlm_model_name": "someone/SomeVLM"}
    config["output_features"] = {"action": {"type": "ACTION", "shape": [8]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    flat = {
        f"{vector}.{what}": np.full(8, value, np.float32)
        for vector in ("observation.state", "action")
        for what, value in (("mean", 0.5), ("std", 2.0))
    }
    save_file(flat, tmp_path / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    return tmp_path


def completed(folder, **changes):
    """The draft with what the user fills in."""
    content = draft(folder)
    content["options"] |= changes
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def pi0_file(folder):
    return completed(folder, **PI0_OPTIONS)


def lerobot_file(folder, **changes):
    inputs = {
        "observation.images.top": {"camera": "front", "height": 96, "width": 128},
        "observation.state": {"state": ["joint_position"], "joints": list(FR3.joints)},
        "task": {"text": "instruction"},
    }
    action = {"space": "joint_position", "joints": list(FR3.joints)}
    values = {"inputs": inputs, "action": action, "dt": 0.05, "backbone": "/models/vlm"} | changes
    path = completed(folder, **values)
    content = yaml.safe_load(path.read_text()) | {"interpreter": "/opt/lerobot/bin/python"}
    path.write_text(yaml.safe_dump(content))
    return path


# Drafts


def test_a_draft_says_what_the_checkpoint_says_and_names_the_rest(lerobot):
    content = draft(lerobot)
    assert content["backend"] == "lerobot" and content["checkpoint"] == "."
    assert content["options"]["inputs"]["observation.images.top"]["height"] == 96
    left = dict(to_fill(content))
    assert set(left) == {
        "interpreter", "options.inputs.observation.images.top.camera", "options.inputs.observation.state.state",
        "options.action.space", "options.action.gripper", "options.dt", "options.backbone",
    }  # fmt: skip
    assert (
        "8 numbers" in left["options.inputs.observation.state.state"] and "someone/SomeVLM" in left["options.backbone"]
    )


def test_openvla_s_data_sets_are_listed_and_a_single_one_is_taken(openvla):
    assert dict(to_fill(draft(openvla)))["options.unnorm_key"] == "one of bridge_orig, other"
    (openvla / "dataset_statistics.json").write_text(json.dumps({"mine": {"action": OPENVLA_RANGE}}))
    content = draft(openvla)
    assert content["options"]["unnorm_key"] == "mine" and "7 numbers" in content["options"]["action"]["space"]


def test_pi0_s_widths_come_from_its_statistics(pi0):
    assert "make 32 numbers" in dict(to_fill(draft(pi0)))["options.inputs.state.state"]


@pytest.mark.parametrize("name", ["pi0", "openvla", "lerobot"])
def test_no_draft_runs_before_it_is_completed(name, request):
    folder = request.getfixturevalue(name)
    assert main([str(folder)]) == 0
    file = load_policy_file(folder / "policy.yaml")
    spec = file.worker(ROBOT)
    (folder / "policy.json").write_text(json.dumps(pi0_metadata()))  # so that nothing else is missing
    with pytest.raises(VlaError):
        load_backend(spec.backend, spec.checkpoint, FR3, spec.options)
    with pytest.raises(ConfigError, match="values are to be filled in: .*options.action.space"):
        metadata_for(folder, file.path, FR3)


def test_folders_that_are_not_known_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="config.json' cannot be read"):
        draft(tmp_path)
    with pytest.raises(ConfigError, match="folder '.*none' does not exist"):
        draft(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is of 'bert'; known are transformers' pi0, openvla, and LeRobot's"):
        draft(tmp_path)


# policy.json


def test_pi0_answers_with_the_imported_metadata_as_with_a_hand_written_one(pi0, capsys):
    arguments = [str(pi0), "--robot", str(ROBOT), "--policy", str(pi0_file(pi0)), "--dt", "0.05"]
    assert main(arguments) == 0
    assert "10 x 8, fits fr3_sim" in capsys.readouterr().out
    metadata = load_metadata(pi0)
    assert metadata.state == tuple(pi0_metadata()["state"]) and metadata.action == (*JOINTS, "gripper")
    imported = load_backend(locate("pi0"), pi0, FR3, PI0_OPTIONS).infer(observation(), None).positions
    (pi0 / "policy.json").write_text(json.dumps(pi0_metadata()))
    written = load_backend(locate("pi0"), pi0, FR3, PI0_OPTIONS).infer(observation(), None).positions
    assert np.abs(imported - written).max() < 1e-4  # openpi adds 1e-6 to a deviation
    assert main(arguments) == 2, "it does not overwrite"
    assert "exists already; --force overwrites it" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_lerobot_s_statistics_are_those_of_its_processors(lerobot):
    metadata = metadata_for(lerobot, lerobot_file(lerobot), FR3)
    assert (metadata.horizon, metadata.dt, metadata.cameras["front"].width) == (50, 0.05, 128)
    assert metadata.statistics["action"].mean == (0.5,) * 8
    assert metadata.statistics["state"].std == pytest.approx((2.0,) * 8)


def test_openvla_s_range_becomes_mean_and_deviation(openvla):
    action = {"space": "ee_delta", "rotation": "euler_xyz", "gripper": {"open": 1.0, "closed": 0.0}}
    inputs = {"image": {"camera": "front", "height": None, "width": None}, "prompt": {"text": "instruction"}}
    path = completed(openvla, inputs=inputs, action=action, dt=0.2, unnorm_key="bridge_orig")
    metadata = metadata_for(openvla, path, FR3)
    assert metadata.statistics["action"].std == pytest.approx([0.01] * 3 + [0.025] * 3 + [0.5])
    assert metadata.tool_frame == FR3.tool_frame and metadata.state == ()


def test_misfits_are_named(lerobot):
    path = lerobot_file(lerobot, action={"space": "joint_position"})
    with pytest.raises(ConfigError, match="action has 8 entries, the policy file makes 7: fr3_joint1"):
        metadata_for(lerobot, path, FR3)


def test_what_is_missing_or_ambiguous_is_named(pi0):
    path = pi0_file(pi0)
    with pytest.raises(ConfigError, match="time between two actions is not in .*give it as --dt"):
        metadata_for(pi0, path, FR3)
    (pi0 / "stats.json").write_text(json.dumps({"action": {"mean": [0], "std": [1]}}))
    with pytest.raises(ConfigError, match="2 files with statistics .*name the right one as --statistics"):
        metadata_for(pi0, path, FR3, 0.05)
    with pytest.raises(ConfigError, match="stats.json has no mean and deviation of state; it has action"):
        metadata_for(pi0, path, FR3, 0.05, pi0 / "stats.json")
    with pytest.raises(ConfigError, match="backend 'pi0', but the checkpoint is one for 'openvla'"):
        (pi0 / "config.json").unlink()
        (pi0 / "config.json").write_text('{"model_type": "openvla"}')
        metadata_for(pi0, path, FR3, 0.05)


def test_statistics_of_a_constant_vector_do_not_fit_a_robot(lerobot):
    flat = {
        f"{v}.{w}": np.full(8, 0.0 if v == "action" else 1.0)
        for v in ("observation.state", "action")
        for w in ("mean", "std")
    }
    (source,) = lerobot.glob("*normalizer*")
    save_file(flat, source)
    assert read_statistics(source)["action"][1].max() == pytest.approx(1e-8)
    (lerobot / "elsewhere.json").write_text(
        json.dumps({"action": {"mean": [0] * 8, "std": [0] * 8}, "state": {"mean": [0] * 8, "std": [1] * 8}})
    )
    with pytest.raises(MismatchError, match="positive deviations"):
        metadata_for(lerobot, lerobot_file(lerobot), FR3, statistics=lerobot / "elsewhere.json")
