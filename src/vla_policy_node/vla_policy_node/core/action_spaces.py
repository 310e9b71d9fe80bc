"""What the numbers of a policy's action mean, and the joint positions that they ask for.

An `ActionLayout` comes from the policy file; an `ActionDecoder` turns rows of a model's answer into joint positions in
the robot's order. Nothing is repaired on the way: a row of the wrong width or a number that is not finite is an error,
and a place out of reach comes back with the distance that is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vla_contract.chunk import BaseMotion
from vla_contract.errors import ConfigError, InferenceError, unknown
from vla_contract.policy import ActionSpace
from vla_contract.robot import Robot
from vla_policy_node.core.rotations import Representation, size, to_matrix

Array = NDArray[np.float64]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_AXES = ("x", "y", "z")
Axis = Literal["vx", "vy", "wz"]
_TWIST: tuple[Axis, ...] = ("vx", "vy", "wz")
_ROTATED = ("ee_pose", "ee_delta")
_DELTAS = ("joint_delta", "ee_delta", "ee_delta_position")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GripperAction(_Strict):
    """The entry behind the arm's.

    Attributes:
        open, closed: its value for the open and the closed gripper. Between them the gripper moves evenly, beyond them
            it stays at its end.
        threshold: None: continuous. A number: the side of it that the value lies on opens or closes fully.
    """

    open: Finite = 1.0
    closed: Finite = 0.0
    threshold: Finite | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.open == self.closed:
            raise ValueError(f"open and closed are both {self.open}; the gripper would have one position only")
        low, high = sorted((self.open, self.closed))
        if self.threshold is not None and not low <= self.threshold <= high:
            raise ValueError(f"threshold {self.threshold} lies outside {low} (one end) .. {high} (the other)")
        return self

    def opening(self, values: ArrayLike) -> Array:
        """0 (closed) .. 1 (open) of model values."""
        share = (np.asarray(values, dtype=np.float64) - self.closed) / (self.open - self.closed)
        if self.threshold is None:
            return np.clip(share, 0.0, 1.0)
        return (share > (self.threshold - self.closed) / (self.open - self.closed)).astype(np.float64)


class BaseAction(_Strict):
    """The entries of a mobile base, behind the gripper's.

    Attributes:
        axes: of each entry: forward `vx`, sideways `vy` [m/s], turning `wz` [rad/s]; what is not named stays 0.
        scale: multiplies the entries, one for all or one for each: m/s or rad/s for a unit of the model.
    """

    axes: Annotated[tuple[Axis, ...], Field(min_length=1)] = ("vx", "vy", "wz")
    scale: Finite | tuple[Finite, ...] = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes {list(self.axes)} has duplicates; name each axis once")
        if isinstance(self.scale, tuple) and len(self.scale) != len(self.axes):
            raise ValueError(f"scale has {len(self.scale)} values for {len(self.axes)} axes")
        return self

    def twists(self, values: Array) -> Array:
        """(K, 3) m/s, m/s, rad/s of model values (K, len(axes))."""
        found = np.zeros((len(values), 3))
        found[:, [_TWIST.index(axis) for axis in self.axes]] = values * np.asarray(self.scale, dtype=np.float64)
        return found


class ActionLayout(_Strict):
    """One row of a model's answer: the arm's entries, then the gripper's, then the mobile base's.

    Attributes:
        space: how the arm's entries are meant.
        joints: joint spaces: the joint of each entry; default: the robot's joints without the gripper's.
        rotation: `ee_pose` and `ee_delta`: how the entries after x, y, z write the rotation.
        frame: `ee_delta*`: the axes of translation and rotation: those of the robot's base or those of the tool.
        relative_to: deltas: what each row adds to: the state at the observation, or the target of the row before.
        scale: multiplies the arm's entries, one for all or one for each: rad or m for a unit of the model.
        bound: the arm's entries are limited to ± this before scaling, as the clients of some models do; None: taken as
            they come.
        gripper: the entry behind the arm's; None: the model does not move the gripper, it stays where it is.
        base: the last entries; None: the model does not drive.
        reach: m, and tilt: rad; farther off than this, a pose counts as out of reach.
    """

    space: ActionSpace
    joints: tuple[str, ...] | None = None
    rotation: Representation | None = None
    frame: Literal["base", "tool"] = "base"
    relative_to: Literal["observation", "previous"] = "observation"
    scale: Finite | tuple[Finite, ...] = 1.0
    bound: Positive | None = None
    gripper: GripperAction | None = None
    base: BaseAction | None = None
    reach: Positive = 0.02
    tilt: Positive = 0.15

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.space in _ROTATED) != (self.rotation is not None):
            raise ValueError(f"space '{self.space}' {'needs' if self.space in _ROTATED else 'has no'} key 'rotation'")
        if self.joints is not None and not self.space.startswith("joint_"):
            raise ValueError(f"space '{self.space}' moves the tool; drop the key 'joints'")
        if self.space == "ee_pose" and (self.scale != 1.0 or self.bound is not None):
            raise ValueError("an 'ee_pose' is absolute in m; scale and bound would move the goal: drop them")
        for key, default, spaces in (("frame", "base", _DELTAS[1:]), ("relative_to", "observation", _DELTAS)):
            if getattr(self, key) != default and self.space not in spaces:
                raise ValueError(f"space '{self.space}' has no key '{key}'; it belongs to {', '.join(spaces)}")
        return self


@dataclass(frozen=True)
class Decoded:
    """Joint positions for the rows of an answer.

    Attributes:
        positions: (K, n) rad or m, in the robot's order.
        residuals: (K,) m, tilts: (K,) rad: what the tool misses of each row's pose; 0 for joint actions.
        twists: (K, 3) m/s, m/s, rad/s of the mobile base; None: the layout has none.
    """

    positions: Array
    residuals: Array
    tilts: Array
    twists: Array | None = None

    def shortened(self, rows: int) -> str:
        """Why only the first `rows` rows can be used; empty: all can."""
        if rows >= len(self.positions):
            return ""
        return (
            f"the answer leaves the robot's reach at point {rows} of {len(self.positions)} by "
            f"{self.residuals[rows]:.3f} m and {self.tilts[rows]:.2f} rad: the chunk ends before it"
        )

    def base_motion(self, rows: int, dt: float) -> BaseMotion | None:
        """The mobile base's part of the first `rows` rows, row k at (k + 1) `dt` s."""
        return (
            None
            if self.twists is None
            else BaseMotion(dt * np.arange(1.0, rows + 1.0, dtype=np.float64), self.twists[:rows])
        )


