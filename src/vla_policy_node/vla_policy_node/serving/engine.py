"""What the server's front asks, and an engine that answers in this process.

A call carries all that an answer depends on: the observation, and the memory of its client's episode where the policy
can keep it outside of itself. So clients cannot mix, whichever copy of the policy answers, and whichever other calls
are answered in the same pass.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import InferenceError
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata
from vla_contract.robot import Robot
from vla_policy_node.backends import Answer, Backend, BatchBackend, Question, attempt, load_backend
from vla_policy_node.worker.backend import WorkerBackend
from vla_policy_node.worker.client import WorkerSpec

_log = logging.getLogger(__name__)
_SAME_TIME = 1e-9  # s; times of rows are products of dt


@dataclass(frozen=True)
class Call:
    """A client's observation.

    Attributes:
        client: who asks; another one than before begins a new episode of a policy that remembers by itself.
        memory: of the client's episode, as its last reply gave it; None: the episode begins.
    """

    client: str
    observation: Observation
    memory: object = None


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        actions: (horizon, joints) rad or m; of a policy that drives (`drives`) three columns more, the base's twist:
            forward and sideways m/s, turning rad/s; progress: in [0, 1], or NaN.
        memory: of the episode after it.
        infer_ms: that the pass took; batch: calls that it answered.
    """

    actions: NDArray[np.float64]
    progress: float
    memory: object
    infer_ms: float
    batch: int


class Engine(Protocol):
    """Answers calls."""

    @property
    def metadata(self) -> PolicyMetadata:
        """Of the policy."""
        ...

    async def infer(self, call: Call) -> Reply:
        """Raises InferenceError when there is no answer to this call."""
        ...

    def close(self) -> None:
        """Ends what was started for it."""
        ...


def drives(metadata: PolicyMetadata) -> bool:
    """Whether the policy moves a mobile base too."""
    return any(name.startswith("base.") for name in metadata.action)


class Answering:
    """Answers batches of calls with one backend. Use from one thread."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._times = backend.metadata.dt * np.arange(1, backend.metadata.horizon + 1)
        self._speaker = self._before = ""
        self._told = False

    def answer(self, calls: Sequence[Call]) -> list[Reply | InferenceError]:
        """In the order of the calls; one that fails does not spoil the others'."""
        started = time.perf_counter()
        if isinstance(self._backend, BatchBackend):
            questions = [Question(call.observation, None, call.memory) for call in calls]
            outcomes, batch = self._together(self._backend, questions), len(calls)
        else:
            outcomes, batch = [_guarded(self._alone, call) for call in calls], 1
        took = (time.perf_counter() - started) * 1e3
        return [one if isinstance(one, InferenceError) else self._reply(one, took, batch) for one in outcomes]

    def _together(self, backend: BatchBackend, questions: Sequence[Question]) -> Sequence[Answer | InferenceError]:
        outcomes = _guarded(backend.infer_batch, questions)
        if not isinstance(outcomes, InferenceError):
            return outcomes
        if len(questions) == 1:
            return [outcomes]
        _log.warning("a batch of %d failed (%s); its calls are answered one by one", len(questions), outcomes)
        return [_guarded(lambda one: backend.infer_batch([one])[0], question) for question in questions]

    def _alone(self, call: Call) -> Answer:
        if self._speaker != call.client:
            # What the backend remembers is another client's episode; the protocol itself has no reset.
            self._backend.reset()
            if call.client == self._before and not self._told:  # they take turns
                self._told = True
                _log.warning(
                    "policy '%s' remembers one episode at most, and two clients take turns: it begins anew each time; "
                    "give each robot a server of its own",
                    self._backend.metadata.name,
                )
            self._before, self._speaker = self._speaker, call.client
        return Answer(self._backend.infer(call.observation, None))

    def _reply(self, answer: Answer, took: float, batch: int) -> Reply:
        chunk: ActionChunk = answer.chunk
        if chunk.shortened:
            _log.warning("%s", chunk.shortened)
        # A chunk that ends early stays at its last point; a client of this protocol counts rows, not times.
        actions = chunk.trajectory.sample(self._times).positions
        if drives(self._backend.metadata):
            still = np.zeros(3)
            twists = [still if chunk.base is None else chunk.base.sample(time - _SAME_TIME) for time in self._times]
            actions = np.hstack([actions, twists])
        return Reply(actions, chunk.progress, answer.memory, took, batch)


def _guarded(function: Any, argument: Any) -> Any:
    """What it returns; an error of one call as a value, so that the other calls get their answers."""
    try:
        return attempt(function, argument)
    except Exception as error:  # of a model, with no common root
        _log.exception("the policy failed")
        return InferenceError(f"the policy failed: {type(error).__name__}")


def loaded(spec: WorkerSpec, robot: Robot) -> Backend:
    """A policy, in this process or in one of the interpreter that its policy file names.

    Raises:
        ConfigError: when it cannot be loaded.
    """
    if spec.interpreter:
        return WorkerBackend(spec, robot)
    return load_backend(spec.backend, spec.checkpoint, robot, spec.options)


class LocalEngine:
    """One backend for all calls. Inferences run one after the other on a thread of their own, so that the event loop
    goes on answering pings, `/healthz` and new connections."""

    def __init__(self, backend: Backend):
        self._backend, self._answering = backend, Answering(backend)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    @property
    def metadata(self) -> PolicyMetadata:
        """Of the policy."""
        return self._backend.metadata

    async def infer(self, call: Call) -> Reply:
        """Raises InferenceError when there is no answer to this call."""
        (reply,) = await asyncio.get_running_loop().run_in_executor(self._thread, self._answering.answer, [call])
        if isinstance(reply, InferenceError):
            raise reply
        return reply

    def close(self) -> None:
        """Calls that wait are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._backend, WorkerBackend):
            self._backend.close()
