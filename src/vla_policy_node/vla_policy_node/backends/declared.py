"""What a policy says before it is loaded: its policy file, and the files beside its weights.

For the backends whose meaning lies in the policy file: the three that run published models, and the policy servers'
clients; of the others that ship, only the options are read. Nothing here needs torch, starts anything or asks a server:
preflight compares the result with the robot.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vla_contract.errors import ConfigError, MismatchError, unknown
from vla_contract.policy import METADATA_FILE, History, PolicyMetadata, Statistics, load_metadata
from vla_contract.robot import Robot, describe_errors
from vla_policy_node.backends import BUILT_IN
from vla_policy_node.backends.interface import Interface, read_json
from vla_policy_node.backends.options import (
    OPTIONS,
    LerobotOptions,
    LocalOptions,
    OpenVlaOptions,
    Pi0Options,
    PlayedOptions,
    read_options,
)
from vla_policy_node.backends.remote import RemoteBackend, RemoteOptions
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout
from vla_policy_node.core.action_tokens import ActionRange, read_range
from vla_policy_node.core.model_inputs import ModelInputs, StateEntry

Array = NDArray[np.float64]

REMOTE = ("openpi", "gr00t", "openvla_rest", "lerobot_async")
OPENVLA_STATISTICS = "dataset_statistics.json"
_PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
# What tells where the numbers of a vector lie and how far they spread, best first; bounds stand for their middle.
_MOMENTS = (("mean", "std"), ("q01", "q99"), ("min", "max"))
_CHUNKS = ("chunk_size", "action_chunk_size", "n_action_steps")  # keys of the length of a chunk, by policy
_FLOATS = {"F32": "<f4", "F64": "<f8"}
_LONGEST_HEADER = 1 << 20  # bytes
_NO_SPREAD = 1e-8  # that LeRobot adds to a deviation


@dataclass(frozen=True)
class Declared:
    """A policy as its files describe it.

    Attributes:
        metadata: as the backend will give it once it is loaded; the digest only where `policy.json` was read.
        relative_to: what its deltas add to: see `ActionLayout`.
        stated: `policy.json`, where the backend itself does not read it but one is there.
        hold: s after the observation until which the last target is kept, where a chunk's rows end before.
    """

    metadata: PolicyMetadata
    relative_to: Literal["observation", "previous"]
    stated: PolicyMetadata | None = None
    hold: float = 0.0


def declare(backend: str, checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> Declared | None:
    """What the files say; None: only the loaded backend knows.

    Args:
        backend: `module:function`, as `backends.locate` gives it.

    Raises:
        ConfigError: when a file of the checkpoint is missing or malformed, or an option is.
        MismatchError: with every entry of the policy file that the robot or the checkpoint does not have.
    """
    kind = next((name for name, location in BUILT_IN.items() if location == backend), "")
    if kind in REMOTE:
        return _remote(backend, kind, robot, options)
    if kind not in OPTIONS:
        return None
    chosen = read_options(OPTIONS[kind], kind, options)
    if isinstance(chosen, PlayedOptions):
        chosen.check(kind, robot)
    if isinstance(chosen, LocalOptions):
        _check_layout(chosen.inputs, chosen.action, robot)
    if isinstance(chosen, Pi0Options):
        return _pi0(checkpoint, robot, chosen)
    if isinstance(chosen, OpenVlaOptions):
        return _openvla(checkpoint, robot, chosen)
    if isinstance(chosen, LerobotOptions):
        return _lerobot(checkpoint, robot, chosen)
    return None


def _remote(backend: str, kind: str, robot: Robot, options: Mapping[str, Any]) -> Declared:
    """Makes the client, which calls nobody: what it would refuse when it is loaded is refused here, by the same words.

    Its module is found by name, as the worker finds it, and brings what the protocol needs, never torch.
    """
    module_name = backend.partition(":")[0]
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"backend '{kind}' cannot be checked: {error}; install what vla_policy_node requires"
        ) from error
    chosen: RemoteOptions = read_options(module.OPTIONS, kind, options)
    _check_layout(chosen.inputs, chosen.action, robot)
    client: RemoteBackend = module.BACKEND(robot, chosen)
    return Declared(client.metadata, chosen.action.relative_to, hold=chosen.held)


def _check_layout(inputs: Mapping[str, Any], action: ActionLayout, robot: Robot) -> None:
    """Raises MismatchError with every entry that the robot does not have, not only the first."""
    misfits = [*_input_misfits(inputs, robot, "")]
    lost = [joint for joint in action.joints or () if joint not in robot.joints]
    misfits += [f"action.joints: {unknown('joint', joint, robot.joints)}" for joint in lost]
    try:
        if not lost:
            ActionDecoder(action, robot)
    except ConfigError as error:
        misfits.append(str(error))
    if misfits:
        remedy = f"; correct options of the policy file, or {robot.path.name}"
        raise MismatchError(f"the policy file does not fit robot '{robot.name}'", [m + remedy for m in misfits])


def _input_misfits(inputs: Mapping[str, Any], robot: Robot, path: str) -> Iterator[str]:
    if not inputs:
        yield "inputs: empty, expected what the model sees and is told"
    for key, value in inputs.items():
        try:
            ModelInputs({key: value}, robot)
        except ConfigError as error:
            if isinstance(value, Mapping) and value and all(isinstance(part, Mapping) for part in value.values()):
                yield from _input_misfits(value, robot, f"{path}{key}/")
            else:
                yield f"inputs.{path}{str(error).removeprefix('inputs.')}"


def _with_stated(metadata: PolicyMetadata, interface: Interface, folder: Path) -> Declared:
    stated = None
    if (folder / METADATA_FILE).is_file():
        stated = in_physical_units(load_metadata(folder), interface)
        metadata = metadata.model_copy(update={"digest": stated.digest})
    return Declared(metadata, interface.decoder.layout.relative_to, stated)


def _tool(robot: Robot, action: ActionLayout) -> str | None:
    return robot.tool_frame if action.space.startswith("ee_") else None


# π0


def _pi0(folder: Path, robot: Robot, told: Pi0Options) -> Declared:
    """Raises MismatchError when policy.json, config.json and policy file contradict each other."""
    config, metadata = read_json(folder / "config.json"), load_metadata(folder)
    vision = config.get("vlm_config", {}).get("vision_config", {})
    size = vision.get("image_size", 224)
    interface = Interface(robot, told.inputs, told.action, (size, size))
    interface.check(metadata)
    check_pi0_sizes(metadata, config, folder)
    return Declared(in_physical_units(metadata, interface), told.action.relative_to)


def in_physical_units(metadata: PolicyMetadata, interface: Interface) -> PolicyMetadata:
    """With the statistics of the actions in the units that they have after the layout's `scale`."""
    action = metadata.statistics.get("action")
    if action is None:
        return metadata
    return metadata.model_copy(update={"statistics": {**metadata.statistics, "action": interface.physical(action)}})


