"""What a remote model wants to be told, under which keys and in which form; and the way back, for serving.

A layout is a map from the model's keys to entries (and to further maps, for protocols with nested messages):

    observation/image:      {camera: front, height: 224, width: 224, fit: pad}
    observation/state:      {state: [tool_position, tool_axis_angle, gripper_open]}
    prompt:                 {text: instruction}
    unnorm_key:             {value: bridge_orig}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vla_contract.errors import ConfigError, InferenceError, unknown
from vla_contract.observation import Observation
from vla_contract.policy import CameraInput
from vla_contract.resampling import resize_image
from vla_contract.robot import Robot, describe_errors
from vla_policy_node.core.rotations import Representation, from_matrix, size

Array = NDArray[np.float64]
Pixels = Annotated[int, Field(gt=0, le=4096)]
_GRIPPER_PARTS = ("gripper_position", "gripper_mirrored", "gripper_open", "gripper_closed")
_JOINT_PARTS = ("joint_position", "joint_velocity")
_TOOL_ROTATIONS: tuple[Representation, ...] = (
    "euler_xyz",
    "euler_xyz_intrinsic",
    "axis_angle",
    "rotation_6d",
    "rotation_6d_rows",
    "quaternion_xyzw",
    "quaternion_wxyz",
)
PARTS = (*_JOINT_PARTS, *_GRIPPER_PARTS, "tool_position", *(f"tool_{name}" for name in _TOOL_ROTATIONS))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CameraEntry(_Strict):
    """An image, uint8.

    Attributes:
        camera: name in the robot file.
        height, width: pixels that the model takes; None: as the camera delivers them.
        fit: other aspect ratios are padded with black (as openpi does it) or stretched.
        axes: (H, W, 3) or (3, H, W).
        rotate: degrees; some data sets are upside down.
    """

    camera: str
    height: Pixels | None = 224
    width: Pixels | None = 224
    fit: Literal["pad", "stretch"] = "pad"
    axes: Literal["hwc", "chw"] = "hwc"
    rotate: Literal[0, 180] = 0


class StateEntry(_Strict):
    """A vector.

    Attributes:
        state: its parts in order: `joint_position` and `joint_velocity` (rad or m, and /s), `gripper_position` (m or
            rad), `gripper_mirrored` (its negative), `gripper_open` and `gripper_closed` (share in [0, 1]),
            `tool_position` (m) and `tool_<rotation>`, both in the base frame.
        joints: of the joint parts, in the model's order; default: the robot's joints without the gripper's.
        dtype: of the numbers.
    """

    state: Annotated[tuple[str, ...], Field(min_length=1)]
    joints: tuple[str, ...] | None = None
    dtype: Literal["float32", "float64"] = "float32"


class TextEntry(_Strict):
    """A sentence: the instruction, as given or in lower case."""

    text: Literal["instruction", "instruction_lower"]


class ConstantEntry(_Strict):
    """The same in every message."""

    value: str | int | float | bool | None


Entry = CameraEntry | StateEntry | TextEntry | ConstantEntry
_KINDS: dict[str, type[CameraEntry | StateEntry | TextEntry | ConstantEntry]] = {
    "camera": CameraEntry,
    "state": StateEntry,
    "text": TextEntry,
    "value": ConstantEntry,
}


def pad_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scales an RGB image (H, W, 3) to fit, keeps its aspect ratio, and pads with black: pixel for pixel what openpi's
    own client sends (bilinear, centred, sizes rounded down)."""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    ratio = max(image.shape[1] / width, image.shape[0] / height)
    inner_height, inner_width = max(1, int(image.shape[0] / ratio)), max(1, int(image.shape[1] / ratio))
    inner = Image.fromarray(image).resize((inner_width, inner_height), resample=Image.Resampling.BILINEAR)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded = np.zeros((height, width, 3), dtype=np.uint8)
    padded[top : top + inner_height, left : left + inner_width] = np.asarray(inner)
    return padded


