"""Goes through waypoints that a file names, for the joints or for the tool: a script instead of a model.

    waypoints:                    # each is reached at rest, in this order
      - {joints: [0.0, -0.26, …], duration: 2.0}   # rad or m, the arm's joints in the robot file's order
      - {tool: [0.5, 0.0, 0.25]}                   # m in the base frame, along a straight line
      - {tool: [0.5, 0.0, 0.05], gripper: 0.0, wait: 0.5}

Neither cameras nor the sentence steer it. The way starts where the robot is when a task begins.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import file_digest
from vla_contract.robot import Robot, describe_errors, read_yaml
from vla_policy_node.backends.options import ScriptedOptions, read_options
from vla_policy_node.backends.replay import played_metadata, played_progress

Array = NDArray[np.float64]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]

_PEAK = 1.875  # fastest of the profile below, of its mean speed
_STEP = 0.05  # s between two points of the way
_REACH, _TILT = 0.005, 0.05  # m and rad that the tool may miss a waypoint by


Leg = Callable[[Array], Array]
"""(m,) shares of a way in [0, 1] -> (m, n) joint positions."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Waypoint(_Strict):
    """Where to go next.

    Attributes:
        joints: rad or m of the arm's joints; tool: m in the base frame. One of them, or neither: the arm stays.
        gripper: 0 (closed) .. 1 (open), from the moment on when the arm is there; None: as before.
        duration: s of the way, longer if `speed` asks for it; wait: s at its end.
    """

    joints: tuple[Finite, ...] | None = None
    tool: tuple[Finite, Finite, Finite] | None = None
    gripper: Annotated[float, Field(ge=0, le=1)] | None = None
    duration: Positive | None = None
    wait: Annotated[float, Field(ge=0, le=600)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.joints is not None and self.tool is not None:
            raise ValueError("names joints and tool; one of them says where the arm goes")
        return self


class Script(_Strict):
    """The file.

    Attributes:
        waypoints: in their order.
        joint_speed: rad/s or m/s, and tool_speed: m/s, fastest on the way.
        repeat: begin again behind the last waypoint.
    """

    waypoints: Annotated[tuple[Waypoint, ...], Field(min_length=1, max_length=1000)]
    joint_speed: Annotated[float, Field(gt=0, le=3)] = 0.5
    tool_speed: Annotated[float, Field(gt=0, le=1)] = 0.15
    repeat: bool = False


class _Way(NamedTuple):
    path: Trajectory
    goals: Array  # (K,) set-points of the gripper at the path's points


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "ScriptedBackend":
    """Reads a script.

    Raises:
        ConfigError: when it is malformed, does not fit the robot, or leads out of its limits or reach from home.
    """
    chosen = read_options(ScriptedOptions, "scripted", options)
    chosen.check("scripted", robot)
    try:
        script = Script.model_validate(read_yaml(checkpoint, "script"))
    except ValidationError as error:
        raise ConfigError(describe_errors(checkpoint, error)) from error
    for k, waypoint in enumerate(script.waypoints):
        if waypoint.joints is not None and len(waypoint.joints) != len(robot.arm_joints):
            raise ConfigError(
                f"{checkpoint}: waypoints.{k} has {len(waypoint.joints)} joints, the arm {len(robot.arm_joints)}: "
                f"{', '.join(robot.arm_joints)}"
            )
        if waypoint.gripper is not None and robot.gripper is None:
            raise ConfigError(f"{checkpoint}: waypoints.{k} moves a gripper, robot '{robot.name}' has none")
    backend = ScriptedBackend(script, robot, chosen, checkpoint)
    try:
        backend.plan(np.array(robot.home))
    except InferenceError as error:
        raise ConfigError(f"{checkpoint}, from home: {error}") from error
    return backend


class ScriptedBackend:
    """One script; time runs from the first observation after `reset`."""

    def __init__(self, script: Script, robot: Robot, options: ScriptedOptions, path: Path):
        self._script, self._robot, self._options = script, robot, options
        self._arm = np.array([robot.joints.index(joint) for joint in robot.arm_joints])
        self._limits = robot.limits()
        self._kinematics = None
        if any(waypoint.tool is not None for waypoint in script.waypoints):
            from vla_kinematics import ToolKinematics  # Pinocchio: only where the tool is commanded

            self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self._begun: tuple[int, _Way] | None = None
        self.metadata = played_metadata(
            f"scripted:{path.stem}", file_digest(path), robot, options.cameras, options.horizon, options.dt
        )

    def reset(self) -> None:
        """From the first waypoint again."""
        self._begun = None

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The next `horizon` points of the way; a script is not drawn to `prefix`, it has its own time.

        Raises:
            InferenceError: when a waypoint cannot be reached from where the robot is.
        """
        if self._begun is None:
            self._begun = observation.stamp_ns, self.plan(observation.positions)
        start_ns, way = self._begun
        elapsed = (observation.stamp_ns - start_ns) * 1e-9
        if self._script.repeat and elapsed > way.path.end:
            self._begun = observation.stamp_ns, self.plan(observation.positions)
            way, elapsed = self._begun[1], 0.0
        times = self._options.dt * np.arange(1, self._options.horizon + 1)
        positions = way.path.sample(elapsed + times).positions
        if self._robot.gripper is not None:
            due = np.searchsorted(way.path.times, elapsed + times + 1e-9, side="right") - 1
            positions[:, self._robot.joints.index(self._robot.gripper.joint)] = way.goals[due]
        return ActionChunk(
            stamp_ns=observation.stamp_ns,
            joint_names=self._robot.joints,
            trajectory=Trajectory(times, positions),
            progress=played_progress(elapsed, way.path.end, endless=self._script.repeat),
            confidence=1.0,
        )

    def plan(self, start: Array) -> _Way:
        """The way from `start` (n,) rad or m through all waypoints.

        Raises:
            InferenceError: when one is beyond a position limit or out of reach, with its number and by how much.
        """
        gripper = self._robot.gripper
        column = None if gripper is None else self._robot.joints.index(gripper.joint)
        here, goal = start.copy(), 0.0 if column is None else float(start[column])
        times, points, goals = [0.0], [here], [goal]
        for k, waypoint in enumerate(self._script.waypoints):
            leg, fastest = self._leg(k, waypoint, here)
            duration = max(_PEAK * fastest, waypoint.duration or 0.0, _STEP)
            share = np.linspace(0.0, 1.0, int(np.ceil(duration / _STEP)) + 1)[1:]
            points += list(leg(share**3 * (10 - 15 * share + 6 * share**2)))
            goals += [goal] * len(share)
            times += (times[-1] + duration * share).tolist()
            here = points[-1]
            if waypoint.gripper is not None and gripper is not None:
                goal = gripper.closed + waypoint.gripper * (gripper.open - gripper.closed)
            times.append(times[-1] + max(waypoint.wait, _STEP))
            points.append(here)
            goals.append(goal)
        return _Way(Trajectory(times, np.stack(points)), np.array(goals))

    def _leg(self, number: int, waypoint: Waypoint, here: Array) -> tuple[Leg, float]:
        """The way to a waypoint by the share of it that is done, and s that it takes at full speed throughout."""
        if waypoint.tool is not None:
            assert self._kinematics is not None
            place, rotation = self._kinematics.forward(here)
            goal, kinematics = np.array(waypoint.tool), self._kinematics
            facing = self._kinematics.forward(self._robot.home)[1]

            def straight(share: Array) -> Array:
                followed = kinematics.follow(here, place + share[:, None] * (goal - place), facing)
                worst = int(np.argmax(followed.residuals))
                if followed.residuals[worst] > _REACH or followed.tilts[-1] > _TILT:
                    raise InferenceError(
                        f"waypoint {number}: on the way to {list(waypoint.tool or ())} m the tool stays "
                        f"{followed.residuals[worst]:.3f} m and {followed.tilts[-1]:.2f} rad off (limits {_REACH} m "
                        f"and {_TILT} rad)"
                    )
                return followed.positions

            # The tool turns upright on the way; that takes its time too.
            turn = float(np.arccos(np.clip((np.trace(rotation.T @ facing) - 1) / 2, -1.0, 1.0)))
            length = float(np.linalg.norm(goal - place))
            return straight, max(length / self._script.tool_speed, turn / self._script.joint_speed)
        there = here.copy()
        if waypoint.joints is not None:
            there[self._arm] = waypoint.joints
        low, high = self._limits.min_position, self._limits.max_position
        for joint, value, least, most in zip(self._robot.joints, there, low, high, strict=True):
            if not least - 1e-6 <= value <= most + 1e-6:
                raise InferenceError(f"waypoint {number}: {joint} at {value:.4f} is beyond {least:.4f} .. {most:.4f}")
        away = float(np.abs(there - here).max())
        return (lambda share: here + share[:, None] * (there - here)), away / self._script.joint_speed
