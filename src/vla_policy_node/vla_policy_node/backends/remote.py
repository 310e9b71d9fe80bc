"""What all clients of policy servers share: options, the connection that comes back by itself, the way to a chunk.

A server may be away, slow or wrong, and comes and goes as it likes. `infer` never waits longer than its time-out and
answers every such case with an InferenceError that says what is wrong and when the next attempt is made; the robot
rests meanwhile, and the first observation after the server is back goes through.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata, Statistics
from vla_contract.robot import Robot, describe_errors
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout
from vla_policy_node.core.model_inputs import ModelInputs

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LONGEST_MESSAGE = 64 * 1024 * 1024  # bytes; a server must not be able to fill our memory
Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]


class RemoteOptions(BaseModel):
    """Options of the policy file that every remote backend has.

    Attributes:
        host, port: of the server. Loopback unless the file names another host.
        name: of the policy, for people and records.
        api_key_file: absolute path (or `~/…`) of a file that holds the key for the server; empty: none is sent.
        connect_timeout, timeout: s for a connection and for an answer.
        first_timeout: s for the first answer on a new connection: servers compile then.
        shortest_retry, longest_retry: s between attempts to connect; doubled from one to the next.
        inputs: what the model is told: see `core.model_inputs`.
        action: what its numbers mean: see `core.action_spaces.ActionLayout`.
        horizon: rows of an answer that are used; fewer are an error.
        dt: s between two rows. Row k is meant for stamp + (k + 1) dt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = LOOPBACK
    port: Annotated[int, Field(gt=0, le=65535)]
    name: str = "remote"
    api_key_file: str = ""
    connect_timeout: Seconds = 2.0
    timeout: Seconds = 2.0
    first_timeout: Seconds = 60.0
    shortest_retry: Seconds = 0.5
    longest_retry: Seconds = 8.0
    inputs: dict[str, Any]
    action: ActionLayout
    horizon: Annotated[int, Field(gt=0, le=1000)]
    dt: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]

    def api_key(self) -> str:
        """The key for the server; empty: none.

        Raises:
            ConfigError: when the file cannot be read, or holds something else than one line.
        """
        if not self.api_key_file:
            return ""
        path = Path(self.api_key_file).expanduser()
        try:
            key = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file: '{path}' cannot be read: {error}") from error
        if not path.is_absolute() or not key.isprintable() or not key:
            raise ConfigError(f"api_key_file: '{path}' must be an absolute path of a file with one line, the key")
        return key


Options = TypeVar("Options", bound=RemoteOptions)


def read_options(kind: type[Options], backend: str, options: Mapping[str, Any]) -> Options:
    """Options of a policy file.

    Raises:
        ConfigError: with every key that is missing, unknown or wrong.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(describe_errors(Path(f"options of the {backend} backend"), error)) from error


class LinkError(Exception):
    """The connection does not exist or has become unusable. `closed`: the other side hung up before it answered."""

    def __init__(self, reason: str, closed: bool = False):
        self.closed = closed
        super().__init__(reason)


class Link(Protocol):
    """One protocol's connection."""

    @property
    def address(self) -> str:
        """For messages, e.g. `ws://127.0.0.1:8000`."""
        ...

    def open(self) -> None:
        """Connects. Raises LinkError, or InferenceError when the server is there but is the wrong one."""
        ...

    def exchange(self, request: Any, timeout: float) -> Any:
        """Sends and waits at most `timeout` s. Raises LinkError; InferenceError when the server answers an error."""
        ...

    def close(self) -> None:
        """Closes; may be called at any time."""
        ...


