"""Whether robot, policy and safety file fit each other and this machine. Nothing is started, nothing moves."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from vla_bringup.files import find, prefixes, share, state_folder
from vla_bringup.system import DDS_PROFILE_VARIABLES, ROBOT_STATE
from vla_contract.errors import ConfigError, MismatchError, VlaError
from vla_contract.policy import METADATA_FILE, PolicyMetadata
from vla_contract.robot import Robot, load_robot, resolve_path

if TYPE_CHECKING:
    from vla_policy_node.config import PolicyFile
    from vla_policy_node.worker.client import WorkerSpec

Level = Literal["ok", "warning", "failed"]

_DISK = 1.0  # GB free, for logs, records and films
_SEGMENT = 64.0  # MB of shared memory for each process, see config/fastdds.xml
_PROCESSES = 5  # of a running system, that send images or read them
_GL_TIMEOUT = 60.0  # s
_SERVER_TIMEOUT = 2.0  # s, for a policy server to take a connection
_SIMULATED = "fr3_sim"  # name of the robot that the simulator is
_SHIPPED = "package://vla_policy_node/models/flow"
_EXPERT = "vla_learning.expert:load"  # reads the simulator's ground truth
_MODULES = ("rclpy", "vla_msgs", "vla_policy_node", "vla_safety")
_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any()
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: of what was looked at.
        found: what was found; for a misfit with what was expected.
        remedy: what a person can do; empty: nothing need be done.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine(robot: str, policy: str, safety: str = "") -> list[Check]:
    """Every check; names in config/, or paths. An empty `safety` means the file that the robot file names."""
    checks = [*_environment()]
    loaded = _attempt(checks, "robot file", "correct the robot file; docs/your_robot.md", lambda: _robot(robot))
    if loaded is not None:
        checks += _images(loaded)
        checks += policy_checks(loaded, policy)
        checks += safety_checks(loaded, safety)
    return [*checks, *_machine()]


def _attempt(checks: list[Check], name: str, remedy: str, look: Callable[[], Robot]) -> Robot | None:
    try:
        found = look()
    except (VlaError, OSError) as error:
        checks.append(Check(name, "failed", str(error), remedy))
        return None
    checks.append(Check(name, "ok", f"{found.name}: {len(found.joints)} joints, {len(found.cameras)} cameras"))
    return found


# -- the files


def _robot(name: str) -> Robot:
    """Raises ConfigError: also for what the robot file names, and joints that its URDF does not have."""
    robot = load_robot(find("robots", name))
    robot.limits()
    robot.resolve(robot.description.srdf)
    try:
        tree = ElementTree.fromstring(robot.urdf())
    except ElementTree.ParseError as error:
        raise ConfigError(f"{robot.resolve(robot.description.urdf)} is no XML: {error}") from error
    known = {"joint": {j.get("name") for j in tree.iter("joint")}, "link": {k.get("name") for k in tree.iter("link")}}
    wanted = [("joint", name) for name in robot.joints]
    wanted += [("link", robot.base_frame), ("link", robot.tool_frame)]
    missing = [f"{kind} '{name}'" for kind, name in wanted if name not in known[kind]]
    if missing:
        raise ConfigError(f"the URDF of {robot.path.name} has no {', no '.join(missing)}")
    return robot


def _images(robot: Robot) -> Iterator[Check]:
    """Whether the shared-memory segment of the transport profile holds the robot's images."""
    largest = max((c.width * c.height * 3 for c in robot.cameras.values()), default=0) / 1e6
    rate = sum(c.width * c.height * 3 * c.rate for c in robot.cameras.values()) / 1e6
    if not robot.cameras:
        yield Check("cameras", "warning", f"{robot.path.name} names none", "name the cameras that a policy sees")
    elif 4 * largest > _SEGMENT:
        yield Check(
            "cameras", "failed", f"an image of {largest:.1f} MB, expected at most {_SEGMENT / 4:g} MB: a quarter of "
            "the shared-memory segment", "raise segment_size in config/fastdds.xml, or make the images smaller"
        )  # fmt: skip
    else:
        yield Check("cameras", "ok", f"largest image {largest:.2f} MB, {rate:.0f} MB/s in all")


