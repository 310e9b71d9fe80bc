"""A backend that reads ground truth, for the worker of a test."""

import numpy as np

from vla_contract.chunk import ActionChunk
from vla_contract.errors import InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.policy import PolicyMetadata, Statistics


class Oracle:
    """Moves joint j1 to where the cube's x is."""

    def __init__(self, robot):
        n = len(robot.joints)
        self.metadata = PolicyMetadata(
            name="oracle",
            cameras={},
            joints=robot.joints,
            state=("q",) * n,
            action_space="joint_position",
            action=("q",) * n,
            horizon=16,
            dt=0.1,
            statistics={key: Statistics(mean=(0.0,) * n, std=(1.0,) * n) for key in ("state", "action")},
            ground_truth=True,
        )

    def reset(self):
        pass

    def infer(self, observation, prefix):
        if "red_cube" not in observation.extras:
            raise InferenceError("no ground truth")
        goal = observation.positions.copy()
        goal[0] = observation.extras["red_cube"][0]
        times = 0.1 * np.arange(1, 17)
        share = np.minimum(times / 1.5, 1.0)[:, None]
        path = observation.positions + share * (goal - observation.positions)
        return ActionChunk(observation.stamp_ns, self.metadata.joints, Trajectory(times, path), progress=0.0)


def load(checkpoint, robot, options):
    return Oracle(robot)
