"""Says whether a policy fits a robot, before anything is started.

    python -m vla_policy_node.preflight ROBOT_FILE POLICY_FILE

ends with status 0, or with 2 and one line for every misfit.
"""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from vla_contract.errors import ConfigError, MismatchError, VlaError, unknown
from vla_contract.policy import METADATA_FILE, PolicyMetadata, check_fit, load_metadata
from vla_contract.robot import Robot, load_robot
from vla_policy_node.backends import follows_prefix, locate
from vla_policy_node.backends.declared import declare
from vla_policy_node.backends.remote import MOST_POINTS
from vla_policy_node.config import PolicyFile, load_policy_file
from vla_policy_node.worker.client import WorkerSpec
from vla_policy_node.worker.environment import package_folders, worker_environment

# Units that policies were trained with and that nobody here means: everything is SI.
_FOREIGN = {"deg", "degree", "degrees", "°", "deg/s", "°/s", "mm", "cm", "mm/s", "cm/s", "in", "inch", "%", "percent"}
_UNIT = re.compile(r"\[([^\],]+)[^\]]*\]$")
_SMALLEST = 0.5  # of the pixels that a model takes; a camera with fewer shows it mostly made-up ones
_BEYOND = 0.1  # of a joint's range: by so much may the mean of training data lie outside
_ROTATIONS = (3, 4, 6, 9)  # numbers of a rotation, by representation
_EAGER = 2.0  # times what a joint can do in the time: by so much may the deltas of training data ask for more
# No arm's tool is so fast or so far away; millimetres that are read as metres are.
_TOOL_SPEED, _TOOL_PLACE = 10.0, 10.0  # m/s, m from the base
_PROBE_TIMEOUT = 120.0  # s; a cold disk and torch


def preflight(robot: Robot, policy: PolicyFile) -> PolicyMetadata | None:
    """Checks all that files alone can tell: of the robot, the policy file and the checkpoint.

    Returns:
        What they say of the policy, with a digest only where `policy.json` names the weights; None: this backend says
        what it needs only once it is loaded.

    Raises:
        ConfigError: when a file, the backend or the interpreter is missing or wrong.
        MismatchError: with every misfit of policy and robot: key, expected, found.
    """
    robot.limits()
    spec = policy.worker(robot.path)
    if spec.interpreter and shutil.which(spec.interpreter) is None:
        raise ConfigError(
            f"{policy.path}: interpreter '{spec.interpreter}' does not exist or is not executable; "
            "make that environment, or leave the key out to use the node's own"
        )
    declared = declare(spec.backend, spec.checkpoint, robot, spec.options)
    if declared is not None:
        check_policy(declared.metadata, robot, declared.relative_to)
        if declared.stated is not None:
            check_policy(declared.stated, robot, declared.relative_to)
        check_reach(declared.metadata, policy, declared.hold)
        return declared.metadata
    if not (spec.checkpoint / METADATA_FILE).is_file():
        return None
    metadata = load_metadata(spec.checkpoint)
    check_policy(metadata, robot)
    check_reach(metadata, policy)
    return metadata


