"""The ways in which models write a rotation, and the matrix that each means.

All are active rotations, angles in rad. `euler_xyz` turns about the fixed x, y, z axes in this order (roll, pitch, yaw
of REP-103: R = Rz Ry Rx); `euler_xyz_intrinsic` about the axes that turn along (R = Rx Ry Rz). `rotation_6d` holds the
first two columns of the matrix, x axis before y axis (Zhou et al., "On the Continuity of Rotation Representations in
Neural Networks", 2019), `rotation_6d_rows` its first two rows (as PyTorch3D writes it).
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.errors import ConfigError, InferenceError, unknown

Array = NDArray[np.float64]
Representation = Literal[
    "euler_xyz",
    "euler_xyz_intrinsic",
    "axis_angle",
    "rotation_6d",
    "rotation_6d_rows",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "matrix",
]

_DEGENERATE = 1e-6  # norm under which a direction is noise


def size(representation: str) -> int:
    """Numbers that it takes.

    Raises:
        ConfigError: when there is no such representation.
    """
    return _known(representation)[0]


def to_matrix(representation: str, values: ArrayLike) -> Array:
    """Matrices (K, 3, 3) of `values` (K, d).

    Raises:
        InferenceError: when a row is not finite, or does not say a rotation (a zero quaternion, two parallel axes).
    """
    numbers, read, _ = _known(representation)
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != numbers or not np.isfinite(rows).all():
        raise InferenceError(f"{representation} of shape {rows.shape}: expected finite numbers (K, {numbers})")
    return read(rows)


def from_matrix(representation: str, matrix: ArrayLike) -> Array:
    """The representation (K, d) of rotation matrices (K, 3, 3)."""
    return _known(representation)[2](np.asarray(matrix, dtype=np.float64))


def _scipy() -> Any:
    """Imported when a tool's rotation is needed: joint policies run in interpreters that lack it."""
    from scipy.spatial.transform import Rotation

    return Rotation


def _known(representation: str) -> "tuple[int, Callable[[Array], Array], Callable[[Array], Array]]":
    if representation not in _TABLE:
        raise ConfigError(unknown("rotation", representation, _TABLE))
    return _TABLE[representation]


def _from_two_axes(rows: Array) -> Array:
    """Gram-Schmidt: the first axis keeps its direction, the second gives the plane. Answers the axes as columns."""
    first, second = rows[:, :3], rows[:, 3:]
    x = first / _length(first, "first axis")
    rest = second - (x * second).sum(axis=1, keepdims=True) * x
    y = rest / _length(rest, "part of the second axis across the first")
    return np.stack([x, y, np.cross(x, y)], axis=2)


def _length(vectors: Array, what: str) -> Array:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (length < _DEGENERATE).any():
        k = int(np.argmin(length))
        raise InferenceError(f"rotation of action {k}: the {what} has length {length[k, 0]:.2g}, it gives no direction")
    return length


def _from_matrices(rows: Array) -> Array:
    """The nearest rotation; a network's nine numbers are never exactly one."""
    u, s, vt = np.linalg.svd(rows.reshape(-1, 3, 3))
    if (s[:, 1] < _DEGENERATE).any():
        raise InferenceError(f"rotation of action {int(np.argmin(s[:, 1]))}: the matrix has no two independent columns")
    flip = np.ones((len(rows), 1, 3))
    flip[:, 0, 2] = np.linalg.det(u @ vt)
    return (u * flip) @ vt


def _from_quaternion(rows: Array) -> Array:
    return _scipy().from_quat(rows / _length(rows, "quaternion")).as_matrix()


def _quaternion(matrix: Array) -> Array:
    return _scipy().from_matrix(matrix).as_quat(canonical=True)


def _columns(matrix: Array) -> Array:
    return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=1)


_TABLE: dict[str, tuple[int, Callable[[Array], Array], Callable[[Array], Array]]] = {
    "euler_xyz": (
        3,
        lambda rows: _scipy().from_euler("xyz", rows).as_matrix(),
        lambda matrix: _scipy().from_matrix(matrix).as_euler("xyz"),
    ),
    "euler_xyz_intrinsic": (
        3,
        lambda rows: _scipy().from_euler("XYZ", rows).as_matrix(),
        lambda matrix: _scipy().from_matrix(matrix).as_euler("XYZ"),
    ),
    "axis_angle": (
        3,
        lambda rows: _scipy().from_rotvec(rows).as_matrix(),
        lambda matrix: _scipy().from_matrix(matrix).as_rotvec(),
    ),
    "rotation_6d": (6, _from_two_axes, _columns),
    "rotation_6d_rows": (
        6,
        lambda rows: _from_two_axes(rows).swapaxes(1, 2),
        lambda matrix: _columns(matrix.swapaxes(1, 2)),
    ),
    "quaternion_xyzw": (4, _from_quaternion, _quaternion),
    "quaternion_wxyz": (
        4,
        lambda rows: _from_quaternion(np.roll(rows, -1, axis=1)),
        lambda matrix: np.roll(_quaternion(matrix), 1, axis=1),
    ),
    "matrix": (9, _from_matrices, lambda matrix: matrix.reshape(-1, 9)),
}
