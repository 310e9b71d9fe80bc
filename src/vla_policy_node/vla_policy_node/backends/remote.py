"""What all clients of policy servers share: options, the connection that comes back by itself, the way to a chunk.

A server may be away, slow or wrong, and comes and goes as it likes. `infer` answers every such case with `Unavailable`,
which says what is wrong and when the next attempt is made; the robot rests meanwhile, and the first observation after
the server is back goes through. One `infer` waits `patience` s at most: for an answer on an old connection (`timeout`),
for a new connection if the old one had ended, and for the first answer on that (`first_timeout`). While the server is
known to be away it does not wait at all, and on a connection that works `timeout` s at most.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, Unavailable
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata, Statistics
from vla_contract.robot import Robot
from vla_policy_node.backends.interface import joint_chunk
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout
from vla_policy_node.core.model_inputs import ModelInputs

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LONGEST_MESSAGE = 64 * 1024 * 1024  # bytes; a server must not be able to fill our memory
MOST_POINTS = 1000  # of a chunk
_HOLD_OF_ONE = 1.0  # s, as the OpenVLA in this process holds its one action
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
        hold: s after the observation until which the last target is kept, so that the plan outlasts the next inference;
            None: 1 s (two rows at least) where an answer is a single row, else no longer than its rows.
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
    horizon: Annotated[int, Field(gt=0, le=MOST_POINTS)]
    dt: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
    hold: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.held / self.dt > MOST_POINTS:
            raise ValueError(
                f"a hold of {self.held:g} s has more than {MOST_POINTS} points of dt {self.dt:g} s; lower it"
            )
        return self

    @property
    def held(self) -> float:
        """s after the observation until which the last target is kept, where the rows end before."""
        if self.hold is not None:
            return self.hold
        return max(_HOLD_OF_ONE, 2 * self.dt) if self.horizon == 1 else 0.0  # one point is no motion: two at least

    @property
    def opening(self) -> float:
        """s that it takes at most to connect: to be heard, and to be greeted."""
        return 2 * self.connect_timeout

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


class LinkError(Exception):
    """The connection does not exist or has become unusable.

    Attributes:
        closed: it had ended before the question was answered, or was given up before it was sent: a new connection is
            worth a try at once.
        refused: the server is there and could not infer: a failure of its policy, no outage.
    """

    def __init__(self, reason: str, closed: bool = False, refused: bool = False):
        self.closed, self.refused = closed, refused
        super().__init__(reason)


class Link(Protocol):
    """One protocol's connection."""

    @property
    def address(self) -> str:
        """For messages, e.g. `ws://127.0.0.1:8000`."""
        ...

    def open(self) -> None:
        """Connects within the options' `opening` s. Raises LinkError, or InferenceError when it is the wrong server."""
        ...

    def exchange(self, request: Any, timeout: float) -> Any:
        """Sends and waits at most `timeout` s. Raises LinkError; InferenceError when the server answers an error."""
        ...

    def probe(self, timeout: float) -> None:
        """Looks whether the server still is at the other end, without asking its model. Raises as `exchange`."""
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

    @property
    def patience(self) -> float:
        """s that whoever asks once, or twice with one deadline, waits at most."""
        return self._options.timeout + self._options.opening + self._cold

    @property
    def _cold(self) -> float:
        return max(self._options.first_timeout, self._options.timeout)

    def deadline(self) -> float:
        """For questions that belong to one inference, as the clock will show it."""
        return self._clock() + self.patience

    def ask(self, request: Any, infers: bool = True, deadline: float | None = None) -> Any:
        """The server's answer.

        Args:
            infers: the server's model runs for it; only such an answer shows that the model is warm.
            deadline: see `deadline`; None: a new one.

        Raises:
            Unavailable: when there is none; says why and when the next attempt is made.
            InferenceError: when the server says that it could not infer.
        """
        deadline = self.deadline() if deadline is None else deadline
        used = self._open and self._answered
        if not self._open:
            self._connect()
        try:
            return self._exchange(request, infers, deadline)
        except LinkError as error:
            if not (error.closed and used):
                raise self._lost(error) from error
        # A connection that was left idle may have ended long ago, with another server there since.
        self.close()
        self._connect()
        try:
            return self._exchange(request, infers, deadline)
        except LinkError as error:
            raise self._lost(error) from error

    def check(self) -> None:
        """Connects if need be; else looks whether the server is still there.

        Raises:
            Unavailable: when it is not; as `ask`.
        """
        if self._open:
            try:
                self.link.probe(self._options.timeout)
                return
            except LinkError as error:
                if not error.closed:
                    raise self._lost(error) from error
            except InferenceError:
                return  # it answers, though it does not know the question
            self.close()
        self._connect()
        self._pause, self._cause = self._options.shortest_retry, ""

    def close(self) -> None:
        """Hangs up."""
        self._open = False
        self.link.close()

    def _connect(self) -> None:
        now = self._clock()
        if now < self._next:
            raise Unavailable(
                f"{self.link.address}: no answer since {now - self._since:.1f} s ({self._cause}); "
                f"next attempt in {self._next - now:.1f} s"
            )
        try:
            self.link.open()
        except LinkError as error:
            raise self._lost(error) from error
        except InferenceError as error:
            raise self._lost(LinkError(str(error))) from error
        if self._cause:
            _log.warning("%s is back after %.1f s", self.link.address, self._clock() - self._since)
        self._open, self._answered = True, False

    def _exchange(self, request: Any, infers: bool, deadline: float) -> Any:
        timeout = self._cold if infers and not self._answered else self._options.timeout
        timeout = min(timeout, deadline - self._clock())
        if timeout <= 0:
            raise LinkError(f"no answer for {self.patience:g} s")
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
        kind = InferenceError if error.refused else Unavailable
        return kind(f"{self.link.address}: {error}; next attempt in {pause:.1f} s")