def check_reach(metadata: PolicyMetadata, policy: PolicyFile, hold: float = 0.0) -> None:
    """Refuses a policy whose chunks end before the scheduler could ever splice them: the robot would never move.

    Args:
        hold: s after the observation until which the last target is kept, where a chunk's rows end before.

    Raises:
        MismatchError: with the values, and what to change.
    """
    points = max(metadata.horizon, math.ceil(hold / metadata.dt - 1e-6))
    reach, rows, schedule = points * metadata.dt, metadata.horizon * metadata.dt, policy.schedule
    # Who rests before each observation plays a chunk from its beginning, however late it comes.
    needed = 0.0 if schedule.strategy == "sync" else schedule.margin + 2 * schedule.step
    told = f"horizon {metadata.horizon} x dt {metadata.dt:g} s, hold {hold:g} s"
    if points < 2:
        misfit = (
            f"{told}: a chunk of one point, expected two at least; set options.hold to {2 * metadata.dt:g} s or more"
        )
    elif points > MOST_POINTS:
        misfit = f"{told}: a chunk of {points} points, expected at most {MOST_POINTS}; lower options.hold"
    elif reach <= needed + 1e-6:
        misfit = (
            f"{told}: chunks reach {reach:g} s beyond their observation, expected more than {needed:g} s "
            f"(schedule.margin {schedule.margin:g} + 2 x schedule.step {schedule.step:g}), and what an inference takes "
            "besides; raise options.horizon or options.hold where the backend has them, lower margin and step, or let "
            "schedule.strategy be sync"
        )
    elif rows <= needed + 1e-6 and any(name.startswith("base.") for name in metadata.action):
        misfit = (
            f"{told}: the rows end {rows:g} s after their observation, and with them what the base is told, expected "
            f"more than {needed:g} s: it would never drive; raise options.horizon, or let schedule.strategy be sync"
        )
    else:
        return
    raise MismatchError(f"policy '{metadata.name}' does not fit its schedule", [misfit])


def strategy_warning(policy: PolicyFile, strategy: str, metadata: PolicyMetadata | None) -> str:
    """Why a strategy does not do what its name says; empty: it does, or only the loaded backend knows.

    Args:
        metadata: what the policy says of itself, as far as it is known.
    """
    follows = follows_prefix(locate(policy.backend), policy.options, metadata)
    if strategy != "rtc" or follows or (follows is None and metadata is None):
        return ""
    why = {False: "cannot be told", None: "does not say (follows_prefix in its metadata) that it can be told"}[follows]
    why = "does not use (its option guidance is 0)" if policy.options.get("guidance") == 0 else why
    return (
        f"strategy rtc has no effect: backend '{policy.backend}' {why} the motion that is executed meanwhile; "
        "its chunks are scheduled as by async"
    )


def check_policy(
    metadata: PolicyMetadata, robot: Robot, relative_to: Literal["observation", "previous"] = "observation"
) -> None:
    """Refuses a policy that does not fit the robot: names and statistics (`check_fit`), and what the numbers mean.

    Args:
        relative_to: what deltas add to: see `ActionLayout`.

    Raises:
        MismatchError: with every misfit: key, expected, found.
    """
    misfits: tuple[str, ...] = ()
    try:
        check_fit(metadata, robot)
    except MismatchError as error:
        misfits = error.misfits
    time = metadata.dt * (1 if relative_to == "previous" else metadata.horizon)
    misfits += (
        *_camera_misfits(metadata, robot),
        *_action_misfits(metadata, robot),
        *_unit_misfits(metadata, robot, time),
    )
    if misfits:
        raise MismatchError(f"policy '{metadata.name}' does not fit robot '{robot.name}'", misfits)


def _camera_misfits(metadata: PolicyMetadata, robot: Robot) -> list[str]:
    return [
        f"camera '{name}': the policy takes {wanted.width}x{wanted.height}, {robot.path.name} has only "
        f"{robot.cameras[name].width}x{robot.cameras[name].height}; set the camera to a larger picture"
        for name, wanted in metadata.cameras.items()
        if name in robot.cameras
        and min(robot.cameras[name].width / wanted.width, robot.cameras[name].height / wanted.height) < _SMALLEST
    ]


def _action_misfits(metadata: PolicyMetadata, robot: Robot) -> list[str]:
    """An action has as many entries as its space needs."""
    found = sum(not name.startswith("base.") for name in metadata.action)
    arm = len(robot.arm_joints)
    sizes = {
        "joint_position": (arm, len(robot.joints)),
        "joint_delta": (arm, len(robot.joints)),
        "ee_delta_position": (3, 4),
    }.get(metadata.action_space, tuple(3 + size + gripper for size in _ROTATIONS for gripper in (0, 1)))
    if found in sizes:
        return []
    expected = " or ".join(map(str, sorted(set(sizes))))
    return [
        f"action: {found} entries ({', '.join(metadata.action)}) in the action space {metadata.action_space}, expected "
        f"{expected} on robot '{robot.name}'"
    ]


