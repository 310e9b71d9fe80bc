"""Any policy of LeRobot in this process (ACT, Diffusion, SmolVLA, π0.5 …), by its own loading and processors.

Needs LeRobot 0.4 or newer in the policy file's interpreter. The checkpoint is a folder as `lerobot-train` writes it:
config.json, model.safetensors, policy_preprocessor.json and policy_postprocessor.json with their statistics.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, MismatchError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import WEIGHTS_FILE, History, PolicyMetadata, Statistics, check_fit, file_digest, still
from vla_contract.robot import Robot, describe_errors
from vla_policy_node.backends.interface import Interface, read_json
from vla_policy_node.backends.local import choose_device, compiled, compiling, prepare
from vla_policy_node.backends.options import LerobotOptions, read_options
from vla_policy_node.core.model_inputs import TextEntry

_log = logging.getLogger(__name__)

STATE, ACTION, TASK, IMAGES = "observation.state", "action", "task", "observation.images"
# What LeRobot's normalisation needs of the statistics of a vector; without it, it passes the vector on as it is.
_NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "LerobotBackend":
    """Loads a checkpoint folder for a robot.

    Raises:
        ConfigError: when LeRobot is missing, the checkpoint is incomplete or lacks statistics, or an option is wrong.
        MismatchError: when checkpoint, policy file and robot do not fit each other.
    """
    return LerobotBackend(Path(checkpoint), robot, read_options(LerobotOptions, "lerobot", options))


class LerobotBackend:
    """Answers observations with joint chunks. Use from one thread."""

    def __init__(self, folder: Path, robot: Robot, options: LerobotOptions):
        read_json(folder / "config.json")  # else LeRobot looks for the folder on the internet
        device = choose_device(options.device)
        self._interface = Interface(robot, options.inputs, options.action, None)
        self._options = options
        self._policy, self._before, self._after = _load(folder, device, options.backbone)
        prepare(self._policy, options, device)
        config = self._policy.config
        half = options.dtype == "bfloat16" or (options.dtype == "auto" and bool(getattr(config, "use_amp", False)))
        self._precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=half)
        self._answer = compiled(options, self._policy.predict_action_chunk, device)
        _check_features(self._interface, config, options)
        _check_statistics((self._before, config.input_features), (self._after, config.output_features))
        sizes = (getattr(config, key, None) for key in ("chunk_size", "action_chunk_size", "n_action_steps"))
        self._horizon = int(next(filter(None, sizes), 1))
        self.metadata = _metadata(folder, options, robot, self._interface, self._policy, self._horizon)
        check_fit(self.metadata, robot)
        if options.compile != "none":
            with compiling(options), suppress(InferenceError):  # a black picture may well have no answer
                self.infer(still(robot, self.metadata))
        self.reset()

    def reset(self) -> None:
        """A new task: the policy forgets its history, and noise starts over."""
        torch.manual_seed(self._options.seed)
        for part in (self._policy, self._before, self._after):
            part.reset()

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The motion that the policy wants from here on; LeRobot's policies are not conditioned on `prefix` here.

        Raises:
            InferenceError: when a camera or an earlier observation is missing, or the answer has the wrong shape, is
                not finite or out of reach.
        """
        del prefix
        started = time.perf_counter()
        steps = self.metadata.history.steps if self.metadata.history else 0
        if len(observation.earlier) != steps:
            raise InferenceError(
                f"the policy looks back at {steps} earlier observations, {len(observation.earlier)} came; the policy "
                "node sends them, a client of a server does not: run this policy in the node"
            )
        seen = (*observation.earlier, observation)
        frames = [self._before(self._batch(self._interface.inputs.compose(one))) for one in seen]
        with torch.no_grad(), self._precision():
            torch.compiler.cudagraph_mark_step_begin()  # what the last answer left in its graph's memory is done with
            answer = self._answer(with_history(self._policy, frames))
            rows = self._after(answer.flatten(0, 1)).float().cpu().numpy()
        if rows.ndim != 2 or len(rows) == 0:
            raise InferenceError(f"the policy answers actions of shape {rows.shape}, expected (horizon, entries)")
        return self._interface.chunk(self.metadata, observation, rows[: self._horizon], started)

    def _batch(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Under LeRobot's keys: images (1, 3, H, W) in [0, 1], vectors (1, d), sentences in a list."""
        batch: dict[str, Any] = {}
        for key, value in fields.items():
            if isinstance(value, str):
                batch[key] = [value]
            elif value.ndim == 3:
                batch[key] = torch.from_numpy(np.array(value)).permute(2, 0, 1)[None].float() / 255
            else:
                batch[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))[None]
        return batch


