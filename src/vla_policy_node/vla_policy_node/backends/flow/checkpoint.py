"""Checkpoint folders: `model.safetensors` (weights, and the network's sizes in its header) and `policy.json`."""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vla_contract.errors import ConfigError
from vla_contract.policy import METADATA_FILE, WEIGHTS_FILE, PolicyMetadata, file_digest, load_metadata
from vla_policy_node.backends.flow.model import FlowConfig, FlowPolicy


def save_checkpoint(folder: Path, model: FlowPolicy, metadata: PolicyMetadata) -> PolicyMetadata:
    """Writes weights (float32) and metadata; returns the metadata with its digest filled in.

    The metadata is written last and names the digest, so that a half-written checkpoint is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().float().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"config": json.dumps(model.config.as_dict())})
    complete = metadata.model_copy(update={"digest": file_digest(folder / WEIGHTS_FILE)})
    (folder / METADATA_FILE).write_text(complete.model_dump_json(indent=2) + "\n")
    return complete


def load_checkpoint(folder: Path) -> tuple[FlowPolicy, PolicyMetadata]:
    """The network on the CPU, ready to answer, and what it says about itself.

    Raises:
        ConfigError: when files are missing or malformed, the digest differs, or weights and sizes do not fit.
    """
    metadata = load_metadata(folder)  # checks the digest before a byte of the weights is parsed
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            config = _config(path, (file.metadata() or {}).get("config"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ConfigError(f"{path} is no safetensors file: {error}") from error
    if (config.horizon, config.action) != (metadata.horizon, len(metadata.action)):
        raise ConfigError(
            f"{path} answers {config.horizon} x {config.action}, {METADATA_FILE} says "
            f"{metadata.horizon} x {len(metadata.action)}: they belong to different checkpoints"
        )
    model = FlowPolicy(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit its own sizes {config}: {error}") from error
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise ConfigError(f"{path} holds weights that are not finite; fetch the checkpoint again")
    return model.eval(), metadata


def _config(path: Path, text: str | None) -> FlowConfig:
    known = {field.name for field in fields(FlowConfig)}
    try:
        values = json.loads(text or "")
        if set(values) != known or not all(isinstance(v, int) and 0 < v <= 10_000 for v in values.values()):
            raise ValueError(f"expected {sorted(known)} as positive integers, found {values}")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} does not state the network's sizes: {error}") from error
    return FlowConfig(**values)
