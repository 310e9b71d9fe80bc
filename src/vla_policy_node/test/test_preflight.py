"""Preflight reads all that files say of a policy, and refuses what does not fit before anything is started."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import limit
from remote import BRINGUP, FR3, aloha
from safetensors.numpy import save_file
from tiny import PI0_OPTIONS, pi0_metadata

from vla_contract.errors import ConfigError, MismatchError
from vla_contract.policy import PolicyMetadata, Statistics
from vla_contract.robot import load_robot
from vla_policy_node.backends.declared import read_floats
from vla_policy_node.config import load_policy_file
from vla_policy_node.preflight import check_policy, main, preflight, strategy_warning

POLICIES = BRINGUP / "config" / "policies"
SERVED = ("served", "openpi_droid", "openpi_libero", "gr00t", "lerobot_async", "openvla")
DEGREES = 180 / np.pi
MEAN = np.array([*FR3.home[:7], 0.02])  # of training data near home: rad, and m of the finger
STD = np.array([0.3] * 7 + [0.015])


def pi0(folder, changes=()):
    text = {"model_type": "pi0", "chunk_size": 10, "max_state_dim": 12, "max_action_dim": 12}
    (folder / "config.json").write_text(json.dumps(text))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "policy.json").write_text(json.dumps({**pi0_metadata(), **dict(changes)}))
    return {key: PI0_OPTIONS[key] for key in ("inputs", "action")}


def openvla(folder):
    q01, q99 = [-0.02] * 6 + [0.0], [0.02] * 6 + [1.0]
    statistics = {"bridge_orig": {"action": {"q01": q01, "q99": q99, "mask": [True] * 6 + [False]}}}
    (folder / "config.json").write_text(json.dumps({"model_type": "openvla", "norm_stats": statistics}))
    options = yaml.safe_load((POLICIES / "openvla_local.yaml").read_text())["options"]
    return {key: options[key] for key in ("inputs", "action", "dt", "horizon", "unnorm_key")}


def lerobot(folder, state=1.0, action=1.0, relative=False, statistics=("mean", "std")):
    """As `lerobot-train` writes it; `state` and `action`: factors of what the data set's numbers are in."""
    shapes = {"observation.images.front": ("VISUAL", [3, 192, 192]), "observation.state": ("STATE", [8])}
    features = {key: {"type": kind, "shape": shape} for key, (kind, shape) in shapes.items()}
    output = {"action": {"type": "ACTION", "shape": [8]}}
    config = {"type": "act", "chunk_size": 16, "input_features": features, "output_features": output}
    (folder / "config.json").write_text(json.dumps(config))
    values = {}
    for vector, factor in (("observation.state", state), ("action", action)):
        low, high = MEAN - STD, MEAN + STD
        all_of_them = {"mean": MEAN, "std": STD, "q01": low, "q99": high, "min": low, "max": high}
        for what in statistics:
            values[f"{vector}.{what}"] = (all_of_them[what] * [*[factor] * 7, 1.0]).astype(np.float32)
    for part, kind in (("policy_preprocessor", "normalizer"), ("policy_postprocessor", "unnormalizer")):
        file = f"{part}_step_0_{kind}_processor.safetensors"
        save_file(values, folder / file)
        steps = [{"registry_name": f"{kind}_processor", "config": {}, "state_file": file}]
        steps += [{"registry_name": "absolute_from_relative_actions", "config": {}}] if relative else []
        (folder / f"{part}.json").write_text(json.dumps({"name": part, "steps": steps}))
    inputs = {
        "observation.images.front": {"camera": "front", "height": 192, "width": 192},
        "observation.state": {"state": ["joint_position", "gripper_position"]},
        "task": {"text": "instruction"},
    }
    action = {"space": "joint_position", "gripper": {"open": 0.04, "closed": 0.0}}
    return {"inputs": inputs, "action": action, "dt": 0.05}


LOCAL = {"pi0": pi0, "openvla": openvla, "lerobot": lerobot}


def written(folder, backend, options, **keys):
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump({"backend": backend, "options": options, **keys}))
    return load_policy_file(path)


def shipped(folder, name, change):
    content = yaml.safe_load((POLICIES / f"{name}.yaml").read_text())
    change(content["options"])
    return written(folder, content.pop("backend"), content.pop("options"), **content)


def misfits(policy, robot=FR3):
    with pytest.raises(MismatchError) as caught:
        preflight(robot, policy)
    return "\n".join(caught.value.misfits)


# What the policy file says


