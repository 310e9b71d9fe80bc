"""Shapes of zones: what the safety file says of them, and how far a body is from one.

A body is the hull of a few points, with a radius. Distances are lower bounds that are never too large. Where body and
shape overlap they are not positive, and their size means nothing. They come in two steps:

1. the distance to the smallest box, along the axes of the shape, that holds the body (of a mesh: the largest distance
   from the plane of one of its facets). Exact for spheres, and for what lies before a face;
2. closer than `CLOSE`, where the body's points do not show that the first bound is short by less than `GAP`, the bound
   is a separating plane's (`separation.py`). So a bound below `CLOSE` is short by at most `GAP`.

Inside of a keep-in shape distances are exact: it is convex, so a body lies inside when its points do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from vla_contract.errors import ConfigError
from vla_contract.robot import Finite, Positive
from vla_safety.core.meshes import Planes, hull_of
from vla_safety.core.motion import Array
from vla_safety.core.separation import separation
from vla_safety.core.urdf import rpy_matrix

CLOSE = 0.015  # m
GAP = 0.0005  # m

Vector = tuple[Finite, Finite, Finite]
Index = NDArray[np.int64] | NDArray[np.bool_]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Posed(_Strict):
    """m and rad (fixed-axis roll, pitch, yaw), in the zone's frame."""

    center: Vector = (0.0, 0.0, 0.0)
    rpy: Vector = (0.0, 0.0, 0.0)

    @property
    def rotation(self) -> Array:
        """(3, 3)"""
        return rpy_matrix(np.array(self.rpy))


class Box(_Posed):
    """`size`: full edge lengths."""

    center: Vector
    size: tuple[Positive, Positive, Positive]


class Sphere(_Strict):
    """All points within `radius` of `center`."""

    center: Vector
    radius: Positive


class Cylinder(_Posed):
    """Its axis is z; `length` from end to end."""

    center: Vector
    radius: Positive
    length: Positive


class Capsule(_Posed):
    """All points within `radius` of a segment of `length` along z; the caps come on top."""

    center: Vector
    radius: Positive
    length: Positive


class Mesh(_Posed):
    """A convex mesh, as an STL or OBJ file (a path relative to the safety file) or as points, of which it is the hull.

    Attributes:
        scale: of the file's or list's numbers to m (0.001 for millimetres).
    """

    file: str = ""
    points: tuple[Vector, ...] = ()
    scale: Positive = 1.0

    @model_validator(mode="after")
    def _one_source(self) -> "Mesh":
        if bool(self.file) == bool(self.points):
            raise ValueError("give the mesh a file or points, one of them")
        if self.points:
            hull_of(np.array(self.points) * self.scale)
        return self

    def hull(self) -> Planes:
        """Placed in the zone's frame."""
        if not self.points:
            raise ConfigError(f"mesh '{self.file}' was not read; load_safety reads the meshes of a safety file")
        return hull_of((np.array(self.points) * self.scale) @ self.rotation.T + np.array(self.center))


Shape = Box | Sphere | Cylinder | Capsule | Mesh


@dataclass(frozen=True)
class Rounded:
    """A keep-out volume: a box, thickened by a disc across its z axis, thickened by a ball.

    A box has neither disc nor ball; a cylinder is a segment with a disc, a capsule one with a ball, a sphere a point
    with a ball. Arrays may carry leading axes: then this is a batch.

    Attributes:
        center (…, 3), rotation (…, 3, 3): its pose; half: (…, 3) m, of the box; disc, ball: (…) m, radii.
    """

    center: Array
    rotation: Array
    half: Array
    disc: Array
    ball: Array

    def take(self, index: Index) -> "Rounded":
        """Members of a batch."""
        return Rounded(self.center[index], self.rotation[index], self.half[index], self.disc[index], self.ball[index])

    def extents(self) -> tuple[Array, Array]:
        """Lowest and highest coordinates (3,), of a single one."""
        r = self.rotation
        reach = np.abs(r) @ self.half + self.disc * np.hypot(r[:, 0], r[:, 1]) + self.ball
        return self.center - reach, self.center + reach


def stacked(solids: Sequence[Rounded]) -> Rounded:
    """A batch."""
    return Rounded(
        np.stack([solid.center for solid in solids]),
        np.stack([solid.rotation for solid in solids]),
        np.stack([solid.half for solid in solids]),
        np.stack([solid.disc for solid in solids]),
        np.stack([solid.ball for solid in solids]),
    )


