"""Links of the robot keep their distance from each other.

Every body counts as a capsule here: a box as the capsule around it, so distances are never too large. Pairs come from
the SRDF: all but those that it switches off, and those within one link.
"""

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.motion import Array

_NEAR = 0.1  # m


def allowed_contacts(srdf: str) -> set[frozenset[str]]:
    """Pairs of links that an SRDF switches off.

    Raises:
        ConfigError: when it is not an SRDF.
    """
    try:
        robot = ElementTree.fromstring(srdf)
    except ElementTree.ParseError as error:
        raise ConfigError(f"the SRDF is not XML: {error}; check the robot file's description.srdf") from error
    pairs = set()
    for element in robot.findall("disable_collisions"):
        pair = frozenset((element.get("link1", ""), element.get("link2", "")))
        if len(pair) != 2 or "" in pair:
            raise ConfigError(f"the SRDF has disable_collisions of {sorted(pair)}; name two links")
        pairs.add(pair)
    return pairs


class SelfCollision:
    """Distances between the pairs of bodies that must not touch.

    Attributes:
        reach: (P, n) m per rad (1 per m): how fast the bodies of a pair can approach each other.
        margin: m, that they keep.

    Raises:
        ConfigError: when `allowed` names a link that the robot does not have.
    """

    def __init__(self, model: RobotModel, allowed: set[frozenset[str]], margin: float):
        self.margin = margin
        self._model = model
        for link in sorted(set().union(*allowed)):
            if link not in model.links:
                raise ConfigError(f"the SRDF names an {unknown('link', link, model.links)}")
        links = model.body_links
        pairs = [
            (a, b)
            for a, b in itertools.combinations(range(len(links)), 2)
            if links[a] != links[b]
            and frozenset((links[a], links[b])) not in allowed
            and model.body_frames[a] != model.body_frames[b]
        ]
        self._first = np.array([a for a, _ in pairs], dtype=np.int64)
        self._second = np.array([b for _, b in pairs], dtype=np.int64)
        self._frames = np.array(model.body_frames)
        capsules = [_capsule(model.local_points(b), float(model.body_radii[b])) for b in range(len(links))]
        self._ends: Array = np.array([[start, end] for start, end, _ in capsules])
        radii = np.array([radius for _, _, radius in capsules])
        self._radii: Array = radii[self._first] + radii[self._second]
        halves = radii + np.linalg.norm(self._ends[:, 1] - self._ends[:, 0], axis=1) / 2
        self._balls: Array = halves[self._first] + halves[self._second]
        reaches = [model.relative_reach(a, b) for a, b in pairs]
        self.reach: Array = np.array(reaches).reshape(len(pairs), len(model.joints))

    def __len__(self) -> int:
        return len(self._first)

    def clearances(self, placement: Placement) -> tuple[Array, NDArray[np.int64]]:
        """(N, P) m, negative where two bodies overlap; and the index of each column, (N, P).

        Pairs that are further apart than `_NEAR` in all configurations are judged by balls around them.
        """
        count = len(placement.points)
        columns = np.broadcast_to(np.arange(len(self)), (count, len(self)))
        if not len(self):
            return np.empty((count, 0)), columns
        rotations = placement.rotations[self._frames].transpose(1, 0, 2, 3)
        ends = np.einsum("nbij,bkj->knbi", rotations, self._ends)
        ends += placement.translations[self._frames].transpose(1, 0, 2)
        middles = (ends[0] + ends[1]) / 2
        bounds = np.sqrt(_square(middles[:, self._first] - middles[:, self._second])) - self._balls
        near = np.flatnonzero(~(bounds.min(axis=0) >= _NEAR))  # NaN counts as near
        if len(near):
            a, b = ends[:, :, self._first[near]], ends[:, :, self._second[near]]
            bounds[:, near] = _segment_distance(a[0], a[1], b[0], b[1]) - self._radii[near]
        return bounds, columns

    def parts(self, _: Placement) -> "Sequence[SelfCollision]":
        """Every pair has a distance of its own already."""
        return [self]

    def describe(self, column: int, _: int) -> tuple[str, str]:
        """Reason and subject of a finding in a column."""
        links = self._model.body_links
        return "self_collision", f"{links[self._first[column]]}/{links[self._second[column]]}"


def _capsule(points: Array, radius: float) -> tuple[Array, Array, float]:
    """Ends and radius of a capsule around the hull of points (m, 3): the points themselves for up to two."""
    if len(points) <= 2:
        return points[0], points[-1], radius
    center = points.mean(axis=0)
    edges = points[[4, 2, 1]] - points[0]
    lengths = np.linalg.norm(edges, axis=1)
    longest = int(np.argmax(lengths))
    across = np.delete(lengths, longest)
    return center - edges[longest] / 2, center + edges[longest] / 2, radius + float(np.linalg.norm(across)) / 2


def _segment_distance(p1: Array, q1: Array, p2: Array, q2: Array) -> Array:
    """Distances of segments p1-q1 and p2-q2, each (N, P, 3) -> (N, P).

    Closest points after Ericson, Real-Time Collision Detection (2005), section 5.1.9.
    """
    d1, d2, r = q1 - p1, q2 - p2, p1 - p2
    a, e, f = _dot(d1, d1), _dot(d2, d2), _dot(d2, r)
    b, c = _dot(d1, d2), _dot(d1, r)
    tiny = 1e-12
    denominator = a * e - b * b
    s = np.clip(np.where(denominator > tiny, (b * f - c * e) / np.maximum(denominator, tiny), 0.0), 0, 1)
    t = (b * s + f) / np.maximum(e, tiny)
    t = np.where(e > tiny, np.clip(t, 0, 1), 0.0)
    s = np.where(a > tiny, np.clip((b * t - c) / np.maximum(a, tiny), 0, 1), 0.0)
    gap = r + d1 * s[..., None] - d2 * t[..., None]
    return np.asarray(np.sqrt(_dot(gap, gap)))


def _square(x: Array) -> Array:
    return _dot(x, x)


def _dot(x: Array, y: Array) -> Array:
    return np.asarray(np.einsum("npi,npi->np", x, y))
