"""Convex meshes from files and from points, as planes. What is not convex is refused, not filled up."""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from vla_contract.errors import ConfigError
from vla_safety.core.motion import Array

MAX_TRIANGLES = 20_000
MAX_FACETS = 256
_CONVEX = 0.001  # m that a face may lie inside of the hull
_FLAT = 1e-6  # m; a hull that is thinner is no volume

_NUMBERS = re.compile(rb"^\s*vertex\s+(\S+)\s+(\S+)\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Planes:
    """A convex volume: `vertices` (V, 3); `normals` (F, 3), `offsets` (F,): normal @ x <= offset inside."""

    vertices: Array
    normals: Array
    offsets: Array

    def extents(self) -> tuple[Array, Array]:
        """Lowest and highest coordinates (3,)."""
        return self.vertices.min(axis=0), self.vertices.max(axis=0)


def hull_of(points: Array) -> Planes:
    """The convex hull of points (m, 3) [m].

    Raises:
        ValueError: when they hold no volume, or the hull has too many facets.
    """
    if len(points) < 4 or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} points hold no volume; give at least four that do not lie in one plane")
    try:
        hull = ConvexHull(points)
    except QhullError as error:
        raise ValueError(f"{len(points)} points hold no volume; they lie in one plane or on one line") from error
    vertices: Array = points[hull.vertices]
    normals = np.unique(hull.equations[:, :3].round(9), axis=0)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    if len(normals) > MAX_FACETS:
        raise ValueError(f"the mesh has {len(normals)} facets, allowed are {MAX_FACETS}; simplify it")
    heights = vertices @ normals.T
    thinnest = float((heights.max(axis=0) - heights.min(axis=0)).min())
    if not thinnest > _FLAT:
        raise ValueError(f"the mesh is {thinnest:.3g} m thick; give it a volume")
    # Offsets from the vertices, not from the hull's own planes: rounding can only make the volume larger.
    return Planes(vertices, normals, heights.max(axis=0))


def read_mesh(path: Path, scale: float) -> Array:
    """Corners (V, 3) of the convex mesh in an STL or OBJ file, unscaled.

    Args:
        scale: of the file's numbers to m.

    Raises:
        ConfigError: naming the file, when it is missing, malformed, too large, flat, or not convex.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"mesh '{path}' cannot be read: {error.strerror}") from error
    readers = {".stl": _stl, ".obj": _obj}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"mesh '{path}' has the ending '{path.suffix}'; known: {', '.join(readers)}")
    try:
        triangles = readers[path.suffix.lower()](content)
    except (ValueError, IndexError, struct.error) as error:
        raise ConfigError(f"mesh '{path}' is malformed: {error}; export it again as triangles") from error
    if len(triangles) > MAX_TRIANGLES:
        raise ConfigError(f"mesh '{path}' has {len(triangles)} triangles, allowed are {MAX_TRIANGLES}; simplify it")
    corners = np.unique(triangles.reshape(-1, 3), axis=0)
    try:
        hull = hull_of(corners * scale)
    except ValueError as error:
        raise ConfigError(f"mesh '{path}': {error}") from error
    # A face that lies on the hull has its middle there; one that does not is a dent, or lies inside.
    middles = triangles.mean(axis=1) * scale
    depth = float((hull.offsets - middles @ hull.normals.T).min(axis=1).max())
    if depth > _CONVEX:
        raise ConfigError(
            f"mesh '{path}' is not convex: a face lies {depth:.4g} m inside its hull, allowed are "
            f"{_CONVEX} m; split it into convex parts, each a zone of its own"
        )
    return np.asarray(hull.vertices / scale)


def _stl(content: bytes) -> Array:
    """Triangles (T, 3, 3) of a binary or text STL."""
    if len(content) >= 84 and len(content) == 84 + 50 * struct.unpack_from("<I", content, 80)[0]:
        rows = np.frombuffer(content, np.uint8, offset=84).reshape(-1, 50)
        return _finite(rows[:, 12:48].copy().view("<f4").reshape(-1, 3, 3).astype(np.float64))
    if not content.lstrip().startswith(b"solid"):
        raise ValueError(f"{len(content)} bytes are neither a binary nor a text STL")
    return _finite(np.array([[float(x) for x in match] for match in _NUMBERS.findall(content)]).reshape(-1, 3, 3))


def _obj(content: bytes) -> Array:
    """Triangles (T, 3, 3) of a Wavefront OBJ; polygons as fans."""
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    for line in content.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(x) for x in words[1:4]])
        elif words[:1] == ["f"]:
            corners = [int(word.split("/")[0]) for word in words[1:]]
            corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
            if len(corners) < 3 or min(corners) < 0:
                raise ValueError(f"line '{line.strip()}' names no face")
            faces += [(corners[0], b, c) for b, c in zip(corners[1:], corners[2:], strict=False)]
    if not faces:
        raise ValueError("it has no faces")
    return _finite(np.array(vertices).reshape(-1, 3)[np.array(faces)])


def _finite(triangles: Array) -> Array:
    if not len(triangles) or not np.isfinite(triangles).all():
        raise ValueError(f"{len(triangles)} triangles, not all of finite numbers")
    return triangles