@dataclass(frozen=True)
class Room:
    """A keep-in volume: the inside of planes, and of a round wall.

    Attributes:
        normals (F, 3), offsets (F,): normal @ x <= offset inside.
        across: (2, 3) two unit vectors across the axis of the round wall; middle: (2,) its axis along them; radius: m,
            inf without a round wall.
    """

    normals: Array
    offsets: Array
    across: Array
    middle: Array
    radius: float

    def of_boxes(self, middle: Array, half: Array) -> tuple[Array, Array]:
        """Room of axis-aligned boxes (…, 3): to each plane (…, F), and to the round wall (…)."""
        planes = self.offsets - middle @ self.normals.T - half @ np.abs(self.normals).T
        if np.isinf(self.radius):
            return planes, np.full(middle.shape[:-1], np.inf)
        furthest = np.abs(middle @ self.across.T - self.middle) + half @ np.abs(self.across).T
        return planes, self.radius - np.hypot(furthest[..., 0], furthest[..., 1])

    def of_points(self, points: Array, planes: Index) -> Array:
        """Room of points (…, 3): the smallest, to the `planes` chosen and to the round wall."""
        room = (self.offsets[planes] - points @ self.normals[planes].T).min(axis=-1, initial=np.inf)
        if np.isinf(self.radius):
            return np.asarray(room)
        offset = points @ self.across.T - self.middle
        return np.minimum(room, self.radius - np.hypot(offset[..., 0], offset[..., 1]))


def keep_out(shape: Shape) -> Rounded | Planes:
    """What the distance from the outside is measured to."""
    if isinstance(shape, Mesh):
        return shape.hull()
    half, disc, ball = np.zeros(3), 0.0, 0.0
    rotation = np.eye(3) if isinstance(shape, Sphere) else shape.rotation
    if isinstance(shape, Box):
        half = np.array(shape.size) / 2
    elif isinstance(shape, Sphere):
        ball = shape.radius
    else:
        half = np.array([0.0, 0.0, shape.length / 2])
        disc, ball = (shape.radius, 0.0) if isinstance(shape, Cylinder) else (0.0, shape.radius)
    return Rounded(np.array(shape.center), rotation, half, np.array(disc), np.array(ball))


def keep_in(shape: Shape) -> Room:
    """What the distance from the inside is measured to.

    Raises:
        ConfigError: for a shape that is not offered as keep-in.
    """
    if isinstance(shape, Mesh):
        hull = shape.hull()
        return Room(hull.normals, hull.offsets, np.zeros((2, 3)), np.zeros(2), np.inf)
    if isinstance(shape, Sphere | Capsule):
        raise ConfigError(f"a keep-in zone cannot be a {type(shape).__name__.lower()}; known: box, cylinder, mesh")
    axes, center = shape.rotation.T, np.array(shape.center)
    if isinstance(shape, Box):
        normals, half = np.concatenate([axes, -axes]), np.tile(np.array(shape.size) / 2, 2)
        return Room(normals, half + normals @ center, np.zeros((2, 3)), np.zeros(2), np.inf)
    normals = np.stack([axes[2], -axes[2]])
    return Room(normals, shape.length / 2 + normals @ center, axes[:2], axes[:2] @ center, shape.radius)


def rounded_gaps(solids: Rounded, points: Array, radii: Array) -> Array:
    """Distances of bodies from solids.

    Args:
        solids: a batch of K; points: (K, m, N, 3), those of one body for each solid, in N configurations; radii: (K,).

    Returns:
        (K, N) m, lower bounds.
    """
    shape = points.shape
    local = (points - solids.center[:, None, None]).reshape(len(points), -1, 3) @ solids.rotation
    local = local.reshape(shape)
    half, disc = solids.half[:, None], solids.disc[:, None]
    gaps = np.maximum(local.min(axis=1) - half, -half - local.max(axis=1))  # signed, along each axis
    bounds: Array = _beyond(gaps, disc) - (solids.ball + radii)[:, None]
    k, n = np.nonzero(~(bounds >= CLOSE))  # NaN counts as close
    if not len(k):
        return bounds
    near, own = local[k, :, n], solids.take(k)
    least = _beyond(np.abs(near) - own.half[:, None], own.disc[:, None]).min(axis=1) - own.ball - radii[k]
    rest = ~(least - bounds[k, n] <= GAP) & ~(least <= 0)
    if rest.any():
        k, n, own = k[rest], n[rest], own.take(rest)
        thickness = own.ball + radii[k]
        found = separation(_RoundedDifference(near[rest], own), CLOSE + thickness) - thickness
        bounds[k, n] = np.maximum(bounds[k, n], found)
    return bounds


