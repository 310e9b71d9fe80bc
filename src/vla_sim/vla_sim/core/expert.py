"""The scripted expert: from ground truth to the motion that puts a cube into the tray.

It keeps no state. From *any* situation (tool, fingers, cubes, tray) it says where the tool should head and whether the
gripper should close, and rolls that forward into a short plan. So it can label situations that it never steered into:
perturbed demonstrations, and the mistakes of a policy that is learning from it.

It reads ground truth, therefore it makes demonstrations and never moves the arm in a demo.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Heights of the tool above the table [m].
_HOVER = 0.13  # above a cube, clear of its neighbours
_CARRY = 0.17  # with a cube below, clear of the other cubes and the tray's walls
_RETREAT = 0.20
_DONE = 0.17  # the task is over when the tool has left the tray this far below
_DROP = 0.016  # of a held cube above the place where it comes to rest, when the fingers open

_ALIGNED = 0.007  # m, horizontal: well enough above the cube or the tray's middle
_LEVEL = 0.007  # m, vertical: low enough to close or open
_FUNNEL = 0.04  # m, horizontal: within it the tool sinks from hovering to grasping
_FREE = 0.004  # m, of a finger beyond the cube's half width: no longer touching

_SPEED = 0.28  # m/s of the tool
_ACCELERATION = 1.3  # m/s2
_GAIN = 5.0  # 1/s, speed per remaining distance
_FINGER_SPEED = 0.12  # m/s of each finger
_TICK = 0.025  # s, step of the roll-forward


@dataclass(frozen=True)
class Geometry:
    """Sizes of the cell [m]: edge of a cube, half edge and floor height of the tray, finger position when open."""

    cube: float = 0.04
    tray_half: float = 0.08
    tray_floor: float = 0.004
    finger_open: float = 0.04


class Pose(NamedTuple):
    """Of an object on the table: (3,) m in the base frame, and its turn about the vertical [rad]."""

    position: Array
    yaw: float = 0.0


@dataclass(frozen=True)
class Situation:
    """Ground truth at one instant.

    Attributes:
        tool: (3,) m, in the base frame, between the fingertips.
        finger: m, position of a finger; 0 closed.
        cubes: name -> pose.
        tray: its pose; position[2] is the table's height.
    """

    tool: Array
    finger: float
    cubes: Mapping[str, Pose]
    tray: Pose


class Command(NamedTuple):
    """Where to head: tool (3,) m in the base frame, gripper in [0, 1] (1 open); progress of the task in [0, 1]."""

    tool: Array
    gripper: float
    progress: float


class Plan(NamedTuple):
    """Commands at `dt, 2 dt, …`: tool (K, 3) m in the base frame, gripper (K,) in [0, 1], progress (K,)."""

    tool: Array
    gripper: Array
    progress: Array


class Expert:
    """Picks the named cube and places it in the tray; the tool's orientation is constant, fingers close along y."""

    def __init__(self, geometry: Geometry | None = None):
        self.geometry = geometry or Geometry()

    def held(self, situation: Situation) -> str | None:
        """Name of the cube between the closed fingers; None: no cube."""
        for name, cube in situation.cubes.items():
            if self._between_fingers(situation.tool, cube) and situation.finger <= self._half_width(cube) + _FREE:
                return name
        return None

    def placed(self, situation: Situation) -> tuple[str, ...]:
        """Names of the cubes that lie in the tray."""
        held = self.held(situation)
        return tuple(n for n, cube in situation.cubes.items() if n != held and self._in_tray(cube, situation.tray))

    def command(self, situation: Situation, name: str) -> Command:
        """What to do now to bring cube `name` into the tray.

        Raises:
            KeyError: when there is no such cube.
        """
        cube, held = situation.cubes[name], self.held(situation)
        if held == name:
            return self._carry(situation)
        if held is not None:
            return self._put_down(situation, situation.cubes[held])
        if self._in_tray(cube, situation.tray):
            return self._leave(situation)
        return self._grasp(situation, cube)

    def plan(self, situation: Situation, name: str, velocity: Array, steps: int, dt: float) -> Plan:
        """Rolls `command` forward on a kinematic model: speed and acceleration of the tool are limited, a held cube
        moves with the tool, an opened gripper lets it sink.

        Args:
            velocity: (3,) m/s of the tool now; a faster one than the expert's own counts as that.
            steps, dt: points of the plan, and s between two of them.
        """
        tool, gripper, progress = np.empty((steps, 3)), np.empty(steps), np.empty(steps)
        velocity = np.array(velocity, dtype=np.float64)
        velocity *= min(1.0, _SPEED / max(float(np.linalg.norm(velocity)), 1e-9))
        ticks = max(1, round(dt / _TICK))
        for k in range(steps):
            for _ in range(ticks):
                command = self.command(situation, name)
                situation, velocity = self._advance(situation, velocity, command, dt / ticks)
            tool[k], gripper[k], progress[k] = situation.tool, command.gripper, command.progress
        return Plan(tool, gripper, progress)

    def _grasp(self, situation: Situation, cube: Pose) -> Command:
        away = _horizontal(cube.position - situation.tool)
        low = cube.position[2]
        # Fingers that are closing already shift the cube: be less exact then, or they would open again.
        closing = situation.finger < 0.85 * self.geometry.finger_open
        aligned = away < (2.5 if closing else 1.0) * _ALIGNED
        if aligned and situation.tool[2] < low + (2 if closing else 1) * _LEVEL:
            return Command(np.array([*cube.position[:2], low]), 0.0, 0.4)
        height = _funnel(away, low, _HOVER) if not closing else max(_HOVER, situation.tool[2])
        progress = 0.05 + 0.3 * math.exp(-float(np.linalg.norm(cube.position - situation.tool)) / 0.15)
        return Command(_sideways_when_high(situation.tool, cube.position, height), 1.0, progress)

    def _carry(self, situation: Situation) -> Command:
        tray = situation.tray.position
        away = _horizontal(tray - situation.tool)
        low = tray[2] + self.geometry.tray_floor + self.geometry.cube / 2 + _DROP
        if away < 2 * _ALIGNED and situation.tool[2] < low + _LEVEL:
            return Command(np.array([*tray[:2], low]), 1.0, 0.8)
        target = _sideways_when_high(situation.tool, tray, _funnel(away, low, _CARRY))
        return Command(target, 0.0, 0.5 + 0.25 * math.exp(-away / 0.15))

    def _put_down(self, situation: Situation, cube: Pose) -> Command:
        """The wrong cube is held: lower it where it is, let go."""
        low = situation.tool[2] - cube.position[2] + self.geometry.cube / 2 + 0.005
        down = situation.tool[2] < low + _LEVEL
        return Command(np.array([*situation.tool[:2], low]), float(down), 0.05)

    def _leave(self, situation: Situation) -> Command:
        is_open = situation.finger > 0.8 * self.geometry.finger_open
        height = max(_RETREAT, situation.tool[2]) if is_open else situation.tool[2]
        done = is_open and situation.tool[2] > _DONE
        return Command(np.array([*situation.tool[:2], height]), 1.0, 1.0 if done else 0.85)

    def _advance(self, situation: Situation, velocity: Array, command: Command, dt: float) -> tuple[Situation, Array]:
        wanted = _GAIN * (command.tool - situation.tool)
        wanted *= min(1.0, _SPEED / max(float(np.linalg.norm(wanted)), 1e-9))
        change = wanted - velocity
        change *= min(1.0, _ACCELERATION * dt / max(float(np.linalg.norm(change)), 1e-9))
        velocity = velocity + change
        tool = situation.tool + velocity * dt
        held, cubes = self.held(situation), dict(situation.cubes)
        narrowest = 0.0
        for name, cube in cubes.items():
            if name == held:
                cubes[name] = cube._replace(position=cube.position + velocity * dt)
            elif self._in_tray(cube, situation.tray):
                rest = situation.tray.position[2] + self.geometry.tray_floor + self.geometry.cube / 2
                cubes[name] = cube._replace(position=np.array([*cube.position[:2], rest]))
            if self._between_fingers(tool, cubes[name]):
                narrowest = self._half_width(cubes[name])
        step = _FINGER_SPEED * dt
        goal = max(command.gripper * self.geometry.finger_open, narrowest)
        finger = situation.finger + float(np.clip(goal - situation.finger, -step, step))
        return replace(situation, tool=tool, finger=finger, cubes=cubes), velocity

    def _half_width(self, cube: Pose) -> float:
        """m, of the cube along the fingers' line; they turn it square, so that a skew cube counts little more."""
        turn = abs(math.remainder(cube.yaw, math.pi / 2))
        return self.geometry.cube / 2 * (math.cos(turn) + math.sin(turn))

    def _between_fingers(self, tool: Array, cube: Pose) -> bool:
        x, y, z = np.abs(cube.position - tool)
        return bool(x < 0.024 and y < 0.018 and z < 0.024)

    def _in_tray(self, cube: Pose, tray: Pose) -> bool:
        x, y, z = cube.position - tray.position
        c, s = math.cos(tray.yaw), math.sin(tray.yaw)
        inside = max(abs(c * x + s * y), abs(c * y - s * x)) < self.geometry.tray_half
        return inside and z < self.geometry.tray_floor + self.geometry.cube / 2 + _DROP + 0.02


def _horizontal(difference: Array) -> float:
    return math.hypot(difference[0], difference[1])


def _funnel(away: float, low: float, high: float) -> float:
    """Height over a goal `away` m aside: `low` above it, `high` outside the funnel, smooth between."""
    share = min(1.0, max(0.0, (away - _ALIGNED) / _FUNNEL))
    return low + (high - low) * share * share * (3 - 2 * share)


def _sideways_when_high(tool: Array, goal: Array, height: float) -> Array:
    """A target above `goal` at `height`; a tool that is too low rises before it moves sideways."""
    share = min(1.0, max(0.0, (tool[2] - height + 0.07) / 0.04))
    return np.array([*(tool[:2] + share * (goal[:2] - tool[:2])), height])
