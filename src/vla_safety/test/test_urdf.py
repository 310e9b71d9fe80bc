"""What the filter reads of a URDF, field by field, and what it says of a wrong one."""

import math

import numpy as np
import pytest

from vla_contract.errors import ConfigError
from vla_safety.core.urdf import parse_urdf, rpy_matrix

TURNED = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # by a quarter around z
TEXT = """<robot name="r">
  <link name="hand">
    <inertial><origin xyz="0.1 0.2 0.3"/><mass value="2.5"/></inertial>
    <collision><origin xyz="1 0 0" rpy="0 0 1.5707963267948966"/><geometry><box size="2 4 6"/></geometry></collision>
  </link>
  <link name="base"><inertial/><collision><geometry><sphere radius="0.5"/></geometry></collision></link>
  <link name="arm">
    <inertial><mass value="0"/></inertial>
    <collision><origin xyz="0 0 1"/><geometry><cylinder radius="0.25" length="3"/></geometry></collision>
  </link>
  <link name="finger"/>
  <link name="thumb"/>
  <joint name="slide" type="prismatic">
    <parent link="hand"/><child link="finger"/><axis xyz="0 -3 4"/><limit lower="-0.5" upper="0.25"/>
  </joint>
  <joint name="follower" type="prismatic">
    <parent link="hand"/><child link="thumb"/><mimic joint="slide" multiplier="-2" offset="0.5"/><limit upper="0.75"/>
  </joint>
  <joint name="wrist" type="fixed">
    <origin xyz="1 2 3" rpy="0 0 1.5707963267948966"/><parent link="arm"/><child link="hand"/><axis xyz="0 0 0"/>
  </joint>
  <joint name="shoulder" type="continuous"><parent link="base"/><child link="arm"/></joint>
</robot>"""
ROBOT = parse_urdf(TEXT)


def joint(name):
    return next(joint for joint in ROBOT.joints if joint.name == name)


def test_links_come_as_written_and_joints_from_the_root_on():
    assert ROBOT.root == "base" and ROBOT.links == ("hand", "base", "arm", "finger", "thumb")
    tree = [(j.name, j.kind, j.parent, j.child) for j in ROBOT.joints]
    assert tree == [
        ("shoulder", "continuous", "base", "arm"),
        ("wrist", "fixed", "arm", "hand"),
        ("slide", "prismatic", "hand", "finger"),
        ("follower", "prismatic", "hand", "thumb"),
    ]


@pytest.mark.parametrize(
    ("name", "rotation", "translation", "axis", "mimic", "travel"),
    [
        ("shoulder", np.eye(3), (0, 0, 0), (1, 0, 0), None, 0.0),
        ("wrist", TURNED, (1, 2, 3), (0, 0, 0), None, 0.0),
        ("slide", np.eye(3), (0, 0, 0), (0, -0.6, 0.8), None, 0.5),
        ("follower", np.eye(3), (0, 0, 0), (1, 0, 0), ("slide", -2.0, 0.5), 0.75),
    ],
)
def test_a_joint_is_read_with_its_defaults(name, rotation, translation, axis, mimic, travel):
    found = joint(name)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-15)
    np.testing.assert_allclose(found.translation, translation)
    np.testing.assert_allclose(found.axis, axis)
    assert (found.mimic, found.travel) == (mimic, travel)


def test_a_joint_that_mimics_without_numbers_follows_one_to_one():
    text = TEXT.replace(' multiplier="-2" offset="0.5"', "")
    assert parse_urdf(text).joints[3].mimic == ("slide", 1.0, 0.0)


def test_bodies_are_where_their_origin_says_in_their_links_frame():
    box, ball, capsule = ROBOT.shapes
    assert [(s.link, s.radius) for s in ROBOT.shapes] == [("hand", 0.0), ("base", 0.5), ("arm", 0.25)]
    corners = {(x, y, z) for x in (-1.0, 3.0) for y in (-1.0, 1.0) for z in (-3.0, 3.0)}
    assert {tuple(np.round(point, 12).tolist()) for point in box.points} == corners and len(box.points) == 8
    np.testing.assert_array_equal(ball.points, [[0, 0, 0]])
    np.testing.assert_array_equal(capsule.points, [[0, 0, -0.5], [0, 0, 2.5]])


def test_masses_are_read_where_there_are_some():
    assert [(load.link, load.mass, load.center.tolist()) for load in ROBOT.loads] == [
        ("hand", 2.5, [0.1, 0.2, 0.3]),
        ("arm", 0.0, [0.0, 0.0, 0.0]),
    ]


@pytest.mark.parametrize(
    ("center", "radius", "bodies"),
    [
        ("0 0 0.5", 0.25, 1),
        ("0 0 1", 0.25, 1),
        ("0 0 1", 0.26, 2),
        ("0 0 1.125", 0.125, 1),
        ("0 0 1.125", 0.13, 2),
        ("0 0 -0.125", 0.125, 1),
        ("0.125 0 0.5", 0.125, 1),
        ("0.125 0 0.5", 0.13, 2),
        ("0.3 0 0.5", 0.01, 2),
    ],
)
def test_a_sphere_within_a_cylinders_capsule_adds_nothing(center, radius, bodies):
    """The cylinder's axis reaches from z = 0 to 1, its radius is 0.25."""
    text = f"""<robot name="r"><link name="a">
      <collision><origin xyz="0 0 0.5"/><geometry><cylinder radius="0.25" length="1"/></geometry></collision>
      <collision><origin xyz="{center}"/><geometry><sphere radius="{radius}"/></geometry></collision>
    </link></robot>"""
    assert len(parse_urdf(text).shapes) == bodies


