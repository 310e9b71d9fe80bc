"""Zones of every shape for tests, and what coal makes of them."""

import itertools
from functools import cache

import coal
import numpy as np
import pinocchio
from rig import ROBOT

from vla_safety.core.urdf import parse_urdf
from vla_safety.core.zones import ZoneSpec

KEEP_IN = ("box", "cylinder", "mesh")


def box(name, kind, center, size, **options):
    shape = {"center": tuple(center), "size": tuple(size), "rpy": tuple(options.pop("rpy", (0, 0, 0)))}
    return ZoneSpec(name=name, kind=kind, box=shape, **options)


def random_zone(rng, shape, kind="keep_out", grow=1.0, **options):
    """Of a few centimetres to half a metre (times `grow`), anywhere within reach."""
    fields = {"center": tuple(rng.uniform(-0.6, 0.8, 3)), "rpy": tuple(rng.normal(0, 1, 3))}
    if shape == "box":
        fields["size"] = tuple(grow * rng.uniform(0.02, 0.5, 3))
    elif shape == "mesh":
        fields["points"] = [tuple(p) for p in grow * rng.uniform(-0.25, 0.25, (int(rng.integers(4, 14)), 3))]
    else:
        fields["radius"] = grow * rng.uniform(0.01, 0.2)
        fields["length"] = grow * rng.uniform(0.02, 0.6)
    if shape == "sphere":
        del fields["rpy"], fields["length"]
    return ZoneSpec(**{"name": "z", "kind": kind, shape: fields, **options})


def wall(shape, middle, angle, kind="keep_out"):
    """A centimetre thick, turned by `angle`, and a metre high (but for a sphere)."""
    pose = {"center": tuple(middle), "rpy": (0, 0, angle)}
    fields = {
        "box": {**pose, "size": (0.01, 0.01, 1.0)},
        "sphere": {"center": tuple(middle), "radius": 0.005},
        "cylinder": {**pose, "radius": 0.005, "length": 1.0},
        "capsule": {**pose, "radius": 0.005, "length": 1.0},
        "mesh": {
            **pose,
            "points": [(x, y, z) for x in (-0.005, 0.005) for y in (-0.005, 0.005) for z in (-0.5, 0.5)],
        },
    }[shape]
    return ZoneSpec(**{"name": "wall", "kind": kind, shape: fields})


def moved(zone: ZoneSpec, by):
    """The same zone, elsewhere."""
    key = next(key for key in ("box", "sphere", "cylinder", "capsule", "mesh") if getattr(zone, key) is not None)
    shape = getattr(zone, key)
    center = tuple(float(x) for x in np.array(shape.center) + by)
    return zone.model_copy(update={key: shape.model_copy(update={"center": center})})


def coal_volume(zone: ZoneSpec):
    """Geometry and pose in the zone's frame."""
    shape = zone.shape
    turn = pinocchio.rpy.rpyToMatrix(*getattr(shape, "rpy", (0, 0, 0)))
    place = coal.Transform3s(turn, np.array(shape.center))
    if zone.box:
        return coal.Box(*shape.size), place
    if zone.sphere:
        return coal.Sphere(shape.radius), place
    if zone.cylinder:
        return coal.Cylinder(shape.radius, shape.length), place
    if zone.capsule:
        return coal.Capsule(shape.radius, shape.length), place
    return coal_hull(np.array(shape.points) * shape.scale), place


def coal_hull(points):
    model = coal.BVHModelOBBRSS()
    model.beginModel(1, len(points))
    for point in points:
        model.addVertex(point)
    model.endModel()
    model.buildConvexHull(True, "Qt")
    return model.convex


class Oracle:
    """Distances by Pinocchio and coal, which share nothing with the filter. The robot's cylinders count as capsules."""

    def __init__(self):
        self.model = pinocchio.buildModelFromXML(ROBOT.urdf())
        self.data = self.model.createData()
        self.bodies = []
        for shape in parse_urdf(ROBOT.urdf()).shapes:
            if len(shape.points) == 8:
                center = shape.points.mean(axis=0)
                edges = shape.points[[4, 2, 1]] - shape.points[0]
                size = np.linalg.norm(edges, axis=1)
                pose = coal.Transform3s((edges / size[:, None]).T, center)
                geometry = coal.Box(*size)
            elif len(shape.points) == 2:
                axis = shape.points[1] - shape.points[0]
                length = np.linalg.norm(axis)
                turn = pinocchio.Quaternion.FromTwoVectors(np.array([0, 0, 1.0]), axis / length).matrix()
                pose = coal.Transform3s(turn, shape.points.mean(axis=0))
                geometry = coal.Capsule(shape.radius, length)
            else:
                pose, geometry = coal.Transform3s(np.eye(3), shape.points[0]), coal.Sphere(shape.radius)
            self.bodies.append((shape.link, geometry, pose))

    def place(self, q):
        full = pinocchio.neutral(self.model)
        for name, value in [*zip(ROBOT.joints, q, strict=True), ("fr3_finger_joint2", q[-1])]:
            full[self.model.joints[self.model.getJointId(name)].idx_q] = value
        pinocchio.framesForwardKinematics(self.model, self.data, full)

    def link(self, name):
        frame = self.data.oMf[self.model.getFrameId(name)]
        return coal.Transform3s(frame.rotation, frame.translation)

    def nearest(self, q, zone: ZoneSpec):
        """By link: signed distance, and the unit vector from the zone to the link."""
        self.place(q)
        volume, place = coal_volume(zone)
        if zone.frame:
            place = self.link(zone.frame) * place
        result = {}
        for link, geometry, pose in self.bodies:
            answer = coal.DistanceResult()
            distance = coal.distance(geometry, self.link(link) * pose, volume, place, coal.DistanceRequest(), answer)
            if distance < result.get(link, (np.inf, None))[0]:
                away = answer.getNearestPoint1() - answer.getNearestPoint2()
                result[link] = distance, away / max(np.linalg.norm(away), 1e-12)
        return result

    def distances(self, q, zone: ZoneSpec):
        return {link: distance for link, (distance, _) in self.nearest(q, zone).items()}


def inside_room(zone: ZoneSpec, points):
    """How far points (m, 3) are inside a keep-in zone, from the definitions of its shape."""
    shape = zone.shape
    local = (points - np.array(shape.center)) @ pinocchio.rpy.rpyToMatrix(*shape.rpy)
    if zone.box:
        return (np.array(shape.size) / 2 - np.abs(local)).min(axis=1)
    if zone.cylinder:
        return np.minimum(shape.radius - np.linalg.norm(local[:, :2], axis=1), shape.length / 2 - np.abs(local[:, 2]))
    corners = np.array(shape.points) * shape.scale
    return np.min([(a - local) @ normal for a, normal in _facets(tuple(map(tuple, corners)))], axis=0)


@cache
def _facets(corners):
    """A corner and the outward normal of every plane through three corners that has all others on one side."""
    found = []
    for a, b, c in itertools.combinations(np.array(corners), 3):
        normal = np.cross(b - a, c - a)
        normal /= max(np.linalg.norm(normal), 1e-15)
        heights = (np.array(corners) - a) @ normal
        if (heights <= 1e-9).all() or (heights >= -1e-9).all():
            found.append((a, normal if heights.min() < -1e-9 else -normal))
    return found
