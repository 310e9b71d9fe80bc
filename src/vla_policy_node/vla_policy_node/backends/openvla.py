"""Policies that answer in words of a language model, in this process: OpenVLA, and RT-2-style models of transformers.

A folder with `model_type: openvla` runs on our own network for those weights (`backends.prismatic`); every other one
must be an image-text model that transformers itself brings. Code that lies beside weights is not run.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import check_fit, weights_digest
from vla_contract.robot import Robot
from vla_policy_node.backends.declared import check_openvla_options, openvla_metadata, read_action_range
from vla_policy_node.backends.interface import Interface, read_json
from vla_policy_node.backends.local import (
    choose_device,
    choose_dtype,
    compiled,
    compiling,
    load_weights,
    prepare,
    read_tokenizer,
)
from vla_policy_node.backends.options import OpenVlaOptions, read_options
from vla_policy_node.backends.prismatic import Pixels, load_prismatic
from vla_policy_node.core.action_tokens import BINS, from_tokens

_EMPTY = "\u2581"  # Llama's word for nothing: stood before every action in OpenVLA's training


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "OpenVlaBackend":
    """Loads a checkpoint folder for a robot.

    Raises:
        ConfigError: when the checkpoint is incomplete or needs code of its own, or an option is wrong.
        MismatchError: when checkpoint, policy file and robot do not fit each other.
    """
    return OpenVlaBackend(Path(checkpoint), robot, read_options(OpenVlaOptions, "openvla", options))


class OpenVlaBackend:
    """Answers observations with joint chunks. Use from one thread."""

    def __init__(self, folder: Path, robot: Robot, options: OpenVlaOptions):
        config = read_json(folder / "config.json")
        self._options = options
        self._range = read_action_range(folder, config, options.unnorm_key)
        self._interface = Interface(robot, options.inputs, options.action)
        digest = weights_digest(folder)
        self.metadata = openvla_metadata(
            options.name, digest, robot, self._interface, self._range, options.horizon, options.dt
        )
        check_fit(self.metadata, robot)
        self._model = _Prismatic(folder, config, options) if config.get("model_type") == "openvla" else None
        self._model = self._model or _Native(folder, config, options)

    def reset(self) -> None:
        """Nothing to forget: each answer is the likeliest one."""

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The motion that the policy wants from here on; words cannot be conditioned on `prefix`.

        Raises:
            InferenceError: when the camera is missing, the model answers no action, or one out of reach.
        """
        del prefix
        started = time.perf_counter()
        seen = self._interface.see(observation)
        prompt = self._options.prompt.replace("{instruction}", seen.text.lower())
        shape = (self._options.horizon, len(self._range.low))
        tokens = self._model.answer(seen.images[0], prompt, int(np.prod(shape)))
        rows = self._range.stretch(from_tokens(tokens.reshape(shape), self._model.vocabulary))
        return self._interface.chunk(self.metadata, observation, rows, started, self._options.hold)


class _Prismatic:
    """OpenVLA's own weights."""

    def __init__(self, folder: Path, config: Mapping[str, Any], options: OpenVlaOptions):
        if config.get("n_action_bins", BINS) != BINS:
            raise ConfigError(f"{folder}/config.json: n_action_bins {config['n_action_bins']}, expected {BINS}")
        self._tokenizer = read_tokenizer(folder)
        self._pixels = Pixels(folder, options.crop)
        device = choose_device(options.device)
        self._dtype = choose_dtype(options.dtype, device)
        self._network: Any = load_prismatic(folder, config, self._dtype)
        prepare(self._network, options, device)
        self._device, text = device, self._network.text_config
        # The embedding is filled up to a round size; those ids never occur.
        self.vocabulary = options.vocabulary or text.vocab_size - int(config.get("pad_to_multiple_of", 64))
        self._begin = text.bos_token_id
        self._tokens = lru_cache(maxsize=64)(self._tokenise)
        if options.compile != "none":
            self._network.compile_with(lambda function: compiled(options, function, device))
            with compiling(options):
                self.answer(np.zeros((64, 64, 3), np.uint8), options.prompt, 2)

    def answer(self, image: NDArray[np.uint8], prompt: str, count: int) -> NDArray[np.int64]:
        """(count,) ids."""
        pixels = tuple(part.to(self._device, self._dtype) for part in self._pixels(image))
        return self._network.answer(pixels, self._tokens(prompt), count).cpu().numpy()

    def _tokenise(self, prompt: str) -> Tensor:
        ids = [self._begin, *self._tokenizer.encode(prompt, add_special_tokens=False).ids]
        empty = self._tokenizer.token_to_id(_EMPTY)
        if empty is not None and ids[-1] != empty:
            ids.append(empty)
        return torch.tensor([ids], device=self._device)


class _Native:
    """An image-text model of transformers that was trained to write actions."""

    def __init__(self, folder: Path, config: Mapping[str, Any], options: OpenVlaOptions):
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known

        kind = config.get("model_type")
        if kind not in known:
            own = " and brings code of its own, which is not run here (option trust_remote_code stays false)"
            raise ConfigError(
                f"{folder}/config.json has model_type '{kind}', which transformers does not know as an image-text model"
                f"{own if 'auto_map' in config else ''}; serve it from its own environment and use a remote backend, "
                "e.g. openvla_rest"
            )
        check_openvla_options(options, config)
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of several libraries, with no common root
            raise ConfigError(
                f"the processor of checkpoint '{folder}' cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        self._network: Any = load_weights(AutoModelForImageTextToText, folder, options)
        self.vocabulary = options.vocabulary or self._processor.tokenizer.vocab_size

    @torch.no_grad()
    def answer(self, image: NDArray[np.uint8], prompt: str, count: int) -> NDArray[np.int64]:
        """(count,) ids."""
        network = self._network
        given = self._processor(images=[image], text=prompt, return_tensors="pt").to(network.device)
        given["pixel_values"] = given["pixel_values"].to(network.dtype)
        ids = network.generate(**given, do_sample=False, min_new_tokens=count, max_new_tokens=count)
        return ids[0, -count:].cpu().numpy()
