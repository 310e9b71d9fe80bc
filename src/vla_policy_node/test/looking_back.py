"""A policy that looks back at two observations, 0.05 s apart, and answers what it saw. Loaded by real workers."""

import sys
from types import SimpleNamespace

import numpy as np

from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory
from vla_contract.policy import History, file_digest
from vla_policy_node.backends.options import ReplayOptions
from vla_policy_node.backends.replay import ReplayBackend, _read

HISTORY = History(steps=2, dt=0.05)
ON_THE_GPU = 5_000_000_000  # bytes, that it claims of a torch of its own


class LookingBack(ReplayBackend):
    def infer(self, observation, prefix):
        """Three points, oldest first: s before now; where j1 was; the sum of the picture's pixels."""
        rows = [
            ((one.stamp_ns - observation.stamp_ns) * 1e-9, one.positions[0], int(one.images["front"].sum()))
            for one in (*observation.earlier, observation)
        ]
        assert len(rows) == 3, rows
        return ActionChunk(observation.stamp_ns, self.metadata.joints, Trajectory([0.1, 0.2, 0.3], np.array(rows)))


def load(checkpoint, robot, options):
    sizes = {"is_initialized": lambda: True, "device_count": lambda: 1, "memory_reserved": lambda device: ON_THE_GPU}
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(**sizes))
    made = LookingBack(_read(checkpoint, robot.joints), file_digest(checkpoint), "it", robot, ReplayOptions(**options))
    made.metadata = made.metadata.model_copy(update={"history": HISTORY})
    return made
