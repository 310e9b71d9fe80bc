"""Links of a small robot and each other, against coal; how far joints can move them, by their measures."""

import coal
import numpy as np
import pinocchio
import pytest

from vla_safety.core.kinematics import RobotModel
from vla_safety.core.selfcollision import SelfCollision
from vla_safety.core.urdf import parse_urdf


def robot(first, second, at, rpy):
    """Two links that can be moved apart along x; `at` and `rpy` place the second one's body."""
    place = f'<origin xyz="{at[0]} {at[1]} {at[2]}" rpy="{rpy[0]} {rpy[1]} {rpy[2]}"/>'
    return f"""<robot name="r"><link name="base"/>
      <link name="a"><collision><geometry>{first}</geometry></collision></link>
      <link name="b"><collision>{place}<geometry>{second}</geometry></collision></link>
      <joint name="ja" type="prismatic"><parent link="base"/><child link="a"/><axis xyz="1 0 0"/></joint>
      <joint name="jb" type="prismatic"><parent link="base"/><child link="b"/><axis xyz="1 0 0"/></joint></robot>"""


def measured(text, *offsets):
    """The distance of the two links, with the second one moved along x."""
    model = RobotModel(parse_urdf(text), ["ja", "jb"])
    check = SelfCollision(model, set(), 0.01)
    assert len(check) == 1 and check.describe(0, 0) == ("self_collision", "a/b")
    return check.clearances(model.place(np.array([[0.0, x] for x in offsets])))[0][:, 0]


def capsule(radius, length):
    return f'<cylinder radius="{radius}" length="{length}"/>', coal.Capsule(radius, length)


ORIGIN = coal.Transform3s.Identity()


def request():
    return coal.DistanceRequest(), coal.DistanceResult()


BODIES = {
    "rod": capsule(0.05, 0.8),
    "stub": capsule(0.1, 0.02),
    "ball": ('<sphere radius="0.15"/>', coal.Sphere(0.15)),
}


@pytest.mark.parametrize("first", BODIES)
@pytest.mark.parametrize("second", BODIES)
def test_i14_distances_of_round_bodies_are_exact(first, second):
    """Crossed, parallel, one behind the other, end to end; wherever the nearest points lie."""
    rng = np.random.default_rng(1)
    for k in range(25):
        at, rpy = rng.uniform(-0.6, 0.6, 3), rng.uniform(-3, 3, 3) * (k % 4 > 0)
        turn, offsets = pinocchio.rpy.rpyToMatrix(*rpy), (0.0, 0.4, -0.7)
        found = measured(robot(BODIES[first][0], BODIES[second][0], at, rpy), *offsets)
        places = [coal.Transform3s(turn, at + [offset, 0, 0]) for offset in offsets]
        true = [coal.distance(BODIES[first][1], ORIGIN, BODIES[second][1], place, *request()) for place in places]
        for value, distance in zip(found, true, strict=True):
            exact = distance > 0 and min(true) < 0.1  # further away balls around them may do
            assert value == pytest.approx(distance, abs=1e-6) if exact else value <= max(distance, 0.0) + 1e-6


@pytest.mark.parametrize(
    ("size", "ends", "radius"),
    [
        ((0.6, 0.08, 0.06), (0.3, 0, 0), 0.05),
        ((0.06, 0.6, 0.08), (0, 0.3, 0), 0.05),
        ((0.08, 0.06, 0.6), (0, 0, 0.3), 0.05),
        ((0.6, 0.6, 0.45), (0.3, 0, 0), 0.375),
    ],
)
def test_i14_a_box_counts_as_the_capsule_around_it_along_its_longest_edge(size, ends, radius):
    """A small ball comes from all sides."""
    box = '<box size="{} {} {}"/>'.format(*size)
    tip = np.array(ends)
    for direction in np.concatenate([np.eye(3), -np.eye(3), [[0.6, 0.8, 0.0], [0.0, -0.6, 0.8]]]):
        point = 0.7 * direction
        along = np.clip(point @ tip / (tip @ tip), -1, 1)
        distance = float(np.linalg.norm(point - along * tip)) - radius - 0.02
        found = measured(robot(box, '<sphere radius="0.02"/>', point, (0, 0, 0)), 0.0)[0]
        if found < 0.1 or distance < 0.1:
            assert found == pytest.approx(distance, abs=1e-9)
        else:
            assert found <= distance + 1e-9


CHAIN = """<robot name="r"><link name="base"/><link name="arm"/><link name="cart"/>
  <link name="tip"><collision><origin xyz="0.3 0 0.4"/><geometry><sphere radius="0.25"/></geometry></collision></link>
  <link name="stone"><collision><geometry><sphere radius="0.125"/></geometry></collision></link>
  <joint name="turn" type="revolute"><origin xyz="0 0 9"/><parent link="base"/><child link="arm"/>
    <axis xyz="0 0 1"/><limit lower="-2" upper="3"/></joint>
  <joint name="slide" type="prismatic"><origin xyz="0 3 4"/><parent link="arm"/><child link="cart"/>
    <axis xyz="0 1 0"/><limit lower="-0.75" upper="0.5"/></joint>
  <joint name="knob" type="revolute"><origin xyz="0 0 2"/><parent link="cart"/><child link="tip"/>
    <axis xyz="1 0 0"/><mimic joint="turn" multiplier="-3" offset="0.1"/></joint>
  <joint name="lift" type="prismatic"><parent link="arm"/><child link="stone"/>
    <axis xyz="0 0 1"/><mimic joint="slide" multiplier="-2" offset="-0.25"/></joint>
</robot>"""


def test_i14_the_reach_of_joints_follows_from_the_measures_of_the_robot():
    model = RobotModel(parse_urdf(CHAIN), ["turn", "slide"])
    tip, stone = model.body_links.index("tip"), model.body_links.index("stone")
    own = 0.5 + 0.25  # m from the knob's axis
    outer = own + 2.0 + 0.75 + 5.0  # m from the turning axis, at most
    np.testing.assert_allclose(model.reach[tip], [3 * own + outer, 1.0])
    lifted = 0.125 + 2 * 0.75 + 0.25
    np.testing.assert_allclose(model.reach[stone], [lifted, 2.0])
    np.testing.assert_allclose(model.relative_reach(tip, stone), [3 * own, 1.0 + 2.0])
    assert np.array_equal(model.relative_reach(tip, stone), model.relative_reach(stone, tip))
    np.testing.assert_allclose(model.approach(stone, "cart", 0.5), [0.0, 2.0 + 1.0])
    np.testing.assert_allclose(model.approach(stone, "base", 0.5), [lifted, 2.0])


def test_links_are_where_their_joints_put_them():
    model = RobotModel(parse_urdf(CHAIN), ["turn", "slide"])
    q = np.array([[0.0, 0.0], [np.pi / 2, 0.5]])
    placement = model.place(q)
    _, cart = model.link_pose("cart", placement)
    np.testing.assert_allclose(cart, [[0, 3, 13], [-3.5, 0, 13]], atol=1e-12)
    _, stone = model.link_pose("stone", placement)
    np.testing.assert_allclose(stone, [[0, 0, 8.75], [0, 0, 7.75]], atol=1e-12)
    rotation, _ = model.link_pose("tip", placement)
    for k, turn in enumerate(q[:, 0]):
        expected = pinocchio.rpy.rpyToMatrix(0, 0, turn) @ pinocchio.rpy.rpyToMatrix(-3 * turn + 0.1, 0, 0)
        np.testing.assert_allclose(rotation[k], expected, atol=1e-12)