class ModelInputs:
    """Writes and reads messages of one layout for one robot.

    Raises:
        ConfigError: when an entry is malformed, or names a camera, joint or part that does not exist.
    """

    def __init__(self, layout: Mapping[str, Any], robot: Robot):
        self._robot = robot
        self._entries = _parsed(layout, "inputs")
        self._kinematics: Any = None
        self.cameras: dict[str, CameraInput] = {}
        names: list[str] = []
        for path, entry in self.entries():
            if isinstance(entry, CameraEntry):
                if entry.camera not in robot.cameras:
                    raise ConfigError(f"{path}: {unknown('camera', entry.camera, robot.cameras)}")
                native = robot.cameras[entry.camera]
                self.cameras[entry.camera] = CameraInput(
                    height=entry.height or native.height, width=entry.width or native.width
                )
            elif isinstance(entry, StateEntry):
                self._check_state(path, entry)
                names += self.part_names(entry)
        self.state_names = tuple(names)

    def entries(self) -> list[tuple[str, Entry]]:
        """Path (`/` between the keys of nested maps) and entry, in order."""
        return _flat(self._entries, "")

    # -- to the model

    def compose(self, observation: Observation) -> dict[str, Any]:
        """The message for an observation.

        Raises:
            InferenceError: when it lacks a camera.
        """
        return self._compose(self._entries, observation)

    def _compose(self, entries: Mapping[str, Any], observation: Observation) -> dict[str, Any]:
        return {
            key: self._compose(entry, observation) if isinstance(entry, dict) else self._value(entry, observation)
            for key, entry in entries.items()
        }

    def _value(self, entry: Entry, observation: Observation) -> Any:
        if isinstance(entry, CameraEntry):
            return _image(entry, observation)
        if isinstance(entry, StateEntry):
            parts = [self._part(part, entry, observation) for part in entry.state]
            return np.concatenate(parts).astype(entry.dtype)
        if isinstance(entry, ConstantEntry):
            return entry.value
        return observation.instruction.lower() if entry.text == "instruction_lower" else observation.instruction

    def _part(self, part: str, entry: StateEntry, observation: Observation) -> Array:
        if part in _JOINT_PARTS:
            columns = [self._robot.joints.index(joint) for joint in self._joints(entry)]
            return (observation.positions if part == "joint_position" else observation.velocities)[columns]
        if part in _GRIPPER_PARTS:
            gripper = self._robot.gripper
            assert gripper is not None, "checked when the layout was read"
            position = observation.positions[self._robot.joints.index(gripper.joint)]
            share = (position - gripper.closed) / (gripper.open - gripper.closed)
            values = (position, -position, share, 1.0 - share)
            return np.array([values[_GRIPPER_PARTS.index(part)]])
        if self._kinematics is None:
            from vla_kinematics import ToolKinematics

            self._kinematics = ToolKinematics(
                self._robot.urdf(), self._robot.joints, self._robot.tool_frame, self._robot.home
            )
        place, orientation = self._kinematics.forward(observation.positions)
        return place if part == "tool_position" else from_matrix(part.removeprefix("tool_"), orientation[None])[0]

    # -- from a client

    def readable(self, cameras: Sequence[str]) -> None:
        """Whether observations with these cameras can be read back.

        Raises:
            ConfigError: naming what a message of this layout does not tell.
        """
        for camera in cameras:
            if camera not in self.cameras:
                raise ConfigError(f"inputs: no entry tells camera '{camera}', which the policy needs; add one")
        told = {joint for _, entry in self.entries() if isinstance(entry, StateEntry) for joint in self._told(entry)}
        missing = [joint for joint in self._robot.joints if joint not in told]
        if missing:
            raise ConfigError(f"inputs: no entry tells the position of {', '.join(missing)}; add joint_position parts")

    def parse(self, message: Mapping[str, Any], stamp_ns: int) -> Observation:
        """The observation that a message of this layout holds. Velocities that it does not tell are 0.

        Raises:
            InferenceError: naming the key that is missing or malformed, with what was expected.
        """
        images: dict[str, NDArray[np.uint8]] = {}
        n = len(self._robot.joints)
        positions, velocities, instruction = np.full(n, np.nan), np.zeros(n), ""
        for path, entry in self.entries():
            if isinstance(entry, ConstantEntry):
                continue
            value = self._found(message, path)
            if isinstance(entry, CameraEntry):
                images[entry.camera] = _read_image(path, entry, value)
            elif isinstance(entry, StateEntry):
                self._read_state(path, entry, value, positions, velocities)
            elif isinstance(value, str):
                instruction = value
            else:
                raise InferenceError(f"'{path}' is a {type(value).__name__}, expected text")
        return Observation(stamp_ns, images, positions, velocities, instruction)

    def _found(self, message: Mapping[str, Any], path: str) -> Any:
        # Keys of openpi hold slashes themselves: the longest key that matches is the one that is meant.
        if path in message:
            return message[path]
        for key, value in message.items():
            if isinstance(value, Mapping) and isinstance(key, str) and path.startswith(f"{key}/"):
                return self._found(value, path.removeprefix(f"{key}/"))
        raise InferenceError(f"the observation lacks '{path}'; it holds {', '.join(map(str, message)) or 'nothing'}")

    def _read_state(self, path: str, entry: StateEntry, value: Any, positions: Array, velocities: Array) -> None:
        try:
            vector = np.asarray(value, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise InferenceError(f"'{path}' is not a vector of numbers: {error}") from error
        expected = self.part_names(entry)
        if vector.shape != (len(expected),) or not np.isfinite(vector).all():
            raise InferenceError(
                f"'{path}' of shape {vector.shape}: expected finite ({len(expected)},): {', '.join(expected)}"
            )
        columns = [self._robot.joints.index(joint) for joint in self._joints(entry)]
        start = 0
        for part in entry.state:
            width = self._width(part, entry)
            numbers, start = vector[start : start + width], start + width
            if part in _JOINT_PARTS:
                (positions if part == "joint_position" else velocities)[columns] = numbers
            elif part in _GRIPPER_PARTS:
                gripper = self._robot.gripper
                assert gripper is not None, "checked when the layout was read"
                span = gripper.open - gripper.closed
                number = float(numbers[0])
                values = (number, -number, gripper.closed + number * span, gripper.closed + (1.0 - number) * span)
                positions[self._robot.joints.index(gripper.joint)] = values[_GRIPPER_PARTS.index(part)]

    # -- layout

    def _joints(self, entry: StateEntry) -> tuple[str, ...]:
        return self._robot.arm_joints if entry.joints is None else entry.joints

    def _told(self, entry: StateEntry) -> tuple[str, ...]:
        joints = self._joints(entry) if "joint_position" in entry.state else ()
        gripper = any(part in _GRIPPER_PARTS for part in entry.state) and self._robot.gripper is not None
        return (*joints, self._robot.gripper.joint) if gripper and self._robot.gripper else joints

    def _width(self, part: str, entry: StateEntry) -> int:
        if part in _JOINT_PARTS:
            return len(self._joints(entry))
        if part in _GRIPPER_PARTS:
            return 1
        return 3 if part == "tool_position" else size(part.removeprefix("tool_"))

    def part_names(self, entry: StateEntry) -> list[str]:
        """What each number of a state entry is."""
        names: list[str] = []
        for part in entry.state:
            if part in _JOINT_PARTS:
                names += [f"{part}:{joint}" for joint in self._joints(entry)]
            else:
                width = self._width(part, entry)
                names += [part] if width == 1 else [f"{part}[{i}]" for i in range(width)]
        return names

    def _check_state(self, path: str, entry: StateEntry) -> None:
        for part in entry.state:
            if part not in PARTS:
                raise ConfigError(f"{path}: {unknown('part of the state', part, PARTS)}")
            if part in _GRIPPER_PARTS and self._robot.gripper is None:
                raise ConfigError(f"{path}: part '{part}', but robot '{self._robot.name}' names no gripper")
        for joint in entry.joints or ():
            if joint not in self._robot.joints:
                raise ConfigError(f"{path}: {unknown('joint', joint, self._robot.joints)}")


def _parsed(layout: Mapping[str, Any], path: str) -> dict[str, Any]:
    if not isinstance(layout, Mapping) or not layout:
        raise ConfigError(f"{path}: expected a map of entries, found {layout!r}")
    entries: dict[str, Any] = {}
    for key, value in layout.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}.{key}: expected a map with one of the keys {', '.join(_KINDS)}, found {value!r}")
        kinds = [kind for kind in _KINDS if kind in value and not isinstance(value[kind], Mapping)]
        if not kinds:
            entries[str(key)] = _parsed(value, f"{path}.{key}")
            continue
        try:
            entries[str(key)] = _KINDS[kinds[0]].model_validate(dict(value))
        except ValidationError as error:
            raise ConfigError(describe_errors(Path(f"{path}.{key}"), error)) from error
    return entries


