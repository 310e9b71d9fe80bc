"""Reads what the filter needs of a URDF: the tree of joints and the collision primitives of each link."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ConfigError, unknown

Array = NDArray[np.float64]

_MOVING = ("revolute", "continuous", "prismatic")


@dataclass(frozen=True)
class Joint:
    """`rotation` (3, 3) and `translation` (3,) place the child at zero; `axis` (3,) is a unit vector in its frame."""

    name: str
    kind: str
    parent: str
    child: str
    rotation: Array
    translation: Array
    axis: Array
    mimic: tuple[str, float, float] | None
    travel: float


@dataclass(frozen=True)
class Shape:
    """A convex body: all points within `radius` of the hull of `points` (m, 3), in the link's frame [m]."""

    link: str
    points: Array
    radius: float


@dataclass(frozen=True)
class Load:
    """Mass [kg] of what belongs to a link, and its center (3,) in the link's frame [m]."""

    link: str
    mass: float
    center: Array


@dataclass(frozen=True)
class Description:
    """`links` in document order; `joints` so that each parent comes before its children."""

    root: str
    links: tuple[str, ...]
    joints: tuple[Joint, ...]
    shapes: tuple[Shape, ...]
    loads: tuple[Load, ...] = ()


def parse_urdf(text: str) -> Description:
    """Reads a URDF.

    Raises:
        ConfigError: when it is not a URDF, is no tree, or has a collision mesh (bound it by primitives).
    """
    try:
        robot = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError(f"the URDF is not XML: {error}; check /robot_description or the robot file") from error
    links = tuple(_attribute(link, "name", "link") for link in robot.findall("link"))
    joints = [_joint(element) for element in robot.findall("joint")]
    for joint in joints:
        for link in (joint.parent, joint.child):
            if link not in links:
                raise ConfigError(f"URDF joint '{joint.name}': {unknown('link', link, links)}")
    children = [joint.child for joint in joints]
    roots = [link for link in links if link not in children]
    if len(roots) != 1 or len(set(children)) != len(children):
        raise ConfigError(f"the URDF is no tree: roots {roots}, joints {len(joints)}; give each link one parent")
    shapes = [shape for link in robot.findall("link") for shape in _shapes(link)]
    loads = [load for link in robot.findall("link") for load in _loads(link)]
    return Description(roots[0], links, tuple(_sorted(roots[0], joints)), tuple(shapes), tuple(loads))


def _sorted(root: str, joints: list[Joint]) -> list[Joint]:
    done, result, waiting = {root}, [], list(joints)
    while waiting:
        ready = [joint for joint in waiting if joint.parent in done]
        if not ready:
            raise ConfigError(f"the URDF has a cycle through {', '.join(j.name for j in waiting)}")
        result += ready
        done |= {joint.child for joint in ready}
        waiting = [joint for joint in waiting if joint.child not in done]
    return result


def _joint(element: ElementTree.Element) -> Joint:
    name, kind = _attribute(element, "name", "joint"), _attribute(element, "type", "joint")
    if kind not in (*_MOVING, "fixed"):
        raise ConfigError(f"URDF joint '{name}' has type '{kind}'; known: {', '.join((*_MOVING, 'fixed'))}")
    rotation, translation = _origin(element)
    axis = _vector(element.find("axis"), "xyz", (1.0, 0.0, 0.0))
    length = float(np.linalg.norm(axis))
    if kind != "fixed" and not length > 0:
        raise ConfigError(f"URDF joint '{name}' has axis {axis}; give a direction")
    mimic = element.find("mimic")
    limit = element.find("limit")
    lower, upper = (float(limit.get(key, "0")) for key in ("lower", "upper")) if limit is not None else (0.0, 0.0)
    return Joint(
        name=name,
        kind=kind,
        parent=_attribute(element.find("parent"), "link", f"parent of joint '{name}'"),
        child=_attribute(element.find("child"), "link", f"child of joint '{name}'"),
        rotation=rotation,
        translation=translation,
        axis=axis / length if length > 0 else axis,
        mimic=None
        if mimic is None
        else (
            _attribute(mimic, "joint", "mimic"),
            float(mimic.get("multiplier", "1")),
            float(mimic.get("offset", "0")),
        ),
        travel=max(abs(lower), abs(upper)),
    )


def _shapes(link: ElementTree.Element) -> list[Shape]:
    name = _attribute(link, "name", "link")
    found = []
    for collision in link.findall("collision"):
        rotation, translation = _origin(collision)
        geometry = collision.find("geometry")
        primitive = None if geometry is None or len(geometry) == 0 else geometry[0]
        kind = "nothing" if primitive is None else primitive.tag
        if primitive is None or kind not in ("sphere", "cylinder", "box"):
            raise ConfigError(
                f"URDF link '{name}' has a collision geometry of kind '{kind}'; "
                "bound it by spheres, cylinders and boxes (the filter treats a cylinder as the capsule around it)"
            )
        if kind == "sphere":
            points, radius = np.zeros((1, 3)), _number(primitive, "radius")
        elif kind == "cylinder":
            half = _number(primitive, "length") / 2
            points, radius = np.array([[0, 0, -half], [0, 0, half]]), _number(primitive, "radius")
        else:
            size = _vector(primitive, "size", None)
            signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
            points, radius = signs * size / 2, 0.0
        found.append(Shape(name, points @ rotation.T + translation, radius))
    return [s for s in found if not any(_inside(s, other) for other in found if other is not s)]


def _loads(link: ElementTree.Element) -> list[Load]:
    inertial = link.find("inertial")
    mass = None if inertial is None else inertial.find("mass")
    if inertial is None or mass is None:
        return []
    return [Load(_attribute(link, "name", "link"), _number(mass, "value"), _origin(inertial)[1])]


def _inside(shape: Shape, other: Shape) -> bool:
    """Whether a sphere lies within a capsule of the same link, so that it adds nothing."""
    if len(shape.points) != 1 or len(other.points) != 2:
        return False
    a, b, p = other.points[0], other.points[1], shape.points[0]
    along = float(np.clip((p - a) @ (b - a) / max(float((b - a) @ (b - a)), 1e-12), 0, 1))
    return float(np.linalg.norm(a + along * (b - a) - p)) + shape.radius <= other.radius + 1e-9


def _origin(element: ElementTree.Element) -> tuple[Array, Array]:
    origin = element.find("origin")
    return rpy_matrix(_vector(origin, "rpy", (0.0, 0.0, 0.0))), _vector(origin, "xyz", (0.0, 0.0, 0.0))


def rpy_matrix(rpy: Array) -> Array:
    """(3, 3): fixed-axis roll, pitch, yaw [rad], as in URDF."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(rpy), np.cos(rpy)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def _vector(element: ElementTree.Element | None, key: str, default: tuple[float, ...] | None) -> Array:
    text = None if element is None else element.get(key)
    if text is None:
        if default is None:
            raise ConfigError(f"the URDF lacks the attribute '{key}' of a <{'' if element is None else element.tag}>")
        return np.array(default)
    try:
        values = np.array([float(part) for part in text.split()])
    except ValueError:
        values = np.array([])
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ConfigError(f'the URDF has {key}="{text}", expected three finite numbers')
    return values


def _number(element: ElementTree.Element, key: str) -> float:
    try:
        value = float(element.get(key, "nan"))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f'the URDF has <{element.tag} {key}="{element.get(key)}">, expected a number >= 0')
    return value


def _attribute(element: ElementTree.Element | None, key: str, what: str) -> str:
    value = None if element is None else element.get(key)
    if not value:
        raise ConfigError(f"the URDF has a {what} without '{key}'")
    return value