class Answer(NamedTuple):
    """Rows (K, d) of a model, and the progress of the task in [0, 1] (NaN: unknown)."""

    rows: NDArray[np.floating[Any]]
    progress: float = float("nan")


class RemoteBackend(ABC):
    """A policy behind a connection: a `backends.ServedBackend`. Use from one thread."""

    def __init__(self, robot: Robot, options: RemoteOptions, link: Link):
        self._options = options
        self._inputs = ModelInputs(options.inputs, robot)
        self._decoder = ActionDecoder(options.action, robot)
        self.connection = Connection(link, options)
        self.metadata = _metadata(robot, options, self._inputs, self._decoder)

    @abstractmethod
    def _request(self, fields: dict[str, Any]) -> Any:
        """The message that carries the composed inputs."""

    @abstractmethod
    def _answer(self, reply: Any) -> Answer:
        """What a reply says. Raises InferenceError when it is malformed."""

    def _announce(self, deadline: float) -> None:  # noqa: B027
        """What the server must hear before the next observation. Raises as `infer`."""

    @property
    def server(self) -> str:
        """Its address."""
        return self.connection.link.address

    @property
    def patience(self) -> float:
        """s that one `infer` waits at most."""
        return self.connection.patience

    def check(self) -> None:
        """Connects if need be. Raises Unavailable when the server is not there."""
        self.connection.check()

    def infer(self, observation: Observation, prefix: Trajectory | None = None) -> ActionChunk:
        """The server's answer as joint motion; none of the protocols can be conditioned on `prefix`.

        Raises:
            Unavailable: when the server is away, slow or wrong.
            InferenceError: when it could not infer, answers nonsense or asks for a place out of reach.
        """
        del prefix
        started = time.perf_counter()
        request = self._request(self._inputs.compose(observation))
        deadline = self.connection.deadline()
        self._announce(deadline)
        answer = self._answer(self.connection.ask(request, deadline=deadline))
        rows = np.asarray(answer.rows)
        if rows.ndim != 2 or len(rows) < self._options.horizon:
            raise InferenceError(
                f"{self.connection.link.address} answers actions of shape {rows.shape}, expected at least "
                f"({self._options.horizon}, {self._decoder.width}); correct `horizon`, or serve the policy that fits"
            )
        rows = rows[: self._options.horizon]
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
                chunk = joint_chunk(self._decoder, self.metadata, observation, rows, started, self._options.held)
        except InferenceError:
            raise
        except Exception as error:  # the libraries of kinematics promise no type of exception for what no robot can do
            raise InferenceError(
                f"{self.connection.link.address} answers no motion ({error or type(error).__name__}); its numbers go "
                f"from {rows.min():g} to {rows.max():g}; correct `action.scale`, or serve the policy that fits"
            ) from error
        return replace(chunk, progress=answer.progress)

    def reset(self) -> None:  # noqa: B027
        """Nothing to forget here; what the server keeps is its own."""

    def close(self) -> None:
        """Hangs up."""
        self.connection.close()


def _metadata(robot: Robot, options: RemoteOptions, inputs: ModelInputs, decoder: ActionDecoder) -> PolicyMetadata:
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