def policy_checks(robot: Robot, name: str) -> Iterator[Check]:
    """Policy file, checkpoint and worker; `name` in config/, or path."""
    from vla_policy_node.config import load_policy_file
    from vla_policy_node.import_policy import to_fill
    from vla_policy_node.preflight import preflight, strategy_warning

    remedy = "correct the policy file; src/vla_policy_node/README.md explains every key"
    try:
        policy = load_policy_file(find("policies", name))
        yield Check("policy file", "ok", f"{policy.path.name}: backend {policy.backend}")
    except VlaError as error:
        yield Check("policy file", "failed", str(error), remedy)
        return
    left = [f"{key}: {hint}" for key, hint in to_fill(policy.model_dump())]
    if left:
        found = f"{policy.path.name} is a draft, {len(left)} values are to be filled in: {'; '.join(left)}"
        remedy = f"fill them in, then {_import_command(policy, robot)}"
        yield Check("policy file", "failed", found, remedy)
        return
    try:
        spec = policy.worker(robot.path)
    except VlaError as error:
        yield Check("backend", "failed", str(error), "put what is missing there, or correct the policy file")
        return
    yield from _place(robot, spec)
    yield from _server(policy)
    metadata = None
    try:
        metadata = preflight(robot, policy)
        yield _fits(metadata, robot)
    except MismatchError as error:
        for misfit in error.misfits:
            yield Check("policy and robot", "failed", misfit, "use a policy for this robot, or correct what is wrong")
    except VlaError as error:
        yield Check("policy", "failed", str(error), _checkpoint_remedy(spec, policy, robot))
    if metadata is not None and metadata.digest:
        yield Check("weights", "ok", f"sha256 {metadata.digest}")
    if warning := strategy_warning(policy, policy.timing.strategy, metadata):
        remedy = "schedule.strategy: async, or a policy that can be told (flow, pi0 with guidance above 0)"
        yield Check("strategy", "warning", warning, remedy)
    yield from _worker(spec)


def _place(robot: Robot, spec: "WorkerSpec") -> Iterator[Check]:
    """Policies that belong into the simulator, on a robot that is another."""
    if robot.name == _SIMULATED:
        return
    if spec.backend == _EXPERT:
        yield Check(
            "policy and robot", "failed", f"the policy reads the simulator's ground truth; '{robot.name}' is no "
            f"simulator, expected '{_SIMULATED}'", "use a policy that sees: served, or a checkpoint of your own"
        )  # fmt: skip
    elif spec.checkpoint.is_dir() and spec.checkpoint.samefile(resolve_path(_SHIPPED, robot.path.parent)):
        yield Check(
            "training", "warning", f"the policy that ships was trained in the simulated cell ('{_SIMULATED}'), not for "
            f"'{robot.name}': what it sees and does there is unknown", "a served policy, or a checkpoint trained on "
            "this robot's data"
        )  # fmt: skip


def _server(policy: "PolicyFile") -> Iterator[Check]:
    """Whether somebody answers where a served policy is expected; nothing is asked of it."""
    from vla_policy_node.backends.declared import REMOTE

    host, port = policy.options.get("host", "127.0.0.1"), policy.options.get("port")
    if policy.backend not in REMOTE or not isinstance(host, str) or not isinstance(port, int):
        return  # what is wrong with the options is said by preflight
    try:
        socket.create_connection((host, port), _SERVER_TIMEOUT).close()
        yield Check("policy server", "ok", f"{host}:{port} takes connections")
    except (OSError, OverflowError) as error:
        remedy = "start the server, or correct options.host and options.port of the policy file"
        yield Check("policy server", "warning", f"nobody answers at {host}:{port}: {error}", remedy)


def _import_command(policy: "PolicyFile", robot: Robot) -> str:
    folder = resolve_path(policy.checkpoint, policy.path.parent) if policy.checkpoint else "FOLDER"
    return f"./vla import-policy {folder} --robot {robot.path} --policy {policy.path}"


def _checkpoint_remedy(spec: "WorkerSpec", policy: "PolicyFile", robot: Robot) -> str:
    if (spec.checkpoint / "config.json").is_file() and not (spec.checkpoint / METADATA_FILE).is_file():
        return f"{_import_command(policy, robot)} writes {METADATA_FILE}"
    return "make the environment, or fetch the checkpoint again"


def _fits(metadata: PolicyMetadata | None, robot: Robot) -> Check:
    if metadata is None:
        return Check(
            "policy and robot",
            "warning",
            f"no {METADATA_FILE} in the checkpoint: cameras, joints and units are compared when the backend has loaded",
            "see that the policy node becomes READY",
        )
    small = [
        f"{name} {robot.cameras[name].width}x{robot.cameras[name].height} → {camera.width}x{camera.height}"
        for name, camera in metadata.cameras.items()
        if robot.cameras[name].width < camera.width or robot.cameras[name].height < camera.height
    ]
    if small:
        return Check(
            "policy and robot", "warning", f"images are enlarged for the policy: {', '.join(small)}",
            "set the cameras to larger pictures"
        )  # fmt: skip
    normalised = any(set(s.mean) - {0.0} or set(s.std) - {1.0} for s in metadata.statistics.values())
    what = "cameras, joints, action space" + (", units of the training data" if normalised else "")
    return Check("policy and robot", "ok", f"{metadata.name} fits {robot.name}: {what}")


def _worker(spec: "WorkerSpec") -> Iterator[Check]:
    from vla_policy_node.preflight import probe_worker

    interpreter = spec.interpreter or sys.executable
    try:
        version, missing = probe_worker(spec)
    except VlaError as error:
        yield Check("worker", "failed", str(error), "make that environment, or leave `interpreter` out")
        return
    for module, error in missing.items():
        remedy = f"{interpreter} -m pip install what it needs, or name another `interpreter` in the policy file"
        yield Check("worker", "failed", f"{interpreter} cannot import {module}: {error}", remedy)
    if not missing:
        yield Check("worker", "ok", f"{interpreter} (Python {version}) has what {spec.backend.partition(':')[0]} needs")


