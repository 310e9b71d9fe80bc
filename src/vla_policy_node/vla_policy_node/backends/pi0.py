"""π0 in this process, through transformers' `PI0ForConditionalGeneration`.

The checkpoint is a folder: config.json and safetensors as transformers writes them, tokenizer.json, and policy.json
(`PolicyMetadata`) with mean and deviation of state and action. The inputs are prepared here: the library's own
processor needs torchvision.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import check_fit, load_metadata, still
from vla_contract.robot import Robot
from vla_policy_node.backends import Answer, Question, attempt
from vla_policy_node.backends.declared import check_pi0_sizes, in_physical_units
from vla_policy_node.backends.guidance import Guide, Memory, integrate, together
from vla_policy_node.backends.interface import Interface, read_json
from vla_policy_node.backends.local import compiled, compiling, load_weights, read_tokenizer
from vla_policy_node.backends.options import Pi0Options, read_options

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """What π0 remembers of an episode between two calls: state of its noise, and its last chunk."""

    noise: Tensor
    last: ActionChunk | None


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "Pi0Backend":
    """Loads a checkpoint folder for a robot.

    Raises:
        ConfigError: when the checkpoint is incomplete, changed or malformed, or an option is wrong.
        MismatchError: when checkpoint, policy file and robot do not fit each other.
    """
    return Pi0Backend(Path(checkpoint), robot, read_options(Pi0Options, "pi0", options))


class Pi0Backend:
    """Answers observations with joint chunks. Use from one thread."""

    def __init__(self, folder: Path, robot: Robot, options: Pi0Options):
        config = read_json(folder / "config.json")
        if config.get("model_type") != "pi0":
            raise ConfigError(f"{folder}/config.json has model_type '{config.get('model_type')}', expected 'pi0'")
        self.metadata = load_metadata(folder)
        check_fit(self.metadata, robot)
        self._tokenizer = read_tokenizer(folder)
        self._options = options
        try:
            from transformers import PI0ForConditionalGeneration
        except ImportError as error:
            raise ConfigError(
                f"π0 needs Python package 'transformers' 5.4 or newer with PI0ForConditionalGeneration: {error}"
            ) from error
        self._model: Any = load_weights(PI0ForConditionalGeneration, folder, options)
        vision = self._model.config.vlm_config.vision_config
        self._interface = Interface(robot, options.inputs, options.action, (vision.image_size, vision.image_size))
        self._interface.check(self.metadata)
        check_pi0_sizes(self.metadata, self._model.config.to_dict(), folder)
        self._image_tokens = (vision.image_size // vision.patch_size) ** 2 * self._interface.cameras
        self._steps = options.num_steps or self._model.config.num_inference_steps
        self._state = self.metadata.statistics["state"].arrays()
        self._action = self.metadata.statistics["action"].arrays()
        self.metadata = in_physical_units(self.metadata, self._interface)  # the model's own are kept above
        self._times = self.metadata.dt * np.arange(1, self.metadata.horizon + 1)
        self._memory = Memory(self._times)
        self._noise = torch.Generator()
        self._prompt = lru_cache(maxsize=64)(self._tokenise)
        self._denoise = compiled(options, self._model, self._model.device)
        if options.compile != "none":
            self._warm_up(robot)
        self.reset()

    def reset(self) -> None:
        """A new task: the noise starts over, and the last chunk no longer counts."""
        self._noise.manual_seed(self._options.seed)
        self._memory.forget()

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The motion that the policy wants from here on; point k is for stamp + (k + 1) dt.

        Args:
            prefix: joint motion that will be executed in any case, times in s since the stamp. The chunk begins with
                it, and its next rows are drawn toward what the last chunk meant there.

        Raises:
            InferenceError: when a camera is missing, the instruction is too long, the answer is not finite or its
                first pose out of reach.
        """
        started = time.perf_counter()
        asked = self._asked(observation, prefix, self._memory, self._noise)
        return self._chunk(observation, prefix, self._sample([asked])[0], self._memory, started)

    def infer_batch(self, questions: Sequence[Question]) -> list[Answer | InferenceError]:
        """Several robots in one pass: see `backends.BatchBackend`."""
        started = time.perf_counter()
        episodes = [cast(Episode | None, question.memory) for question in questions]
        memories = [Memory(self._times, episode and episode.last) for episode in episodes]
        noises = [self._noise_of(episode) for episode in episodes]
        outcomes: list[Any] = [
            attempt(self._asked, question.observation, question.prefix, memory, noise)
            for question, memory, noise in zip(questions, memories, noises, strict=True)
        ]
        ready = [k for k, asked in enumerate(outcomes) if not isinstance(asked, InferenceError)]
        rows = self._sample([outcomes[k] for k in ready])
        for k, each in zip(ready, rows, strict=True):
            question, memory = questions[k], memories[k]
            outcomes[k] = attempt(self._chunk, question.observation, question.prefix, each, memory, started)
            if isinstance(outcomes[k], ActionChunk):
                outcomes[k] = Answer(outcomes[k], Episode(noises[k].get_state(), outcomes[k]))
        return outcomes

    def _noise_of(self, episode: Episode | None) -> torch.Generator:
        generator = torch.Generator()
        if episode is None:
            generator.manual_seed(self._options.seed)
        else:
            generator.set_state(episode.noise)
        return generator

    def _chunk(
        self, observation: Observation, prefix: Trajectory | None, rows: Array, memory: Memory, started: float
    ) -> ActionChunk:
        chunk = self._interface.chunk(self.metadata, observation, rows, started)
        return memory.keep(chunk, prefix if self._options.guidance > 0 else None)

    # -- to the model

    def _asked(
        self, observation: Observation, prefix: Trajectory | None, memory: Memory, noise: torch.Generator
    ) -> "_Asked":
        """Raises InferenceError when a camera is missing or the instruction is too long."""
        config, device = self._model.config, self._model.device
        seen = self._interface.see(observation)
        mean, std = self._state
        state = np.zeros((1, config.max_state_dim))
        state[0, : len(mean)] = (seen.state - mean) / std
        tokens, attended = self._prompt(seen.text)
        return _Asked(
            images=np.stack(seen.images)[None],
            state=torch.from_numpy(state).to(device, self._model.dtype),
            tokens=tokens,
            attended=attended,
            noise=torch.randn((1, config.chunk_size, config.max_action_dim), generator=noise).to(device),
            guide=None if prefix is None or self._options.guidance <= 0 else self._guide(observation, prefix, memory),
        )

    def _sample(self, asked: Sequence["_Asked"]) -> list[Array]:
        """Rows (H, A) in physical units, for each."""
        if self._options.compile == "none":
            return self._pass(asked) if asked else []
        most, answers = self._options.batch, []
        for first in range(0, len(asked), most):
            part = list(asked[first : first + most])
            size = min(most, 1 << (len(part) - 1).bit_length())  # only such sizes are compiled
            answers += self._pass(part + part[-1:] * (size - len(part)))[: len(part)]
        return answers

    def _pass(self, asked: Sequence["_Asked"]) -> list[Array]:
        model, count = self._model, len(asked)
        attended = torch.cat([one.attended for one in asked])
        tokens = torch.cat([one.tokens for one in asked])
        fixed = {
            "state": torch.cat([one.state for one in asked]),
            "attention_mask": attended,
            "past_key_values": self._read(np.concatenate([one.images for one in asked]), tokens, attended),
        }
        cache = fixed["past_key_values"]
        observed = [(layer.keys, layer.values) for layer in cache.layers]

        def velocity(x: Tensor, tau: float) -> Tensor:
            # The model's time runs the other way, from noise at 1 to actions at 0.
            timestep = torch.full((count,), 1.0 - tau, device=x.device)
            torch.compiler.cudagraph_mark_step_begin()  # what the last step left in its graph's memory is done with
            answer = self._denoise(noise=x.to(model.dtype), timestep=timestep, **fixed).logits
            for layer, (keys, values) in zip(cache.layers, observed, strict=True):
                layer.keys, layer.values = keys, values  # only the observation is kept from step to step
            return -answer.float()

        with torch.no_grad():
            noise, guide = torch.cat([one.noise for one in asked]), together([one.guide for one in asked])
            actions = integrate(velocity, noise, self._steps, guide)[:, :, : len(self.metadata.action)]
        mean, std = self._action
        return list(actions.double().cpu().numpy() * std + mean)

    @torch.no_grad()
    def _read(self, images: NDArray[np.uint8], tokens: Tensor, attended: Tensor) -> Any:
        """Keys and values of the observations (B, cameras, H, W, 3), which all steps of the flow look at."""
        model = self._model
        pixels = torch.from_numpy(images).to(model.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
        cameras = torch.ones(pixels.shape[:2], dtype=torch.bool, device=model.device)
        embedded = model.model.embed_prefix(tokens, pixels.to(model.dtype), cameras)
        return model.model.vlm(
            inputs_embeds=embedded,
            attention_mask=attended,
            position_ids=attended.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(tokens),  # all of it is one block: every token sees every other
            use_cache=True,
        ).past_key_values

    def _tokenise(self, text: str) -> tuple[Tensor, Tensor]:
        """Token ids (1, T) and which of them count (1, T): all images, then the sentence, a line break, and padding.

        The length is always the same, so that compiled code and CUDA graphs serve every sentence.
        """
        config = self._model.config.vlm_config
        plain = text.strip().replace("_", " ").replace("\n", " ")
        words = [config.text_config.bos_token_id, *self._tokenizer.encode(f"{plain}\n", add_special_tokens=False).ids]
        limit = self._options.prompt_tokens
        if len(words) > limit:
            raise InferenceError(f"the instruction takes {len(words)} tokens, the model takes {limit}: '{plain}'")
        if max(words) >= config.text_config.vocab_size:
            raise InferenceError(
                f"the tokenizer gives id {max(words)}, the model has {config.text_config.vocab_size}: "
                "tokenizer.json belongs to another model"
            )
        padding = limit - len(words)
        ids = [config.image_token_id] * self._image_tokens + words + [0] * padding
        attended = [1] * (len(ids) - padding) + [0] * padding
        device = self._model.device
        return torch.tensor([ids], device=device), torch.tensor([attended], device=device)

    # -- real-time chunking

    def _guide(self, observation: Observation, prefix: Trajectory, memory: Memory) -> Guide:
        """What is known of the chunk: `prefix` for certain, then what the last chunk meant, with fading weight."""
        known = memory.known(observation.stamp_ns, prefix)
        encoded = self._interface.encode(known.motion, observation)
        mean, std = self._action
        config = self._model.config
        target = np.zeros((config.chunk_size, config.max_action_dim))
        target[:, : len(mean)] = (encoded.rows - mean) / std
        weights = np.zeros_like(target)
        weights[:, : len(mean)] = known.weights()[:, None] * encoded.comparable
        device = self._model.device
        return Guide(
            torch.from_numpy(target)[None].to(device, torch.float32),
            torch.from_numpy(weights).to(device, torch.float32),
            self._options.guidance,
        )

    def _warm_up(self, robot: Robot) -> None:
        """Compiles the plain and the guided way, so that no robot waits for it."""
        before = still(robot, self.metadata)
        held = Trajectory([0.0, self.metadata.dt], np.stack([before.positions] * 2))
        self.reset()
        with compiling(self._options):
            for prefix in (None, held):
                one, size = self._asked(before, prefix, self._memory, self._noise), 1
                while size <= self._options.batch:
                    self._sample([one] * size)
                    size *= 2
                self._sample([one] * self._options.batch)


@dataclass(frozen=True)
class _Asked:
    """A question as the model takes it: (1, …) each; images (1, cameras, H, W, 3)."""

    images: NDArray[np.uint8]
    state: Tensor
    tokens: Tensor
    attended: Tensor
    noise: Tensor
    guide: Guide | None
