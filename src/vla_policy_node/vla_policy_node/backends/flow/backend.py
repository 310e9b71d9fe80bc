"""The flow policy behind the runtime's seam: observation in, joint chunk out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, unknown
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata, check_fit
from vla_contract.resampling import resize_image
from vla_contract.robot import Robot
from vla_kinematics import ToolKinematics
from vla_policy_node.backends.flow.checkpoint import load_checkpoint
from vla_policy_node.backends.flow.model import FlowPolicy, Prefix
from vla_policy_node.backends.flow.text import SentenceEncoder

Array = NDArray[np.float64]
OPTIONS: Mapping[str, int] = {"threads": 2, "steps": 5, "seed": 0}
_UNREACHABLE = 0.02  # m; farther off, the chunk is not what the policy meant


class ToolChunk(NamedTuple):
    """The network's answer: tool (K, 3) m in the base frame, gripper (K,) in [0, 1] (1 open), progress in [0, 1]."""

    tool: Array
    gripper: Array
    progress: float


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "FlowBackend":
    """Loads a checkpoint folder for a robot.

    Args:
        options: `threads` of torch, `steps` of the flow, `seed` of its noise.

    Raises:
        ConfigError: when the checkpoint is missing, changed or malformed, or an option is unknown or out of range.
        MismatchError: when the policy does not fit the robot.
    """
    values = _options(options)
    torch.set_num_threads(values["threads"])
    model, metadata = load_checkpoint(Path(checkpoint))
    check_fit(metadata, robot)
    return FlowBackend(model, metadata, robot, steps=values["steps"], seed=values["seed"])


def _options(options: Mapping[str, Any]) -> dict[str, int]:
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(f"flow policy: {unknown('option', name, OPTIONS)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "seed" else 1):
            raise ConfigError(f"flow policy: option {name} is {value!r}, expected a positive integer")
    return {**OPTIONS, **options}


class FlowBackend:
    """Answers observations with joint chunks. Use from one thread."""

    def __init__(self, model: FlowPolicy, metadata: PolicyMetadata, robot: Robot, steps: int = 5, seed: int = 0):
        if robot.gripper is None:
            raise ConfigError(f"robot '{robot.name}' has no gripper; policy '{metadata.name}' commands one")
        self.metadata = metadata
        self._model, self._steps = model, steps
        self._robot, self._gripper = robot, robot.gripper
        self._finger = robot.joints.index(robot.gripper.joint)
        self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self._rotation = self._kinematics.forward(robot.home)[1]
        self._sentences = SentenceEncoder()
        self._state = metadata.statistics["state"].arrays()
        self._action = [torch.tensor(a, dtype=torch.float32) for a in metadata.statistics["action"].arrays()]
        # One draw of noise for all chunks: consecutive chunks then agree, where fresh noise would make them jitter.
        shape = (1, metadata.horizon, len(metadata.action))
        self._noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def reset(self) -> None:
        """A new task. Nothing to forget: a chunk depends on its observation and the seed alone."""

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The motion that the policy wants from here on, in joint space: point k is for stamp + (k + 1) dt.

        Args:
            prefix: joint motion that will be executed in any case, times in s since the stamp; the chunk is drawn to
                begin with it.

        Raises:
            InferenceError: when a camera or joint is missing, or the network asks for a place out of reach.
        """
        started = time.perf_counter()
        answer = self.infer_tool(observation, prefix)
        followed = self._kinematics.follow(observation.positions, answer.tool, self._rotation)
        worst = int(np.argmax(followed.residuals))
        if followed.residuals[worst] > _UNREACHABLE:
            raise InferenceError(
                f"point {worst} of the chunk wants the tool at {answer.tool[worst].round(3).tolist()} m, "
                f"{followed.residuals[worst]:.3f} m out of reach (> {_UNREACHABLE} m); waiting for the next observation"
            )
        positions = followed.positions
        span = self._gripper.open - self._gripper.closed
        positions[:, self._finger] = self._gripper.closed + answer.gripper * span
        times = self.metadata.dt * np.arange(1, self.metadata.horizon + 1)
        return ActionChunk(
            stamp_ns=observation.stamp_ns,
            joint_names=self._robot.joints,
            trajectory=Trajectory(times, positions),
            policy=self.metadata.name,
            policy_digest=self.metadata.digest,
            instruction=observation.instruction,
            inference_time=time.perf_counter() - started,
            progress=answer.progress,
        )

    @torch.inference_mode()
    def infer_tool(self, observation: Observation, prefix: Trajectory | None = None) -> ToolChunk:
        """The same in tool space.

        Raises:
            InferenceError: when a camera or joint is missing.
        """
        tool, _ = self._kinematics.forward(observation.positions)
        state = np.concatenate([observation.positions, tool])
        mean, std = self._state
        reading = self._model.read(
            self._images(observation.images),
            torch.tensor((state - mean) / std, dtype=torch.float32)[None],
            self._sentences.embed(observation.instruction)[None],
            torch.tensor(tool, dtype=torch.float32)[None],
        )
        given = None if prefix is None else self._prefix(prefix, tool)
        actions = (
            self.denormalise(self._model.sample(reading.context, self._noise, self._steps, given))[0].double().numpy()
        )
        if not np.isfinite(actions).all():
            raise InferenceError("the network's answer is not finite; the observation lies far outside its training")
        return ToolChunk(tool + actions[:, :3], np.clip(actions[:, 3], 0.0, 1.0), float(reading.progress.sigmoid()))

    def denormalise(self, actions: Tensor) -> Tensor:
        """Normalised (…, H, A) -> m and [0, 1]."""
        mean, std = self._action
        return actions * self._model.step_scale * std + mean

    def normalise(self, actions: Tensor) -> Tensor:
        """The inverse of `denormalise`."""
        mean, std = self._action
        return (actions - mean) / (self._model.step_scale * std)

    def _images(self, images: Mapping[str, NDArray[np.uint8]]) -> Tensor:
        stacked = []
        for name, size in self.metadata.cameras.items():
            if name not in images:
                raise InferenceError(unknown("camera", name, images))
            stacked.append(resize_image(images[name], size.height, size.width))
        return torch.from_numpy(np.stack(stacked)).permute(0, 3, 1, 2)[None].float() / 255

    def _prefix(self, motion: Trajectory, tool: Array) -> Prefix:
        times = self.metadata.dt * np.arange(1, self.metadata.horizon + 1)
        joints = motion.sample(times).positions
        span = self._gripper.open - self._gripper.closed
        rows: Sequence[Array] = [
            np.append(self._kinematics.forward(q)[0] - tool, (q[self._finger] - self._gripper.closed) / span)
            for q in joints
        ]
        actions = torch.tensor(np.stack(rows), dtype=torch.float32)[None]
        return Prefix(self.normalise(actions), torch.tensor(times <= motion.end + 1e-9, dtype=torch.float32))
