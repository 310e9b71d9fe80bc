"""The scene's own messages are not among the wheels: their fields are made of the messages that are."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import coal
import numpy as np
import pinocchio
import pytest
from geometry_msgs.msg import Point, Pose, Quaternion
from rig import HOME, MS, ROBOT, Rig
from shape_msgs.msg import Mesh, Plane, SolidPrimitive
from std_msgs.msg import Header
from volumes import Oracle, coal_volume

from vla_contract.errors import ConfigError
from vla_safety.building import Setup, make_verifier, read_parts
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.watchdogs import Instant
from vla_safety.core.zones import ZoneSet
from vla_safety.planning_scene import PlanningScene, SceneObjects

MODEL = RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints)
ORACLE = Oracle()
ADD, REMOVE, APPEND, MOVE = (bytes([k]) for k in range(4))


def pose(x=0.0, y=0.0, z=0.0, q=(1.0, 0.0, 0.0, 0.0)):
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(w=q[0], x=q[1], y=q[2], z=q[3]))


def primitive(kind, *dimensions):
    return SolidPrimitive(type=kind, dimensions=list(dimensions))


BOX = primitive(SolidPrimitive.BOX, 0.1, 0.2, 0.3)


def item(name, shapes=(BOX,), at=None, own=None, operation=ADD, frame="base", planes=()):
    own = [pose()] * len(shapes) if own is None else own
    pairs = list(zip(shapes, own, strict=True))
    solid = [(s, p) for s, p in pairs if isinstance(s, SolidPrimitive)]
    meshes = [(s, p) for s, p in pairs if isinstance(s, Mesh)]
    return SimpleNamespace(
        header=Header(frame_id=frame),
        id=name,
        pose=at or pose(),
        operation=operation,
        primitives=[s for s, _ in solid],
        primitive_poses=[p for _, p in solid],
        meshes=[s for s, _ in meshes],
        mesh_poses=[p for _, p in meshes],
        planes=list(planes),
    )


def scene(*items, diff=False, allowed=(), octomap=b"", attached=()):
    names = sorted({name for pair in allowed for name in pair})
    rows = [[(a, b) in allowed or (b, a) in allowed for b in names] for a in names]
    return SimpleNamespace(
        is_diff=diff,
        world=SimpleNamespace(
            collision_objects=list(items), octomap=SimpleNamespace(octomap=SimpleNamespace(data=octomap))
        ),
        allowed_collision_matrix=SimpleNamespace(
            entry_names=names, entry_values=[SimpleNamespace(enabled=row) for row in rows]
        ),
        robot_state=SimpleNamespace(
            attached_collision_objects=[SimpleNamespace(object=SimpleNamespace(id=name)) for name in attached]
        ),
    )


@pytest.fixture
def objects():
    return SceneObjects("base", MODEL.links)


def cube_mesh(size):
    corners = [Point(x=x, y=y, z=z) for x, y, z in itertools.product((0.0, size), repeat=3)]
    return Mesh(vertices=corners)


def turned(rng):
    q = rng.normal(0, 1, 4)
    return tuple(float(x) for x in q / np.linalg.norm(q))


@pytest.mark.parametrize(
    "shape",
    [
        BOX,
        primitive(SolidPrimitive.SPHERE, 0.1),
        primitive(SolidPrimitive.CYLINDER, 0.4, 0.05),
        primitive(SolidPrimitive.CONE, 0.4, 0.05),
        cube_mesh(0.2),
    ],
)
def test_objects_become_zones_where_they_are(objects, shape):
    """Extreme points of the object, placed by both poses, are on the zone's surface."""
    rng = np.random.default_rng(2)
    outer, inner = pose(0.4, 0.2, 0.3, turned(rng)), pose(0.1, -0.2, 0.1, turned(rng))
    objects.update(scene(item("thing 1", [shape], at=outer, own=[inner])))
    (zone,) = objects.obstacles()
    assert zone.name == "scene_0_thing_1" and zone.kind == "keep_out"
    volume, place = coal_volume(zone)
    if isinstance(shape, Mesh):
        points = np.array([(p.x, p.y, p.z) for p in shape.vertices])
    elif shape.type == SolidPrimitive.BOX:
        points = np.array(list(itertools.product((-0.05, 0.05), (-0.1, 0.1), (-0.15, 0.15))))
    elif shape.type == SolidPrimitive.SPHERE:
        points = np.array([(0.1, 0, 0), (0, 0, -0.1)])
    else:
        points = np.array([(0.05, 0, -0.2), (0, -0.05, -0.2), (0, 0, 0.2)])

    def se3(p):
        o, t = p.orientation, p.position
        return pinocchio.SE3(pinocchio.Quaternion(o.w, o.x, o.y, o.z).matrix(), np.array([t.x, t.y, t.z]))

    def distance(point):
        world = coal.Transform3s(np.eye(3), (se3(outer) * se3(inner)).act(point))
        return coal.distance(coal.Sphere(1e-6), world, volume, place, coal.DistanceRequest(), coal.DistanceResult())

    middle = points.mean(axis=0) if isinstance(shape, Mesh) else np.zeros(3)
    for point in points:
        assert distance(point) <= 1e-5
        assert distance(middle + 1.1 * (point - middle)) > 1e-3


