"""Obstacles from MoveIt's planning scene, as keep-out zones, where `moveit_msgs` is installed.

The scene is asked for as a whole, then followed by its diffs. No order of both loses an obstacle: the answer is a
picture of any moment after the question, so what was heard since the question is applied to it again, and an answer to
an older question does not count. Messages are counted: when one is missing the whole scene is asked for again, and the
robot stays stopped until it came. What cannot be judged (planes, prisms, octomaps,
frames that the robot does not have) is refused by name, and the robot stays stopped until the scene can be used: an
obstacle that is left out would be one that is driven into. Pairs that the scene's allowed collision matrix lets touch
may touch.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError
from shape_msgs.msg import SolidPrimitive

from vla_contract.errors import ConfigError, unknown
from vla_safety.adapters import Adapter, Host
from vla_safety.building import Parts, describe
from vla_safety.core.findings import Finding
from vla_safety.core.meshes import hull_of
from vla_safety.core.motion import Array
from vla_safety.core.watchdogs import Instant
from vla_safety.core.zones import ZoneSpec

_SERVICE = "get_planning_scene"
_RETRY = 1.0  # s
_PATIENCE = 10.0  # s for an answer
_REFRESH = 5.0  # s between questions while messages cannot be counted, so that a missing one would not be noticed
_DEPTH = 100  # of the queue; move_group keeps as many
_NUMBER = "publication_sequence_number"  # in a message's info: by publisher, without gaps; None: not known
_MISSED = "messages of its topic were missed; the whole scene is asked for again"
_ADD, _REMOVE, _APPEND, _MOVE = 0, 1, 2, 3  # moveit_msgs/CollisionObject
_COMPONENTS = 2 | 4 | 8 | 16 | 64 | 128  # moveit_msgs/PlanningSceneComponents: state with attached, names, geometry, …


@dataclass
class SceneObjects:
    """The objects of a scene, followed through its diffs.

    Attributes:
        base: frame that zones without a frame are in; links: those of the robot, which objects may be fixed to.
        known: whether a whole scene was seen.
    """

    base: str
    links: Sequence[str]
    known: bool = False
    _zones: dict[str, list[ZoneSpec]] = field(default_factory=dict)
    _poses: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    _allowed: dict[str, set[str]] = field(default_factory=dict)
    _since: list[Any] | None = None  # heard since a whole scene was asked for; None: none is

    def asked(self) -> None:
        """A whole scene is asked for now; of an older question nothing is known any more."""
        self._since = []

    def answered(self, scene: Any) -> None:
        """The answer to the last question. What was heard since may be older or newer than it; all of it holds.

        Raises:
            ConfigError: as `update`.
        """
        since, self._since = self._since or [], None
        for each in (scene, *since):
            self.update(each)

    def missed(self) -> None:
        """Something was not heard: nothing is known until a whole scene comes that is asked for from now on."""
        self.known, self._since = False, None

    def update(self, scene: Any) -> None:
        """Takes a moveit_msgs/PlanningScene; diffs only on top of a whole one. When it raises, a whole one is needed.

        Raises:
            ConfigError: naming the object that cannot be a zone, and why.
        """
        if self._since is not None:
            self._since.append(scene)
        if scene.is_diff and not self.known:
            return
        self.known = False
        if len(getattr(scene.world.octomap.octomap, "data", ())) > 0:
            raise ConfigError("the scene holds an octomap; take it out, or give its obstacles as boxes")
        zones = dict(self._zones) if scene.is_diff else {}
        poses = dict(self._poses) if scene.is_diff else {}
        for item in scene.world.collision_objects:
            self._apply(item, zones, poses)
        allowed = _allowed_pairs(scene.allowed_collision_matrix)
        if scene.is_diff and not allowed:
            allowed = self._allowed
        self._zones, self._poses, self._allowed = zones, poses, allowed
        self.known = True

    def obstacles(self) -> tuple[ZoneSpec, ...]:
        """Keep-out zones, in order of the objects' names."""
        found = []
        for name in sorted(self._zones):
            free = tuple(link for link in self.links if link in self._allowed.get(name, ()))
            for zone in self._zones[name]:
                number = len(found)
                unique = f"scene_{number}_{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"
                found.append(zone.model_copy(update={"name": unique, "except_links": free}))
        return tuple(found)

    def _apply(self, item: Any, zones: dict[str, list[ZoneSpec]], poses: dict[str, tuple[Array, Array]]) -> None:
        operation = _number(item.operation)
        if operation == _REMOVE:
            for name in [item.id] if item.id else list(zones):
                zones.pop(name, None)
                poses.pop(name, None)
            return
        if operation not in (_ADD, _APPEND, _MOVE):
            raise ConfigError(f"object '{item.id}' has operation {operation}; known: ADD, REMOVE, APPEND, MOVE")
        pose = _pose(item.pose, item.id)
        if operation == _MOVE:
            if item.id not in zones:
                raise ConfigError(f"object '{item.id}' moves, but was never added; send the whole scene again")
            zones[item.id] = [_carried(zone, poses[item.id], pose) for zone in zones[item.id]]
            poses[item.id] = pose
            return
        made = self._made(item, pose)
        if operation == _APPEND and item.id in zones:
            zones[item.id] = [*zones[item.id], *made]
        else:
            zones[item.id], poses[item.id] = made, pose

    def _made(self, item: Any, pose: tuple[Array, Array]) -> list[ZoneSpec]:
        frame = item.header.frame_id.lstrip("/")
        if frame not in (self.base, "", *self.links):
            raise ConfigError(f"object '{item.id}': {unknown('frame', frame, (self.base, *self.links))}")
        if len(item.planes):
            raise ConfigError(f"object '{item.id}' is a plane; give it as a box")
        shapes = [
            *zip(map(_primitive, item.primitives), item.primitive_poses, strict=False),
            *zip(map(_mesh, item.meshes), item.mesh_poses, strict=False),
        ]
        if len(shapes) != len(item.primitives) + len(item.meshes):
            raise ConfigError(f"object '{item.id}' has fewer poses than shapes; give each shape a pose")
        fixed = "" if frame in (self.base, "") else frame
        try:
            return [_zone(kind, fields, _times(pose, _pose(own, item.id)), fixed) for (kind, fields), own in shapes]
        except ValidationError as error:
            raise ConfigError(f"object '{item.id}': {error.errors()[0]['msg']}") from error