def with_history(policy: Any, frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The batch for `predict_action_chunk` of a LeRobot policy.

    Diffusion and VQ-BeT read what they are shown from queues, which LeRobot fills only when it acts by itself: one
    observation each 1 / fps. Here they are filled anew each time, whatever the time between two inferences.

    Args:
        frames: (n_obs_steps,) observations, oldest first, as the preprocessor makes them; the last is the present.
    """
    queues: dict[str, Any] = {
        key: queue for key, queue in (getattr(policy, "_queues", None) or {}).items() if key != ACTION
    }
    if IMAGES in queues and policy.config.image_features:
        frames = [
            {**frame, IMAGES: torch.stack([frame[key] for key in policy.config.image_features], dim=-4)}
            for frame in frames
        ]
    batch = frames[-1]
    if queues:
        batch = {key: value for key, value in batch.items() if key != ACTION}  # there is none; a place for it there is
    for key, queue in queues.items():
        if isinstance(batch.get(key), Tensor):
            queue.extend(frame[key] for frame in frames)  # as long as the queue: nothing else stays
    return batch


def _load(folder: Path, device: torch.device, backbone: str) -> tuple[Any, Any, Any]:
    """Policy, preprocessor, postprocessor."""
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except ImportError as error:
        raise ConfigError(
            f"backend 'lerobot' needs Python package 'lerobot' 0.4 or newer ({error}); name an interpreter that has it "
            "as `interpreter` in the policy file, or use backend 'lerobot_async' with LeRobot's policy server"
        ) from error
    try:
        config = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
        config.device = str(device)
        # Weights that would be fetched, and then replaced by those of the checkpoint.
        for key, nothing in (("pretrained_backbone_weights", None), ("load_vlm_weights", False)):
            if hasattr(config, key):
                setattr(config, key, nothing)
        overrides = {"device_processor": {"device": str(device)}}
        if backbone:
            if not hasattr(config, "vlm_model_name"):
                raise ConfigError(f"option backbone: a policy of type '{config.type}' names no language model")
            config.vlm_model_name = backbone
            overrides["tokenizer_processor"] = {"tokenizer_name": backbone}
        policy = get_policy_class(config.type).from_pretrained(
            folder, config=config, local_files_only=True, strict=True
        )
        before, after = make_pre_post_processors(
            policy.config, pretrained_path=str(folder), preprocessor_overrides=overrides
        )
    except ConfigError:
        raise
    except Exception as error:  # of several libraries, with no common root
        raise ConfigError(
            f"LeRobot cannot load checkpoint '{folder}': {type(error).__name__}: {error}; checkpoints from before "
            "LeRobot 0.4 lack policy_preprocessor.json: migrate them with LeRobot's own script; option backbone is the "
            "folder of a language model that the checkpoint only names"
        ) from error
    return policy, before, after


def _check_features(interface: Interface, config: Any, options: LerobotOptions) -> None:
    """Compares keys and sizes of the policy file with those of the checkpoint."""
    misfits = []
    expected = {key: tuple(feature.shape) for key, feature in config.input_features.items()}
    found = interface.shapes()
    for key, entry in interface.inputs.entries():
        if isinstance(entry, TextEntry) and key != TASK:
            misfits.append(f"inputs.{key}: LeRobot knows one sentence, '{TASK}'")
    for key in sorted({*expected, *found}):
        if expected.get(key) != found.get(key):
            misfits.append(
                f"inputs.{key}: the checkpoint has {expected.get(key, 'no such input')}, "
                f"the policy file {found.get(key, 'none')}"
            )
    width = tuple(config.output_features[ACTION].shape)
    if width != (interface.decoder.width,):
        names = ", ".join(interface.decoder.names)
        misfits.append(f"action: the checkpoint has {width}, the policy file ({interface.decoder.width},): {names}")
    if misfits:
        raise MismatchError(f"LeRobot policy '{options.name or config.type}' does not fit its policy file", misfits)


def _check_statistics(*parts: tuple[Any, Mapping[str, Any]]) -> None:
    """Refuses processors that would leave a vector as it is because its statistics are missing."""
    misfits = []
    for pipeline, features in parts:
        for step in pipeline.steps:
            if not all(hasattr(step, name) for name in ("features", "norm_map", "stats")):
                continue
            for key, feature in step.features.items():
                mode = step.norm_map.get(feature.type)
                known: Iterable[str] = (step.stats or {}).get(key, {})
                missing = [name for name in _NEEDED.get(getattr(mode, "name", ""), ()) if name not in known]
                if key in features and missing:
                    misfits.append(f"statistics.{key}: {' and '.join(missing)} missing, needed for {mode.name}")
    if misfits:
        raise MismatchError("the checkpoint's processors lack statistics and would not normalise", misfits)


def _metadata(
    folder: Path, options: LerobotOptions, robot: Robot, interface: Interface, policy: Any, horizon: int
) -> PolicyMetadata:
    """The processors normalise: what passes here is in physical units, so the statistics are those of the identity."""

    def identity(size: int) -> Statistics:
        return Statistics(mean=(0.0,) * size, std=(1.0,) * size)

    return PolicyMetadata(
        name=options.name or policy.config.type,
        digest=file_digest(folder / WEIGHTS_FILE),
        cameras=interface.inputs.cameras,
        joints=robot.joints,
        state=interface.inputs.state_names,
        action_space=options.action.space,
        action=interface.decoder.names,
        horizon=horizon,
        dt=options.dt,
        tool_frame=robot.tool_frame if options.action.space.startswith("ee_") else None,
        statistics={"state": identity(interface.state_width), "action": identity(interface.decoder.width)},
        training={"normalisation": "by LeRobot's processors"},
        history=_history(policy, options.dt),
    )


def _history(policy: Any, dt: float) -> History | None:
    """What the policy looks back at; LeRobot's data sets have one observation for each action."""
    config = policy.config
    steps = int(getattr(config, "n_obs_steps", 1)) - 1
    if steps < 1:
        return None
    if STATE not in (getattr(policy, "_queues", None) or {}):
        raise ConfigError(f"a policy of type '{config.type}' that looks back ({steps} steps) is not known here")
    try:
        return History(steps=steps, dt=dt)
    except ValidationError as error:
        raise ConfigError(f"the policy looks back too far: {describe_errors(Path('n_obs_steps'), error)}") from error
