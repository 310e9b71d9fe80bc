"""The way back of `core.action_spaces`: the rows that a model would have answered for a given joint motion.

Real-time chunking needs it: what will be executed in any case is known in joint space, and is held against what the
model is about to answer.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.robot import Robot
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout, arm_width
from vla_policy_node.core.rotations import from_matrix

Array = NDArray[np.float64]

# Representations that jump somewhere, for instance from pi to -pi where a tool points straight down.
_CONTINUOUS = ("rotation_6d", "rotation_6d_rows", "matrix")


class Encoded(NamedTuple):
    """Rows (K, width) of a model, and which entries (width,) may be compared with another answer: an absolute rotation
    whose representation jumps may differ by a whole turn and mean the same."""

    rows: Array
    comparable: NDArray[np.bool_]


class ActionEncoder:
    """Writes joint motion in the action space of a layout.

    Raises:
        ConfigError: as ActionDecoder.
    """

    def __init__(self, layout: ActionLayout, robot: Robot):
        width = ActionDecoder(layout, robot).width
        self._layout, self._robot = layout, robot
        self._arm_width, self._driven = arm_width(layout, width), 0 if layout.base is None else len(layout.base.axes)
        arm = robot.arm_joints if layout.joints is None else layout.joints
        self._columns = np.array([robot.joints.index(joint) for joint in arm], dtype=np.intp)
        self._comparable = np.ones(width, dtype=np.bool_)
        if layout.space == "ee_pose" and layout.rotation not in _CONTINUOUS:
            self._comparable[3 : self._arm_width] = False
        self._comparable[width - self._driven :] = False  # a joint motion says nothing of the base
        self._kinematics = None
        if layout.space.startswith("ee_"):
            from vla_kinematics import ToolKinematics  # Pinocchio: only where the tool is commanded

            self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)

    def encode(self, motion: ArrayLike, positions: ArrayLike) -> Encoded:
        """Rows for the joint positions `motion` (K, n), seen from the robot at `positions` (n,), all in rad or m."""
        layout = self._layout
        path, start = np.asarray(motion, dtype=np.float64), np.asarray(positions, dtype=np.float64)
        arm = self._joint_rows(path, start) if self._kinematics is None else self._tool_rows(path, start)
        arm = arm / np.broadcast_to(np.asarray(layout.scale, dtype=np.float64), (self._arm_width,))
        if layout.bound is not None:
            arm = np.clip(arm, -layout.bound, layout.bound)
        driven = np.zeros((len(path), self._driven))
        if layout.gripper is None or self._robot.gripper is None:
            return Encoded(np.column_stack([arm, driven]), self._comparable)
        gripper = self._robot.gripper
        share = (path[:, self._robot.joints.index(gripper.joint)] - gripper.closed) / (gripper.open - gripper.closed)
        value = layout.gripper.closed + np.clip(share, 0.0, 1.0) * (layout.gripper.open - layout.gripper.closed)
        return Encoded(np.column_stack([arm, value, driven]), self._comparable)

    def _joint_rows(self, path: Array, start: Array) -> Array:
        targets, origin = path[:, self._columns], start[self._columns]
        if self._layout.space == "joint_position":
            return targets
        if self._layout.relative_to == "observation":
            return targets - origin
        return np.diff(targets, axis=0, prepend=origin[None])

    def _tool_rows(self, path: Array, start: Array) -> Array:
        assert self._kinematics is not None
        layout = self._layout
        place, orientation = self._kinematics.forward(start)
        moves, turns = np.empty((len(path), 3)), np.empty((len(path), 3, 3))
        for k, joints in enumerate(path):
            there, facing = self._kinematics.forward(joints)
            if layout.space == "ee_pose":
                moves[k], turns[k] = there, facing
                continue
            in_tool = layout.frame == "tool"
            moves[k] = orientation.T @ (there - place) if in_tool else there - place
            turns[k] = orientation.T @ facing if in_tool else facing @ orientation.T
            if layout.relative_to == "previous":
                place, orientation = there, facing
        if layout.rotation is None:
            return moves
        return np.column_stack([moves, from_matrix(layout.rotation, turns)])