def _unit_misfits(metadata: PolicyMetadata, robot: Robot, time: float) -> Iterator[str]:
    """Units by name, and statistics of training data that this robot cannot have; `time` s is what a delta may take."""
    kinds = _joint_units(robot)
    known = {"state": _state_ranges(robot, kinds), "action": _action_ranges(metadata, robot, kinds, time)}
    for vector, names in (("state", metadata.state), ("action", metadata.action)):
        statistics = metadata.statistics.get(vector)
        for k, name in enumerate(names):
            plain = name.partition("[")[0]
            found = known[vector].get(plain) or known[vector].get(plain.rpartition(".")[2])
            expected = "" if found is None else found.unit
            unit = match.group(1).strip() if (match := _UNIT.search(name)) else ""
            if unit.lower() in _FOREIGN or (expected and unit in ("rad", "m") and unit != expected):
                yield f"{vector}[{k}] '{name}': unit {unit}, expected {expected or 'an SI unit'}"
            if found is None or statistics is None or k >= min(len(statistics.mean), len(statistics.std)):
                continue
            mean, deviation = statistics.mean[k], statistics.std[k]
            told = f"{found.told} {expected}".rstrip()
            room = _BEYOND * (found.high - found.low)
            remedy = "other units, another order, or another robot"
            if vector == "action":
                remedy += "; action.scale of the policy file converts units"
            if (mean, deviation) == (0.0, 1.0):
                continue  # nothing is normalised
            if not found.low - room <= mean <= found.high + room:
                yield f"statistics.{vector}.mean[{k}] of '{name}': {mean:g}, {told}; {remedy}"
            elif deviation > (most := (found.high - found.low) / 2 + room):
                yield (
                    f"statistics.{vector}.std[{k}] of '{name}': {deviation:g}, at most {most:.4g} is possible: "
                    f"{told}; {remedy}"
                )


@dataclass(frozen=True)
class _Range:
    """Where an entry of a vector can be, in `unit`: rad, m or, empty, none."""

    low: float
    high: float
    unit: str
    told: str


_TOOL_RANGE = _Range(-_TOOL_PLACE, _TOOL_PLACE, "m", f"a tool is nearer than {_TOOL_PLACE:g}")


def _state_ranges(robot: Robot, units: Mapping[str, str]) -> dict[str, _Range]:
    """Name of an entry, without unit -> its range. Names are those of policy.json files and of `ModelInputs`."""
    limits = robot.limits()
    ranges = {"tool_position": _TOOL_RANGE}
    for joint, low, high in zip(robot.joints, limits.min_position, limits.max_position, strict=True):
        told = f"the joint moves from {low:g} to {high:g}"
        found = _Range(float(low), float(high), units.get(joint, ""), told)
        ranges |= {f"{joint}.position": found, f"joint_position:{joint}": found}
    if robot.gripper is not None:
        finger = ranges[f"{robot.gripper.joint}.position"]
        told = f"it is from {-finger.high:g} to {-finger.low:g}"
        ranges |= {"gripper_position": finger, "gripper_mirrored": _Range(-finger.high, -finger.low, finger.unit, told)}
        ranges |= dict.fromkeys(("gripper_open", "gripper_closed"), _Range(0.0, 1.0, "", "it is a share from 0 to 1"))
    return ranges


def _action_ranges(metadata: PolicyMetadata, robot: Robot, units: Mapping[str, str], time: float) -> dict[str, _Range]:
    """As `_state_ranges`, by the action space; deltas are those of `time` s."""
    space = metadata.action_space
    ranges: dict[str, _Range] = {}
    if space == "joint_position":
        ranges = _state_ranges(robot, units)
        return ranges | {joint: ranges[f"{joint}.position"] for joint in robot.joints}
    if space == "joint_delta":
        for joint, speed in zip(robot.joints, robot.limits().max_velocity, strict=True):
            most = float(speed) * time
            told = f"in {time:g} s the joint moves at most {most:.3g}"
            found = _Range(-_EAGER * most, _EAGER * most, units.get(joint, ""), told)
            ranges |= {joint: found, f"d_{joint}": found}
        return ranges
    if space == "ee_pose":
        return dict.fromkeys("xyz", _TOOL_RANGE)
    most = _TOOL_SPEED * time
    return dict.fromkeys(("dx", "dy", "dz"), _Range(-most, most, "m", f"in {time:g} s a tool moves less than {most:g}"))


