"""The robot's files agree with the vendor's tables, with each other, and with what two libraries make of them."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pinocchio as pin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Published Denavit-Hartenberg parameters (Craig's convention) and limits of the FR3.
A = (0, 0, 0, 0.0825, -0.0825, 0, 0.088)
D = (0.333, 0, 0.316, 0, 0.384, 0, 0)
ALPHA = (0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2)
FLANGE, HAND_YAW, TOOL = 0.107, -np.pi / 4, 0.1034
LOW = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
HIGH = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)
SPEED = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)
TORQUE = (87, 87, 87, 87, 12, 12, 12)

joint_vectors = st.tuples(*(st.floats(low, high) for low, high in zip(LOW, HIGH, strict=True)))


def denavit_hartenberg(q):
    """Pose (4, 4) of the tool, from the table alone."""
    pose = np.eye(4)
    for angle, a, d, alpha in zip(q, A, D, ALPHA, strict=True):
        ca, sa, ct, s = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        pose = pose @ [[ct, -s, 0, a], [s * ca, ct * ca, -sa, -d * sa], [s * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
    c, s = np.cos(HAND_YAW), np.sin(HAND_YAW)
    return pose @ np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, FLANGE + TOOL], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def xml(robot):
    return ElementTree.fromstring(robot.urdf())


@pytest.fixture(scope="module")
def pinocchio(robot):
    model = pin.buildModelFromXML(robot.urdf())
    return model, model.createData(), model.getFrameId(robot.tool_frame)


@given(joint_vectors)
def test_tool_is_where_the_vendors_table_says(pinocchio, q):
    model, data, frame = pinocchio
    pin.framesForwardKinematics(model, data, np.r_[q, 0.0, 0.0])
    np.testing.assert_allclose(data.oMf[frame].homogeneous, denavit_hartenberg(q), atol=1e-9)


@settings(max_examples=50)
@given(joint_vectors)
def test_mujoco_puts_the_tool_at_the_same_place(shared_cell, q):
    shared_cell.pose(np.r_[q, 0.02], {})
    position, rotation = shared_cell.tool_pose()
    expected = denavit_hartenberg(q)
    np.testing.assert_allclose(position, expected[:3, 3], atol=1e-9)
    np.testing.assert_allclose(rotation, expected[:3, :3], atol=1e-9)


def test_limits_are_the_vendors(xml, robot):
    limits = [joint.find("limit").attrib for joint in xml.findall("joint[@type='revolute']")]
    for key, column in (("lower", LOW), ("upper", HIGH), ("velocity", SPEED), ("effort", TORQUE)):
        assert [float(limit[key]) for limit in limits] == list(column)


def test_urdf_and_joint_limits_agree(xml, robot):
    limits = robot.limits()
    for k, name in enumerate(robot.joints):
        urdf = xml.find(f"joint[@name='{name}']/limit").attrib
        assert (limits.min_position[k], limits.max_position[k]) == (float(urdf["lower"]), float(urdf["upper"]))
        assert limits.max_velocity[k] == float(urdf["velocity"])
    assert (limits.max_acceleration[:7] == 10).all() and (limits.max_jerk[:7] == 5000).all()
    home = np.array(robot.home)
    assert (home >= limits.min_position).all() and (home <= limits.max_position).all()


def test_home_points_straight_down_over_the_table(robot):
    pose = denavit_hartenberg(robot.home[:7])
    np.testing.assert_allclose(pose[:3, 3], [0.45, 0, 0.30], atol=1e-3)
    np.testing.assert_allclose(pose[:3, :3], np.diag([1, -1, -1]), atol=1e-3)


def test_shapes_are_boxes_and_capsules_and_the_same_to_see_and_to_touch(xml):
    for link in xml.findall("link"):
        seen, touched = (
            [
                (shape.find("origin").attrib, shape.find("geometry")[0].tag, shape.find("geometry")[0].attrib)
                for shape in found
            ]
            for found in (link.findall("visual"), link.findall("collision"))
        )
        assert seen == touched
        cylinders, spheres = link.findall("collision/geometry/cylinder"), link.findall("collision/geometry/sphere")
        assert len(spheres) == 2 * len(cylinders), f"{link.get('name')}: a capsule is a cylinder and two spheres"


def test_capsules_reach_mujoco_as_capsules(shared_cell, xml):
    types = shared_cell.model.geom_type.tolist()
    assert types.count(3) == len(xml.findall("link/collision/geometry/cylinder"))
    assert types.count(2) == types.count(5) == 0


def test_masses_are_physical(xml):
    for link in xml.findall("link/inertial"):
        tensor = {key: float(value) for key, value in link.find("inertia").attrib.items()}
        matrix = np.array(
            [
                [tensor["ix" + c] for c in "xyz"],
                [tensor["ixy"], tensor["iyy"], tensor["iyz"]],
                [tensor["i" + c + "z"] for c in "xyz"],
            ]
        )
        moments = np.linalg.eigvalsh(matrix)
        assert float(link.find("mass").get("value")) > 0 and moments[0] > 0
        assert moments[2] <= moments[0] + moments[1] + 1e-9


def test_srdf_names_things_that_exist(robot, xml):
    srdf = ElementTree.parse(robot.resolve(robot.description.srdf)).getroot()
    links = {link.get("name") for link in xml.findall("link")}
    joints = {joint.get("name") for joint in xml.findall("joint")}
    assert srdf.get("name") == xml.get("name")
    chain = srdf.find("group/chain").attrib
    assert {chain["base_link"], chain["tip_link"]} <= links
    assert {j.get("name") for j in srdf.findall("group/joint") + srdf.findall("group_state/joint")} <= joints
    home = {j.get("name"): float(j.get("value")) for j in srdf.findall("group_state[@name='home']/joint")}
    assert [home[name] for name in robot.arm_joints] == list(robot.home[:7])
    pairs = [(p.get("link1"), p.get("link2")) for p in srdf.findall("disable_collisions")]
    assert len({frozenset(p) for p in pairs}) == len(pairs) and {n for p in pairs for n in p} <= links


def test_pairs_that_are_watched_are_apart_at_home(robot, xml):
    """Else the safety filter could never arm."""
    model = pin.buildModelFromXML(robot.urdf())
    geometry = pin.buildGeomFromUrdfString(model, robot.urdf(), pin.GeometryType.COLLISION)
    srdf = ElementTree.parse(robot.resolve(robot.description.srdf)).getroot()
    off = {frozenset((p.get("link1"), p.get("link2"))) for p in srdf.findall("disable_collisions")}
    link = [model.frames[g.parentFrame].name for g in geometry.geometryObjects]
    for i, j in itertools.combinations(range(len(link)), 2):
        if link[i] != link[j] and frozenset((link[i], link[j])) not in off:
            geometry.addCollisionPair(pin.CollisionPair(i, j))
    assert len(geometry.collisionPairs) > 50
    q, distances = np.r_[robot.home, robot.home[-1]], geometry.createData()
    pin.updateGeometryPlacements(model, model.createData(), geometry, distances, q)
    pin.computeDistances(geometry, distances)
    assert min(result.min_distance for result in distances.distanceResults) > 0.03
