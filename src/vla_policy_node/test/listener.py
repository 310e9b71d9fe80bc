"""A policy that says what it was told; for a worker, so without ROS."""

from vla_contract.chunk import ActionChunk
from vla_contract.errors import InferenceError
from vla_contract.interpolation import Trajectory
from vla_policy_node.backends.replay import load as load_replay

STANDS = "stand"


class Listening:
    """Stays where it is and is done at once, if it is told to stand; else it says what it was told instead."""

    def __init__(self, replay):
        self.metadata = replay.metadata

    def reset(self):
        pass

    def infer(self, observation, prefix=None):
        if observation.instruction != STANDS:
            raise InferenceError(f"told to <{observation.instruction}>")
        times = [0.1 * k for k in range(1, 17)]
        trajectory = Trajectory(times, [observation.positions.tolist()] * 16)
        return ActionChunk(observation.stamp_ns, self.metadata.joints, trajectory, progress=1.0)


def load(checkpoint, robot, options):
    return Listening(load_replay(checkpoint, robot, options))
