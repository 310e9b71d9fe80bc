"""A policy without a model, for benchmarks: it takes as long as its instruction says, and sways the robot about home.

The instruction is `KIND SHAPE MILLISECONDS`, e.g. `sleep lognormal 30`:

* `sleep` waits (a model on a GPU or on another machine), `burn` computes (a model on this processor): a fixed amount of
  work, so that it takes longer where something else keeps the processor busy.
* `constant`: always the same; `lognormal`: with this median and a deviation of 0.4 of its logarithm; `spiky`: one in
  twenty takes five times as long.

Named in a policy file as `vla_bringup.latency.stub:load`; no entry point leads here.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, unknown
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import CameraInput, PolicyMetadata, Statistics
from vla_contract.robot import Robot, describe_errors

KINDS = ("sleep", "burn")
SHAPES = ("constant", "lognormal", "spiky")
_SIGMA = 0.4  # of the logarithm
_SPIKES, _SPIKE = 0.05, 5.0  # share of all, and times as long
_SWAY, _PERIOD = 0.25, 5.0  # rad, s
_LEAD_IN = 2.0  # s from where the robot is
_HORIZON, _DT = 16, 0.1  # points of a chunk, s between them
WARM_UP = "warm up"  # the instruction of inferences that nobody waits for
_SIZE = 48  # rows and columns of the matrices that `burn` multiplies


class Options(BaseModel):
    """Options of the policy file.

    Attributes:
        cameras: that an observation must hold.
        pace: multiplications that this machine does in a millisecond when nothing else runs, see `pace`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cameras: tuple[str, ...] = ()
    pace: float = Field(default=100.0, gt=0)


def load(checkpoint: Path, robot: Robot, options: Mapping[str, Any]) -> "Stub":
    """There is nothing to load; `checkpoint` is not looked at.

    Raises:
        ConfigError: when an option is wrong.
    """
    try:
        chosen = Options.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(describe_errors(Path("options of the stub"), error)) from error
    return Stub(robot, chosen)


class Stub:
    """See the module."""

    def __init__(self, robot: Robot, options: Options):
        self._robot, self._options = robot, options
        self._random = np.random.default_rng(0)
        self._begin: tuple[int, NDArray[np.float64]] | None = None
        n = len(robot.joints)
        units = tuple(f"{joint}.position[rad|m]" for joint in robot.joints)
        self.metadata = PolicyMetadata(
            name="stub",
            cameras={
                name: CameraInput(height=robot.cameras[name].height, width=robot.cameras[name].width)
                for name in options.cameras
            },
            joints=robot.joints,
            state=units,
            action_space="joint_position",
            action=units,
            horizon=_HORIZON,
            dt=_DT,
            statistics={key: Statistics(mean=(0.0,) * n, std=(1.0,) * n) for key in ("state", "action")},
        )

    def reset(self) -> None:
        """A new task: the same sequence of delays again, and a lead-in from where the robot is."""
        self._begin = None
        self._random = np.random.default_rng(0)

    def infer(self, observation: Observation, prefix: Trajectory | None) -> ActionChunk:
        """The next part of the sway, after the time that the instruction says."""
        if observation.instruction != WARM_UP:
            kind, shape, milliseconds = parse(observation.instruction)
            spend(kind, milliseconds * 1e-3 * factor(shape, self._random), self._options.pace)
        if self._begin is None:
            self._begin = observation.stamp_ns, observation.positions - np.array(self._robot.home)
        began, offset = self._begin
        times = _DT * np.arange(1, _HORIZON + 1)
        since = times + (observation.stamp_ns - began) * 1e-9
        share = np.clip(since / _LEAD_IN, 0.0, 1.0)
        left = 1.0 - share**3 * (10 - 15 * share + 6 * share**2)
        positions = np.array(self._robot.home) + left[:, None] * offset
        # (1 - cos)² starts without a jerk.
        positions[:, 0] += _SWAY * (1 - np.cos(2 * np.pi * since / _PERIOD)) ** 2 / 4
        return ActionChunk(observation.stamp_ns, self._robot.joints, Trajectory(times, positions))


def parse(instruction: str) -> tuple[str, str, float]:
    """Kind, shape and milliseconds.

    Raises:
        InferenceError: when it does not say that.
    """
    words = instruction.split()
    if len(words) != 3:
        raise InferenceError(f"instruction '{instruction}': expected KIND SHAPE MILLISECONDS, e.g. 'sleep constant 30'")
    for what, word, known in (("kind", words[0], KINDS), ("shape", words[1], SHAPES)):
        if word not in known:
            raise InferenceError(unknown(what, word, known))
    try:
        return words[0], words[1], float(words[2])
    except ValueError as error:
        raise InferenceError(f"'{words[2]}' is no number of milliseconds") from error


def factor(shape: str, random: np.random.Generator) -> float:
    """By what a delay is multiplied this time."""
    if shape == "lognormal":
        return float(random.lognormal(0.0, _SIGMA))
    if shape == "spiky":
        return _SPIKE if random.random() < _SPIKES else 1.0
    return 1.0


def spend(kind: str, duration: float, pace: float) -> None:
    """Waits `duration` s, or does the work that takes as long on an idle machine."""
    if kind == "sleep":
        time.sleep(duration)
    else:
        _multiply(round(duration * 1e3 * pace))


def pace() -> float:
    """Multiplications in a millisecond: the best of several tries, so that other load does not count."""
    rounds, best = 2000, float("inf")
    for _ in range(15):
        began = time.perf_counter()
        _multiply(rounds)
        best = min(best, time.perf_counter() - began)
    return rounds / (best * 1e3)


def _multiply(count: int) -> None:
    matrix = np.full((_SIZE, _SIZE), 1.0 / _SIZE)
    product = matrix
    for _ in range(count):
        product = product @ matrix
