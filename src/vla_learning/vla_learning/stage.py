"""The simulated cell as a policy experiences it: observe, think for a while, play the chunk, observe again.

In-process and without ROS, but with the running system's order of events: a chunk is stamped with its observation,
arrives `latency` later, and is blended into what the controller plays then.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.observation import Observation
from vla_contract.robot import Robot
from vla_kinematics import ToolKinematics
from vla_sim.core.cell import Cell
from vla_sim.core.controller import JointTrajectoryCommand
from vla_sim.core.expert import Expert, Geometry, Pose, Situation
from vla_sim.core.scene import CUBE_SIZE, CUBES, TRAY, TRAY_FLOOR, TRAY_SIZE, TRAY_WALL, SceneConfig

Array = NDArray[np.float64]
COLOURS: Mapping[str, str] = {name.removesuffix("_cube"): name for name in CUBES}  # "red" -> "red_cube"

DT = 0.1  # s between the actions of a chunk
HORIZON = 16
_GRID = 0.04  # s between the points sent to the controller
_BLEND = 0.16  # s over which a new chunk takes over


@dataclass(frozen=True)
class Pace:
    """s from one observation to the next, and from an observation to the arrival of its chunk."""

    period: float = 0.4
    latency: float = 0.12


class Stage:
    """A cell, its expert and its kinematics. Use in one thread; close it."""

    def __init__(self, robot: Robot):
        self.robot = robot
        self.cell = Cell(robot)
        self.kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self.down = self.kinematics.forward(robot.home)[1]
        assert robot.gripper is not None, "the task needs a gripper"
        self.gripper = robot.gripper
        self._finger = robot.joints.index(robot.gripper.joint)
        self.expert = Expert(
            Geometry(
                cube=CUBE_SIZE,
                tray_half=TRAY_SIZE / 2 - TRAY_WALL,
                tray_floor=TRAY_FLOOR,
                finger_open=robot.gripper.open,
            )
        )
        self._plan: tuple[int, Array, Array] | None = None  # stamp ns, times (K,) s, positions (K, n)

    def start(self, scene: int | SceneConfig, rng: np.random.Generator | None = None) -> None:
        """Resets the cell. With `rng`, the arm then moves to a random posture over the table."""
        self.cell.reset(scene)
        self._plan = None
        if rng is None:
            return
        goal = rng.uniform((0.36, -0.27, 0.14), (0.60, 0.27, 0.38))
        home, _ = self.kinematics.forward(self.robot.home)
        goal = home + rng.uniform(0.0, 1.0) ** 0.5 * (goal - home)
        path = home + np.linspace(0, 1, 9)[1:, None] * (goal - home)
        posture = self.kinematics.follow(self.robot.home, path, self.down).positions[-1]
        if rng.random() < 0.15:
            posture[self._finger] = rng.uniform(self.gripper.closed, self.gripper.open)
        names, zero = self.robot.joints, np.zeros((1, len(posture)))
        self.cell.command(JointTrajectoryCommand.from_arrays(names, [0.9], posture[None], zero, zero))
        self.cell.run(1.0)

    def observe(self, instruction: str = "") -> Observation:
        """What the policy node would hand to a policy now."""
        joints = self.cell.joint_state()
        images = {name: self.cell.render(name) for name in self.robot.cameras}
        return Observation(self.cell.time_ns, images, joints.positions, joints.velocities, instruction)

    def situation(self) -> Situation:
        """Ground truth for the expert."""
        truths = self.cell.truth()
        poses = {
            name: Pose(truth.position, 2 * math.atan2(truth.quaternion[3], truth.quaternion[0]))
            for name, truth in truths.items()
        }
        tray = poses.pop(TRAY)
        joints = self.cell.joint_state()
        tool, _ = self.kinematics.forward(joints.positions)
        return Situation(tool, float(joints.positions[self._finger]), poses, tray)

    def tool_velocity(self) -> Array:
        """(3,) m/s in the base frame."""
        joints = self.cell.joint_state()
        ahead, _ = self.kinematics.forward(joints.positions + 1e-4 * joints.velocities)
        now, _ = self.kinematics.forward(joints.positions)
        return (ahead - now) / 1e-4

    def joints_for(self, tool: Array, gripper: Array) -> Array:
        """Joint positions (K, n) for tool positions (K, 3) m in the base frame and gripper (K,) in [0, 1]."""
        positions = self.kinematics.follow(self.cell.joint_state().positions, tool, self.down).positions
        positions[:, self._finger] = self.gripper.closed + np.clip(gripper, 0, 1) * (
            self.gripper.open - self.gripper.closed
        )
        return positions

    def advance(self, positions: Array, pace: Pace) -> None:
        """Plays a chunk that was computed from the state of now: positions (K, n), point k for now + (k + 1) DT.

        The chunk that played before goes on for `latency`; at the end `period` has passed.
        """
        stamp = self.cell.time_ns
        self.cell.run(pace.latency)
        self._send(stamp, DT * np.arange(1.0, len(positions) + 1), positions)
        self.cell.run(pace.period - (self.cell.time_ns - stamp) * 1e-9)

    def placed(self) -> tuple[str, ...]:
        """Names of the cubes that lie in the tray, as the simulator judges."""
        return tuple(name for name, truth in self.cell.truth().items() if truth.in_tray)

    def close(self) -> None:
        """Frees the renderer."""
        self.cell.close()

    def _send(self, stamp_ns: int, times: Array, positions: Array) -> None:
        now = self.cell.time_ns
        grid = np.arange(_GRID, (stamp_ns - now) * 1e-9 + times[-1] + 1e-9, _GRID)  # s from now
        held = self.cell.controller.desired[0]
        new = _at(grid, (stamp_ns - now) * 1e-9 + times, positions)
        old = (
            np.tile(held, (len(grid), 1))
            if self._plan is None
            else _at(grid, (self._plan[0] - now) * 1e-9 + self._plan[1], self._plan[2])
        )
        share = np.clip(grid / _BLEND, 0, 1)[:, None]
        share = share * share * (3 - 2 * share)
        path = old + share * (new - old)
        # The fingers follow a ramp of limited speed: a chunk's opening is a command, not a path.
        column = self._finger
        finger = held[column]
        for k in range(len(path)):
            finger += np.clip(new[k, column] - finger, -0.12 * _GRID, 0.12 * _GRID)
            path[k, column] = finger
        velocities = np.gradient(np.vstack([held, path]), _GRID, axis=0)[1:]
        velocities[-1] = 0.0
        velocities[:, column] = 0.0
        self.cell.command(JointTrajectoryCommand.from_arrays(self.robot.joints, grid, path, velocities))
        self._plan = (now, grid, path)


def _at(times: Array, knots: Array, positions: Array) -> Array:
    """Positions (m, n) at `times` (m,) between knots; the last one is held."""
    return np.column_stack([np.interp(times, knots, column) for column in positions.T])