def check_pi0_sizes(metadata: PolicyMetadata, config: Mapping[str, Any], folder: Path) -> None:
    """Compares `policy.json` with `chunk_size`, `max_state_dim` and `max_action_dim` of config.json.

    Raises:
        ConfigError: when they belong to different checkpoints.
    """
    for what, found, limit, exactly in (
        ("horizon", metadata.horizon, config.get("chunk_size"), True),
        ("state", len(metadata.state), config.get("max_state_dim"), False),
        ("action", len(metadata.action), config.get("max_action_dim"), False),
    ):
        if limit is not None and (found > limit or (exactly and found != limit)):
            raise ConfigError(
                f"{folder}: {METADATA_FILE} gives {what} the size {found}, config.json {limit}: "
                "they belong to different checkpoints"
            )


# OpenVLA


def _openvla(folder: Path, robot: Robot, told: OpenVlaOptions) -> Declared:
    config = read_json(folder / "config.json")
    interface = Interface(robot, told.inputs, told.action)
    actions = read_action_range(folder, config, told.unnorm_key)
    check_openvla_options(told, config)
    metadata = openvla_metadata(told.name, "", robot, interface, actions, told.horizon, told.dt)
    return replace(_with_stated(metadata, interface, folder), hold=told.hold)


def check_openvla_options(options: OpenVlaOptions, config: Mapping[str, Any]) -> None:
    """Raises ConfigError when an option is for OpenVLA's own checkpoints, and `config` is of another model."""
    if config.get("model_type") != "openvla" and (options.crop != 1 or options.compile != "none"):
        key = "crop" if options.crop != 1 else "compile"
        raise ConfigError(f"option {key} is for OpenVLA checkpoints; leave it out")