def safety_checks(robot: Robot, name: str) -> Iterator[Check]:
    """Reads everything that the filter reads, and lets it test itself."""
    from vla_safety.building import assemble, read_parts

    remedy = "correct the safety file; src/vla_safety/README.md explains every key"
    try:
        path = find("safety", name) if name else robot.resolve(robot.safety)
        parts = read_parts(robot, path)
        yield Check(
            "safety file", "ok", f"{path.name}: zones {', '.join(z.name for z in parts.config.zones) or 'none'}"
        )
    except (VlaError, OSError) as error:
        yield Check("safety file", "failed", str(error), remedy)
        return
    try:
        assemble(parts)
        yield Check("filter self-test", "ok", "home is safe, a motion beyond a limit is refused")
    except VlaError as error:
        yield Check("filter self-test", "failed", str(error), remedy)


# -- the machine


def _environment() -> Iterator[Check]:
    missing = [module for module in _MODULES if find_spec(module) is None]
    distro = os.environ.get("ROS_DISTRO", "unknown")
    if missing or not prefixes():
        what = f"cannot import {', '.join(missing)}" if missing else "AMENT_PREFIX_PATH is empty"
        yield Check("ROS", "failed", what, "./vla setup, or source the workspace")
    else:
        yield Check("ROS", "ok", f"{distro}, domain {os.environ.get('ROS_DOMAIN_ID', '0')}, Python {sys.executable}")
    middleware = os.environ.get("RMW_IMPLEMENTATION", "")
    if middleware not in ("", "rmw_fastrtps_cpp"):
        yield Check(
            "middleware", "warning", f"RMW_IMPLEMENTATION is {middleware}, expected rmw_fastrtps_cpp",
            "unset it, or give that middleware shared memory for images: the suite's profile is Fast DDS's"
        )  # fmt: skip
    yield _profile()


def _profile() -> Check:
    shipped = share() / "config" / "fastdds.xml"
    named = {os.environ[variable] for variable in DDS_PROFILE_VARIABLES if os.environ.get(variable)}
    lost = [path for path in sorted(named) if not Path(path).is_file()]
    if lost:
        return Check("DDS profile", "failed", f"'{lost[0]}' is no file", f"unset {' and '.join(DDS_PROFILE_VARIABLES)}")
    other = [path for path in sorted(named) if not Path(path).samefile(shipped)]
    if other:
        return Check(
            "DDS profile", "warning", f"{other[0]}, not {shipped}",
            "see that its shared-memory segment holds several images: Fast DDS drops them otherwise"
        )  # fmt: skip
    return Check("DDS profile", "ok", str(shipped))


def _machine() -> Iterator[Check]:
    yield _gl()
    for folder, what in ((state_folder(), "logs"), (Path(ROBOT_STATE).expanduser(), "records")):
        yield _disk(folder, what)
    memory = shutil.disk_usage("/dev/shm").free / 1e6 if Path("/dev/shm").is_dir() else 0.0
    needed = _SEGMENT * _PROCESSES
    if memory < needed:
        remedy = "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
        yield Check("shared memory", "failed", f"{memory:.0f} MB free in /dev/shm, expected {needed:.0f} MB", remedy)
    else:
        yield Check("shared memory", "ok", f"{memory:.0f} MB free in /dev/shm")


def _disk(folder: Path, what: str) -> Check:
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        return Check(
            f"disk for {what}", "failed", f"{existing} cannot be written to", f"chown or choose another {folder}"
        )
    free = shutil.disk_usage(existing).free / 1e9
    if free < _DISK:
        return Check(
            f"disk for {what}", "failed", f"{free:.2f} GB free at {existing}, expected {_DISK:g} GB", "free some"
        )
    return Check(f"disk for {what}", "ok", f"{free:.0f} GB free at {existing}")


def _gl() -> Check:
    """Only simulator and films draw; a robot needs none of it."""
    backend = os.environ.get("MUJOCO_GL", "")
    remedy = "sudo apt-get install -y libegl1 libgl1-mesa-dri and MUJOCO_GL=egl; not needed on a robot"
    if find_spec("mujoco") is None:
        return Check("drawing", "warning", "MuJoCo is not installed: no simulator, no films", "./vla setup")
    try:
        done = subprocess.run([sys.executable, "-c", _DRAW], capture_output=True, text=True, timeout=_GL_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Check("drawing", "warning", f"MUJOCO_GL={backend}: no picture within {_GL_TIMEOUT:g} s", remedy)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check("drawing", "warning", f"MUJOCO_GL={backend}: {last}", remedy)
    return Check("drawing", "ok", f"MUJOCO_GL={backend or 'not set'}: the simulator can draw")