class Connection:
    """A link that is opened when it is needed and opened again after it broke, with growing pauses."""

    def __init__(self, link: Link, options: RemoteOptions, clock: Callable[[], float] = time.monotonic):
        self.link = link
        self._options, self._clock = options, clock
        self._open = False
        self._answered = False
        self._pause = options.shortest_retry
        self._next = -float("inf")
        self._cause = ""
        self._since = 0.0

    def ask(self, request: Any, infers: bool = True) -> Any:
        """The server's answer.

        Args:
            infers: the server's model runs for it; only such an answer shows that the model is warm.

        Raises:
            InferenceError: when there is none; says why and when the next attempt is made.
        """
        used = self._open and self._answered
        if not self._open:
            self._connect()
        try:
            return self._exchange(request, infers)
        except LinkError as error:
            if not (error.closed and used):
                raise self._lost(error) from error
        # A connection that was left idle may have ended long ago, with another server there since.
        self.link.close()
        self._open = False
        self._connect()
        try:
            return self._exchange(request, infers)
        except LinkError as error:
            raise self._lost(error) from error

    def close(self) -> None:
        """Hangs up."""
        self._open = False
        self.link.close()

    def _connect(self) -> None:
        now = self._clock()
        if now < self._next:
            raise InferenceError(
                f"{self.link.address} gives no answer since {now - self._since:.1f} s ({self._cause}); "
                f"next attempt in {self._next - now:.1f} s"
            )
        try:
            self.link.open()
        except LinkError as error:
            raise self._lost(error) from error
        except InferenceError as error:
            raise self._lost(LinkError(str(error))) from error
        if self._cause:
            _log.info("%s is back after %.1f s", self.link.address, self._clock() - self._since)
        self._open, self._answered = True, False

    def _exchange(self, request: Any, infers: bool) -> Any:
        options = self._options
        cold = infers and not self._answered
        timeout = max(options.first_timeout, options.timeout) if cold else options.timeout
        answer = self.link.exchange(request, timeout)
        self._answered |= infers
        self._pause, self._cause = self._options.shortest_retry, ""
        return answer

    def _lost(self, error: LinkError) -> InferenceError:
        self.link.close()
        self._open = False
        now = self._clock()
        if not self._cause:
            self._since = now
            _log.warning("%s gives no answer: %s", self.link.address, error)
        self._cause = str(error)
        pause, self._pause = self._pause, min(2 * self._pause, self._options.longest_retry)
        self._next = now + pause
        return InferenceError(f"{self.link.address}: {error}; next attempt in {pause:.1f} s")


class Answer(NamedTuple):
    """Rows (K, d) of a model, and the progress of the task in [0, 1] (NaN: unknown)."""

    rows: NDArray[np.floating[Any]]
    progress: float = float("nan")


class RemoteBackend(ABC):
    """A policy behind a connection. Use from one thread."""

    def __init__(self, robot: Robot, options: RemoteOptions, link: Link):
        self._robot, self._options = robot, options
        self._inputs = ModelInputs(options.inputs, robot)
        self._decoder = ActionDecoder(options.action, robot)
        self.connection = Connection(link, options)
        self.metadata = remote_metadata(robot, options, self._inputs, self._decoder)

    @abstractmethod
    def _request(self, fields: dict[str, Any]) -> Any:
        """The message that carries the composed inputs."""

    @abstractmethod
    def _answer(self, reply: Any) -> Answer:
        """What a reply says. Raises InferenceError when it is malformed."""

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The server's answer as joint motion; none of the protocols can be conditioned on `prefix`.

        Raises:
            InferenceError: when the server is away, slow, wrong or asks for a place out of reach.
        """
        del prefix
        started = time.perf_counter()
        answer = self._answer(self.connection.ask(self._request(self._inputs.compose(observation))))
        rows = np.asarray(answer.rows)
        if rows.ndim != 2 or len(rows) < self._options.horizon:
            raise InferenceError(
                f"{self.connection.link.address} answers actions of shape {rows.shape}, expected at least "
                f"({self._options.horizon}, {self._decoder.width}); correct `horizon`, or serve the policy that fits"
            )
        decoded = self._decoder.decode(rows[: self._options.horizon], observation.positions)
        positions = self._decoder.reachable(decoded)
        if len(positions) < self._options.horizon:
            _log.warning(
                "the answer leaves the robot's reach at point %d by %.3f m and %.2f rad: the chunk ends before it",
                len(positions),
                decoded.residuals[len(positions)],
                decoded.tilts[len(positions)],
            )
        return ActionChunk(
            stamp_ns=observation.stamp_ns,
            joint_names=self._robot.joints,
            trajectory=Trajectory(self._options.dt * np.arange(1, len(positions) + 1), positions),
            policy=self.metadata.name,
            instruction=observation.instruction,
            inference_time=time.perf_counter() - started,
            progress=answer.progress,
            base=decoded.base_motion(len(positions), self._options.dt),
        )

    def reset(self) -> None:  # noqa: B027
        """Nothing to forget here; what the server keeps is its own."""

    def close(self) -> None:
        """Hangs up."""
        self.connection.close()


def remote_metadata(
    robot: Robot, options: RemoteOptions, inputs: ModelInputs, decoder: ActionDecoder
) -> PolicyMetadata:
    """Metadata of a policy whose weights and statistics lie on a server.

    The server normalises: what passes here is in physical units, so the statistics are those of the identity.
    """
    return PolicyMetadata(
        name=options.name,
        cameras=inputs.cameras,
        joints=robot.joints,
        state=inputs.state_names,
        action_space=options.action.space,
        action=decoder.names,
        horizon=options.horizon,
        dt=options.dt,
        tool_frame=robot.tool_frame if options.action.space.startswith("ee_") else None,
        statistics={"state": _identity(len(inputs.state_names)), "action": _identity(decoder.width)},
        training={"normalisation": "on the server"},
    )


def _identity(size: int) -> Statistics:
    return Statistics(mean=(0.0,) * size, std=(1.0,) * size)