def _flat(entries: Mapping[str, Any], prefix: str) -> list[tuple[str, Entry]]:
    found: list[tuple[str, Entry]] = []
    for key, entry in entries.items():
        found += _flat(entry, f"{prefix}{key}/") if isinstance(entry, dict) else [(f"{prefix}{key}", entry)]
    return found


def _image(entry: CameraEntry, observation: Observation) -> NDArray[np.uint8]:
    if entry.camera not in observation.images:
        raise InferenceError(unknown("camera", entry.camera, observation.images))
    image = observation.images[entry.camera]
    if entry.rotate:
        image = np.ascontiguousarray(image[::-1, ::-1])
    height, width = entry.height or image.shape[0], entry.width or image.shape[1]
    image = pad_image(image, height, width) if entry.fit == "pad" else resize_image(image, height, width)
    return np.ascontiguousarray(image.transpose(2, 0, 1) if entry.axes == "chw" else image)


def _read_image(path: str, entry: CameraEntry, value: ArrayLike) -> NDArray[np.uint8]:
    image = np.asarray(value)
    if image.ndim == 3 and entry.axes == "chw":
        image = image.transpose(1, 2, 0)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        shape = "(3, H, W)" if entry.axes == "chw" else "(H, W, 3)"
        raise InferenceError(f"'{path}' is {image.dtype} {np.shape(value)}, expected uint8 {shape}, RGB")
    return np.ascontiguousarray(image[::-1, ::-1] if entry.rotate else image)


def robot_layout(robot: Robot, cameras: Sequence[str]) -> dict[str, Any]:
    """The layout in which a served policy takes its observations: `cameras` and joints named as in the robot file."""
    layout: dict[str, Any] = {
        f"observation/image/{name}": {"camera": name, "height": None, "width": None} for name in cameras
    }
    joints = {"joints": list(robot.joints), "dtype": "float64"}
    layout["observation/joint_position"] = {"state": ["joint_position"], **joints}
    layout["observation/joint_velocity"] = {"state": ["joint_velocity"], **joints}
    layout["prompt"] = {"text": "instruction"}
    return layout