def attached(scene: Any) -> tuple[str, ...]:
    """Names of objects that the scene attaches to the robot."""
    return tuple(item.object.id for item in scene.robot_state.attached_collision_objects)


def _primitive(primitive: Any) -> tuple[str, dict[str, Any]]:
    """Shape of a zone, and its fields but for the pose."""
    kind, size = primitive.type, [float(x) for x in primitive.dimensions]
    counts = {SolidPrimitive.BOX: 3, SolidPrimitive.SPHERE: 1, SolidPrimitive.CYLINDER: 2, SolidPrimitive.CONE: 2}
    if kind not in counts:
        raise ConfigError(f"a primitive of type {kind} cannot be a zone; known: box, sphere, cylinder, cone")
    if len(size) < counts[kind]:
        raise ConfigError(f"a primitive of type {kind} has {len(size)} dimensions, needed are {counts[kind]}")
    if kind == SolidPrimitive.BOX:
        return "box", {"size": tuple(size[:3])}
    if kind == SolidPrimitive.SPHERE:
        return "sphere", {"radius": size[0]}
    return "cylinder", {"length": size[0], "radius": size[1]}  # a cone as the cylinder around it


def _mesh(mesh: Any) -> tuple[str, dict[str, Any]]:
    """The hull of a mesh: it holds the mesh, so it can only block too early."""
    points = np.array([(p.x, p.y, p.z) for p in mesh.vertices]).reshape(-1, 3)
    try:
        hull = hull_of(points)
    except ValueError as error:
        raise ConfigError(f"a mesh with {len(points)} vertices cannot be a zone: {error}") from error
    return "mesh", {"points": [tuple(row) for row in hull.vertices.tolist()]}