def read_action_range(folder: Path, config: Mapping[str, Any], key: str) -> ActionRange:
    """The range of an OpenVLA checkpoint's actions: of the file that training wrote last, else of its config.

    Raises:
        ConfigError: when the data set `key` is not there, or its numbers are malformed.
    """
    path = folder / OPENVLA_STATISTICS
    if path.is_file():
        return read_range(read_json(path), key, str(path))
    return read_range(config.get("norm_stats") or {}, key, f"{folder}/config.json (norm_stats; no {path.name})")


def openvla_metadata(
    name: str, digest: str, robot: Robot, interface: Interface, actions: ActionRange, horizon: int, dt: float
) -> PolicyMetadata:
    """Metadata of a model that sees one image and a sentence, and answers in words.

    Raises:
        ConfigError: when the policy file tells it something else.
        MismatchError: when its actions have another number of entries than the policy file.
    """
    if interface.cameras != 1 or interface.state_width:
        raise ConfigError(
            f"inputs: {interface.cameras} cameras and {interface.state_width} state entries; the model sees one image "
            "and a sentence"
        )
    layout, names = interface.decoder.layout, interface.decoder.names
    if len(actions.low) != len(names):
        misfit = f"action: the checkpoint's have {len(actions.low)} entries, the policy file {len(names)}"
        raise MismatchError(f"policy '{name}' does not fit its policy file", [f"{misfit} ({', '.join(names)})"])
    mean, deviation = actions.moments
    action = Statistics(mean=tuple(mean.tolist()), std=tuple(deviation.tolist()))
    return PolicyMetadata(
        name=name,
        digest=digest,
        cameras=interface.inputs.cameras,
        joints=robot.joints,
        state=(),
        action_space=layout.space,
        action=names,
        horizon=horizon,
        dt=dt,
        tool_frame=_tool(robot, layout),
        statistics={"state": Statistics(mean=(), std=()), "action": interface.physical(action)},
    )


# LeRobot


def _lerobot(folder: Path, robot: Robot, told: LerobotOptions) -> Declared:
    config = read_json(folder / "config.json")
    interface = Interface(robot, told.inputs, told.action, None)
    name = told.name or str(config.get("type", "lerobot"))
    misfits = [*_feature_misfits(config, interface)]
    if misfits:
        raise MismatchError(f"LeRobot policy '{name}' does not fit its policy file", misfits)
    entries = interface.inputs.entries()
    state = next((path for path, entry in entries if isinstance(entry, StateEntry)), "")
    found = _processor_statistics(folder)
    metadata = PolicyMetadata(
        name=name,
        cameras=interface.inputs.cameras,
        joints=robot.joints,
        state=interface.inputs.state_names,
        action_space=told.action.space,
        action=interface.decoder.names,
        horizon=int(next(filter(None, map(config.get, _CHUNKS)), 1)),
        dt=told.dt,
        tool_frame=_tool(robot, told.action),
        statistics={
            "state": _moments(found.get(state, {}), interface.state_width),
            "action": interface.physical(_moments(found.get("action", {}), interface.decoder.width)),
        },
        history=_history(int(config.get("n_obs_steps") or 1) - 1, told.dt),
    )
    return _with_stated(metadata, interface, folder)


