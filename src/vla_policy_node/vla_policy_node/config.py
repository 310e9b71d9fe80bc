"""The policy file: which policy runs, where, and how its chunks are scheduled. Unknown keys are errors."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from vla_contract.errors import ConfigError
from vla_contract.robot import describe_errors, read_yaml, resolve_path
from vla_policy_node.backends import locate
from vla_policy_node.core.observations import Tolerances
from vla_policy_node.core.scheduling import Schedule, Strategy
from vla_policy_node.worker.client import WorkerSpec

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScheduleFile(_Strict):
    """See `core.scheduling.Schedule`; times in s."""

    strategy: Strategy = "async"
    execution_horizon: Positive = 0.4
    margin: Annotated[float, Field(ge=0.02, le=1)] = 0.1
    blend: Annotated[float, Field(ge=0.05, le=2)] = 0.25
    step: Annotated[float, Field(ge=0.01, le=0.2)] = 0.05
    acceleration_share: Share = 0.5
    limit_share: Share = 0.8
    stiffness: Annotated[float, Field(ge=0, le=3)] = 0.1
    ensemble_decay: Annotated[float, Field(ge=-5, le=5)] = -1.0


class TolerancesFile(_Strict):
    """See `core.observations.Tolerances`; times in s."""

    image_age: Positive = 0.35
    joint_age: Positive = 0.2
    skew: Positive = 0.05
    future: Positive = 0.05
    frozen_motion: Positive = 0.2
    frozen_time: Positive = 0.3


class DoneFile(_Strict):
    """The task has succeeded after `chunks` chunks in a row whose progress is `progress` or more."""

    progress: Share = 0.9
    chunks: Annotated[int, Field(ge=1, le=100)] = 3


class PolicyFile(_Strict):
    """One policy.

    Attributes:
        backend: entry point of the group `vla_policy_node.backends`, or `module:function`.
        checkpoint: folder or file; relative to this file, absolute, or `package://…`; policy servers need none.
        interpreter: Python of the worker; empty: the node's. Relative to this file if it has a slash.
        environment: variables of the worker, on top of the few that are passed on.
        options: for the backend.
        load_timeout, inference_timeout: s; longer is a hang. A policy behind a server has time-outs of its own: never
            less than those together.
        failures: inferences in a row without an answer that end the task; a server's outage does not count.
    """

    backend: str
    checkpoint: str = "."
    interpreter: str = ""
    environment: dict[str, str] = {}
    options: dict[str, Any] = {}
    load_timeout: Positive = 180.0
    inference_timeout: Positive = 5.0
    failures: Annotated[int, Field(ge=1)] = 10
    schedule: ScheduleFile = ScheduleFile()
    observation: TolerancesFile = TolerancesFile()
    done: DoneFile = DoneFile()
    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The file that this was read from."""
        return self._path

    @property
    def tolerances(self) -> Tolerances:
        """For the observation buffer."""
        return Tolerances(**self.observation.model_dump())

    @property
    def timing(self) -> Schedule:
        """For the scheduler."""
        return dataclasses.replace(Schedule(), **self.schedule.model_dump())

    def worker(self, robot: Path) -> WorkerSpec:
        """What the worker process is to run.

        Raises:
            ConfigError: when the backend is unknown or a file does not exist.
        """
        folder = self._path.parent
        interpreter = self.interpreter
        if "/" in interpreter and not Path(interpreter).is_absolute():
            interpreter = str(resolve_path(interpreter, folder))
        return WorkerSpec(
            backend=locate(self.backend),
            checkpoint=resolve_path(self.checkpoint, folder),
            robot=robot,
            options=self.options,
            interpreter=interpreter,
            environment=self.environment,
            load_timeout=self.load_timeout,
            inference_timeout=self.inference_timeout,
        )


def load_policy_file(path: str | Path) -> PolicyFile:
    """Reads a policy file.

    Raises:
        ConfigError: naming file, key, value and what was expected.
    """
    path = Path(path).absolute()
    try:
        policy = PolicyFile.model_validate(read_yaml(path, "policy file"))
    except ValidationError as error:
        raise ConfigError(describe_errors(path, error)) from error
    policy._path = path
    return policy
