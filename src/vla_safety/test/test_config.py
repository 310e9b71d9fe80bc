"""The safety file: limits to the last bit, and every refusal with file, key, value and what was expected."""

import pytest
import yaml
from rig import ROBOT

from vla_contract.errors import ConfigError
from vla_safety.core.config import load_safety

ARM = dict.fromkeys(ROBOT.arm_joints, 5.0)
KNOWN = ", ".join(sorted(ROBOT.joints))
CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 2)]
CUBE = "\n".join([*(f"v {x} {y} {z}" for x, y, z in CORNERS), "f 1 2 3 4", "f 5 6 7 8"])


def load(tmp_path, **keys):
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump({"margin": 0.004, "self_margin": 0.01, "zones": [], **keys}))
    return load_safety(path, ROBOT)


@pytest.mark.parametrize(
    "keys",
    [
        {"cycle": {"period": 0.2, "segment": 0.201}},
        {"contact": {"max_force": 50.0, "max_torque": 5.0}},
        {"contact": {"max_force": 51.0, "max_torque": 5.0, "source": "edition 2"}},
        {"external_torque": {"limits": {**ARM, "fr3_joint2": 12.5}}},
        {"external_torque": {"limits": {**ARM, "fr3_joint2": 99.0}, "source": "edition 2"}},
    ],
)
def test_i07_exactly_at_a_limit_a_file_is_taken(tmp_path, keys):
    ((key, value),) = keys.items()
    assert getattr(load(tmp_path, **keys), key).model_dump(exclude_unset=True) == value


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cycle": {"period": 0.2, "segment": 0.2}},
         "line 1: cycle: segment 0.2 s must be longer than period 0.2 s, or each cycle stops"),
        ({"contact": {"max_force": 50.5, "max_torque": 5.0}},
         "line 1: contact: max_force 50.5 N is above 50.0 N; name its source and edition in `source`"),
        ({"contact": {"max_force": 50.0, "max_torque": 5.0, "weighs": "tool"}},
         "line 1: contact: weighs 'tool' needs `frame`: the link that the sensor measures at"),
        ({"external_torque": {"limits": {**ARM, "fr3_joint2": 12.75}}},
         "line 1: external_torque: limit of fr3_joint2, 12.75 Nm, is above 12.5 Nm; name its source and edition in "
         "`source`"),
        ({"external_torque": {"limits": {**ARM, "x": 1.0}}}, f"external_torque.limits: unknown joint 'x'; {KNOWN}"),
        ({"external_torque": {"limits": ARM, "armature": {"x": 1.0}}},
         f"external_torque.armature: unknown joint 'x'; {KNOWN}"),
        ({"position_tolerance": {"x": 1.0}}, f"position_tolerance: unknown joint 'x'; {KNOWN}"),
        ({"watchdogs": {"joint_tracking_tolerance": {"x": 1.0}}},
         f"watchdogs.joint_tracking_tolerance: unknown joint 'x'; {KNOWN}"),
        ({"external_torque": {"limits": dict(list(ARM.items())[2:])}},
         "external_torque.limits: fr3_joint1, fr3_joint2: give a limit for each joint of the arm, and no other"),
        ({"external_torque": {"limits": {**ARM, "fr3_finger_joint1": 1.0}}},
         "external_torque.limits: fr3_finger_joint1: give a limit for each joint of the arm, and no other"),
        ({"zones": [{"name": "m", "kind": "keep_out", "mesh": {"file": "no.obj"}}]},
         "line 5: zones.0.mesh: zone 'm': 'no.obj' does not exist (looked at {folder}/no.obj)"),
    ],
)  # fmt: skip
def test_i07_a_wrong_file_is_refused_with_file_key_value_and_remedy(tmp_path, keys, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, **keys)
    expected = message.replace("'x'; ", "'x'; known: ").format(folder=tmp_path)
    assert str(error.value) == f"{tmp_path / 'cell.yaml'}: {expected}"


def test_files_of_meshes_are_read_and_named_those_of_points_are_not(tmp_path):
    (tmp_path / "cube.obj").write_text(CUBE)
    mesh, points = {"file": "cube.obj", "scale": 0.5}, {"points": CORNERS}
    zones = [
        {"name": "ball", "kind": "keep_out", "sphere": {"center": [0, 0, 9], "radius": 1}},
        {"name": "file", "kind": "keep_out", "mesh": mesh},
        {"name": "points", "kind": "keep_out", "mesh": points},
    ]
    found = load(tmp_path, zones=zones)
    assert found.mesh_files == (tmp_path / "cube.obj",)
    places = (("ball", 4), ("file", 12), ("points", 17))
    assert [z.title for z in found.zones] == [f"zone '{n}' ({tmp_path / 'cell.yaml'}, line {k})" for n, k in places]
    read = found.zones[1].mesh
    assert (read.file, read.scale, sorted(read.points)) == ("", 0.5, sorted(CORNERS))
    assert found.zones[2].mesh.points == tuple(CORNERS)
    assert load(tmp_path).mesh_files == ()