def _history(steps: int, dt: float) -> History | None:
    try:
        return None if steps < 1 else History(steps=steps, dt=dt)
    except ValidationError as error:
        raise ConfigError(f"the policy looks back too far: {describe_errors(Path('n_obs_steps'), error)}") from error


def _feature_misfits(config: Mapping[str, Any], interface: Interface) -> Iterator[str]:
    """Keys and sizes of the policy file, against config.json; what LeRobot adds by itself when it loads is let pass."""
    expected = _shapes(config, "input_features")
    found = interface.shapes()
    for key in sorted({*expected, *found}):
        added = key not in expected and (not expected or key == "observation.state" or "empty_camera" in key)
        if expected.get(key) != found.get(key) and not added:
            yield (
                f"inputs.{key}: the checkpoint has {expected.get(key, 'no such input')}, the policy file "
                f"{found.get(key, 'none')}; name the keys and sizes of the checkpoint's config.json"
            )
    width = _shapes(config, "output_features").get("action")
    if width is not None and width != (interface.decoder.width,):
        names = ", ".join(interface.decoder.names)
        yield f"action: the checkpoint has {width}, the policy file ({interface.decoder.width},): {names}"


def _shapes(config: Mapping[str, Any], key: str) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(map(int, feature["shape"])) for name, feature in (config.get(key) or {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{key} of the checkpoint's config.json are malformed: {error!r}") from error


def _processor_statistics(folder: Path) -> dict[str, dict[str, Array]]:
    """Vector -> statistic -> values, of the processors' files; empty where they are not there.

    Actions that the processors turn into absolute ones have statistics that say nothing of the robot: left out.
    """
    found: dict[str, dict[str, Array]] = {}
    relative = False
    for name in _PROCESSORS:
        path = folder / name
        steps = read_json(path).get("steps") if path.is_file() else ()
        for step in steps or ():
            kind, file = str(step.get("registry_name", "")), step.get("state_file")
            relative |= "relative" in kind or "delta" in kind
            if file and "normalizer" in kind:
                if Path(file).name != file:
                    raise ConfigError(f"{path}: state_file '{file}', expected a file of its folder")
                for key, values in read_floats(folder / file).items():
                    vector, _, what = key.rpartition(".")
                    found.setdefault(vector, {})[what] = values
    if relative:
        found.pop("action", None)
    return found


def _moments(values: Mapping[str, Array], size: int) -> Statistics:
    """Mean and deviation; those of the identity where the checkpoint tells none."""
    for first, second in _MOMENTS:
        if first in values and second in values:
            a, b = values[first], values[second]
            mean, std = (a, b) if first == "mean" else ((a + b) / 2, (b - a) / 2)
            return Statistics(mean=tuple(mean.tolist()), std=tuple((std + _NO_SPREAD).tolist()))
    return Statistics(mean=(0.0,) * size, std=(1.0,) * size)


def read_floats(path: Path) -> dict[str, Array]:
    """Name -> values, flat, of the float32 and float64 tensors of a safetensors file.

    Written here: no library of models may enter a ROS process.

    Raises:
        ConfigError: when the file cannot be read or is malformed.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, expected at most {_LONGEST_HEADER}")
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        return {
            name: np.frombuffer(data[slice(*entry["data_offsets"])], _FLOATS[entry["dtype"]]).astype(np.float64)
            for name, entry in header.items()
            if name != "__metadata__" and entry["dtype"] in _FLOATS
        }
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}; is the checkpoint complete?") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"'{path}' is no safetensors file: {error}; fetch the checkpoint again") from error