def _joint_units(robot: Robot) -> dict[str, str]:
    """Joint -> `rad` or `m`, by its type in the URDF."""
    try:
        tree = ElementTree.fromstring(robot.urdf())
    except ElementTree.ParseError as error:
        raise ConfigError(f"{robot.description.urdf} is no XML: {error}") from error
    return {str(joint.get("name")): "m" if joint.get("type") == "prismatic" else "rad" for joint in tree.iter("joint")}


# What the worker's own Python does: finds our packages as the worker does, then imports what the backend needs.
_PROBE = """
import importlib, importlib.util, json, sys
packages, child, wanted = json.loads(sys.argv[1])
spec = importlib.util.spec_from_file_location("vla_child", child)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.meta_path.insert(0, module._OnlyThese(packages))
missing = {}
for name in wanted:
    try:
        importlib.import_module(name)
    except Exception as error:
        missing[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"version": sys.version.split()[0], "missing": missing}))
"""
_NEEDED = ("numpy", "msgpack", "pydantic", "yaml", "cv2")


def probe_worker(spec: WorkerSpec) -> tuple[str, dict[str, str]]:
    """Asks the worker's interpreter for its version, and tries to import what worker and backend need.

    Returns:
        Its version, and module -> error of what cannot be imported.

    Raises:
        ConfigError: when the interpreter does not run.
    """
    interpreter = spec.interpreter or sys.executable
    child = Path(__file__).parent / "worker" / "child.py"
    wanted = [*_NEEDED, spec.backend.partition(":")[0]]
    question = json.dumps([package_folders(), str(child), wanted])
    environment = worker_environment(own_interpreter=not spec.interpreter) | dict(spec.environment)
    try:
        done = subprocess.run(
            [interpreter, "-c", _PROBE, question],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
            env=environment,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise ConfigError(f"interpreter '{interpreter}' does not answer: {error}; correct the policy file") from error
    return answer["version"], answer["missing"]


@dataclass(frozen=True)
class ImageFormat:
    """What an image message says about itself."""

    width: int
    height: int
    encoding: str
    frame: str


ENCODINGS = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8")


def image_misfits(robot: Robot, camera: str, found: ImageFormat) -> list[str]:
    """How the images that arrive differ from what the robot file says; empty: they do not."""
    expected = robot.cameras[camera]
    misfits = []
    if (found.width, found.height) != (expected.width, expected.height):
        misfits.append(
            f"camera {camera}: size {found.width}x{found.height}, "
            f"{robot.path.name} says {expected.width}x{expected.height}"
        )
    if found.encoding not in ENCODINGS:
        misfits.append(f"camera {camera}: {unknown('encoding', found.encoding, ENCODINGS)}")
    if found.frame != expected.frame:
        misfits.append(f"camera {camera}: frame '{found.frame}', {robot.path.name} says '{expected.frame}'")
    return misfits


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    paths = list(sys.argv[1:] if arguments is None else arguments)
    if len(paths) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        robot, policy = load_robot(Path(paths[0])), load_policy_file(Path(paths[1]))
        metadata = preflight(robot, policy)
    except MismatchError as error:
        print("\n".join(error.misfits), file=sys.stderr)
        return 2
    except VlaError as error:
        print(error, file=sys.stderr)
        return 2
    if warning := strategy_warning(policy, policy.schedule.strategy, metadata):
        print(f"warning: {warning}", file=sys.stderr)
    shown = "the rest is known once it is loaded"
    if metadata is not None:
        shown = f"{metadata.name}, sha256 {metadata.digest}" if metadata.digest else metadata.name
    print(f"policy {policy.path.name} fits robot {robot.name} ({shown})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
