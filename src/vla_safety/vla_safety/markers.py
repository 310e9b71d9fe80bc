"""What RViz shows of the filter: zones, the bodies it believes the robot has, the committed motion, the last violation.

Everything is drawn in the base frame from the filter's own kinematics, so a wrong model shows as bodies that do not sit
on the robot.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion
from scipy.spatial import ConvexHull
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vla_safety.core.findings import Finding
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.motion import Array, Motion
from vla_safety.core.shapes import Box, Capsule, Cylinder, Mesh, Shape, Sphere
from vla_safety.core.zones import ZoneSpec

Colour = tuple[float, float, float, float]

_ZONES: dict[str, Colour] = {
    "keep_in": (0.1, 0.7, 0.2, 0.08),
    "keep_out": (0.9, 0.1, 0.1, 0.25),
    "slow": (0.95, 0.75, 0.1, 0.15),
    "shared": (0.95, 0.75, 0.1, 0.15),
}
_TOUCHED: Colour = (1.0, 0.0, 0.0, 0.6)
_BODY: Colour = (0.3, 0.5, 0.8, 0.35)
_PLAN: Colour = (0.5, 0.75, 1.0, 0.6)
_COMMITTED: Colour = (0.1, 0.3, 1.0, 0.95)
_STOP: Colour = (1.0, 0.55, 0.0, 0.95)
_SAMPLE = 0.02  # s
_DELETE_ALL = Marker(action=Marker.DELETEALL)


@dataclass(frozen=True)
class Scene:
    """What is to be drawn.

    Attributes:
        position: (n,) where the robot is; None: unknown, no bodies are drawn.
        plan: the chunk that is being followed; committed: what the controller plays; stop_ns: where its stop begins
            (None: all of it is a stop).
        finding: the last violation of a zone or between links.
    """

    zones: Sequence[ZoneSpec]
    model: RobotModel
    tool: str
    position: Array | None = None
    plan: Motion | None = None
    committed: Motion | None = None
    stop_ns: int | None = None
    finding: Finding | None = None


def markers(scene: Scene, base: str, stamp: Time) -> MarkerArray:
    """All markers, after one that takes away what was drawn before."""
    model = scene.model
    shown = np.zeros(len(model.joints)) if scene.position is None else scene.position
    placement = model.place(shown[None])
    result: list[Marker] = []
    if scene.plan is not None:
        result += _way("plan", scene.plan, scene.plan.start, scene.plan.end, scene, _PLAN, 0.003)
    if scene.committed is not None:
        start, end = scene.committed.start, scene.committed.end
        begins = start if scene.stop_ns is None else min(max(scene.stop_ns, start), end)
        result += _way("committed", scene.committed, start, begins, scene, _COMMITTED, 0.006)
        result += _way("stop", scene.committed, begins, end, scene, _STOP, 0.006)
    reason, _, name = ("", "", "") if scene.finding is None else scene.finding.reason.partition(":")
    for zone in scene.zones:
        if zone.frame and scene.position is None:
            continue
        colour = _TOUCHED if zone.name == name else _ZONES[zone.kind]
        rotation, origin = np.eye(3), np.zeros(3)
        if zone.frame:
            rotations, origins = model.link_pose(zone.frame, placement)
            rotation, origin = rotations[0], origins[0]
        result += [_in_frame(m, rotation, origin) for m in _shape(zone.shape, f"zone {zone.kind}", colour, zone.name)]
    if scene.position is not None:
        blamed = set() if scene.finding is None or not reason else set(scene.finding.subject.split("/"))
        result += _bodies(model, placement, blamed)
    if scene.finding is not None:
        result.append(_sentence(scene, placement))
    for number, marker in enumerate(result):
        marker.id = number
        marker.header.frame_id, marker.header.stamp = base, stamp
    return MarkerArray(markers=[_DELETE_ALL, *result])


def _way(ns: str, motion: Motion, begin: int, end: int, scene: Scene, colour: Colour, width: float) -> list[Marker]:
    """The way of the tool from `begin` to `end` [ns]; none when it does not move."""
    if end <= begin or len(motion) < 2:
        return []
    times = (np.append(np.arange(begin, end, round(_SAMPLE * 1e9)), end) - motion.start) * 1e-9
    tool = scene.model.link_pose(scene.tool, scene.model.place(motion.curve.sample(times).positions))[1]
    marker = _marker(ns, Marker.LINE_STRIP, colour)
    marker.scale.x = width
    marker.points = _points(tool)
    return [marker]


def _bodies(model: RobotModel, placement: Placement, blamed: set[str]) -> list[Marker]:
    """The collision bodies, those of `blamed` links in red."""
    result = []
    for body, link in enumerate(model.body_links):
        first = model.starts[body]
        points = placement.points[0, first : first + model.body_sizes[body]]
        radius, colour = float(model.body_radii[body]), _TOUCHED if link in blamed else _BODY
        ns = f"body {link}"
        if len(points) == 1:
            result.append(_ball(ns, points[0], radius, colour))
        elif len(points) == 2:
            result += _capsule(ns, points[0], points[1], radius, colour)
        else:
            result.append(_hull(ns, points, colour))
    return result


def _sentence(scene: Scene, placement: Placement) -> Marker:
    """What the last violation was, above the link that it was about (or the base, if it is about a joint)."""
    assert scene.finding is not None
    marker = _marker("violation", Marker.TEXT_VIEW_FACING, (1.0, 0.2, 0.2, 1.0), scene.finding.sentence)
    marker.scale.z = 0.04
    link = scene.finding.subject.split("/")[0]
    if link in scene.model.links:
        x, y, z = scene.model.link_pose(link, placement)[1][0].tolist()
        marker.pose.position = Point(x=x, y=y, z=z + 0.15)
    return marker


def _shape(shape: Shape, ns: str, colour: Colour, text: str) -> list[Marker]:
    """A zone's shape, in its frame."""
    if isinstance(shape, Mesh):
        return [_hull(ns, shape.hull().vertices, colour, text)]
    if isinstance(shape, Sphere):
        return [_ball(ns, np.array(shape.center), shape.radius, colour, text)]
    center, axis = np.array(shape.center), shape.rotation[:, 2]
    if isinstance(shape, Capsule):
        half = axis * shape.length / 2
        return _capsule(ns, center - half, center + half, shape.radius, colour, text)
    marker = _marker(ns, Marker.CUBE if isinstance(shape, Box) else Marker.CYLINDER, colour, text)
    if isinstance(shape, Cylinder):
        marker.scale.x = marker.scale.y = 2 * shape.radius
        marker.scale.z = shape.length
    else:
        marker.scale.x, marker.scale.y, marker.scale.z = shape.size
    marker.pose = _pose(center, shape.rotation)
    return [marker]


