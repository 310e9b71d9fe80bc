"""Shapes of zones by themselves, against coal: a ball, a rod and a block beside, before and inside of each."""

from types import SimpleNamespace

import coal
import numpy as np
import pinocchio
import pytest
from volumes import coal_volume

from vla_contract.errors import ConfigError
from vla_safety.core.meshes import Planes
from vla_safety.core.separation import separation
from vla_safety.core.shapes import (
    CLOSE,
    GAP,
    Box,
    Capsule,
    Cylinder,
    Mesh,
    Sphere,
    bounding_ball,
    hull_gaps,
    keep_in,
    keep_out,
    rounded_gaps,
    stacked,
)

TURN = (0.4, -0.7, 1.1)
POSE = {"center": (0.5, -0.25, 0.125), "rpy": TURN}
R = pinocchio.rpy.rpyToMatrix(*TURN)
CENTER = np.array(POSE["center"])
WEDGE = [(0, 0, 0), (0.4, 0, 0), (0, 0.3, 0), (0, 0, 0.5), (0.4, 0.3, 0.05)]
SOLIDS = {
    "box": Box(**POSE, size=(0.2, 0.4, 0.6)),
    "sphere": Sphere(center=POSE["center"], radius=0.3),
    "cylinder": Cylinder(**POSE, radius=0.2, length=0.5),
    "capsule": Capsule(**POSE, radius=0.1, length=0.5),
    "mesh": Mesh(**POSE, points=WEDGE, scale=0.9),
}
AXIS = 0.25 * R[:, 2]  # from the middle to an end


def volume(kind):
    """What coal makes of a solid."""
    of = {"box": None, "sphere": None, "cylinder": None, "capsule": None, "mesh": None, kind: SOLIDS[kind]}
    return coal_volume(SimpleNamespace(shape=SOLIDS[kind], **of))


def body(rng):
    """Points, radius, and coal's geometry with its pose."""
    place = coal.Transform3s(pinocchio.rpy.rpyToMatrix(*rng.uniform(-3, 3, 3)), rng.uniform(-0.8, 0.8, 3) + CENTER)
    turn, middle = place.getRotation(), place.getTranslation()
    kind = rng.integers(3)
    if kind == 0:
        return middle[None], 0.1, coal.Sphere(0.1), place
    if kind == 1:
        return middle + np.outer([-0.2, 0.2], turn[:, 2]), 0.05, coal.Capsule(0.05, 0.4), place
    corners = np.array([(x, y, z) for x in (-0.1, 0.1) for y in (-0.15, 0.15) for z in (-0.05, 0.05)])
    return middle + corners @ turn.T, 0.0, coal.Box(0.2, 0.3, 0.1), place


def gap(kind, points, radius):
    """Ours, of one body in the given configurations (N, m, 3)."""
    batch = np.asarray(points).transpose(1, 0, 2)[None]
    solid = keep_out(SOLIDS[kind])
    if isinstance(solid, Planes):
        return hull_gaps(solid, batch, np.array([radius]))[0]
    return rounded_gaps(stacked([solid]), batch, np.array([radius]))[0]


@pytest.mark.parametrize("kind", SOLIDS)
def test_i14_distances_are_never_more_than_the_truth_and_tight_close_by(kind):
    rng = np.random.default_rng(2)
    geometry, place = volume(kind)
    close = 0
    for _ in range(60):
        points, radius, own, at = body(rng)
        answer = coal.DistanceResult()
        distance = coal.distance(own, at, geometry, place, coal.DistanceRequest(), answer)
        if distance <= 0:
            assert gap(kind, [points], radius)[0] <= 1e-6
            continue
        away = answer.getNearestPoint2() - answer.getNearestPoint1()
        steps = away / distance * (distance - np.array([[0.001], [CLOSE * 0.9], [0.004]]))
        found = gap(kind, points + np.concatenate([np.zeros((1, 3)), steps])[:, None], radius)
        for value, true in zip(found, (distance, 0.001, CLOSE * 0.9, 0.004), strict=True):
            assert value <= true + 1e-6
            if value < CLOSE:
                assert true - value <= GAP + 1e-6
                close += 1
    assert close > 60


