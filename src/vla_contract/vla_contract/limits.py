"""Joint limits, as MoveIt's joint_limits.yaml has them. A missing or inverted bound is an error, not a default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from vla_contract.errors import ConfigError, unknown

_BOUNDS = {
    "position": ("min_position", "max_position"),
    "velocity": ("max_velocity",),
    "acceleration": ("max_acceleration",),
    "jerk": ("max_jerk",),
}


@dataclass(frozen=True)
class JointLimits:
    """Bounds of `n` joints; each array (n,), rad or m and their derivatives by seconds. All finite and positive,
    except positions, where min < max."""

    names: tuple[str, ...]
    min_position: NDArray[np.float64]
    max_position: NDArray[np.float64]
    max_velocity: NDArray[np.float64]
    max_acceleration: NDArray[np.float64]
    max_jerk: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.names)


def load_joint_limits(path: str | Path, names: Sequence[str]) -> JointLimits:
    """Reads the limits of `names`, in that order.

    Raises:
        ConfigError: naming file, joint and key, when a joint or a bound is missing, switched off (`has_…: false`),
            not a finite number, not positive, or inverted.
    """
    path = Path(path)
    try:
        joints = yaml.safe_load(path.read_text())["joint_limits"]
    except OSError as error:
        raise ConfigError(f"joint limits '{path}' cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"joint limits '{path}' is not YAML with a top-level 'joint_limits' map: {error}") from error
    columns: dict[str, list[float]] = {key: [] for keys in _BOUNDS.values() for key in keys}
    for name in names:
        if name not in joints:
            raise ConfigError(f"{path}: {unknown('joint', name, joints)}; add its limits")
        for kind, keys in _BOUNDS.items():
            if joints[name].get(f"has_{kind}_limits") is not True:
                raise ConfigError(f"{path}: joint '{name}' has no {kind} limit; set has_{kind}_limits: true and {keys}")
            for key in keys:
                columns[key].append(_number(path, name, key, joints[name].get(key)))
        low, high = columns["min_position"][-1], columns["max_position"][-1]
        if low >= high:
            raise ConfigError(
                f"{path}: joint '{name}' has min_position {low} >= max_position {high}; swap or mend them"
            )
        for key in ("max_velocity", "max_acceleration", "max_jerk"):
            if columns[key][-1] <= 0:
                raise ConfigError(f"{path}: joint '{name}' has {key} {columns[key][-1]}; it must be positive")
    arrays = {key: np.array(values, dtype=np.float64) for key, values in columns.items()}
    for array in arrays.values():
        array.setflags(write=False)
    return JointLimits(names=tuple(names), **arrays)


def _number(path: Path, joint: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}: joint '{joint}' has {key} {value!r}; it must be a finite number (SI)")
    return float(value)