class ActionDecoder:
    """Reads answers of a model for one robot.

    Raises:
        ConfigError: when the layout names joints that the robot lacks, gives the wrong number of scales, or commands a
            gripper or a mobile base that is not there.
    """

    def __init__(self, layout: ActionLayout, robot: Robot):
        self.layout = layout
        self._joints = robot.joints
        self._gripper = robot.gripper
        arm = robot.arm_joints if layout.joints is None else layout.joints
        for joint in arm:
            if joint not in robot.joints:
                raise ConfigError(f"action.joints: {unknown('joint', joint, robot.joints)}")
        if len(set(arm)) != len(arm):
            raise ConfigError(f"action.joints {list(arm)} has duplicates; name each joint once")
        self._columns = np.array([robot.joints.index(joint) for joint in arm], dtype=np.intp)
        if layout.gripper is not None and robot.gripper is None:
            raise ConfigError(f"action.gripper: robot '{robot.name}' has no gripper; drop the key or name its gripper")
        if layout.gripper is not None and robot.gripper is not None and robot.gripper.joint in arm:
            raise ConfigError(f"action: '{robot.gripper.joint}' is the gripper and is in joints too; give it one entry")
        if layout.base is not None and robot.base is None:
            raise ConfigError(
                f"action.base: robot '{robot.name}' has no mobile base; drop the key, or give the robot file one"
            )
        self.names = _names(layout, arm)
        self._arm_width = arm_width(layout, len(self.names))
        if isinstance(layout.scale, tuple) and len(layout.scale) != self._arm_width:
            raise ConfigError(
                f"action.scale has {len(layout.scale)} values for {self._arm_width} entries ({', '.join(self.names)})"
            )
        self._scale = np.broadcast_to(np.asarray(layout.scale, dtype=np.float64), (self._arm_width,))
        self._kinematics = None
        if layout.space.startswith("ee_"):
            # Pinocchio: only where the tool is commanded, so that joint policies run in interpreters that lack it.
            from vla_kinematics import ToolKinematics

            self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)

    @property
    def width(self) -> int:
        """Entries of a row."""
        return len(self.names)

    def decode(self, actions: ArrayLike, positions: ArrayLike) -> Decoded:
        """Joint positions that `actions` (K, width) ask for, seen from the robot at `positions` (n,) rad or m.

        Raises:
            InferenceError: on wrong shapes, numbers that are not finite, or rows that say no rotation.
        """
        rows, start = self._rows(actions), np.asarray(positions, dtype=np.float64)
        if start.shape != (len(self._joints),) or not np.isfinite(start).all():
            raise InferenceError(f"joint positions {start}: expected {len(self._joints)} finite numbers")
        arm = rows[:, : self._arm_width]
        if self.layout.bound is not None:
            arm = np.clip(arm, -self.layout.bound, self.layout.bound)
        arm = arm * self._scale
        if self._kinematics is None:
            decoded = np.tile(start, (len(rows), 1))
            decoded[:, self._columns] = self._joint_targets(arm, start[self._columns])
            residuals = tilts = np.zeros(len(rows))
        else:
            followed = self._kinematics.follow(start, *self._tool_targets(arm, start))
            decoded, residuals, tilts = followed.positions, followed.residuals, followed.tilts
        if self.layout.gripper is not None and self._gripper is not None:
            span = self._gripper.open - self._gripper.closed
            finger = self._joints.index(self._gripper.joint)
            values = rows[:, self._arm_width]
            decoded[:, finger] = self._gripper.closed + self.layout.gripper.opening(values) * span
        base = self.layout.base
        twists = None if base is None else base.twists(rows[:, -len(base.axes) :])
        return Decoded(decoded, residuals, tilts, twists)

    def reachable(self, decoded: Decoded) -> Array:
        """`decoded.positions` up to the first pose out of reach, (K', n) with K' >= 1.

        Raises:
            InferenceError: when already the first pose is out of reach, with the distance that is missing.
        """
        layout = self.layout
        missed = (decoded.residuals > layout.reach) | (decoded.tilts > layout.tilt)
        if not missed.any():
            return decoded.positions
        first = int(np.argmax(missed))
        if first == 0:
            raise InferenceError(
                f"the first pose of the answer is out of reach: the tool stays {decoded.residuals[0]:.3f} m and "
                f"{decoded.tilts[0]:.2f} rad from it (limits {layout.reach} m and {layout.tilt} rad); "
                "waiting for the next observation"
            )
        return decoded.positions[:first]

    def tool_targets(self, actions: ArrayLike, positions: ArrayLike) -> tuple[Array, Array]:
        """Tool poses that `ee_*` actions mean: (K, 3) m and (K, 3, 3), in the robot's base frame."""
        arm = self._rows(actions)[:, : self._arm_width]
        arm = arm if self.layout.bound is None else np.clip(arm, -self.layout.bound, self.layout.bound)
        return self._tool_targets(arm * self._scale, np.asarray(positions, dtype=np.float64))

    def _rows(self, actions: ArrayLike) -> Array:
        rows = np.asarray(actions, dtype=np.float64)
        if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != self.width:
            raise InferenceError(
                f"actions of shape {rows.shape}: expected (K, {self.width}) with the entries {', '.join(self.names)}"
            )
        if not np.isfinite(rows).all():
            k, entry = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
            raise InferenceError(f"action {k}: '{self.names[entry]}' is {rows[k, entry]}, expected a finite number")
        return rows

    def _joint_targets(self, arm: Array, start: Array) -> Array:
        if self.layout.space == "joint_position":
            return arm
        return start + (arm if self.layout.relative_to == "observation" else np.cumsum(arm, axis=0))

    def _tool_targets(self, arm: Array, start: Array) -> tuple[Array, Array]:
        assert self._kinematics is not None, "joint actions have no tool targets"
        layout, moves = self.layout, arm[:, :3]
        place, orientation = self._kinematics.forward(start)
        if layout.rotation is None:
            turns = np.broadcast_to(np.eye(3), (len(arm), 3, 3))
        else:
            turns = to_matrix(layout.rotation, arm[:, 3:])
        if layout.space == "ee_pose":
            return moves, turns
        places, orientations = np.empty_like(moves), np.empty((len(arm), 3, 3))
        for k, (move, turn) in enumerate(zip(moves, turns, strict=True)):
            in_tool = layout.frame == "tool"
            places[k] = place + (orientation @ move if in_tool else move)
            orientations[k] = orientation @ turn if in_tool else turn @ orientation
            if layout.relative_to == "previous":
                place, orientation = places[k], orientations[k]
        return places, orientations


def _names(layout: ActionLayout, arm: Sequence[str]) -> tuple[str, ...]:
    """What each entry of a row is, with its unit after scaling."""
    change = "d" if layout.space in _DELTAS else ""
    if layout.space.startswith("joint_"):
        names = [f"{change}_{joint}" if change else joint for joint in arm]
    else:
        names = [f"{change}{axis}[m]" for axis in _AXES]
        if layout.rotation is not None:
            names += [f"{change}{layout.rotation}_{i}" for i in range(size(layout.rotation))]
    if layout.gripper is not None:
        names.append("gripper")
    if layout.base is not None:
        names += [f"base.{axis}[{'rad/s' if axis == 'wz' else 'm/s'}]" for axis in layout.base.axes]
    return tuple(names)


def arm_width(layout: ActionLayout, width: int) -> int:
    """Entries of the arm, of a row of `width` entries."""
    return width - (layout.gripper is not None) - (0 if layout.base is None else len(layout.base.axes))