def hull_gaps(hull: Planes, points: Array, radii: Array) -> Array:
    """Distances of bodies from one convex mesh: `points` (K, m, N, 3), `radii` (K,) -> (K, N) m, lower bounds."""
    heights = points @ hull.normals.T - hull.offsets  # (K, m, N, F)
    over = heights.min(axis=1)
    facet = over.argmax(axis=2)
    bounds: Array = np.take_along_axis(over, facet[:, :, None], 2)[:, :, 0] - radii[:, None]
    k, n = np.nonzero(~(bounds >= CLOSE))
    if not len(k):
        return bounds
    near = points[k, :, n]
    best = facet[k, n]
    lowest = near[np.arange(len(k)), heights[k, :, n, best].argmin(axis=1)]
    foot = lowest - (bounds[k, n] + radii[k])[:, None] * hull.normals[best]
    # The lowest point's foot on the facet's plane lies on the facet: the bound is exact.
    exact = (foot @ hull.normals.T - hull.offsets).max(axis=1) <= GAP / 10
    overlaps = heights[k, :, n].max(axis=2).min(axis=1) <= 0  # a point of the body is inside
    rest = ~exact & ~overlaps
    if rest.any():
        k, n = k[rest], n[rest]
        found = separation(_HullDifference(near[rest], hull.vertices), CLOSE + radii[k]) - radii[k]
        bounds[k, n] = np.maximum(bounds[k, n], found)
    return bounds


def _beyond(gaps: Array, disc: Array) -> Array:
    """Signed gaps (…, 3) to a box along its axes -> distance (…) from the box with its disc; negative inside."""
    out = np.maximum(gaps, 0.0)
    round_gap = np.hypot(out[..., 0], out[..., 1]) - disc
    outside = np.hypot(np.maximum(round_gap, 0.0), out[..., 2])
    inside = np.maximum(np.maximum(gaps[..., 0], gaps[..., 1]) - disc, gaps[..., 2])
    return np.where(outside > 0, outside, inside)


@dataclass(frozen=True)
class _RoundedDifference:
    """Bodies (M, m, 3), in the frames of their solids, minus the solids' boxes with discs."""

    points: Array
    solids: Rounded

    def take(self, rows: Index) -> "_RoundedDifference":
        return _RoundedDifference(self.points[rows], self.solids.take(rows))

    def furthest(self, direction: Array) -> Array:
        length = np.hypot(direction[:, 0], direction[:, 1])
        scale = self.solids.disc / np.maximum(length, 1e-300)
        point = np.where(direction >= 0, self.solids.half, -self.solids.half)
        point[:, :2] += direction[:, :2] * scale[:, None]
        return point


@dataclass(frozen=True)
class _HullDifference:
    """Bodies (M, m, 3) minus one mesh with `vertices` (V, 3)."""

    points: Array
    vertices: Array

    def take(self, rows: Index) -> "_HullDifference":
        return _HullDifference(self.points[rows], self.vertices)

    def furthest(self, direction: Array) -> Array:
        return np.asarray(self.vertices[(direction @ self.vertices.T).argmax(axis=1)])


def bounding_ball(shape: Shape) -> tuple[Array, float]:
    """Center (3,) and radius [m] of a ball around a shape, in the zone's frame."""
    if isinstance(shape, Mesh):
        vertices = shape.hull().vertices
        center = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        return center, float(np.linalg.norm(vertices - center, axis=1).max())
    if isinstance(shape, Box):
        radius = float(np.linalg.norm(shape.size)) / 2
    elif isinstance(shape, Sphere):
        radius = shape.radius
    elif isinstance(shape, Cylinder):
        radius = float(np.hypot(shape.radius, shape.length / 2))
    else:
        radius = shape.radius + shape.length / 2
    return np.array(shape.center), radius