def test_bodies_of_other_kinds_within_each_other_all_count():
    body = '<collision><geometry><{} radius="1"{}/></geometry></collision>'
    capsules = 2 * body.format("cylinder", ' length="1"')
    spheres = 2 * body.format("sphere", "")
    for content, count in ((capsules, 2), (spheres, 2)):
        assert len(parse_urdf(f'<robot name="r"><link name="a">{content}</link></robot>').shapes) == count


def test_a_sphere_on_a_cylinder_without_length_is_judged_as_well():
    body = '<collision><geometry><{} radius="{}"{}/></geometry></collision>'
    for radius, count in ((0.25, 1), (0.26, 2)):
        content = body.format("cylinder", 0.25, ' length="0"') + body.format("sphere", radius, "")
        assert len(parse_urdf(f'<robot name="r"><link name="a">{content}</link></robot>').shapes) == count


def test_roll_pitch_and_yaw_turn_around_fixed_axes():
    roll, pitch, yaw = 0.3, -0.7, 1.9
    c, s = math.cos, math.sin
    x = np.array([[1, 0, 0], [0, c(roll), -s(roll)], [0, s(roll), c(roll)]])
    y = np.array([[c(pitch), 0, s(pitch)], [0, 1, 0], [-s(pitch), 0, c(pitch)]])
    z = np.array([[c(yaw), -s(yaw), 0], [s(yaw), c(yaw), 0], [0, 0, 1]])
    np.testing.assert_allclose(rpy_matrix(np.array([roll, pitch, yaw])), z @ y @ x, atol=1e-15)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('link name="finger"', "link", "the URDF has a link without 'name'"),
        ('joint name="slide"', "joint", "the URDF has a joint without 'name'"),
        (' type="fixed"', "", "the URDF has a joint without 'type'"),
        ('type="fixed"', 'type="planar"',
         "URDF joint 'wrist' has type 'planar'; known: revolute, continuous, prismatic, fixed"),
        ('<parent link="arm"/>', "", "the URDF has a parent of joint 'wrist' without 'link'"),
        ('<child link="hand"/>', "<child/>", "the URDF has a child of joint 'wrist' without 'link'"),
        ('<parent link="arm"/>', '<parent link="x"/>',
         "URDF joint 'wrist': unknown link 'x'; known: arm, base, finger, hand, thumb"),
        ('<mimic joint="slide"', "<mimic", "the URDF has a mimic without 'joint'"),
        ('xyz="0 -3 4"', 'xyz="0 0 0"', "URDF joint 'slide' has axis [0. 0. 0.]; give a direction"),
        ('xyz="0 -3 4"', 'xyz="0 3"', 'the URDF has xyz="0 3", expected three finite numbers'),
        ('xyz="0 -3 4"', 'xyz="a 3 4"', 'the URDF has xyz="a 3 4", expected three finite numbers'),
        ('xyz="0 -3 4"', 'xyz="nan 3 4"', 'the URDF has xyz="nan 3 4", expected three finite numbers'),
        (' size="2 4 6"', "", "the URDF lacks the attribute 'size' of a <box>"),
        ('radius="0.5"', "", 'the URDF has <sphere radius="None">, expected a number >= 0'),
        ('radius="0.5"', 'radius="x"', 'the URDF has <sphere radius="x">, expected a number >= 0'),
        ('radius="0.5"', 'radius="-1"', 'the URDF has <sphere radius="-1">, expected a number >= 0'),
        ('radius="0.5"', 'radius="inf"', 'the URDF has <sphere radius="inf">, expected a number >= 0'),
        ('length="3"', "", 'the URDF has <cylinder length="None">, expected a number >= 0'),
        ('value="2.5"', "", 'the URDF has <mass value="None">, expected a number >= 0'),
        ('<sphere radius="0.5"/>', "",
         "URDF link 'base' has a collision geometry of kind 'nothing'; bound it by spheres, cylinders and boxes "
         "(the filter treats a cylinder as the capsule around it)"),
        ('<geometry><sphere radius="0.5"/></geometry>', "",
         "URDF link 'base' has a collision geometry of kind 'nothing'; bound it by spheres, cylinders and boxes "
         "(the filter treats a cylinder as the capsule around it)"),
        ("<sphere ", "<mesh ",
         "URDF link 'base' has a collision geometry of kind 'mesh'; bound it by spheres, cylinders and boxes "
         "(the filter treats a cylinder as the capsule around it)"),
        ('<child link="thumb"/>', '<child link="finger"/>',
         "the URDF is no tree: roots ['base', 'thumb'], joints 4; give each link one parent"),
        ('<parent link="base"/>', '<parent link="hand"/>', "the URDF has a cycle through wrist, shoulder"),
    ],
)  # fmt: skip
def test_i07_a_wrong_urdf_is_refused_with_what_is_wrong(old, new, message):
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if "cycle" in message:  # what is left has a root of its own
        text = text.replace(
            '<parent link="hand"/><child link="finger"/>', '<parent link="base"/><child link="finger"/>'
        )
        text = text.replace('<parent link="hand"/><child link="thumb"/>', '<parent link="base"/><child link="thumb"/>')
    with pytest.raises(ConfigError) as error:
        parse_urdf(text)
    assert str(error.value) == message


def test_a_text_that_is_no_xml_is_refused_with_where_to_look():
    with pytest.raises(ConfigError, match="^the URDF is not XML: .*; check /robot_description or the robot file$"):
        parse_urdf("<robot><<")
