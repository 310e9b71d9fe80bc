"""A policy in a worker process, asked as if it were in this one: for whoever can wait for an answer."""

import logging
import queue

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ConfigError, InferenceError, Unavailable
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata
from vla_contract.robot import Robot
from vla_policy_node.worker.client import Worker, WorkerSpec
from vla_policy_node.worker.events import Answer, Down, Event, Ready, Refusal

_log = logging.getLogger(__name__)
_LARGEST = (1080, 1920)  # rows, columns that an image has room for at least; what is not used costs nothing


class WorkerBackend:
    """Use from one thread, and `close` at the end. A process that dies or hangs fails the call and is started again.

    Args:
        spec: what the process runs; its interpreter need not be this one.

    Raises:
        ConfigError: when the policy cannot be loaded.
    """

    def __init__(self, spec: WorkerSpec, robot: Robot):
        room = {
            name: (max(camera.height, _LARGEST[0]), max(camera.width, _LARGEST[1]))
            for name, camera in robot.cameras.items()
        }
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._down: Down | None = None
        self._metadata: PolicyMetadata | None = None
        self._worker = Worker(spec, room, self._events.put, exact=False)
        self._worker.start()
        while self._metadata is None:
            self._note(self._events.get())
            if self._down is not None and self._down.restart_in is None:
                self.close()
                raise ConfigError(self._down.reason)

    @property
    def metadata(self) -> PolicyMetadata:
        """See Backend."""
        assert self._metadata is not None
        return self._metadata

    def infer(self, observation: Observation, prefix: Trajectory | None) -> ActionChunk:
        """See Backend."""
        while not self._events.empty():
            self._note(self._events.get())
        self._fail_if_down()
        asked = self._worker.infer(observation, prefix)
        while True:
            event = self._events.get()
            self._note(event)
            self._fail_if_down()
            if isinstance(event, Answer) and event.id == asked:
                return event.chunk
            if isinstance(event, Refusal) and event.id == asked:
                raise (Unavailable if event.unavailable else InferenceError)(event.reason)

    def reset(self) -> None:
        """See Backend."""
        self._worker.reset()

    def close(self) -> None:
        """Ends the process; a call under way fails."""
        self._worker.close()
        self._events.put(Down("closed", None))

    def _note(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._down, self._metadata = None, event.metadata
            _log.info("policy '%s' is loaded after %.1f s", event.metadata.name, event.seconds)
        elif isinstance(event, Down):
            self._down = event
            again = "" if event.restart_in is None else f"; it starts again in {event.restart_in:.1f} s"
            _log.warning("the policy's process is down: %s%s", event.reason, again)

    def _fail_if_down(self) -> None:
        if self._down is None:
            return
        when = "for good" if self._down.restart_in is None else "and starts again; ask later"
        raise InferenceError(f"the policy's process has ended {when}")
