"""The flow policy behind the runtime's seam: observation in, joint chunk out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

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
from vla_policy_node.backends import Answer, Question, attempt
from vla_policy_node.backends.flow.checkpoint import load_checkpoint
from vla_policy_node.backends.flow.model import FlowPolicy
from vla_policy_node.backends.flow.text import SentenceEncoder
from vla_policy_node.backends.guidance import Guide, Memory, together
from vla_policy_node.backends.options import FlowOptions, read_options

Array = NDArray[np.float64]
_UNREACHABLE = 0.02  # m; farther off, the chunk is not what the policy meant


class ToolChunk(NamedTuple):
    """The network's answer: tool (K, 3) m in the base frame, gripper (K,) in [0, 1] (1 open), progress in [0, 1]."""

    tool: Array
    gripper: Array
    progress: float


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "FlowBackend":
    """Loads a checkpoint folder for a robot.

    Args:
        options: see `FlowOptions`.

    Raises:
        ConfigError: when the checkpoint is missing, changed or malformed, or an option is unknown or out of range.
        MismatchError: when the policy does not fit the robot.
    """
    chosen = read_options(FlowOptions, "flow", options)
    torch.set_num_threads(chosen.threads)
    model, metadata = load_checkpoint(Path(checkpoint))
    check_fit(metadata, robot)
    return FlowBackend(model, metadata, robot, chosen)


class _Seen(NamedTuple):
    """An observation as the network takes it, (1, …) each; and `tool` (3,) m as it is, for the way back."""

    images: Tensor
    state: Tensor
    text: Tensor
    place: Tensor
    tool: Array


