"""The doctor names what does not fit, with expected and found; it starts nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vla_bringup.doctor import examine, policy_checks, safety_checks
from vla_bringup.files import find
from vla_contract.policy import METADATA_FILE
from vla_contract.robot import load_robot, resolve_path
from vla_policy_node.import_policy import main


@pytest.fixture(scope="module")
def checkpoint():
    return resolve_path("package://vla_policy_node/models/flow", Path.cwd())


@pytest.fixture
def policy(tmp_path, checkpoint):
    """Writes a policy file whose checkpoint is the shipped one with other metadata."""

    def write(change=lambda metadata: None, **keys):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        metadata = json.loads((checkpoint / METADATA_FILE).read_text())
        change(metadata)
        (folder / METADATA_FILE).write_text(json.dumps(metadata))
        (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump({"backend": "flow", "checkpoint": "checkpoint", **keys}))
        return str(path)

    return write


def written(path, source, **changes):
    """A copy of a shipped file with other values; paths inside it made absolute."""
    content = yaml.safe_load(source.read_text())
    if "description" in content:
        robot = load_robot(source)
        content["description"] = {k: str(robot.resolve(v)) for k, v in content["description"].items()}
        content["safety"] = str(robot.resolve(robot.safety))
    path.write_text(yaml.safe_dump(content | changes))
    return str(path)


@pytest.fixture(scope="module")
def robot():
    return load_robot(find("robots", "fr3_sim"))


def failures(checks):
    return {check.name: check.found for check in checks if check.level == "failed"}


def test_what_ships_fits():
    checks = examine("fr3_sim", "flow")
    assert not failures(checks)
    assert {"policy and robot", "weights", "worker", "filter self-test", "DDS profile"} <= {c.name for c in checks}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m["statistics"].pop("action"), "statistics.action: missing, expected mean and std of 4 entries"),
        (lambda m: m["joints"].reverse(), "joints: the policy expects ['fr3_finger_joint1', 'fr3_joint7'"),
        (
            lambda m: m["state"].__setitem__(0, "fr3_joint1.position[deg]"),
            "state[0] 'fr3_joint1.position[deg]': unit deg, expected rad",
        ),
        (
            lambda m: m["state"].__setitem__(7, "fr3_finger_joint1.position[mm]"),
            "state[7] 'fr3_finger_joint1.position[mm]': unit mm, expected m",
        ),
        (
            lambda m: m["statistics"]["state"]["mean"].__setitem__(3, -132.5),
            "statistics.state.mean[3] of 'fr3_joint4.position[rad]': -132.5, the joint moves from -3.04",
        ),
        (
            lambda m: m["cameras"].update(left=m["cameras"]["front"]),
            "camera 'left': the policy expects it, fr3_sim.yaml has front, wrist",
        ),
        (
            lambda m: m["cameras"]["front"].update(width=640, height=480),
            "camera 'front': the policy takes 640x480, fr3_sim.yaml has only 192x192",
        ),
        (lambda m: m.update(action_space="joint_position"), "action: 4 entries ("),
        (lambda m: m.update(tool_frame="flange"), "tool_frame: the policy moves 'flange', fr3_sim.yaml has"),
    ],
)
def test_a_policy_that_does_not_fit(robot, policy, change, found):
    (only,) = [text for name, text in failures(policy_checks(robot, policy(change))).items() if name != "worker"]
    assert found in only


def test_weights_of_another_checkpoint(robot, policy):
    path = policy(lambda m: m.update(digest="0" * 64))
    assert "the weights were changed or belong to another checkpoint" in failures(policy_checks(robot, path))["policy"]


def served(path, change=lambda options: None, **keys):
    """The shipped policy file for a server, changed."""
    content = yaml.safe_load(find("policies", "served").read_text()) | keys
    change(content["options"])
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_server_s_policy_file_is_compared_without_the_server(robot, tmp_path):
    def wrong(options):
        options["inputs"]["observation/image/front"]["camera"] = "no_such_camera"
        options["action"]["joints"][0] = "nope"

    checks = list(policy_checks(robot, served(tmp_path / "p.yaml", wrong)))
    misfits = [check for check in checks if check.name == "policy and robot"]
    assert [check.level for check in misfits] == ["failed"] * len(misfits) and all(check.remedy for check in misfits)
    found = "\n".join(check.found for check in misfits)
    assert "unknown camera 'no_such_camera'; known: front, wrist" in found and "unknown joint 'nope'; known" in found
    (fits,) = [c for c in policy_checks(robot, served(tmp_path / "p.yaml")) if c.name == "policy and robot"]
    assert (fits.level, fits.found) == ("ok", "served fits fr3_sim: cameras, joints, action space")


def test_rtc_with_a_policy_that_cannot_be_told_is_a_warning(robot, policy, tmp_path):
    rtc = {"schedule": {"strategy": "rtc"}}
    (told,) = [c for c in policy_checks(robot, served(tmp_path / "p.yaml", **rtc)) if c.name == "strategy"]
    assert told.level == "warning" and "rtc has no effect: backend 'openpi' cannot be told" in told.found
    assert "async" in told.remedy
    assert "strategy" not in {check.name for check in policy_checks(robot, policy(**rtc))}


def test_an_interpreter_that_is_not_there_or_lacks_packages(robot, policy, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    found = failures(policy_checks(robot, policy(interpreter=str(bare / "bin" / "python"))))
    assert "cannot import" in found["worker"]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"backend": "flow", "checkpoint": "checkpoint", "interpreter": "/no/python"}))
    found = failures(policy_checks(robot, str(other)))
    assert "interpreter '/no/python' does not exist" in found["policy"] and "/no/python" in found["worker"]


def test_a_robot_whose_urdf_lacks_a_joint(tmp_path):
    source = find("robots", "fr3_sim")
    joints = [*load_robot(source).joints[:-1], "fr3_thumb"]
    path = written(tmp_path / "r.yaml", source, joints=joints, gripper=None)
    assert "fr3_thumb" in failures(examine(path, "flow"))["robot file"]


def test_images_that_the_transport_cannot_hold(tmp_path):
    source = find("robots", "fr3_sim")
    cameras = yaml.safe_load(source.read_text())["cameras"]
    cameras["front"] |= {"width": 8000, "height": 6000}
    path = written(tmp_path / "r.yaml", source, cameras=cameras)
    assert "an image of 144.0 MB, expected at most 16 MB" in failures(examine(path, "flow"))["cameras"]


@pytest.mark.parametrize(
    ("changes", "name", "found"),
    [
        ({"margn": 0.1}, "safety file", "margn"),
        (
            {"zones": [{"name": "here", "kind": "keep_out", "box": {"center": [0.3, 0, 0.5], "size": [1, 1, 1]}}]},
            "filter self-test",
            "home of 'fr3_sim' is not safe",
        ),
    ],
)
def test_a_safety_file_that_does_not_fit(robot, tmp_path, changes, name, found):
    safety = written(tmp_path / "s.yaml", find("safety", "cell"), **changes)
    assert found in failures(safety_checks(robot, safety))[name]


@pytest.mark.parametrize("name", ["fr3", "fr3_sim"])
def test_a_copy_of_a_robot_file_elsewhere_fits(tmp_path, name):
    copy = tmp_path / "my_robot.yaml"
    copy.write_text(find("robots", name).read_text())
    assert not failures(examine(str(copy), "served"))


def test_policies_of_the_simulator_on_a_robot(robot):
    fr3 = load_robot(find("robots", "fr3"))
    (found,) = failures(policy_checks(fr3, "expert")).values()
    assert "reads the simulator's ground truth; 'fr3' is no simulator" in found
    assert not failures(policy_checks(robot, "expert"))
    (training,) = [c for c in policy_checks(fr3, "flow") if c.name == "training"]
    assert training.level == "warning" and "trained in the simulated cell" in training.found
    assert "training" not in {check.name for check in policy_checks(robot, "flow")}


def test_a_server_that_is_away_and_one_that_is_there(robot, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path = served(tmp_path / "p.yaml", lambda options: options.update(port=port))
        (there,) = [c for c in policy_checks(robot, path) if c.name == "policy server"]
    (away,) = [c for c in policy_checks(robot, path) if c.name == "policy server"]
    assert (there.level, away.level) == ("ok", "warning")
    assert f"nobody answers at 127.0.0.1:{port}" in away.found and "start the server" in away.remedy


def test_a_checkpoint_that_is_still_to_be_imported(robot, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "pi0"}')
    assert main([str(tmp_path)]) == 0
    path = tmp_path / "policy.yaml"
    command = f"./vla import-policy {tmp_path} --robot {robot.path} --policy {path}"
    (draft,) = [check for check in policy_checks(robot, str(path)) if check.level == "failed"]
    assert "options.inputs.state.state: parts that make" in draft.found and command in draft.remedy
    content = yaml.safe_load(path.read_text())
    content["options"] = {
        "inputs": {
            "image_1": {"camera": "front"}, "state": {"state": ["joint_position"]}, "prompt": {"text": "instruction"}
        },
        "action": {"space": "joint_position"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    (missing,) = [check for check in policy_checks(robot, str(path)) if check.name == "policy"]
    assert METADATA_FILE in missing.found and missing.remedy.startswith(command)


def doctor(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "vla_bringup.cli", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )


def test_the_command_ends_with_2_and_says_why(tmp_path):
    missing = str(tmp_path / "profile.xml")
    answer = doctor("policy=flow", "--json", FASTRTPS_DEFAULT_PROFILES_FILE=missing, MUJOCO_GL="nonsense")
    assert answer.returncode == 2, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    levels = {check["name"]: check["level"] for check in report["checks"]}
    assert levels["DDS profile"] == "failed" and levels["drawing"] == "warning" and not report["fits"]
    assert all(check["remedy"] for check in report["checks"] if check["level"] != "ok")


@pytest.mark.parametrize("words", [("robot",), ("speed=1",), ("robot=a", "robot=b")])
def test_wrong_words_end_with_2(words):
    answer = doctor(*words, "--json")
    assert answer.returncode == 2 and "error" in json.loads(answer.stdout.splitlines()[-1])
