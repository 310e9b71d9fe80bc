"""Robot files and joint limits: what is right is read, what is wrong is named."""

import copy

import pytest
import yaml

from vla_contract.errors import ConfigError
from vla_contract.limits import load_joint_limits
from vla_contract.robot import load_robot, resolve_path

ROBOT = {
    "name": "two",
    "description": {"urdf": "two.urdf", "srdf": "two.srdf", "joint_limits": "limits.yaml"},
    "base_frame": "base",
    "tool_frame": "tool",
    "joints": ["a", "b"],
    "gripper": {"joint": "b", "open": 0.04, "closed": 0.0},
    "home": [0.0, 0.04],
    "cameras": {"front": {"topic": "/camera/front/image_raw", "frame": "f", "width": 4, "height": 2, "rate": 15.0}},
    "safety": "safety.yaml",
}
LIMIT = {
    "has_position_limits": True,
    "min_position": -1.0,
    "max_position": 1.0,
    "has_velocity_limits": True,
    "max_velocity": 2.0,
    "has_acceleration_limits": True,
    "max_acceleration": 3.0,
    "has_jerk_limits": True,
    "max_jerk": 4.0,
}


def write(folder, name, content):
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


def changed(content, path, value):
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def test_reads_a_robot(tmp_path):
    robot = load_robot(write(tmp_path, "two.yaml", ROBOT))
    assert robot.arm_joints == ("a",)
    assert robot.cameras["front"].info_topic == "/camera/front/camera_info"
    assert robot.path == tmp_path / "two.yaml"


def test_a_mobile_base(tmp_path):
    base = {"max_velocity": [0.5, 0.0, 1.0], "max_acceleration": [1.0, 1.0, 2.0]}
    found = load_robot(write(tmp_path, "r.yaml", {**ROBOT, "base": base})).base
    assert (found.topic, found.frame, found.rate) == ("/cmd_vel", "base_link", 20.0)
    assert found.max_velocity == (0.5, 0.0, 1.0)
    assert load_robot(write(tmp_path, "s.yaml", ROBOT)).base is None
    for key, value in (("max_velocity", [0.5, 0.0]), ("max_velocity", [-1, 0, 0]), ("max_acceleration", [0, 1, 1])):
        with pytest.raises(ConfigError, match=f"base.{key}"):
            load_robot(write(tmp_path, "t.yaml", {**ROBOT, "base": {**base, key: value}}))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["joints"], ["a", "a"], "joints has duplicates: a, a"),
        (["home"], [0.0], "home has 1 values for 2 joints"),
        (["gripper", "joint"], "c", "unknown joint 'c'; known: a, b"),
        (["home"], [0.0, float("nan")], r"home.1 \(is nan\)"),
        (["cameras", "front", "width"], 0, r"cameras.front.width \(is 0\)"),
        (["cameras", "front", "topic"], "camera", "topic 'camera' must be absolute"),
        (["tool_frame"], None, "tool_frame: Field required"),
        (["speed"], 3, r"speed \(is 3\): unknown key"),
    ],
)
def test_names_what_is_wrong(tmp_path, path, value, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_robot(write(tmp_path, "two.yaml", changed(ROBOT, path, value)))
    assert "two.yaml" in str(error.value)


def test_missing_file_and_wrong_syntax(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_robot(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_robot(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="holds list, expected a map"):
        load_robot(tmp_path / "list.yaml")


def test_resolves_paths(tmp_path, monkeypatch):
    share = tmp_path / "share" / "pkg"
    share.mkdir(parents=True)
    (share / "x.urdf").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert resolve_path("package://pkg/x.urdf", tmp_path) == share / "x.urdf"
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_path("package://pkg/y.urdf", tmp_path)


def test_reads_limits_in_order(tmp_path):
    path = write(tmp_path, "l.yaml", {"joint_limits": {"b": LIMIT, "a": {**LIMIT, "max_velocity": 5}}})
    limits = load_joint_limits(path, ["a", "b"])
    assert limits.names == ("a", "b") and limits.max_velocity.tolist() == [5.0, 2.0] and len(limits) == 2
    with pytest.raises(ValueError, match="read-only"):
        limits.max_velocity[0] = 9.0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("has_jerk_limits", False, "joint 'a' has no jerk limit"),
        ("max_jerk", None, "max_jerk None; it must be a finite number"),
        ("max_velocity", -1.0, "max_velocity -1.0; it must be positive"),
        ("max_velocity", float("inf"), "max_velocity inf; it must be a finite"),
        ("max_velocity", "fast", "max_velocity 'fast'"),
        ("min_position", 2.0, "min_position 2.0 >= max_position 1.0"),
    ],
)
def test_refuses_limits(tmp_path, key, value, words):
    limit = changed(LIMIT, [key], value)
    with pytest.raises(ConfigError, match=words):
        load_joint_limits(write(tmp_path, "l.yaml", {"joint_limits": {"a": limit}}), ["a"])
    with pytest.raises(ConfigError, match="unknown joint 'z'; known: a"):
        load_joint_limits(write(tmp_path, "m.yaml", {"joint_limits": {"a": LIMIT}}), ["z"])