def _ball(ns: str, center: Array, radius: float, colour: Colour, text: str = "") -> Marker:
    marker = _marker(ns, Marker.SPHERE, colour, text)
    marker.scale.x = marker.scale.y = marker.scale.z = 2 * radius
    marker.pose = _pose(center, np.eye(3))
    return marker


def _capsule(ns: str, start: Array, end: Array, radius: float, colour: Colour, text: str = "") -> list[Marker]:
    tube = _marker(ns, Marker.CYLINDER, colour, text)
    length = float(np.linalg.norm(end - start))
    tube.scale.x = tube.scale.y = 2 * radius
    tube.scale.z = length
    tube.pose = _pose((start + end) / 2, _along((end - start) / max(length, 1e-9)))
    return [tube, _ball(ns, start, radius, colour), _ball(ns, end, radius, colour)]


def _hull(ns: str, points: Array, colour: Colour, text: str = "") -> Marker:
    """The hull of points (m, 3) as triangles, their fronts outside."""
    marker = _marker(ns, Marker.TRIANGLE_LIST, colour, text)
    marker.scale.x = marker.scale.y = marker.scale.z = 1.0
    hull = ConvexHull(points)
    corners = points[hull.simplices]
    turned = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = (turned * hull.equations[:, :3]).sum(axis=1) < 0
    corners[inward] = corners[inward][:, ::-1]
    marker.points = _points(corners.reshape(-1, 3))
    return marker


def _marker(ns: str, kind: int, colour: Colour, text: str = "") -> Marker:
    marker = Marker(ns=ns, type=kind, action=Marker.ADD, text=text)
    marker.pose.orientation.w = 1.0
    marker.color = ColorRGBA(**dict(zip("rgba", colour, strict=True)))
    return marker


def _in_frame(marker: Marker, rotation: Array, origin: Array) -> Marker:
    """A marker that is placed in a link's frame, placed in the base frame."""
    p, o = marker.pose.position, marker.pose.orientation
    inner = _matrix(o.w, o.x, o.y, o.z)
    marker.pose = _pose(origin + rotation @ np.array([p.x, p.y, p.z]), rotation @ inner)
    return marker


def _points(points: Array) -> Iterable[Point]:
    return [Point(x=x, y=y, z=z) for x, y, z in points.tolist()]


def _pose(position: Array, rotation: Array) -> Pose:
    x, y, z = position.tolist()
    return Pose(position=Point(x=x, y=y, z=z), orientation=_quaternion(rotation))


def _along(axis: Array) -> Array:
    """A rotation (3, 3) that turns z into the unit vector `axis`."""
    other = np.eye(3)[int(np.argmin(np.abs(axis)))]
    x = np.cross(other, axis)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(axis, x), axis], axis=1)


def _matrix(w: float, x: float, y: float, z: float) -> Array:
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _quaternion(r: Array) -> Quaternion:
    """Of a rotation matrix; the largest component is taken from the diagonal, so that no division is by a small one."""
    squares = np.array(
        [
            1 + r[0, 0] + r[1, 1] + r[2, 2],
            1 + r[0, 0] - r[1, 1] - r[2, 2],
            1 - r[0, 0] + r[1, 1] - r[2, 2],
            1 - r[0, 0] - r[1, 1] + r[2, 2],
        ]
    )
    k = int(np.argmax(squares))
    products = np.array(
        [
            [squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], squares[1], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], squares[2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], squares[3]],
        ]
    )[k]
    w, x, y, z = (products / np.linalg.norm(products)).tolist()
    return Quaternion(w=w, x=x, y=y, z=z)