class FlowBackend:
    """Answers observations with joint chunks. Use from one thread."""

    def __init__(self, model: FlowPolicy, metadata: PolicyMetadata, robot: Robot, options: FlowOptions):
        if robot.gripper is None:
            raise ConfigError(f"robot '{robot.name}' has no gripper; policy '{metadata.name}' commands one")
        self.metadata = metadata
        self._model, self._steps, self._guidance = model, options.steps, options.guidance
        self._robot, self._gripper = robot, robot.gripper
        self._finger = robot.joints.index(robot.gripper.joint)
        self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self._rotation = self._kinematics.forward(robot.home)[1]
        self._sentences = SentenceEncoder()
        self._state = metadata.statistics["state"].arrays()
        self._action = [torch.tensor(a, dtype=torch.float32) for a in metadata.statistics["action"].arrays()]
        self.draw(options.seed)
        self._times = metadata.dt * np.arange(1, metadata.horizon + 1)
        self._memory = Memory(self._times)

    def reset(self) -> None:
        """A new task: the last chunk no longer counts. Without a prefix only observation and seed do."""
        self._memory.forget()

    def draw(self, seed: int) -> None:
        """Other noise. One draw serves all chunks: they agree then, where fresh noise would make them jitter."""
        shape = (1, self.metadata.horizon, len(self.metadata.action))
        self._noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The motion that the policy wants from here on, in joint space: point k is for stamp + (k + 1) dt.

        Args:
            prefix: joint motion that will be executed in any case, times in s since the stamp. The chunk begins with
                it, and its next rows are drawn toward what the last chunk meant there.

        Raises:
            InferenceError: when a camera or joint is missing, or the network asks for a place out of reach.
        """
        started = time.perf_counter()
        return self._chunk(observation, prefix, self.infer_tool(observation, prefix), self._memory, started)

    def infer_batch(self, questions: Sequence[Question]) -> list[Answer | InferenceError]:
        """Several robots in one pass: see `backends.BatchBackend`. The memory of an episode is its last chunk."""
        started = time.perf_counter()
        outcomes: list[Any] = [attempt(self._see, question.observation) for question in questions]
        ready = [k for k, seen in enumerate(outcomes) if not isinstance(seen, InferenceError)]
        asked = [questions[k] for k in ready]
        memories = [Memory(self._times, cast(ActionChunk | None, question.memory)) for question in asked]
        seen = [outcomes[k] for k in ready]
        guides = [
            self._guide(question.observation, question.prefix, one.tool, memory)
            for question, one, memory in zip(asked, seen, memories, strict=True)
        ]
        answers = self._answer(seen, guides) if ready else []
        for k, question, answer, memory in zip(ready, asked, answers, memories, strict=True):
            chunk = attempt(self._chunk, question.observation, question.prefix, answer, memory, started)
            outcomes[k] = Answer(chunk, chunk) if isinstance(chunk, ActionChunk) else chunk
        return outcomes

    def _chunk(
        self, observation: Observation, prefix: Trajectory | None, answer: ToolChunk, memory: Memory, started: float
    ) -> ActionChunk:
        """The network's answer as joint motion; kept in `memory`."""
        followed = self._kinematics.follow(observation.positions, _finite(answer).tool, self._rotation)
        worst = int(np.argmax(followed.residuals))
        if followed.residuals[worst] > _UNREACHABLE:
            raise InferenceError(
                f"point {worst} of the chunk wants the tool at {answer.tool[worst].round(3).tolist()} m, "
                f"{followed.residuals[worst]:.3f} m out of reach (> {_UNREACHABLE} m); waiting for the next observation"
            )
        positions = followed.positions
        span = self._gripper.open - self._gripper.closed
        positions[:, self._finger] = self._gripper.closed + answer.gripper * span
        chunk = ActionChunk(
            stamp_ns=observation.stamp_ns,
            joint_names=self._robot.joints,
            trajectory=Trajectory(self._times, positions),
            policy=self.metadata.name,
            policy_digest=self.metadata.digest,
            instruction=observation.instruction,
            inference_time=time.perf_counter() - started,
            progress=answer.progress,
        )
        return memory.keep(chunk, prefix if self._guidance > 0 else None)

    def infer_tool(self, observation: Observation, prefix: Trajectory | None = None) -> ToolChunk:
        """The same in tool space.

        Raises:
            InferenceError: when a camera or joint is missing, or the answer is not finite.
        """
        seen = self._see(observation)
        return _finite(self._answer([seen], [self._guide(observation, prefix, seen.tool, self._memory)])[0])

    def _see(self, observation: Observation) -> _Seen:
        tool, _ = self._kinematics.forward(observation.positions)
        mean, std = self._state
        state = (np.concatenate([observation.positions, tool]) - mean) / std
        return _Seen(
            self._images(observation.images),
            torch.tensor(state, dtype=torch.float32)[None],
            self._sentences.embed(observation.instruction)[None],
            torch.tensor(tool, dtype=torch.float32)[None],
            tool,
        )

    @torch.no_grad()
    def _answer(self, seen: Sequence[_Seen], guides: Sequence[Guide | None]) -> list[ToolChunk]:
        """One pass for all."""
        images, state, text, place = (torch.cat(parts) for parts in list(zip(*seen, strict=True))[:4])
        reading = self._model.read(images, state, text, place)
        noise = self._noise.expand(len(seen), -1, -1)
        sampled = self._model.sample(reading.context, noise, self._steps, together(guides))
        actions, progress = self.denormalise(sampled).double().numpy(), reading.progress.sigmoid()
        return [
            ToolChunk(one.tool + rows[:, :3], np.clip(rows[:, 3], 0.0, 1.0), float(done))
            for one, rows, done in zip(seen, actions, progress, strict=True)
        ]

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

    def _guide(self, observation: Observation, prefix: Trajectory | None, tool: Array, memory: Memory) -> Guide | None:
        """What is known of the chunk, as the network's actions; `tool` (3,) m is where the observation has it."""
        if prefix is None or self._guidance <= 0:
            return None
        known = memory.known(observation.stamp_ns, prefix)
        span = self._gripper.open - self._gripper.closed
        rows = np.zeros((len(known.motion), len(self.metadata.action)))
        for row, joints in zip(rows[: known.reached], known.motion, strict=False):
            row[:3] = self._kinematics.forward(joints)[0] - tool
            row[3] = (joints[self._finger] - self._gripper.closed) / span
        target = self.normalise(torch.tensor(rows, dtype=torch.float32)[None])
        weights = torch.tensor(known.weights(), dtype=torch.float32)[:, None].expand_as(target[0])
        return Guide(target, weights, self._guidance)


def _finite(answer: ToolChunk) -> ToolChunk:
    if not (np.isfinite(answer.tool).all() and np.isfinite(answer.gripper).all()):
        raise InferenceError("the network's answer is not finite; the observation lies far outside its training")
    return answer