def _zone(kind: str, fields: Mapping[str, Any], pose: tuple[Array, Array], frame: str) -> ZoneSpec:
    rotation, center = pose
    placed = {**fields, "center": tuple(center.tolist())}
    if kind != "sphere":
        placed["rpy"] = _rpy(rotation)
    return ZoneSpec.model_validate({"name": "scene", "kind": "keep_out", kind: placed, "frame": frame})


def _carried(zone: ZoneSpec, old: tuple[Array, Array], new: tuple[Array, Array]) -> ZoneSpec:
    """A zone of an object that went from one pose to another."""
    kind = next(key for key in ("box", "sphere", "cylinder", "mesh") if getattr(zone, key) is not None)
    shape = zone.shape
    rotation = np.eye(3) if kind == "sphere" else shape.rotation  # type: ignore[union-attr]
    inverse = old[0].T, -old[0].T @ old[1]
    pose = _times(new, _times(inverse, (rotation, np.array(shape.center))))
    fields = {key: value for key, value in shape.model_dump().items() if key not in ("center", "rpy", "file")}
    return _zone(kind, fields, pose, zone.frame)


def _allowed_pairs(matrix: Any) -> dict[str, set[str]]:
    """By name: what it may touch."""
    names = list(matrix.entry_names)
    return {
        name: {other for other, free in zip(names, row.enabled, strict=False) if free}
        for name, row in zip(names, matrix.entry_values, strict=False)
    }


def _number(operation: Any) -> int:
    """A `byte` field, which rclpy gives as bytes."""
    return operation[0] if isinstance(operation, bytes) else int(operation)


def _pose(pose: Any, name: str) -> tuple[Array, Array]:
    """Rotation (3, 3) and translation (3,)."""
    p, o = pose.position, pose.orientation
    q = np.array([o.w, o.x, o.y, o.z])
    length = float(np.linalg.norm(q))
    if not abs(length - 1) < 1e-3:
        raise ConfigError(f"object '{name}' has an orientation of length {length:.4g}; give a unit quaternion")
    w, x, y, z = q / length
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return rotation, np.array([p.x, p.y, p.z])


def _times(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] @ b[0], a[1] + a[0] @ b[1]


def _rpy(r: Array) -> tuple[float, float, float]:
    """Fixed-axis roll, pitch, yaw of a rotation matrix; at pitch ±90 degrees the yaw is zero."""
    pitch = float(np.arctan2(-r[2, 0], np.hypot(r[0, 0], r[1, 0])))
    if np.hypot(r[0, 0], r[1, 0]) < 1e-9:
        return float(np.arctan2(np.sign(pitch) * r[0, 1], r[1, 1])), pitch, 0.0
    return float(np.arctan2(r[2, 1], r[2, 2])), pitch, float(np.arctan2(r[1, 0], r[0, 0]))


