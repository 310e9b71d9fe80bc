"""Writes what a published checkpoint folder lacks to run here.

    ./vla import-policy FOLDER
        drafts a policy file, FOLDER/policy.yaml, and lists what is left to fill in
    ./vla import-policy FOLDER --robot FILE --policy FILE [--dt S] [--statistics FILE]
        writes FOLDER/policy.json from the completed policy file and the checkpoint's own statistics

Knows π0 (as transformers writes it), OpenVLA, and every policy of LeRobot. What the folder says of itself is filled in.
What only those know who trained it (which camera was which, what the numbers mean, their rate) is never guessed: it is
marked `FILL IN` in the draft, and no such draft runs.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from vla_contract.errors import ConfigError, VlaError
from vla_contract.policy import METADATA_FILE, PolicyMetadata, Statistics, check_fit, weights_digest
from vla_contract.robot import Robot, describe_errors, load_robot
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout
from vla_policy_node.core.action_tokens import read_range
from vla_policy_node.core.model_inputs import ModelInputs

Array = NDArray[np.float64]
Moments = dict[str, tuple[Array, Array]]  # vector -> (mean, deviation), (d,) each

DRAFT = "policy.yaml"
FILL = "FILL IN: "
_OPENVLA_STATISTICS = "dataset_statistics.json"
# Files with mean and deviation of state and action, and what their readers add to a deviation before they divide.
_SOURCES = (
    ("norm_stats.json", 1e-6),
    ("assets/**/norm_stats.json", 1e-6),
    ("stats.json", 1e-8),
    ("meta/stats.json", 1e-8),
    ("policy_preprocessor*normalizer_processor.safetensors", 1e-8),
)
_SPACES = "joint_position, joint_delta, ee_pose, ee_delta or ee_delta_position"
_STATE_HINT = "e.g. [joint_position, gripper_open]"


def kind_of(config: Mapping[str, Any], folder: Path) -> str:
    """Backend for a checkpoint's config.json: pi0, openvla or lerobot.

    Raises:
        ConfigError: when it is none of them.
    """
    if config.get("model_type") in ("pi0", "openvla"):
        return str(config["model_type"])
    if "type" in config and "input_features" in config:
        return "lerobot"
    found = config.get("model_type", config.get("type", "nothing"))
    raise ConfigError(
        f"{folder}/config.json is of '{found}'; known are transformers' pi0, openvla, and LeRobot's policies "
        "(with `type` and `input_features`)"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Raises ConfigError when the folder or its config.json is missing, or config.json is no map."""
    if not folder.is_dir():
        raise ConfigError(f"folder '{folder}' does not exist; give the folder of a checkpoint")
    content = _read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise ConfigError(f"{folder}/config.json holds a {type(content).__name__}, expected a map")
    return content


# A policy file to complete


def draft(folder: Path) -> dict[str, Any]:
    """Policy file for a checkpoint folder; values that the folder does not tell begin with `FILL IN`.

    Raises:
        ConfigError: when the folder is no checkpoint that is known.
    """
    config = read_config(folder)
    kind = kind_of(config, folder)
    make = {"pi0": _draft_pi0, "openvla": _draft_openvla, "lerobot": _draft_lerobot}[kind]
    return {"backend": kind, "checkpoint": ".", **make(folder, config)}


