"""The seam between the runtime and a policy: one way to load it, two methods, and its metadata.

A backend is found by its entry point in the group `vla_policy_node.backends`, so another package can add one:

    entry_points={"vla_policy_node.backends": ["mine = my_package.my_backend:load"]}

Backends run in a worker process: nothing here imports ROS, and a backend's module is imported only when it is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, unknown
from vla_contract.interpolation import Trajectory
from vla_contract.manifest import check_files
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata
from vla_contract.robot import Robot

GROUP = "vla_policy_node.backends"


@runtime_checkable
class Backend(Protocol):
    """A loaded policy."""

    @property
    def metadata(self) -> PolicyMetadata:
        """What it needs and what it answers."""
        ...

    def infer(self, observation: Observation, prefix: Trajectory | None) -> ActionChunk:
        """The motion that the policy wants from here on.

        Args:
            observation: images as the cameras deliver them, uint8 (H, W, 3) RGB; joint state in the robot's order.
            prefix: joint motion that will be executed in any case, times in s since `observation.stamp_ns`; None:
                none. A policy that cannot be conditioned on it ignores it: the scheduler blends anyway. One that
                can says so as `PolicyMetadata.follows_prefix`.

        Returns:
            Joint positions in the robot's order; point k is for `observation.stamp_ns + times[k]`, times strictly
            increasing. Positions are enough: the scheduler smooths them and adds the derivatives. `stamp_ns`,
            `joint_names`, `trajectory` and, if known, `progress` and `confidence` count; the runtime sets the rest.

        Raises:
            InferenceError: when it has no answer. The task goes on with the next observation.
        """
        ...

    def reset(self) -> None:
        """Forgets the episode: a new task begins."""
        ...


@runtime_checkable
class ServedBackend(Backend, Protocol):
    """A policy whose model runs elsewhere: its server may be away, slow or wrong, and come back.

    `infer` raises `Unavailable` then: no failure of the policy, and no end of a task.
    """

    @property
    def server(self) -> str:
        """Its address, for people."""
        ...

    @property
    def patience(self) -> float:
        """s that one `infer` or `check` waits at most, by the backend's own time-outs; longer is a hang."""
        ...

    def check(self) -> None:
        """Looks whether the server is there, and connects if need be. Called while nobody asks anything.

        Raises:
            Unavailable: when it is not; says address, cause and next attempt.
        """
        ...


@dataclass(frozen=True)
class Question:
    """What one of several robots asks.

    Attributes:
        observation, prefix: see `Backend.infer`.
        memory: of its episode, as its last answer gave it; None: a new episode begins.
    """

    observation: Observation
    prefix: Trajectory | None = None
    memory: object = None


@dataclass(frozen=True)
class Answer:
    """A chunk, and the memory of the episode after it: a value of some kB that can be pickled and sent elsewhere."""

    chunk: ActionChunk
    memory: object = None


@runtime_checkable
class BatchBackend(Backend, Protocol):
    """A policy that answers several robots in one pass of its network.

    It remembers nothing between such calls: the memory of an episode comes with the question and goes with the answer,
    so that episodes cannot mix, and any copy of the policy can go on with any of them.
    """

    def infer_batch(self, questions: Sequence[Question]) -> Sequence[Answer | InferenceError]:
        """Answers in the order of the questions; a robot whose question has no answer does not spoil the others'."""
        ...


Result = TypeVar("Result")


def attempt(function: Callable[..., Result], *arguments: Any) -> Result | InferenceError:
    """What the function returns, or the InferenceError that it raises, as a value."""
    try:
        return function(*arguments)
    except InferenceError as error:
        return error


Load = Callable[[Path, Robot, Mapping[str, Any]], Backend]
"""`load(checkpoint, robot, options)`. Raises ConfigError when the checkpoint or an option is wrong."""

# What ships; found without installed metadata too (a source tree on PYTHONPATH, a foreign interpreter).
BUILT_IN = {
    "flow": "vla_policy_node.backends.flow:load",
    "replay": "vla_policy_node.backends.replay:load",
    "scripted": "vla_policy_node.backends.scripted:load",
    "openpi": "vla_policy_node.backends.openpi:load",
    "pi0": "vla_policy_node.backends.pi0:load",
    "openvla": "vla_policy_node.backends.openvla:load",
    "lerobot": "vla_policy_node.backends.lerobot:load",
    "gr00t": "vla_policy_node.backends.gr00t:load",
    "openvla_rest": "vla_policy_node.backends.openvla_rest:load",
    "lerobot_async": "vla_policy_node.backends.lerobot_async:load",
}

_GUIDED = ("flow", "pi0")  # by their option `guidance`; 0: off


def follows_prefix(backend: str, options: Mapping[str, Any], metadata: PolicyMetadata | None = None) -> bool | None:
    """Whether a policy's chunks begin with the motion that is executed in any case, as the strategy `rtc` wants it.

    Args:
        backend: `module:function`.
        metadata: of the policy; it decides for backends that do not ship.

    Returns:
        None: it does not say.
    """
    kind = next((name for name, location in BUILT_IN.items() if location == backend), "")
    if kind in _GUIDED:
        return options.get("guidance") != 0
    if metadata is not None and metadata.follows_prefix is not None:
        return metadata.follows_prefix
    return False if kind else None


def locate(name: str) -> str:
    """`module:function` of the backend `name` (which may be given in that form already).

    Raises:
        ConfigError: when there is none, with the names that exist.
    """
    if ":" in name:
        return name
    installed = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    known = {**BUILT_IN, **installed}
    if name not in known:
        raise ConfigError(f"{unknown('backend', name, known)}; install the package that brings it")
    return known[name]


def load_backend(location: str, checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> Backend:
    """Imports `module:function` and loads a policy.

    Raises:
        ConfigError: when the module is not there, the checkpoint's files are not those of its manifest, or the backend
            refuses checkpoint or options.
    """
    module_name, _, function = location.partition(":")
    try:
        load: Load = getattr(import_module(module_name), function)
    except ImportError as error:
        raise ConfigError(
            f"backend '{location}' cannot be imported: {error}; install it into the policy file's interpreter"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"backend '{location}': module '{module_name}' has no function '{function}'") from error
    if checkpoint.name and checkpoint.is_dir():  # a remote policy has no folder here
        check_files(checkpoint)  # before anything of it is read as a model
    return load(checkpoint, robot, options)