@pytest.mark.parametrize("robot", ["fr3", "fr3_sim"])
@pytest.mark.parametrize("name", SERVED)
def test_what_ships_for_servers_fits(name, robot):
    policy = load_policy_file(POLICIES / f"{name}.yaml")
    metadata = preflight(load_robot(BRINGUP / "config" / "robots" / f"{robot}.yaml"), policy)
    assert metadata.horizon == policy.options["horizon"] and set(metadata.cameras) <= {"front", "wrist"}


@pytest.mark.parametrize("kind", LOCAL)
def test_what_runs_here_fits(kind, tmp_path):
    metadata = preflight(FR3, written(tmp_path, kind, LOCAL[kind](tmp_path)))
    assert metadata.joints == FR3.joints and metadata.horizon == {"pi0": 10, "openvla": 1, "lerobot": 16}[kind]


def test_files_for_another_robot_are_refused_with_every_camera():
    found = misfits(load_policy_file(POLICIES / "openpi_aloha.yaml"))
    for camera in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"):
        assert f"unknown camera '{camera}'; known: front, wrist" in found


@pytest.mark.parametrize("name", ["openpi_aloha", "openvla_oft"])
def test_what_ships_for_aloha_fits_aloha(name, tmp_path):
    robot = aloha()
    robot._path = tmp_path / "aloha.yaml"
    joints = "".join(f'<joint name="{joint}" type="revolute"/>' for joint in robot.joints)
    (tmp_path / "aloha.urdf").write_text(f'<robot name="aloha">{joints}</robot>')
    limits = {"joint_limits": {joint: limit(-3.0, 3.0, 3.0, 10.0, 100.0) for joint in robot.joints}}
    (tmp_path / "aloha.yaml").write_text(yaml.safe_dump(limits))
    assert len(preflight(robot, load_policy_file(POLICIES / f"{name}.yaml")).action) == 14


def cameras(entry):
    if "camera" in entry:
        entry["camera"] = "no_such_camera"
    for part in entry.values():
        if isinstance(part, dict):
            cameras(part)


def wrong(options):
    cameras(options["inputs"])
    options["action"] = {"space": "joint_position", "joints": ["nope", "fr3_joint1"]}


@pytest.mark.parametrize("name", SERVED)
def test_wrong_names_of_a_server_s_policy_file_are_all_refused(name, tmp_path):
    found = misfits(shipped(tmp_path, name, wrong))
    assert "unknown camera 'no_such_camera'; known: front, wrist" in found
    assert "action.joints: unknown joint 'nope'; known: fr3_finger_joint1, fr3_joint1" in found
    assert found.count("correct options of the policy file, or fr3_sim.yaml") == len(found.splitlines()) >= 2


@pytest.mark.parametrize("kind", LOCAL)
def test_wrong_names_of_a_local_policy_file_are_all_refused(kind, tmp_path):
    options = json.loads(json.dumps(LOCAL[kind](tmp_path)))
    wrong(options)
    found = misfits(written(tmp_path, kind, options))
    assert "unknown camera 'no_such_camera'" in found and "unknown joint 'nope'" in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o["action"].update(joints=o["action"]["joints"][:5]), "action: 5 entries (fr3_joint1"),
        (lambda o: o["inputs"]["observation/image/front"].update(height=480, width=640), "takes 640x480, fr3_sim.yaml"),
        (lambda o: o["action"].update(scale=[1.0, 2.0]), "action.scale has 2 values for 8 entries"),
        (lambda o: o["action"].update(gripper={}), "'fr3_finger_joint1' is the gripper and is in joints too"),
        (lambda o: o["action"].update(base={}), "robot 'fr3_sim' has no mobile base"),
    ],
)
def test_layouts_that_the_robot_cannot_have(change, words, tmp_path):
    assert words in misfits(shipped(tmp_path, "served", change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o.pop("horizon"), "horizon"),
        (lambda o: o.update(dt=-1), r"dt \(is -1\)"),
        (lambda o: o["action"].update(space="joint"), "action.space"),
        (lambda o: o.update(api_key_file="/no/key"), "'/no/key' cannot be read"),
    ],
)
def test_options_that_are_wrong(change, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        preflight(FR3, shipped(tmp_path, "served", change))


def test_a_tool_that_the_robot_s_model_does_not_have(tmp_path):
    policy = load_policy_file(POLICIES / "openvla.yaml")
    robot = FR3.model_copy(update={"tool_frame": "hook"})
    robot._path = FR3.path
    assert "hook" in misfits(policy, robot)


# What the checkpoint says


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("openvla", lambda o: o["action"].pop("gripper"), "the checkpoint's have 7 entries, the policy file 6"),
        ("lerobot", lambda o: o["inputs"].pop("observation.state"), "the checkpoint has (8,), the policy file none"),
        (
            "lerobot",
            lambda o: o["inputs"]["observation.images.front"].update(height=96),
            "inputs.observation.images.front: the checkpoint has (3, 192, 192), the policy file (3, 96, 192)",
        ),
        ("lerobot", lambda o: o["action"].pop("gripper"), "the checkpoint has (8,), the policy file (7,)"),
        (
            "lerobot",
            lambda o: o["inputs"].update({"observation.images.top": {"camera": "wrist"}}),
            "inputs.observation.images.top: the checkpoint has no such input, the policy file (3, 224, 224)",
        ),
        ("pi0", lambda o: o["inputs"].pop("wrist"), "cameras: policy.json says"),
        ("pi0", lambda o: o["action"].pop("gripper"), "action: policy.json says"),
    ],
)
def test_a_policy_file_that_reads_its_checkpoint_otherwise(kind, change, words, tmp_path):
    options = json.loads(json.dumps(LOCAL[kind](tmp_path)))
    change(options)
    assert words in misfits(written(tmp_path, kind, options))