class PlanningScene(Adapter):
    """Follows the scene on `topic` (moveit_msgs/PlanningScene).

    Raises:
        ConfigError: when moveit_msgs is not installed.
    """

    def __init__(self, host: Host, topic: str, base: str):
        super().__init__(host)
        try:
            from moveit_msgs.msg import PlanningScene as Message
            from moveit_msgs.srv import GetPlanningScene
        except ImportError as error:
            raise ConfigError(
                f"parameter planning_scene is '{topic}', but moveit_msgs is not installed ({error}); install MoveIt's "
                "messages (ros-<distro>-moveit-msgs), or leave the parameter empty"
            ) from error
        self._request = GetPlanningScene.Request()
        self._request.components.components = _COMPONENTS
        self._client = host.create_client(GetPlanningScene, _SERVICE)
        self._begin(base)
        host.create_subscription(Message, topic, self.receive, _DEPTH)

    def _begin(self, base: str) -> None:
        self._objects = SceneObjects(base, ())
        self._taken: tuple[ZoneSpec, ...] | None = None
        self._unusable = "no whole scene yet"
        self._refused = ""
        self._tried_ns: int | None = None
        self._asked: Any = None  # the answer that is waited for
        self._asked_ns: int | None = None
        self._number: int | None = None  # of the newest message
        self._doubted = False
        self._warned: set[str] = set()

    def rebuilt(self, parts: Parts) -> None:
        self._objects.links = describe(parts, parts.setup).links
        self._taken = parts.setup.obstacles

    def receive(self, scene: Any, info: Mapping[str, int | None]) -> None:
        """Takes a scene or a diff; `info` is what rclpy gives beside it."""
        before, self._number = self._number, info.get(_NUMBER)
        if before is None and self._number is not None:
            self._doubted = True  # whether any were missed before the first that was heard, no number says
        elif before is not None and self._number != before + 1:
            self._objects.missed()
            self._forget()
            self._asked_ns, self._unusable = None, _MISSED
        self._update(self._objects.update, scene)

    def check(self, now: Instant) -> None:
        """Asks for the whole scene until it can be used, and tries again what the filter refused."""
        if self._tried_ns is None or now.watch_ns - self._tried_ns >= _RETRY * 1e9:
            self._tried_ns = now.watch_ns
            if self._objects.known:
                self._take()
        waited = math.inf if self._asked_ns is None else (now.watch_ns - self._asked_ns) * 1e-9
        if waited >= self._patience and self._client.service_is_ready():
            self._ask(now)
        self._tell(now)

    @property
    def _patience(self) -> float:
        """s from one question to the next."""
        if self._asked is not None:
            return _PATIENCE
        if not self._objects.known or self._doubted:
            return _RETRY
        return _REFRESH if self._number is None else math.inf

    def _ask(self, now: Instant) -> None:
        self._forget()
        self._doubted = False
        self._objects.asked()
        self._asked, self._asked_ns = self._client.call_async(self._request), now.watch_ns
        self._asked.add_done_callback(self.host.guarded(self._answer))

    def _forget(self) -> None:
        """The answer that is waited for does not count any more."""
        if self._asked is not None:
            self._client.remove_pending_request(self._asked)
        self._asked = None

    def _answer(self, future: Any) -> None:
        if future is not self._asked:
            return
        self._asked = None
        self._update(self._objects.answered, future.result().scene)

    def _update(self, update: Callable[[Any], None], scene: Any) -> None:
        try:
            update(scene)
            self._unusable = "" if self._objects.known else self._unusable
        except ConfigError as error:
            if str(error) != self._unusable:
                self.host.get_logger().error(f"the planning scene is refused: {error}")
            self._unusable = str(error)
        self._warn(attached(scene))
        self._take()

    def _take(self) -> None:
        """Makes the obstacles those of the scene."""
        obstacles = self._objects.obstacles()
        if self._objects.known and obstacles != self._taken:
            answer = self.host.reconfigure(Finding("obstacles", _named(obstacles)), obstacles=obstacles)
            self._refused = "" if answer.success else answer.message
            if answer.success:
                self._taken = obstacles
                self.host.get_logger().info(f"planning scene: {answer.message}, obstacles {_named(obstacles)}")
        self._tell(self.host.instant())

    def _tell(self, now: Instant) -> None:
        trouble = self._unusable or self._refused or ("" if self._objects.known else "no whole scene")
        self.host.tell("planning_scene", Finding("planning_scene", trouble) if trouble else None, now)

    def _warn(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._warned:
                self._warned.add(name)
                self.host.get_logger().warning(
                    f"the planning scene attaches '{name}' to the robot; that is no obstacle, and the filter does not "
                    "know it as a payload: name it in the safety file and mount it"
                )

    def diagnostics(self) -> dict[str, object]:
        return {"scene_obstacles": len(self._taken or ()), "scene": self._unusable or self._refused or "known"}


def _named(obstacles: Sequence[ZoneSpec]) -> str:
    return ", ".join(zone.name for zone in obstacles) or "none"
