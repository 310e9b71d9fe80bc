import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rig import HOME, ROBOT, Rig, smooth_chunk
from visualization_msgs.msg import Marker
from volumes import inside_room, random_zone, wall

from vla_safety.core.findings import Finding
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.zones import SHAPES
from vla_safety.markers import Scene, markers

MODEL = RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints)


def draw(**fields):
    return markers(Scene(**{"zones": (), "model": MODEL, "tool": ROBOT.tool_frame, **fields}), "base", Time()).markers


def rotation(q):
    w, v = q.w, np.array([q.x, q.y, q.z])
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def surface(marker, rng):
    """Points on the surface of a marker (triangles: their corners), in the base frame."""
    size = np.array([marker.scale.x, marker.scale.y, marker.scale.z])
    directions = rng.normal(0, 1, (300, 3))
    if marker.type == Marker.TRIANGLE_LIST:
        points = np.array([(p.x, p.y, p.z) for p in marker.points])
    elif marker.type == Marker.SPHERE:
        points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * size / 2
    elif marker.type == Marker.CYLINDER:
        angle = rng.uniform(0, 2 * np.pi, 300)
        points = np.stack([np.cos(angle), np.sin(angle), rng.choice([-1, 1], 300)], axis=1) * size / 2
    else:
        points = rng.choice([-1, 1], (300, 3)) * size / 2
    p = marker.pose.position
    return points @ rotation(marker.pose.orientation).T + np.array([p.x, p.y, p.z])


@pytest.mark.parametrize("shape", ("box", "cylinder", "mesh"))
def test_markers_of_a_zone_lie_on_its_surface(shape):
    rng = np.random.default_rng(3)
    zone = random_zone(rng, shape, "keep_in")
    drawn = [m for m in draw(zones=(zone,)) if m.ns.startswith("zone")]
    assert len(drawn) == 1 and drawn[0].text == "z"
    assert inside_room(zone, surface(drawn[0], rng)) == pytest.approx(0, abs=1e-6)


def test_every_shape_has_markers_and_a_mesh_is_triangles():
    kinds = {}
    for shape in SHAPES:
        zone = random_zone(np.random.default_rng(0), shape)
        kinds[shape] = [m.type for m in draw(zones=(zone,)) if m.ns.startswith("zone")]
    assert kinds == {
        "box": [Marker.CUBE],
        "sphere": [Marker.SPHERE],
        "cylinder": [Marker.CYLINDER],
        "capsule": [Marker.CYLINDER, Marker.SPHERE, Marker.SPHERE],
        "mesh": [Marker.TRIANGLE_LIST],
    }


def test_bodies_are_where_the_filter_believes_them():
    q = HOME + np.array([0.3, -0.2, 0.1, 0.2, 0.5, -0.3, 0.4, 0])
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for marker in draw(position=q):
        if marker.ns.startswith("body"):
            points = surface(marker, np.random.default_rng(1))
            low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
    points, radii = MODEL.place(q[None]).points[0], MODEL.point_radii[:, None]
    assert low == pytest.approx((points - radii).min(axis=0), abs=0.01)
    assert high == pytest.approx((points + radii).max(axis=0), abs=0.01)


def test_a_zone_on_a_link_is_drawn_where_the_link_is():
    zone = wall("sphere", (0.0, 0.0, 0.2), 0.0).model_copy(update={"frame": "fr3_hand"})
    drawn = [m for m in draw(zones=(zone,), position=HOME) if m.ns.startswith("zone")]
    turn, origin = MODEL.link_pose("fr3_hand", MODEL.place(HOME[None]))
    p = drawn[0].pose.position
    assert np.array([p.x, p.y, p.z]) == pytest.approx(origin[0] + turn[0] @ [0, 0, 0.2])
    assert all(m.header.frame_id == "base" for m in draw(zones=(zone,), position=HOME)[1:])


def test_what_is_gone_disappears():
    first = draw(position=HOME)[0]
    assert first.action == Marker.DELETEALL


def test_the_stop_begins_where_the_committed_plan_ends():
    rig = Rig()
    rig.propose(smooth_chunk(rig, HOME + np.array([0.3, 0, 0, 0, 0, 0, 0, 0])))
    plan, committed = rig.filter.plan, rig.filter.committed
    drawn = {m.ns: m.points for m in draw(plan=plan.motion, committed=committed, stop_ns=plan.followed) if m.points}
    assert {"plan", "committed", "stop"} <= set(drawn)
    assert drawn["committed"][-1] == drawn["stop"][0]

    def tool(time):
        pose = MODEL.link_pose(ROBOT.tool_frame, MODEL.place(committed.state(time).position[None]))
        return tuple(pose[1][0])

    for point, time in ((drawn["stop"][0], plan.followed), (drawn["stop"][-1], committed.end)):
        assert (point.x, point.y, point.z) == pytest.approx(tool(time), abs=1e-6)


def test_the_last_violation_is_named_at_its_bodies():
    zone = wall("box", (0.5, 0.5, 0.5), 0.0)
    finding = Finding("zone:wall", "fr3_link6", -0.01, 0.004)
    drawn = draw(zones=(zone,), position=HOME, finding=finding)
    red = {m.ns for m in drawn[1:] if m.color.r == 1.0 and m.color.a == pytest.approx(0.6)}
    assert red == {"body fr3_link6", "zone keep_out"}
    text = next(m for m in drawn if m.type == Marker.TEXT_VIEW_FACING)
    assert "fr3_link6 would come within -0.01 m of zone 'wall'" in text.text
