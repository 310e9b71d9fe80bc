"""The scripted expert as a policy: `backend: vla_learning.expert:load`. For the simulator alone.

It reads where the objects really are. That makes it a yardstick (what can the task's geometry, the scheduler and the
filter do, if perception is perfect?) and a source of demonstrations through the running system; never a policy for a
robot. Its metadata say so, and the policy node refuses it where no simulator keeps the time.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, unknown
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata, Statistics, file_digest
from vla_contract.robot import Robot
from vla_kinematics import ToolKinematics
from vla_learning.instructions import COLOUR_WORDS
from vla_learning.stage import COLOURS, DT, HORIZON
from vla_sim.core.expert import Expert, Geometry, Pose, Situation
from vla_sim.core.scene import CUBE_SIZE, TRAY, TRAY_FLOOR, TRAY_SIZE, TRAY_WALL

Array = NDArray[np.float64]

_STEP = 1e-4  # s, over which the tool's velocity is read off the joints'
_UNREACHABLE = 0.02  # m


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "ExpertBackend":
    """There is nothing to load; `checkpoint` is not looked at.

    Raises:
        ConfigError: when options are given, or the robot has no gripper.
    """
    del checkpoint
    for name in options:
        raise ConfigError(f"expert: {unknown('option', name, ())}; it takes none")
    return ExpertBackend(robot)


class ExpertBackend:
    """Answers ground truth with joint chunks. Use from one thread."""

    def __init__(self, robot: Robot):
        if robot.gripper is None:
            raise ConfigError(f"robot '{robot.name}' has no gripper; the task needs one")
        self._gripper, self._finger = robot.gripper, robot.joints.index(robot.gripper.joint)
        self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self._down = self._kinematics.forward(robot.home)[1]
        half = TRAY_SIZE / 2 - TRAY_WALL
        self._expert = Expert(Geometry(CUBE_SIZE, half, TRAY_FLOOR, robot.gripper.open))
        n = len(robot.joints)
        self.metadata = PolicyMetadata(
            name="expert",
            digest=file_digest(Path(__file__)),
            cameras={},
            joints=robot.joints,
            state=("joint_position[rad|m]",) * n,
            action_space="joint_position",
            action=("joint_position[rad|m]",) * n,
            horizon=HORIZON,
            dt=DT,
            statistics={key: Statistics(mean=(0.0,) * n, std=(1.0,) * n) for key in ("state", "action")},
            ground_truth=True,
        )

    def reset(self) -> None:
        """Nothing to forget: it decides anew in every situation."""

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """What the expert would do from here on; `prefix` is not looked at.

        Raises:
            InferenceError: when the observation holds no ground truth, the sentence names no cube, or the way is out of
                reach.
        """
        name = COLOURS[named_colour(observation.instruction)]
        positions = observation.positions
        situation = self._situation(positions, observation.extras)
        ahead, _ = self._kinematics.forward(positions + _STEP * observation.velocities)
        plan = self._expert.plan(situation, name, (ahead - situation.tool) / _STEP, HORIZON, DT)
        followed = self._kinematics.follow(positions, plan.tool, self._down)
        if followed.residuals.max() > _UNREACHABLE:
            raise InferenceError(f"the way to {name} is {followed.residuals.max():.3f} m out of reach")
        joints = followed.positions
        joints[:, self._finger] = self._gripper.closed + plan.gripper * (self._gripper.open - self._gripper.closed)
        return ActionChunk(
            stamp_ns=observation.stamp_ns,
            joint_names=self.metadata.joints,
            trajectory=Trajectory(DT * np.arange(1, HORIZON + 1), joints),
            instruction=observation.instruction,
            progress=float(plan.progress[0]),
            confidence=1.0,
        )

    def _situation(self, positions: Array, truth: Mapping[str, Array]) -> Situation:
        missing = sorted({*COLOURS.values(), TRAY} - set(truth))
        if missing:
            raise InferenceError(f"no ground truth of {', '.join(missing)}: is the simulator running?")
        poses = {name: Pose(pose[:3], 2 * math.atan2(pose[6], pose[3])) for name, pose in truth.items()}
        tray = poses.pop(TRAY)
        tool, _ = self._kinematics.forward(positions)
        return Situation(tool, float(positions[self._finger]), poses, tray)


def named_colour(sentence: str) -> str:
    """The colour of the cube that a sentence names.

    Raises:
        InferenceError: when it names none, or more than one.
    """
    words = sentence.lower()
    found = [
        colour
        for colour, names in COLOUR_WORDS.items()
        if any(re.search(rf"\b{re.escape(name)}\b", words) for name in names)
    ]
    if len(found) != 1:
        raise InferenceError(f"'{sentence}' names {', '.join(found) or 'no cube'}; name one of {', '.join(COLOURS)}")
    return found[0]
