"""One robot, one file: what nodes, simulator, recorder and evaluation all read.

Paths inside the file are relative to it, absolute, or `package://<package>/<path>` (resolved through
AMENT_PREFIX_PATH, for descriptions that another ROS package installs).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from vla_contract.errors import ConfigError, unknown
from vla_contract.limits import JointLimits, load_joint_limits

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _absolute_topic(value: str) -> str:
    if not value.startswith("/") or value.endswith("/") or " " in value:
        raise ValueError(f"topic '{value}' must be absolute, e.g. '/joint_states'")
    return value


Topic = Annotated[str, AfterValidator(_absolute_topic)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Description(_Strict):
    """Where the robot's model and limits lie."""

    urdf: str
    srdf: str
    joint_limits: str


class Gripper(_Strict):
    """The joint that opens the gripper. `open` and `closed` are its positions [m or rad]."""

    joint: str
    open: Finite
    closed: Finite


class Camera(_Strict):
    """One RGB camera; `width` and `height` in pixels, `rate` in Hz, `frame` is its optical frame (REP-103)."""

    topic: Topic
    frame: str
    width: Annotated[int, Field(gt=0, le=8192)]
    height: Annotated[int, Field(gt=0, le=8192)]
    rate: Positive

    @property
    def info_topic(self) -> str:
        """Topic of the sensor_msgs/CameraInfo beside the images."""
        return self.topic.rsplit("/", 1)[0] + "/camera_info"


class JointStates(_Strict):
    """sensor_msgs/JointState; `rate` in Hz."""

    topic: Topic = "/joint_states"
    rate: Positive = 100.0


class Controller(_Strict):
    """The joint_trajectory_controller that takes all joints of the robot file.

    Attributes:
        name: in ros2_control's controller manager, whose name is `manager`; the safety filter deactivates it when a
            stop does not arrive. Empty: there is no controller manager.
    """

    topic: Topic = "/joint_trajectory_controller/joint_trajectory"
    name: str = ""
    manager: Topic = "/controller_manager"


class MobileBase(_Strict):
    """A base that drives, commanded by geometry_msgs/TwistStamped beside the arm.

    Attributes:
        topic: of the commands.
        frame: that they are given in (REP-105).
        rate: Hz of the commands.
        max_velocity, max_acceleration: forward x and sideways y [m/s, m/s²], turning about z [rad/s, rad/s²]; a 0 for
            what the base cannot do.
    """

    topic: Topic = "/cmd_vel"
    frame: str = "base_link"
    rate: Positive = 20.0
    max_velocity: tuple[NotNegative, NotNegative, NotNegative]
    max_acceleration: tuple[Positive, Positive, Positive]


class Robot(_Strict):
    """A robot as the suite sees it. `joints` gives the order of every joint vector everywhere; `home` is in it."""

    name: str
    description: Description
    base_frame: str
    tool_frame: str
    joints: Annotated[tuple[str, ...], Field(min_length=1)]
    gripper: Gripper | None = None
    home: tuple[Finite, ...]
    cameras: dict[str, Camera]
    joint_states: JointStates = JointStates()
    controller: Controller = Controller()
    wrench_topic: Topic | None = None
    base: MobileBase | None = None
    safety: str
    _path: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> "Robot":
        if len(set(self.joints)) != len(self.joints):
            raise ValueError(f"joints has duplicates: {', '.join(self.joints)}; name each joint once")
        if len(self.home) != len(self.joints):
            raise ValueError(f"home has {len(self.home)} values for {len(self.joints)} joints; give one for each")
        if self.gripper is not None and self.gripper.joint not in self.joints:
            raise ValueError(f"gripper: {unknown('joint', self.gripper.joint, self.joints)}")
        return self

    @property
    def path(self) -> Path:
        """The file that this robot was read from."""
        return self._path

    @property
    def arm_joints(self) -> tuple[str, ...]:
        """All joints but the gripper's."""
        return tuple(j for j in self.joints if self.gripper is None or j != self.gripper.joint)

    def resolve(self, reference: str) -> Path:
        """The file that a path inside the robot file means.

        Raises:
            ConfigError: when there is no such file, with the places that were looked at.
        """
        return resolve_path(reference, self._path.parent)

    def limits(self) -> JointLimits:
        """Joint limits in the order of `joints`."""
        return load_joint_limits(self.resolve(self.description.joint_limits), self.joints)

    def urdf(self) -> str:
        """The text of the URDF."""
        return self.resolve(self.description.urdf).read_text()


def load_robot(path: str | Path) -> Robot:
    """Reads a robot file.

    Raises:
        ConfigError: naming file, key, value and what was expected.
    """
    path = Path(path).absolute()
    try:
        robot = Robot.model_validate(read_yaml(path, "robot file"))
    except ValidationError as error:
        raise ConfigError(describe_errors(path, error)) from error
    robot._path = path
    return robot


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML file whose top level is a map.

    Raises:
        ConfigError: when the file is missing, is not YAML, or is no map.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{what} '{path}' cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} '{path}' is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{what} '{path}' holds {type(content).__name__}, expected a map of keys")
    return content


def describe_errors(path: Path, error: ValidationError) -> str:
    """One line with every key that is wrong, its line, its value, and what was expected."""
    parts = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(file)"
        line = line_of(path, item["loc"])
        shown = "" if item["type"] in ("missing", "value_error") else f" (is {item['input']!r})"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        parts.append(f"{f'line {line}: ' if line else ''}{key}{shown}: {message}")
    return f"{path}: " + "; ".join(parts)


def line_of(path: Path, keys: Sequence[str | int]) -> int:
    """Line (from 1) where a key of a YAML file stands, or the nearest key above it that is there; 0: unknown."""
    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return 0
    line = 0
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def resolve_path(reference: str, folder: Path) -> Path:
    """The file that `reference` means, seen from `folder`: absolute, relative, or `package://<package>/<path>`.

    Raises:
        ConfigError: when there is no such file, with the places that were looked at.
    """
    if reference.startswith("package://"):
        package, _, rest = reference.removeprefix("package://").partition("/")
        prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
        candidates = [prefix / "share" / package / rest for prefix in prefixes]
    else:
        candidates = [folder / reference]
    for candidate in candidates:
        if candidate.exists():
            shorter = Path(os.path.normpath(candidate))
            # Behind a link to a folder, `..` is not what it looks like.
            return shorter if shorter.exists() and shorter.samefile(candidate) else candidate
    looked = ", ".join(str(c) for c in candidates) or "nowhere: AMENT_PREFIX_PATH is empty, source the workspace"
    raise ConfigError(f"'{reference}' does not exist (looked at {looked})")