def test_several_solids_and_bodies_are_looked_at_one_by_one():
    rng = np.random.default_rng(3)
    kinds = ["box", "sphere", "cylinder", "capsule"]
    batch = stacked([keep_out(SOLIDS[kind]) for kind in kinds])
    ends = CENTER + rng.uniform(-0.6, 0.6, (4, 2, 5, 3))
    radii = np.array([0.0, 0.01, 0.02, 0.03])
    found = rounded_gaps(batch, ends, radii)
    for k, kind in enumerate(kinds):
        np.testing.assert_array_equal(found[k], gap(kind, ends[k].transpose(1, 0, 2), radii[k]))
    part = rounded_gaps(batch.take(np.array([2, 0])), ends[[2, 0]], radii[[2, 0]])
    np.testing.assert_array_equal(part, found[[2, 0]])


@pytest.mark.parametrize(
    ("kind", "reach"),
    [
        ("box", np.abs(R) @ [0.1, 0.2, 0.3]),
        ("sphere", [0.3, 0.3, 0.3]),
        ("cylinder", np.abs(AXIS) + 0.2 * np.sqrt(1 - R[:, 2] ** 2)),
        ("capsule", np.abs(AXIS) + 0.1),
    ],
)
def test_the_extents_of_a_solid_just_hold_it(kind, reach):
    low, high = keep_out(SOLIDS[kind]).extents()
    np.testing.assert_allclose(low, CENTER - reach, atol=1e-12)
    np.testing.assert_allclose(high, CENTER + reach, atol=1e-12)


def test_the_extents_of_a_mesh_are_those_of_its_corners():
    corners = 0.9 * np.array(WEDGE) @ R.T + CENTER
    low, high = keep_out(SOLIDS["mesh"]).extents()
    np.testing.assert_allclose(low, corners.min(axis=0), atol=1e-12)
    np.testing.assert_allclose(high, corners.max(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "center", "radius"),
    [
        ("box", CENTER, np.sqrt(0.1**2 + 0.2**2 + 0.3**2)),
        ("sphere", CENTER, 0.3),
        ("cylinder", CENTER, np.hypot(0.2, 0.25)),
        ("capsule", CENTER, 0.1 + 0.25),
    ],
)
def test_the_ball_around_a_shape_holds_it(kind, center, radius):
    found = bounding_ball(SOLIDS[kind])
    np.testing.assert_allclose(found[0], center)
    assert found[1] == pytest.approx(radius)


def test_the_ball_around_a_mesh_holds_its_corners():
    center, radius = bounding_ball(SOLIDS["mesh"])
    corners = 0.9 * np.array(WEDGE) @ R.T + CENTER
    np.testing.assert_allclose(center, (corners.min(axis=0) + corners.max(axis=0)) / 2)
    assert radius == pytest.approx(np.linalg.norm(corners - center, axis=1).max())