def to_fill(content: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Key and hint of every value that is still to be filled in."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from to_fill(value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, str) and content.startswith(FILL):
        yield path, content.removeprefix(FILL)


def _draft_pi0(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    sources = find_statistics(folder)
    widths = {name: f"{len(mean)}" for name, (mean, _) in read_statistics(sources[0]).items()} if sources else {}
    state, action = (widths.get(name, "all the training's") for name in ("state", "action"))
    inputs = {
        "image_1": {"camera": f"{FILL}camera of the robot file that shows what the training's first image did; a "
                              "line for each further image, in the training's order"},
        "state": {"state": f"{FILL}parts that make {state} numbers, {_STATE_HINT}"},
        "prompt": {"text": "instruction"},
    }  # fmt: skip
    return {"load_timeout": 900.0, "options": {"inputs": inputs, "action": _action(action)}}


def _draft_openvla(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    statistics = _openvla_statistics(folder, config)
    key: str = next(iter(statistics)) if len(statistics) == 1 else f"{FILL}one of {', '.join(sorted(statistics))}"
    first: Mapping[str, Any] = next(iter(statistics.values()), {})
    entry = first.get("action", {})
    inputs = {
        "image": {"camera": f"{FILL}camera of the robot file", "height": None, "width": None},
        "prompt": {"text": "instruction"},
    }
    return {
        "load_timeout": 900.0,
        "options": {
            "name": folder.resolve().name,
            "unnorm_key": key,
            "inputs": inputs,
            "action": _action(f"{len(entry.get('q01', ()))}"),
            "dt": f"{FILL}s between two actions: 1 / rate of the data set",
        },
    }


def _draft_lerobot(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for key, feature in config["input_features"].items():
        shape = feature["shape"]
        if feature["type"] == "VISUAL":
            inputs[key] = {"camera": f"{FILL}camera of the robot file", "height": shape[1], "width": shape[2]}
        else:
            inputs[key] = {"state": f"{FILL}parts that make {shape[0]} numbers, {_STATE_HINT}"}
    options: dict[str, Any] = {"inputs": {**inputs, "task": {"text": "instruction"}}}
    width = config.get("output_features", {}).get("action", {}).get("shape", ["?"])[0]
    options |= {"action": _action(f"{width}"), "dt": f"{FILL}s between two actions: 1 / fps of the data set"}
    backbone = config.get("vlm_model_name")
    if backbone and not Path(backbone).is_dir():
        options["backbone"] = f"{FILL}folder with configuration and tokenizer of '{backbone}'"
    return {"interpreter": f"{FILL}Python that has LeRobot 0.4 or newer", "load_timeout": 300.0, "options": options}


def _action(width: str) -> dict[str, str]:
    return {
        "space": f"{FILL}{_SPACES}; a row has {width} numbers",
        "gripper": f"{FILL}values for {{open: …, closed: …}}, if it is the last of them; else remove this line",
    }


# policy.json


def metadata_for(
    folder: Path, policy: Path, robot: Robot, dt: float | None = None, statistics: Path | None = None
) -> PolicyMetadata:
    """What `policy.json` has to say, by the completed policy file and the checkpoint's own statistics.

    Args:
        dt: s between two actions, for policies whose policy file does not say it.
        statistics: file with them; default: the one in the folder.

    Raises:
        ConfigError: when the policy file is not complete, or statistics are missing, several, or of another size.
        MismatchError: when all this does not fit the robot.
    """
    config = read_config(folder)
    kind = kind_of(config, folder)
    file = load_policy_file(policy)
    left = [f"{key}: {hint}" for key, hint in to_fill(file.model_dump())]
    if left:
        raise ConfigError(f"{policy}: {len(left)} values are to be filled in: " + "; ".join(left))
    if file.backend != kind:
        raise ConfigError(f"{policy}: backend '{file.backend}', but the checkpoint is one for '{kind}'")
    options = file.options
    try:
        layout = ActionLayout.model_validate(options.get("action"))
    except ValidationError as error:
        raise ConfigError(describe_errors(policy, error)) from error
    inputs, names = ModelInputs(options.get("inputs", {}), robot), ActionDecoder(layout, robot).names
    told = {"state": inputs.state_names, "action": names}
    found, source = _moments(folder, config, kind, options, statistics)
    dt = options.get("dt", dt)
    if dt is None:
        raise ConfigError(f"the time between two actions is not in {policy}; give it as --dt, in s")
    metadata = PolicyMetadata(
        name=options.get("name") or folder.resolve().name,
        digest=weights_digest(folder),
        cameras=inputs.cameras,
        joints=robot.joints,
        state=told["state"],
        action_space=layout.space,
        action=told["action"],
        horizon=options.get("horizon") or config.get("chunk_size") or config.get("n_action_steps") or 1,
        dt=dt,
        tool_frame=robot.tool_frame if layout.space.startswith("ee_") else None,
        statistics={vector: _statistics(vector, found, told[vector], source) for vector in told},
        training={"statistics": source.name},
    )
    check_fit(metadata, robot)
    return metadata


def _moments(
    folder: Path, config: Mapping[str, Any], kind: str, options: Mapping[str, Any], given: Path | None
) -> tuple[Moments, Path]:
    if kind == "openvla":
        source = given or folder / (_OPENVLA_STATISTICS if (folder / _OPENVLA_STATISTICS).is_file() else "config.json")
        known = _read_json(given) if given else _openvla_statistics(folder, config)
        return {"action": read_range(known, options.get("unnorm_key", ""), str(source)).moments}, source
    sources = [given] if given else find_statistics(folder)
    if len(sources) != 1:
        listed = ", ".join(str(path) for path in sources) or ", ".join(pattern for pattern, _ in _SOURCES)
        raise ConfigError(
            f"{folder} has {len(sources)} files with statistics ({listed}); name the right one as --statistics"
        )
    return read_statistics(sources[0]), sources[0]


def _statistics(vector: str, found: Moments, names: Sequence[str], source: Path) -> Statistics:
    if not names:
        return Statistics(mean=(), std=())
    if vector not in found:
        raise ConfigError(f"{source} has no mean and deviation of {vector}; it has {', '.join(found) or 'none'}")
    mean, std = found[vector]
    # openpi's own reader leaves out what is behind the entries that are used: base models have 32.
    fits = len(mean) >= len(names) if source.name == "norm_stats.json" else len(mean) == len(names)
    if not fits:
        raise ConfigError(
            f"{source}: {vector} has {len(mean)} entries, the policy file makes {len(names)}: {', '.join(names)}"
        )
    return Statistics(mean=tuple(mean[: len(names)].tolist()), std=tuple(std[: len(names)].tolist()))


def find_statistics(folder: Path) -> list[Path]:
    """Files with mean and deviation of state and action, as openpi and LeRobot write them."""
    return sorted({path for pattern, _ in _SOURCES for path in folder.glob(pattern)})


def read_statistics(path: Path) -> Moments:
    """Mean and deviation of `state` and `action`.

    Raises:
        ConfigError: when the file cannot be read, or has neither.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        flat = load_file(path)
        content: Any = {}
        for key, value in flat.items():
            vector, _, what = key.rpartition(".")
            content.setdefault(vector, {})[what] = value
    else:
        content = _read_json(path)
        content = content.get("norm_stats", content) if isinstance(content, dict) else {}
    added = next((extra for pattern, extra in _SOURCES if path.match(pattern.rpartition("/")[2])), 0.0)
    found: Moments = {}
    for vector, keys in (("state", ("state", "observation.state")), ("action", ("action", "actions"))):
        for key in keys:
            try:
                mean, std = (np.array(content[key][what], dtype=np.float64).ravel() for what in ("mean", "std"))
            except (KeyError, TypeError, ValueError):
                continue
            found[vector] = mean, std + added
    if not found:
        raise ConfigError(f"{path} has no mean and std of state or action, as openpi and LeRobot write them")
    return found


def _openvla_statistics(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / _OPENVLA_STATISTICS
    return dict(_read_json(path) if path.is_file() else config.get("norm_stats") or {})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}; is the checkpoint complete?") from error
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="vla import-policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--policy", type=Path, help="completed policy file: write policy.json")
    parser.add_argument("--robot", type=Path, help="robot file, with --policy")
    parser.add_argument("--dt", type=float, help="s between two actions, where the policy file does not say it")
    parser.add_argument("--statistics", type=Path, help="file with mean and deviation (default: the folder's)")
    parser.add_argument("--force", action="store_true", help="overwrite")
    chosen = parser.parse_args(arguments)
    if (chosen.policy is None) != (chosen.robot is None):
        parser.error("--policy and --robot belong together")
    target = chosen.folder / (DRAFT if chosen.policy is None else METADATA_FILE)
    try:
        if target.exists() and not chosen.force:
            raise ConfigError(f"'{target}' exists already; --force overwrites it")
        if chosen.policy is None:
            content = draft(chosen.folder)
            target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000))
            print(f"{target} is a draft for backend {content['backend']}; fill in:")
            for key, hint in to_fill(content):
                print(f"  {key}: {hint}")
        else:
            robot = load_robot(chosen.robot)
            metadata = metadata_for(chosen.folder, chosen.policy, robot, chosen.dt, chosen.statistics)
            target.write_text(metadata.model_dump_json(indent=2) + "\n")
            print(f"{target}: '{metadata.name}', {metadata.horizon} x {len(metadata.action)}, fits {robot.name}")
    except (VlaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
