"""Judges what a controller played, by its own means: Pinocchio's kinematics, coal's distances, a sample a millisecond.

Nothing here comes from the filter's core: robot, zones and limits are read from the same files by other code, shapes
are the URDF's own (a cylinder is a cylinder), and curves are evaluated by other formulas.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coal
import numpy as np
import pinocchio
import yaml
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_contract.robot import Robot

Array = NDArray[np.float64]

TOUCH = 1e-6  # m; the precision of coal's distances
_LEVER = 1.5  # m; no point of robot and tool is further from the axis of any joint
_RATES = ("velocity", "acceleration", "jerk")


def read_zones(path: str | Path) -> list[dict[str, Any]]:
    """The zones of a safety file, as they stand there."""
    return list(yaml.safe_load(Path(path).read_text())["zones"])


@dataclass(frozen=True)
class Touch:
    """The smallest signed distance [m] of a configuration; `what` names link and zone, or both links."""

    distance: float
    what: str


class Fence:
    """Every link against every zone, and every link against every other.

    Args:
        zones: as in the safety file: mappings with `name`, `kind` and one shape.
        own: whether links are also held against each other, as the SRDF says.

    Raises:
        ValueError: on a zone that this oracle cannot judge; it must be taught then.
    """

    def __init__(self, robot: Robot, zones: Sequence[Mapping[str, Any]], *, own: bool = True):
        urdf = robot.urdf()
        self._model = pinocchio.buildModelFromXML(urdf)
        self._data = self._model.createData()
        self._geometry = pinocchio.buildGeomFromUrdfString(self._model, urdf, pinocchio.GeometryType.COLLISION)
        self._links = [self._model.frames[o.parentFrame].name for o in self._geometry.geometryObjects]
        self._names = list(self._links)
        if own:
            self._geometry.addAllCollisionPairs()
            srdf = robot.resolve(robot.description.srdf).read_text()
            pinocchio.removeCollisionPairsFromXML(self._model, self._geometry, srdf)
        for zone in zones:
            self._add(zone)
        self._results = self._geometry.createData()
        self._configuration = pinocchio.neutral(self._model)
        self._slots, self._factors, self._offsets = self._driven(robot, urdf)

    def nearest(self, q: Array) -> Touch:
        """Of a configuration (n,) in the order of the robot file; infinitely far when there is nothing to touch."""
        if len(self._geometry.collisionPairs) == 0:
            return Touch(np.inf, "")
        self._place(q)
        k = pinocchio.computeDistances(self._model, self._data, self._geometry, self._results, self._configuration)
        pair = self._geometry.collisionPairs[k]
        what = f"{self._names[pair.first]}/{self._names[pair.second]}"
        return Touch(float(self._results.distanceResults[k].min_distance), what)

    def distances(self, q: Array) -> dict[tuple[str, str], float]:
        """Of every pair of names (link and zone, link and link), m."""
        self._place(q)
        pinocchio.computeDistances(self._model, self._data, self._geometry, self._results, self._configuration)
        found: dict[tuple[str, str], float] = {}
        for pair, result in zip(self._geometry.collisionPairs, self._results.distanceResults, strict=True):
            key = (self._names[pair.first], self._names[pair.second])
            found[key] = min(found.get(key, np.inf), float(result.min_distance))
        return found

    def deepest(self, q: Array, qd: Array, step: float) -> Touch:
        """The smallest distance over samples (N, n) `step` s apart.

        Samples that cannot be closer than the nearest one found so far are skipped: between two of them no point moves
        further than the joints' speeds `qd` (N, n) times their longest lever. Nothing is missed by it, at any distance
        below zero.
        """
        travel = np.concatenate([[0.0], np.cumsum(np.abs(qd).sum(axis=1)) * step * _LEVER])
        worst, k = Touch(np.inf, ""), 0
        while k < len(q):
            touch = self.nearest(q[k])
            if touch.distance < worst.distance:
                worst = touch
            reach = travel[k] + max(0.0, touch.distance)
            k = max(k + 1, int(np.searchsorted(travel[:-1], reach)) - 1)
        return worst

    def _place(self, q: Array) -> None:
        self._configuration[self._slots[:, 0]] = q[self._slots[:, 1]] * self._factors + self._offsets

    def _driven(self, robot: Robot, urdf: str) -> tuple[NDArray[np.int64], Array, Array]:
        """(slot, joint) pairs, factors and offsets: joints of the robot file, and those that mimic one of them."""
        rows = [(name, name, 1.0, 0.0) for name in robot.joints]
        for joint in ElementTree.fromstring(urdf).iter("joint"):
            mimic = joint.find("mimic")
            if mimic is not None:
                factor, offset = float(mimic.get("multiplier", "1")), float(mimic.get("offset", "0"))
                rows.append((str(joint.get("name")), str(mimic.get("joint")), factor, offset))
        model = self._model
        slots = [[model.joints[model.getJointId(name)].idx_q, robot.joints.index(of)] for name, of, _, _ in rows]
        return np.array(slots), np.array([row[2] for row in rows]), np.array([row[3] for row in rows])

    def _add(self, zone: Mapping[str, Any]) -> None:
        name, kind = zone["name"], zone["kind"]
        if kind not in ("keep_in", "keep_out"):
            return  # a zone that only slows forbids no place
        frame = self._frame(zone.get("frame") or "")
        for geometry, place in _volumes(zone):
            item = pinocchio.GeometryObject(name, frame[0], frame[1], frame[2] * place, geometry)
            index = self._geometry.addGeometryObject(item)
            self._names.append(name)
            for body, link in enumerate(self._links):
                if _meant(zone, link) and self._geometry.geometryObjects[body].parentJoint != frame[0]:
                    self._geometry.addCollisionPair(pinocchio.CollisionPair(body, index))

    def _frame(self, link: str) -> tuple[int, int, pinocchio.SE3]:
        if not link:
            return 0, 0, pinocchio.SE3.Identity()
        index = self._model.getFrameId(link)
        frame = self._model.frames[index]
        return frame.parentJoint, index, frame.placement


def _meant(zone: Mapping[str, Any], link: str) -> bool:
    if zone.get("links"):
        return link in zone["links"]
    return link not in (zone.get("except_links") or ())


def _volumes(zone: Mapping[str, Any]) -> list[tuple[coal.CollisionGeometry, pinocchio.SE3]]:
    """The forbidden space of a zone: one convex volume, or half-spaces around what a robot must stay in."""
    shape = next((key for key in ("box", "sphere", "cylinder", "capsule", "mesh") if zone.get(key)), None)
    if shape is None:
        raise ValueError(f"zone '{zone['name']}' has no shape that the oracle knows")
    given = zone[shape]
    turn = pinocchio.rpy.rpyToMatrix(*given.get("rpy", (0, 0, 0)))
    place = pinocchio.SE3(turn, np.array(given.get("center", (0, 0, 0)), dtype=float))
    if zone["kind"] == "keep_in":
        if shape != "box":
            raise ValueError(f"zone '{zone['name']}': the oracle judges keep-in boxes, not a {shape}")
        half = np.array(given["size"], dtype=float) / 2
        sides = [(axis, sign) for axis in range(3) for sign in (1.0, -1.0)]
        return [(coal.Halfspace(-sign * np.eye(3)[axis], -half[axis]), place) for axis, sign in sides]
    if shape == "box":
        return [(coal.Box(*given["size"]), place)]
    if shape == "sphere":
        return [(coal.Sphere(given["radius"]), place)]
    if shape == "cylinder":
        return [(coal.Cylinder(given["radius"], given["length"]), place)]
    if shape == "capsule":
        return [(coal.Capsule(given["radius"], given["length"]), place)]
    raise ValueError(f"zone '{zone['name']}': the oracle does not read meshes")


class Curve:
    """The quintics that a controller plays through knots, each solved from its six conditions as a linear system.

    Args:
        times: (K,) s, increasing; knots: (K, 3, n) position, velocity, acceleration.
    """

    def __init__(self, times: Array, knots: Array):
        self._times = times
        span = np.diff(times)
        powers = np.arange(6)
        at_end = np.array([np.ones(6), powers, powers * (powers - 1)], dtype=float)
        at_start = np.array([powers == 0, powers == 1, 2.0 * (powers == 2)], dtype=float)
        system = np.concatenate([at_start, at_end])
        scale = np.stack([np.ones_like(span), span, span**2], axis=1)[:, :, None]
        wanted = np.concatenate([knots[:-1] * scale, knots[1:] * scale], axis=1)
        self._coefficients = np.linalg.solve(system[None], wanted)
        self._span = span

    def rows(self, times: Array) -> Array:
        """(N, 4, n): position, velocity, acceleration, jerk at times within the curve."""
        k = np.clip(np.searchsorted(self._times, times, side="right") - 1, 0, len(self._span) - 1)
        span = self._span[k]
        u = (times - self._times[k]) / span
        coefficients = self._coefficients[k]
        powers = np.arange(6)
        result = []
        for order in range(4):
            factor = np.prod([powers - j for j in range(order)], axis=0) if order else np.ones(6)
            weights = factor * np.where(powers >= order, u[:, None] ** np.maximum(powers - order, 0), 0.0)
            result.append(np.einsum("nk,nkj->nj", weights, coefficients) / span[:, None] ** order)
        return np.stack(result, axis=1)


def envelope_faults(
    times: Array, rows: Array, limits: JointLimits, slack: Array | float = 0.0, tolerance: float = 1e-3
) -> list[str]:
    """What samples (N,) s, (N, 4, n) of a motion break: position (by more than `slack` (n,)), velocity, acceleration,
    jerk (by more than the share `tolerance`), and the steps between them. NaN jerk (at a seam) is not judged."""
    found = []
    q = rows[:, 0]
    beyond = np.maximum(q - limits.max_position, limits.min_position - q) - slack
    if not (beyond <= 1e-6).all():
        k, j = _worst(beyond)
        found.append(f"position of {limits.names[j]} is {q[k, j]} at {times[k]:.3f} s")
    maxima = (limits.max_velocity, limits.max_acceleration, limits.max_jerk)
    for order, (name, maximum) in enumerate(zip(_RATES, maxima, strict=True), start=1):
        ratio = np.abs(rows[:, order]) / maximum
        bad = ~(ratio <= 1 + tolerance)
        if order == 3:
            bad &= ~np.isnan(ratio)
        if bad.any():
            k, j = _worst(np.where(bad, ratio, -np.inf))
            found.append(f"{name} of {limits.names[j]} is {ratio[k, j]:.4f} of its limit at {times[k]:.3f} s")
    # Across messages: each derivative bounds the steps of the one below it.
    step = np.diff(times)[:, None]
    for order, (rounding, maximum) in enumerate(zip((1e-7, 1e-5, 1e-3), maxima, strict=True)):
        jump = np.abs(np.diff(rows[:, order], axis=0)) - (maximum * step * (1 + tolerance) + rounding)
        if (jump > 0).any():
            k, j = _worst(jump)
            found.append(
                f"derivative {order} of {limits.names[j]} has a step too large by {jump[k, j]} at {times[k]:.3f} s"
            )
    return found


def _worst(values: Array) -> tuple[int, int]:
    k, j = np.unravel_index(int(np.nanargmax(np.nan_to_num(values, nan=np.inf))), values.shape)
    return int(k), int(j)
