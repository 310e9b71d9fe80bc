"""How far apart two convex bodies are, by a plane that separates them; for many pairs at once.

Proof obligation. For any unit vector n, the plane across n keeps a body A and a volume B at least

    g(n) = min over A of n.x  -  max over B of n.x

apart. So the largest g(n) over the directions that were tried is a lower bound of the distance, whatever made them be
tried. The directions are those of Gilbert, Johnson and Keerthi (IEEE J. Robotics and Automation, 1988): towards the
point of a simplex in A - B that is nearest to the origin. They converge to that of the true distance; a pair that has
not converged after `_ROUNDS` keeps a bound that is smaller than it could be.
"""

from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.motion import Array

_ROUNDS = 20
_CONVERGED = 1e-4  # m between the bound and the distance of a point of A - B
_TINY = 1e-9  # m; nearer to the origin there is no direction: the bodies overlap
_FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1]])  # those of a tetrahedron that its first corner is on
_TURN = np.array(
    [[[0, 0, 0], [0, 0, 1], [0, -1, 0]], [[0, 0, -1], [0, 0, 0], [1, 0, 0]], [[0, 1, 0], [-1, 0, 0], [0, 0, 0]]]
)


class Difference(Protocol):
    """M pairs of a body and a volume."""

    @property
    def points(self) -> Array:
        """(M, m, 3): the points whose hulls the bodies are."""

    def furthest(self, direction: Array) -> Array:
        """(M, 3): a point of each volume that is furthest along its `direction` (M, 3)."""

    def take(self, rows: NDArray[np.bool_]) -> Self:
        """Some of the pairs."""


def separation(pairs: Difference, enough: Array) -> Array:
    """Lower bounds of the distances [m] of M pairs; not positive where the two overlap.

    Args:
        enough: (M,) m; a pair that is shown to be further apart than this is not looked at any closer.
    """
    best = np.full(len(pairs.points), -np.inf)
    active = np.arange(len(best))
    corner, best[:] = _step(pairs, pairs.points.mean(axis=1))
    simplex = np.repeat(corner[:, None], 3, axis=1)
    nearest = corner
    for _ in range(_ROUNDS):
        distance = np.sqrt(np.einsum("mi,mi->m", nearest, nearest))
        bound = best[active]
        go: NDArray[np.bool_] = (distance - bound > _CONVERGED) & (distance > _TINY) & (bound < enough[active])
        if not go.all():
            pairs, active = pairs.take(go), active[go]
            simplex, nearest = simplex[go], nearest[go]
        if not len(active):
            break
        corner, bound = _step(pairs, nearest)
        best[active] = np.maximum(best[active], bound)
        # The nearest point of a tetrahedron that does not hold the origin lies on a face; not on the old one.
        faces = np.concatenate([corner[:, None], simplex], axis=1)[:, _FACES]
        nearest, chosen = _nearest_on_triangles(faces)
        simplex = faces[np.arange(len(active)), chosen]
    return best


def _step(pairs: Difference, direction: Array) -> tuple[Array, Array]:
    """The point of A - B that is nearest along `direction` (M, 3), and g of it."""
    length = np.sqrt((direction**2).sum(axis=1))
    unit = direction / np.maximum(length, 1e-300)[:, None]
    heights = (pairs.points @ unit[:, :, None])[:, :, 0]
    lowest = pairs.points[np.arange(len(unit)), heights.argmin(axis=1)]
    corner = lowest - pairs.furthest(unit)
    return corner, np.where(length > 0, (corner * unit).sum(axis=1), -np.inf)


def _nearest_on_triangles(triangles: Array) -> tuple[Array, NDArray[np.int64]]:
    """The points nearest to the origin, (M, 3), of T triangles each, which may be degenerate; and which one it is on.

    Args:
        triangles: (M, T, 3, 3), a corner in each third axis.
    """
    edges = triangles[:, :, [1, 2, 0]] - triangles
    along = -_dots(triangles, edges) / np.maximum(_dots(edges, edges), 1e-30)
    on_edges = triangles + np.minimum(np.maximum(along, 0.0), 1.0)[..., None] * edges
    normal = np.einsum("ijk,mtj,mtk->mti", _TURN, edges[:, :, 2], edges[:, :, 0])
    square = np.einsum("mti,mti->mt", normal, normal)
    height = np.einsum("mti,mti->mt", normal, triangles[:, :, 0]) / np.maximum(square, 1e-30)
    # The foot of the origin on the plane is inside when the origin is on the inner side of every edge.
    inner = np.einsum("ijk,mtj,mtek->mtei", _TURN, normal, edges)
    inside = (_dots(triangles, inner) <= 0).all(axis=2) & (square > 1e-24)
    foot = np.where(inside[..., None], height[..., None] * normal, np.inf)
    points = np.concatenate([on_edges, foot[:, :, None]], axis=2).reshape(len(triangles), -1, 3)
    best = np.einsum("mpi,mpi->mp", points, points).argmin(axis=1)
    return points[np.arange(len(points)), best], best // 4


def _dots(x: Array, y: Array) -> Array:
    return np.asarray(np.einsum("mtei,mtei->mte", x, y))
