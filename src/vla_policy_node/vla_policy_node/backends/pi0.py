"""π0 in this process, through transformers' `PI0ForConditionalGeneration`.

The checkpoint is a folder: config.json and safetensors as transformers writes them, tokenizer.json, and policy.json
(`PolicyMetadata`) with mean and deviation of state and action. The inputs are prepared here: the library's own
processor needs torchvision.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import METADATA_FILE, PolicyMetadata, check_fit, load_metadata
from vla_contract.robot import Robot
from vla_policy_node.backends.guidance import Guide, integrate, soft_mask
from vla_policy_node.backends.local import (
    Interface,
    LocalOptions,
    Seen,
    load_weights,
    read_json,
    read_options,
    read_tokenizer,
)

Array = NDArray[np.float64]
_SAME_TIME = 1e-6  # s; times of rows are sums of dt


class Pi0Options(LocalOptions):
    """See LocalOptions.

    Attributes:
        num_steps: of the flow; None: as the checkpoint says.
        guidance: beta of real-time chunking; 0: chunks are not drawn toward the motion under way.
        compile: torch.compile of a step of the flow; loading takes minutes then. `reduce-overhead` uses CUDA graphs.
        prompt_tokens: that every prompt is padded to; a longer one is refused.
    """

    num_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 5.0
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"
    prompt_tokens: Annotated[int, Field(ge=2, le=1024)] = 48


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
        config, vision = self._model.config, self._model.config.vlm_config.vision_config
        self._interface = Interface(robot, options.inputs, options.action, (vision.image_size, vision.image_size))
        self._interface.check(self.metadata)
        _check_sizes(self.metadata, config, folder)
        self._image_tokens = (vision.image_size // vision.patch_size) ** 2 * self._interface.cameras
        self._steps = options.num_steps or config.num_inference_steps
        self._state = self.metadata.statistics["state"].arrays()
        self._action = self.metadata.statistics["action"].arrays()
        self._times = self.metadata.dt * np.arange(1, self.metadata.horizon + 1)
        self._noise = torch.Generator()
        self._prompt = lru_cache(maxsize=64)(self._tokenise)
        self._denoise = self._model
        if options.compile != "none":
            self._denoise = torch.compile(self._model, mode=options.compile)
            self._warm_up(robot)
        self.reset()

    def reset(self) -> None:
        """A new task: the noise starts over, and the last chunk no longer counts."""
        self._noise.manual_seed(self._options.seed)
        self._last: tuple[int, Trajectory] | None = None

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
        seen = self._interface.see(observation)
        guided = prefix is not None and self._options.guidance > 0
        rows = self._sample(seen, self._guide(observation, prefix) if guided and prefix is not None else None)
        chunk = self._interface.chunk(self.metadata, observation, rows, started)
        if guided and prefix is not None:
            # What will be executed is known; the guidance only makes the rest fit to it.
            frozen = min(int((self._times <= prefix.end + _SAME_TIME).sum()), len(chunk.positions))
            positions = chunk.positions.copy()
            positions[:frozen] = prefix.sample(self._times[:frozen]).positions
            chunk = chunk.with_trajectory(Trajectory(chunk.trajectory.times, positions))
        self._last = (observation.stamp_ns, chunk.trajectory)
        return chunk

    # -- to the model

    def _sample(self, seen: Seen, guide: Guide | None) -> Array:
        """Rows (H, A) in physical units."""
        config, model = self._model.config, self._model
        mean, std = self._state
        state = np.zeros(config.max_state_dim)
        state[: len(mean)] = (seen.state - mean) / std
        tokens, attended = self._prompt(seen.text)
        shape = (1, config.chunk_size, config.max_action_dim)
        noise = torch.randn(shape, generator=self._noise).to(model.device)
        fixed = {
            "state": torch.from_numpy(state)[None].to(model.device, model.dtype),
            "attention_mask": attended,
            "past_key_values": self._read(seen.images, tokens, attended),
        }
        length = fixed["past_key_values"].get_seq_length()

        def velocity(x: Tensor, tau: float) -> Tensor:
            # The model's time runs the other way, from noise at 1 to actions at 0.
            timestep = torch.full((1,), 1.0 - tau, device=x.device)
            answer = self._denoise(noise=x.to(model.dtype), timestep=timestep, **fixed).logits
            cache = fixed["past_key_values"]
            cache.crop(length - cache.get_seq_length())  # only the observation is kept from step to step
            return -answer.float()

        with torch.no_grad():
            actions = integrate(velocity, noise, self._steps, guide)[0, :, : len(self.metadata.action)]
        mean, std = self._action
        return actions.double().cpu().numpy() * std + mean

    @torch.no_grad()
    def _read(self, images: Sequence[NDArray[np.uint8]], tokens: Tensor, attended: Tensor) -> Any:
        """Keys and values of the observation, which all steps of the flow look at."""
        model = self._model
        pixels = torch.from_numpy(np.stack(images)).to(model.device).permute(0, 3, 1, 2)[None].float() / 127.5 - 1.0
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

    def _guide(self, observation: Observation, prefix: Trajectory) -> Guide:
        """What is known of the chunk: `prefix` for certain, then what the last chunk meant, with fading weight."""
        frozen = int((self._times <= prefix.end + _SAME_TIME).sum())
        motion, known = prefix.sample(self._times).positions, frozen
        if self._last is not None and frozen < len(self._times):
            since = (observation.stamp_ns - self._last[0]) * 1e-9
            last = self._last[1]
            reached = int((self._times + since <= last.end + _SAME_TIME).sum()) if since >= 0 else 0
            if reached > frozen:
                known = reached
                motion[frozen:known] = last.sample(self._times[frozen:known] + since).positions
        encoded = self._interface.encode(motion, observation)
        mean, std = self._action
        config = self._model.config
        target = np.zeros((config.chunk_size, config.max_action_dim))
        target[:, : len(mean)] = (encoded.rows - mean) / std
        weights = np.zeros_like(target)
        mask = soft_mask(frozen, known, config.chunk_size)
        weights[:, : len(mean)] = mask[:, None] * encoded.comparable
        device = self._model.device
        return Guide(
            torch.from_numpy(target)[None].to(device, torch.float32),
            torch.from_numpy(weights).to(device, torch.float32),
            self._options.guidance,
        )

    def _warm_up(self, robot: Robot) -> None:
        """Compiles the plain and the guided way, so that no robot waits for it."""
        images = {name: np.zeros((camera.height, camera.width, 3), np.uint8) for name, camera in robot.cameras.items()}
        home = np.array(robot.home)
        still = Observation(0, images, home, np.zeros_like(home), "warm up")
        seen = self._interface.see(still)
        held = Trajectory([0.0, self.metadata.dt], np.stack([home, home]))
        self.reset()
        try:
            self._sample(seen, None)
            self._sample(seen, self._guide(still, held))
        except Exception as error:  # of the compiler, with no common root
            raise ConfigError(
                f"option compile is {self._options.compile}, and the compiler fails: {type(error).__name__}: {error}; "
                "leave the key out"
            ) from error


def _check_sizes(metadata: PolicyMetadata, config: Any, folder: Path) -> None:
    for what, found, limit, fits in (
        ("horizon", metadata.horizon, config.chunk_size, metadata.horizon == config.chunk_size),
        ("state", len(metadata.state), config.max_state_dim, len(metadata.state) <= config.max_state_dim),
        ("action", len(metadata.action), config.max_action_dim, len(metadata.action) <= config.max_action_dim),
    ):
        if not fits:
            raise ConfigError(
                f"{folder}: {METADATA_FILE} gives {what} the size {found}, config.json {limit}: "
                "they belong to different checkpoints"
            )
