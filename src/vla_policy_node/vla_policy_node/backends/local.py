"""What the backends share that run a published model in this process: loading and compiling by torch.

Models are loaded from the folder alone: nothing is fetched, and no code that lies beside the weights is run.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vla_contract.errors import ConfigError
from vla_policy_node.backends.options import CompiledOptions, LocalOptions

# transformers imports torchao with its models, which then warns of each kernel that this machine has no use for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_GROUP = 32  # weights that share a scale, as int4


def compiled(options: CompiledOptions, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function`, to be compiled when it is called first (see `compiling`).

    Raises:
        ConfigError: when the device has no CUDA graphs and they are asked for.
    """
    if options.compile == "none":
        return function
    if options.compile == "reduce-overhead" and device.type != "cuda":
        raise ConfigError(
            f"option compile is 'reduce-overhead', CUDA graphs, but the model is on {device}; use 'default', or a GPU"
        )
    return torch.compile(function, mode=options.compile)


@contextmanager
def compiling(options: CompiledOptions) -> Iterator[None]:
    """For the first calls.

    Raises:
        ConfigError: when the compiler fails.
    """
    try:
        yield
    except Exception as error:  # of the compiler, with no common root
        raise ConfigError(
            f"option compile is {options.compile}, and the compiler fails: {type(error).__name__}: {error}; "
            "leave the key out"
        ) from error


# Checkpoint folders


def read_tokenizer(folder: Path) -> Any:
    """`tokenizer.json`, as the tokenizers library writes it.

    Raises:
        ConfigError: when it is missing or malformed.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"'{path}' does not exist; write it with transformers: "
            f"AutoTokenizer.from_pretrained(…).save_pretrained('{folder}')"
        )
    from tokenizers import Tokenizer  # LeRobot's environment may lack it, and needs none

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"'{path}' is no tokenizer: {error}") from error


def load_weights(kind: Any, folder: Path, options: LocalOptions) -> nn.Module:
    """A transformers model from its folder, on its device, ready to answer.

    Raises:
        ConfigError: when files are missing or malformed, or weights are missing, too many or of wrong shapes:
            transformers itself would fill what is missing with random numbers.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = choose_device(options.device)
    try:
        model, info = kind.from_pretrained(
            folder,
            dtype=choose_dtype(options.dtype, device),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of several libraries, with no common root
        raise ConfigError(f"checkpoint '{folder}' cannot be loaded: {type(error).__name__}: {error}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            names = sorted(str(key) for key in info[what])
            raise ConfigError(
                f"checkpoint '{folder}' has {len(names)} {what.replace('_', ' ')} ({', '.join(names[:3])}, …); "
                "its weights do not belong to its config.json"
            )
    return prepare(model, options, device)


def prepare(model: nn.Module, options: LocalOptions, device: torch.device) -> nn.Module:
    """Quantised if wished, on the device, ready to answer.

    Raises:
        ConfigError: when the device has no room for it, or torchao is wished and missing.
    """
    torch.set_num_threads(options.threads)
    model.eval().requires_grad_(False)
    try:
        model.to(device)
        if options.quantise != "none":
            _quantise(model, options.quantise)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{device} has no room for the model: {error}; use quantise or another device") from error
    return model


def _quantise(model: nn.Module, kind: Literal["int8", "int4"]) -> None:
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise ConfigError(
            f"option quantise is {kind}, but Python package 'torchao' cannot be imported ({error}); "
            "install it into the policy file's interpreter, or leave the key out"
        ) from error
    first = next(model.parameters())
    if kind == "int4" and first.device.type == "cuda" and first.dtype != torch.bfloat16:
        raise ConfigError(f"int4 weights on a GPU compute in bfloat16, option dtype gives {first.dtype}; set bfloat16")
    try:
        quantize_(model, _weight_only(kind, first.device), lambda layer, name: _suits(layer, kind))
    except Exception as error:  # of its kernels, each with its own wishes
        raise ConfigError(
            f"torchao cannot make the weights {kind} on {first.device}: "
            f"{type(error).__name__}: {error}; leave the key out"
        ) from error
    if all(type(parameter) is nn.Parameter for parameter in model.parameters()):  # layers that do not suit it are left
        raise ConfigError(f"no layer of the model has a size that torchao can make {kind}; leave the key out")


def _weight_only(kind: Literal["int8", "int4"], device: torch.device) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    if kind == "int8":
        return Int8WeightOnlyConfig()
    if device.type == "cuda":  # torch's own kernel for packed weights
        return Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(_GROUP))


def _suits(layer: nn.Module, kind: str) -> bool:
    """Linear layers; for int4 those whose rows are whole groups."""
    return isinstance(layer, nn.Linear) and (kind == "int8" or layer.in_features % _GROUP == 0)


def choose_device(name: str) -> torch.device:
    """Raises ConfigError when the device does not exist."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"option device is '{name}', but torch sees {count} GPUs; use 'auto' or 'cpu'")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the weights."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if name == "float32" else torch.bfloat16
