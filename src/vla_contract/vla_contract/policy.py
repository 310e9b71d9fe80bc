"""What a checkpoint says about itself, and whether it fits a robot.

The metadata lies beside the weights as `policy.json`. A mismatch between policy and robot is the most common cause of
silent failure in the field (units, joint order, cameras, normalisation), so it is refused before anything moves.
"""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vla_contract.errors import ConfigError, MismatchError
from vla_contract.observation import Observation
from vla_contract.robot import Robot, describe_errors

METADATA_FILE = "policy.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # instead, where the weights lie in several files

MOST_EARLIER = 15  # observations that a policy may look back at; shared memory has room for them
_LONGEST_HISTORY = 5.0  # s; all images of that time are kept
_SLOWEST = 1.5  # spacings of the history that a camera's period may last; slower ones show the same picture again

ActionSpace = Literal["joint_position", "joint_delta", "ee_pose", "ee_delta", "ee_delta_position"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CameraInput(_Strict):
    """Pixels that the model takes from a camera; any native size is resampled to it."""

    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]


class Statistics(_Strict):
    """Normalisation of a vector: (x - mean) / std, entry by entry."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """mean and std, each (d,)."""
        return np.array(self.mean), np.array(self.std)


class History(_Strict):
    """Earlier observations that a policy looks back at: `steps` of them, `dt` s apart, the last one `dt` before now."""

    steps: Annotated[int, Field(ge=1, le=MOST_EARLIER)]
    dt: Annotated[float, Field(gt=0, le=_LONGEST_HISTORY, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _not_too_long(self) -> Self:
        if self.span > _LONGEST_HISTORY:
            raise ValueError(f"{self.steps} steps of {self.dt:g} s are {self.span:g} s (> {_LONGEST_HISTORY:g} s)")
        return self

    @property
    def span(self) -> float:
        """s from the oldest one to now."""
        return self.steps * self.dt


class PolicyMetadata(_Strict):
    """Everything that a runtime must know of a policy to run it right.

    Attributes:
        name: of the policy.
        digest: sha256 of the weights, hex; filled in on load.
        cameras: name -> size; the names are those of the robot file.
        joints: (n,) names, in the order of state and action; all of the robot's.
        state: what the state vector holds, in order, with units, e.g. `["joint_position[rad]"]`.
        action_space: how an action is meant.
        action: what each entry of an action means, with its unit.
        horizon: actions in a chunk; dt: s between two of them. Action k is meant for stamp + (k + 1) * dt.
        tool_frame: the frame that end-effector actions move; None for joint actions.
        statistics: vector name ("state", "action") -> normalisation.
        training: free facts for people (data, seed, success rate).
        ground_truth: it reads the simulator's ground truth, which no robot has: a scripted expert, never a policy to
            deploy. Its observations then hold each object's pose as an extra.
        history: that it looks back at, spaced as in training; None: it looks at the present only.
        follows_prefix: its chunks begin with the motion that is executed in any case (real-time chunking); None: it
            does not say.
    """

    name: str
    digest: str = ""
    cameras: dict[str, CameraInput]
    joints: Annotated[tuple[str, ...], Field(min_length=1)]
    state: tuple[str, ...]
    action_space: ActionSpace
    action: tuple[str, ...]
    horizon: Annotated[int, Field(gt=0, le=1000)]
    dt: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
    tool_frame: str | None = None
    statistics: dict[str, Statistics]
    training: dict[str, str | int | float] = {}
    ground_truth: bool = False
    history: History | None = None
    follows_prefix: bool | None = None


def load_metadata(folder: str | Path) -> PolicyMetadata:
    """Reads `policy.json` of a checkpoint folder and checks the digest of its weights, if it states one.

    Raises:
        ConfigError: when a file is missing or malformed, or the weights are not those that the metadata names.
    """
    folder = Path(folder)
    path = folder / METADATA_FILE
    try:
        metadata = PolicyMetadata.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"checkpoint '{folder}' has no readable {METADATA_FILE}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except ValidationError as error:
        raise ConfigError(describe_errors(path, error)) from error
    digest = weights_digest(folder)
    if metadata.digest and metadata.digest != digest:
        raise ConfigError(
            f"{folder / WEIGHTS_FILE} has sha256 {digest}, {METADATA_FILE} names {metadata.digest}: "
            "the weights were changed or belong to another checkpoint; fetch the checkpoint again"
        )
    return metadata.model_copy(update={"digest": digest})


def weights_digest(folder: Path) -> str:
    """sha256 of a checkpoint's weights, hex: of the one file, or of the digests of the files that the index names.

    Raises:
        ConfigError: when files are missing.
    """
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).is_file() or not index.is_file():
        return file_digest(folder / WEIGHTS_FILE)
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index} is no index of weights: {error}") from error
    if not names or any(Path(name).name != name for name in names):
        raise ConfigError(f"{index} names {names}, expected files of its folder")
    return hashlib.sha256("".join(file_digest(folder / name) for name in names).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, hex.

    Raises:
        ConfigError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}") from error


def check_fit(policy: PolicyMetadata, robot: Robot) -> None:
    """Refuses a policy that does not fit the robot.

    Raises:
        MismatchError: with every misfit: which key, what the policy expects, what the robot has.
    """
    misfits = [
        f"camera '{name}': the policy expects it, {robot.path.name} has {', '.join(sorted(robot.cameras)) or 'none'}"
        for name in policy.cameras
        if name not in robot.cameras
    ]
    if policy.joints != robot.joints:
        misfits.append(f"joints: the policy expects {list(policy.joints)}, {robot.path.name} has {list(robot.joints)}")
    if policy.action_space.startswith("ee_") and policy.tool_frame != robot.tool_frame:
        misfits.append(
            f"tool_frame: the policy moves '{policy.tool_frame}', {robot.path.name} has '{robot.tool_frame}'"
        )
    misfits += _history_misfits(policy, robot)
    for vector, names in (("state", policy.state), ("action", policy.action)):
        misfits += _statistics_misfits(policy, vector, len(names))
    if misfits:
        raise MismatchError(f"policy '{policy.name}' does not fit robot '{robot.name}'", misfits)


def _history_misfits(policy: PolicyMetadata, robot: Robot) -> list[str]:
    history = policy.history
    if history is None:
        return []
    return [
        f"camera '{name}': {robot.cameras[name].rate:g} Hz in {robot.path.name}, the policy looks back in steps of "
        f"{history.dt:.4g} s; set the camera to {1 / history.dt:.3g} Hz or more"
        for name in policy.cameras
        if name in robot.cameras and robot.cameras[name].rate * history.dt * _SLOWEST < 1
    ]


def _statistics_misfits(policy: PolicyMetadata, vector: str, size: int) -> list[str]:
    statistics = policy.statistics.get(vector)
    if statistics is None:
        return [f"statistics.{vector}: missing, expected mean and std of {size} entries"]
    misfits = [
        f"statistics.{vector}.{key}: {len(values)} entries, expected {size}"
        for key, values in (("mean", statistics.mean), ("std", statistics.std))
        if len(values) != size
    ]
    if not all(map(math.isfinite, (*statistics.mean, *statistics.std))) or min(statistics.std, default=1.0) <= 0:
        misfits.append(f"statistics.{vector}: {statistics}, expected finite means and positive deviations")
    return misfits


def still(robot: Robot, policy: PolicyMetadata) -> Observation:
    """A robot that stands at home before black cameras, and has stood there: what a model is warmed up with."""
    images = {
        name: np.zeros((camera.height, camera.width, 3), np.uint8)
        for name, camera in robot.cameras.items()
        if name in policy.cameras
    }
    home = np.array(robot.home, dtype=np.float64)
    seen = Observation(0, images, home, np.zeros_like(home), "warm up")
    return replace(seen, earlier=(seen,) * (policy.history.steps if policy.history else 0))