def test_diffs_add_append_move_and_remove(objects):
    objects.update(scene(item("a"), item("b")))
    objects.update(scene(item("a", own=[pose(1.0)], operation=APPEND), diff=True))
    assert [z.box.center for z in objects.obstacles()] == [(0, 0, 0), (1, 0, 0), (0, 0, 0)]
    objects.update(scene(item("a", [], at=pose(0.0, 2.0, 0.0), operation=MOVE), diff=True))
    centers = np.array([z.box.center for z in objects.obstacles()])
    assert centers == pytest.approx(np.array([(0, 2, 0), (1, 2, 0), (0, 0, 0)]))
    objects.update(scene(item("b", [], operation=REMOVE), diff=True))
    assert len(objects.obstacles()) == 2
    objects.update(scene(item("c")))  # a whole scene replaces everything
    assert [z.name for z in objects.obstacles()] == ["scene_0_c"]
    objects.update(scene(item("", [], operation=REMOVE), diff=True))
    assert objects.obstacles() == ()


def test_a_diff_before_a_whole_scene_is_not_a_scene(objects):
    objects.update(scene(item("a"), diff=True))
    assert not objects.known and objects.obstacles() == ()


def test_an_object_on_a_link_moves_with_it_and_may_touch_what_the_scene_allows(objects):
    objects.update(scene(item("case", frame="fr3_hand"), item("table"), allowed=[("table", "fr3_link0")]))
    case, table = objects.obstacles()
    assert case.frame == "fr3_hand" and case.except_links == ()
    assert table.frame == "" and table.except_links == ("fr3_link0",)
    objects.update(scene(item("table", own=[pose(0.5)]), diff=True))
    assert objects.obstacles()[1].except_links == ("fr3_link0",)  # a diff without a matrix keeps it
    ZoneSet(objects.obstacles(), MODEL, 0.004)
    objects.update(scene(item("table")))
    assert objects.obstacles()[0].except_links == (), "a whole scene takes back what an earlier one allowed"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (scene(item("floor", [], planes=[Plane()])), "object 'floor' is a plane"),
        (scene(item("x", [primitive(SolidPrimitive.PRISM, 0.3)])), "type 5 cannot be a zone"),
        (scene(item("x", [primitive(SolidPrimitive.BOX, 0.3)])), "1 dimensions"),
        (scene(item("x", [primitive(SolidPrimitive.SPHERE, float("nan"))])), "object 'x': .*"),
        (scene(item("x", frame="map")), "object 'x': unknown frame 'map'; known: base, "),
        (scene(item("x", at=pose(q=(0.0, 0.0, 0.0, 0.0)))), "object 'x' has an orientation of length 0"),
        (scene(item("x", [Mesh(vertices=[Point()] * 5)])), "hold no volume"),
        (scene(octomap=b"1"), "octomap"),
        (scene(item("x", operation=bytes([9]))), "operation 9"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name_and_nothing_is_lost(objects, wrong, message):
    objects.update(scene(item("good")))
    with pytest.raises(ConfigError, match=message):
        objects.update(wrong)
    assert [z.name for z in objects.obstacles()] == ["scene_0_good"]
    objects.update(scene(item("other"), diff=True))
    assert not objects.known and len(objects.obstacles()) == 1  # a diff on what was refused is no scene


class Host:
    """The node's part for one adapter, around a real filter."""

    def __init__(self, rig: Rig):
        self.rig, self.told, self.lines = rig, {}, []
        self.parts = read_parts(ROBOT)

    def instant(self):
        return self.rig.instant

    def tell(self, cause, finding, now):
        if (finding is None) == (cause not in self.told):
            return
        if finding is None:
            del self.told[cause]
        else:
            self.told[cause] = finding
        self.rig.filter.report(cause, finding, now)

    def guarded(self, callback):
        return callback

    def reconfigure(self, finding, **changes):
        setup = Setup.model_validate({**self.parts.setup.model_dump(), **changes})
        answer = self.rig.filter.reconfigure(
            make_verifier(self.parts, setup), self.instant(), finding=finding, setup=setup
        )
        if answer.success:
            self.parts = replace(self.parts, setup=setup)
        return answer

    def get_logger(self):
        return SimpleNamespace(info=self.lines.append, error=self.lines.append, warning=self.lines.append)


@pytest.fixture
def adapter():
    rig = Rig()
    made = PlanningScene.__new__(PlanningScene)  # without moveit_msgs there is nothing to subscribe to
    made.host = Host(rig)
    made._begin("base")
    made._client = SimpleNamespace(service_is_ready=lambda: False)
    made.rebuilt(made.host.parts)
    made.numbers = itertools.count(1)
    return made


def hear(adapter, message):
    """The topic's next message."""
    adapter.receive(message, {"publication_sequence_number": next(adapter.numbers)})


def clearance(rig):
    return rig.filter.verifier.clearances(HOME)[0][0]


def test_the_robot_is_stopped_until_the_scene_is_known_then_keeps_clear_of_it(adapter):
    host, rig = adapter.host, adapter.host.rig
    adapter.check(rig.instant)
    assert host.told["planning_scene"].sentence == "planning scene: no whole scene yet"
    before = clearance(rig)
    hear(adapter, scene(item("post", at=pose(0.5, 0.25, 0.4)), attached=["cup"]))
    assert not host.told and "attaches 'cup'" in " ".join(host.lines)
    assert clearance(rig) < before
    assert host.parts.setup.obstacles[0].name == "scene_0_post"
    truth = min(ORACLE.distances(HOME, host.parts.setup.obstacles[0]).values())
    assert clearance(rig) == pytest.approx(min(before, truth), abs=0.02)
    hear(adapter, scene(item("floor", [], planes=[Plane()]), diff=True))
    assert "is a plane" in host.told["planning_scene"].sentence
    assert host.parts.setup.obstacles[0].name == "scene_0_post"  # what was known stays
    hear(adapter, scene())
    assert not host.told and host.parts.setup.obstacles == () and clearance(rig) == before


def test_an_obstacle_in_the_robot_is_refused_and_stops_until_it_is_gone(adapter):
    host, rig = adapter.host, adapter.host.rig
    hear(adapter, scene())
    hear(adapter, scene(item("ghost", at=pose(0.4, 0.0, 0.5)), diff=True))
    assert "planning_scene" in host.told or "lead it away" in " ".join(host.lines)
    rig.now += 2000 * MS
    adapter.check(Instant(rig.now, rig.now))
    hear(adapter, scene(item("ghost", [], operation=REMOVE), diff=True))
    assert not host.told


def test_without_moveit_the_parameter_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="parameter planning_scene is '/s', but moveit_msgs is not installed"):
        PlanningScene(Host.__new__(Host), "/s", "base")