@pytest.mark.parametrize("kind", ["box", "cylinder", "mesh"])
def test_room_inside_is_that_of_planes_and_round_wall(kind):
    room, rng = keep_in(SOLIDS[kind]), np.random.default_rng(4)
    points = CENTER + rng.uniform(-0.4, 0.4, (50, 3))
    local = (points - CENTER) @ R
    if kind == "box":
        true = (np.array([0.1, 0.2, 0.3]) - np.abs(local)).min(axis=1)
    elif kind == "cylinder":
        true = np.minimum(0.2 - np.hypot(local[:, 0], local[:, 1]), 0.25 - np.abs(local[:, 2]))
    else:
        hull = SOLIDS["mesh"].hull()
        true = (hull.offsets - points @ hull.normals.T).min(axis=1)
        assert ((local.min(axis=1) >= 0) >= (true >= 0)).all(), "the wedge lies in the first octant"
    every = np.arange(len(room.normals))
    np.testing.assert_allclose(room.of_points(points, every), true, atol=1e-12)
    planes, wall = room.of_boxes(points, np.zeros_like(points))
    np.testing.assert_allclose(np.minimum(planes.min(axis=1), wall), true, atol=1e-12)
    half = np.abs(rng.uniform(0, 0.1, (50, 3)))
    planes, wall = room.of_boxes(points, half)
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    corners = points[:, None] + half[:, None] * signs
    least = room.of_points(corners, every).min(axis=1)
    assert (np.minimum(planes.min(axis=1), wall) <= least + 1e-12).all()
    np.testing.assert_allclose(planes.min(axis=1), (room.offsets - corners @ room.normals.T).min(axis=(1, 2)))
    assert np.isinf(room.of_points(points, np.array([], dtype=int))).all() == (kind != "cylinder")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_in(SOLIDS["sphere"]), "a keep-in zone cannot be a sphere; known: box, cylinder, mesh"),
        (lambda: keep_in(SOLIDS["capsule"]), "a keep-in zone cannot be a capsule; known: box, cylinder, mesh"),
        (lambda: Mesh(center=(0, 0, 0), file="a.stl").hull(),
         "mesh 'a.stl' was not read; load_safety reads the meshes of a safety file"),
    ],
)  # fmt: skip
def test_i07_a_shape_that_cannot_be_used_is_refused(call, message):
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("fields", [{}, {"file": "a.stl", "points": WEDGE}])
def test_i07_a_mesh_has_one_source(fields):
    with pytest.raises(ValueError, match="Value error, give the mesh a file or points, one of them "):
        Mesh(center=(0, 0, 0), **fields)


class Cube:
    """Bodies minus the cube around the origin with edges of 2 m; `looks`: how many were looked at each time."""

    def __init__(self, points, looks=None):
        self.points, self.looks = points, [] if looks is None else looks

    def take(self, rows):
        return Cube(self.points[rows], self.looks)

    def furthest(self, direction):
        self.looks.append(len(direction))
        return np.sign(direction)


@pytest.mark.parametrize(
    ("points", "distance"),
    [
        ([(3, 0, 0)] * 3, 2.0),
        ([(3, 3, 0)] * 3, np.sqrt(8)),
        ([(3, 3, 3), (9, 3, 3), (3, 9, 3)], np.sqrt(12)),
        ([(-3, 9, 0), (-3, -9, 0), (-5, 0, 0)], 2.0),
        ([(2, 2, 9), (2, 2, -9), (2, 2, 0)], np.sqrt(2)),
        ([(4, -2, -9), (-2, 4, 9), (4, 4, 0)], 0.0),
        ([(0.5, 0, 0), (9, 0, 0), (0, 9, 0)], None),
    ],
)
def test_i14_a_plane_that_separates_two_bodies_says_how_far_they_are_apart(points, distance):
    """Before a face, an edge, a corner of a cube; crossing; overlapping."""
    found = separation(Cube(np.array([points, points], dtype=float)), np.array([9.0, 9.0]))
    assert found[0] == found[1]
    if distance is None or distance == 0.0:
        assert found[0] <= 1e-6
    else:
        assert distance - 1e-4 <= found[0] <= distance + 1e-12


def test_what_is_far_enough_apart_is_not_looked_at_any_closer():
    rng = np.random.default_rng(5)
    points = rng.uniform(-1, 1, (40, 4, 3)) + 2.5 * rng.choice([-1, 1], (40, 1, 3))
    exact = separation(Cube(points), np.full(40, np.inf))
    for enough in (0.3, 1.0):
        found = separation(Cube(points), np.full(40, enough))
        assert (found <= exact + 1e-12).all()
        assert ((found >= enough) | (found >= exact - 1e-4)).all()
    for far, enough, looks in ((9.0, 7.9, [1]), (9.0, np.inf, [1]), (1.2, np.inf, [1])):
        before_a_face = Cube(np.array([[(far, 0.0, 0.0)] * 3]))
        separation(before_a_face, np.array([enough]))
        assert before_a_face.looks == looks