def test_parts_of_different_checkpoints(tmp_path):
    policy = written(tmp_path, "pi0", pi0(tmp_path, {"horizon": 50}))
    with pytest.raises(ConfigError, match=r"gives horizon the size 50, config.json 10: they belong to different"):
        preflight(FR3, policy)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_folder_that_is_no_checkpoint(kind, tmp_path):
    policy = written(tmp_path, kind, LOCAL[kind](tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config.json' cannot be read.*is the checkpoint complete"):
        preflight(FR3, policy)


# Units


def pi0_in(folder, state, action, scale=1.0):
    vectors = {"state": MEAN * state, "action": MEAN * action}
    spread = {"state": STD * state, "action": STD * action}
    for each in (vectors, spread):
        each["state"][7] = each["action"][7] = 0.5  # the gripper's share
    told = {name: {"mean": vectors[name].tolist(), "std": spread[name].tolist()} for name in vectors}
    options = pi0(folder, {"statistics": told})
    return written(folder, "pi0", {**options, "action": {**options["action"], "scale": scale}})


def test_a_state_in_rad_with_actions_in_degrees_is_refused(tmp_path):
    found = misfits(pi0_in(tmp_path, 1.0, DEGREES))
    assert "statistics.action.mean[3] of 'fr3_joint4': -139.315, the joint moves from -3.04" in found
    assert "rad; other units, another order, or another robot; action.scale of the policy file converts units" in found
    assert "statistics.action.std[0] of 'fr3_joint1': 17.1887, at most" in found and "state" not in found


def test_actions_in_degrees_that_the_policy_file_converts_fit(tmp_path):
    assert preflight(FR3, pi0_in(tmp_path, 1.0, DEGREES, 1 / DEGREES)).statistics["action"].mean[0] == 0.0
    assert "statistics.state.mean[3]" in misfits(pi0_in(tmp_path, DEGREES, 1.0))


def test_a_gripper_in_percent_is_refused(tmp_path):
    told = pi0_metadata()["statistics"]
    told["state"]["mean"][7], told["state"]["std"][7] = 60.0, 30.0
    found = misfits(written(tmp_path, "pi0", pi0(tmp_path, {"statistics": told})))
    assert "statistics.state.mean[7] of 'gripper_open': 60, it is a share from 0 to 1; other units" in found


@pytest.mark.parametrize("statistics", [("mean", "std"), ("q01", "q99"), ("min", "max")])
def test_a_lerobot_checkpoint_in_degrees_is_refused(statistics, tmp_path):
    options = lerobot(tmp_path, DEGREES, DEGREES, statistics=statistics)
    found = misfits(written(tmp_path, "lerobot", options))
    assert "statistics.state.mean[3] of 'joint_position:fr3_joint4': -139.3" in found
    assert "statistics.action.mean[5] of 'fr3_joint6': 124.4" in found
    preflight(FR3, written(tmp_path, "lerobot", lerobot(tmp_path, statistics=statistics)))
    converted = lerobot(tmp_path, 1.0, DEGREES, statistics=statistics)
    converted["action"]["scale"] = 1 / DEGREES
    preflight(FR3, written(tmp_path, "lerobot", converted))


def test_lerobot_s_relative_actions_say_nothing_of_the_robot(tmp_path):
    preflight(FR3, written(tmp_path, "lerobot", lerobot(tmp_path, action=0.0, relative=True)))
    assert "fr3_joint6" in misfits(written(tmp_path, "lerobot", lerobot(tmp_path, action=0.0)))


def test_processors_without_their_statistics_file(tmp_path):
    options = lerobot(tmp_path)
    (tmp_path / "policy_postprocessor_step_0_unnormalizer_processor.safetensors").unlink()
    with pytest.raises(ConfigError, match="unnormalizer_processor.safetensors' cannot be read"):
        preflight(FR3, written(tmp_path, "lerobot", options))


def described(space, action, mean, std, horizon=10, dt=0.05):
    """A policy whose action has these statistics; its state has none."""
    return PolicyMetadata(
        name="p",
        cameras={},
        joints=FR3.joints,
        state=(),
        action_space=space,
        action=action,
        horizon=horizon,
        dt=dt,
        tool_frame=FR3.tool_frame if space.startswith("ee") else None,
        statistics={"state": Statistics(mean=(), std=()), "action": Statistics(mean=mean, std=std)},
    )


ARM = FR3.joints[:7]
DELTAS = tuple(f"d_{joint}" for joint in ARM)
TOOL = ("dx[m]", "dy[m]", "dz[m]", "gripper")


@pytest.mark.parametrize(
    ("space", "action", "std", "factor"),
    [
        ("joint_delta", DELTAS, [0.05] * 7, DEGREES),
        ("joint_delta", ARM, [0.05] * 7, DEGREES),
        ("ee_delta_position", TOOL, [0.01] * 3 + [0.5], 1000.0),
        ("ee_pose", ("x[m]", "y[m]", "z[m]", *(f"euler_xyz_{i}" for i in range(3))), [0.1] * 6, 1000.0),
    ],
)
def test_spread_of_deltas_and_poses_in_foreign_units(space, action, std, factor):
    zeros = [0.0] * len(std)
    check_policy(described(space, action, zeros, std), FR3, "previous")
    wrong = described(space, action, zeros, [value * factor for value in std])
    with pytest.raises(MismatchError, match=r"statistics.action.std\[0\] of '.*': .*, at most .* is possible"):
        check_policy(wrong, FR3, "previous" if "delta" in space else "observation")


def test_deltas_from_the_observation_may_be_larger_by_the_horizon():
    wide = described("joint_delta", DELTAS, [0.0] * 7, [0.9] * 7)
    check_policy(wide, FR3, "observation")
    with pytest.raises(MismatchError, match=r"in 0.05 s the joint moves at most 0.131 rad"):
        check_policy(wide, FR3, "previous")


# Strategies


@pytest.mark.parametrize(
    ("backend", "options", "told"),
    [
        ("openpi", {}, True),
        ("lerobot", {}, True),
        ("openvla", {}, True),
        ("replay", {}, True),
        ("pi0", {"guidance": 0}, True),
        ("pi0", {}, False),
        ("flow", {}, False),
        ("my.module:load", {}, False),
    ],
)
def test_rtc_without_effect_is_told(backend, options, told, tmp_path):
    policy = written(tmp_path, backend, options)
    assert ("rtc has no effect" in strategy_warning(policy, "rtc", None)) == told
    assert strategy_warning(policy, "async", None) == ""


def test_a_backend_of_your_own_says_whether_rtc_has_an_effect(tmp_path):
    policy = written(tmp_path, "my.module:load", {})
    plain = described("joint_delta", DELTAS, [0.0] * 7, [0.1] * 7)
    assert "does not say" in strategy_warning(policy, "rtc", plain)
    for follows, told in ((True, False), (False, True)):
        metadata = plain.model_copy(update={"follows_prefix": follows})
        assert ("cannot be told" in strategy_warning(policy, "rtc", metadata)) == told


def test_the_command_warns_and_still_succeeds(tmp_path, capsys):
    content = yaml.safe_load((POLICIES / "served.yaml").read_text()) | {"schedule": {"strategy": "rtc"}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    assert main([str(FR3.path), str(tmp_path / "p.yaml")]) == 0
    assert "warning: strategy rtc has no effect: backend 'openpi' cannot be told" in capsys.readouterr().err


def test_no_library_of_models_is_imported(tmp_path):
    policy = written(tmp_path, "lerobot", lerobot(tmp_path))
    code = (
        "import sys; from vla_policy_node.preflight import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'safetensors', 'rclpy'} & set(sys.modules); sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", code, str(FR3.path), str(policy.path)], check=True)


def test_tensors_are_read_as_the_library_writes_them(tmp_path):
    values = {"a.mean": np.arange(6.0).reshape(2, 3), "b": np.float32([1.5]), "count": np.int64([3])}
    save_file(values, tmp_path / "x.safetensors")
    found = read_floats(tmp_path / "x.safetensors")
    assert set(found) == {"a.mean", "b"} and found["b"].tolist() == [1.5]
    np.testing.assert_array_equal(found["a.mean"], np.arange(6.0))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\x09" + b"\x00" * 7 + b"{"]
)
def test_tensors_that_are_malformed(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="is no safetensors file"):
        read_floats(tmp_path / "x.safetensors")
