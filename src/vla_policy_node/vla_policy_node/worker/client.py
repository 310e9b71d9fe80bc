"""The node's side of the worker: starts it, asks it, notices when it dies or hangs, starts it again.

One thread owns the process and reads its answers; it blocks in `select` and costs nothing while it waits. Events are
handed to a callback *on that thread*; the node passes them on to its executor. Requests leave on the caller's thread as
far as the socket takes them (see `channel`): handing them over first would cost every inference two changes of threads.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vla_contract.errors import ConfigError, InferenceError, VlaError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata
from vla_policy_node.worker import wire
from vla_policy_node.worker.channel import Channel
from vla_policy_node.worker.environment import package_folders, worker_environment
from vla_policy_node.worker.events import Down, Event, Ready, event_of, gpu_memory_of, with_trace
from vla_policy_node.worker.health import Health
from vla_policy_node.worker.images import Place, SharedImages

_LAST_LINES = 15
_CHECK = 1.0  # s without a question until a policy that runs elsewhere is asked whether it is there


@dataclass(frozen=True)
class WorkerSpec:
    """What to run.

    Attributes:
        backend: `module:function` of the load function.
        checkpoint, robot: paths.
        options: for the load function.
        interpreter: Python to run; empty: this one.
        environment: variables on top of the few that are passed on.
        load_timeout, inference_timeout: s; longer is a hang, except while a backend waits within time-outs of its own.
        restarts: failures in a row (no answer in between) after which it is given up.
        backoff: s before the first restart; doubles up to `longest_backoff`.
    """

    backend: str
    checkpoint: Path
    robot: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    interpreter: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    load_timeout: float = 180.0
    inference_timeout: float = 5.0
    restarts: int = 5
    backoff: float = 0.5
    longest_backoff: float = 10.0


class _Failure(VlaError):
    """Why a worker process is of no more use."""


class Worker:
    """A policy in a process of its own.

    Args:
        image_shapes: camera -> (height, width); the place that shared memory keeps for it, and unless `exact` is off
            the size of every image.
        on_event: called on the worker's thread.

    Attributes:
        health: of the server, where the policy runs elsewhere.
        no_paths: why it cannot be said where chunks lead the tool; empty: it can.
        restarts: of the process.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        image_shapes: Mapping[str, tuple[int, int]],
        on_event: Callable[[Event], None],
        exact: bool = True,
    ):
        self.spec = spec
        self.restarts = 0
        self.health, self.no_paths = Health(), ""
        self._on_event = on_event
        self._images = SharedImages(image_shapes, exact)
        self._channel = Channel()
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the process; None: there is none now."""
        return self._process.pid if self._process is not None else None

    @property
    def busy(self) -> bool:
        """An inference is under way."""
        return self._channel.inferring

    def start(self) -> None:
        """Begins to load. `Ready` or `Down` follows."""
        self._thread.start()

    def infer(self, observation: Observation, prefix: Trajectory | None = None, path: bool = False) -> int:
        """Asks for a chunk; returns the id that the answer will carry. Copies the images, then comes back at once.

        Args:
            path: also where the chunk leads the tool; the answer comes a little later then.

        Raises:
            InferenceError: when an inference is under way, an image does not have the size that was announced, or the
                observation cannot be sent.
        """
        if self.busy:
            raise InferenceError("an inference is under way; wait for its answer")
        images = self._put(observation)
        earlier = [
            {**wire.state_map(one), "images": self._put(one, len(observation.earlier) - k)}
            for k, one in enumerate(observation.earlier)
        ]
        request = {
            "do": "infer",
            **wire.state_map(observation),
            "images": images,
            "earlier": earlier,
            "instruction": observation.instruction,
            "extras": dict(observation.extras),
            "prefix": wire.trajectory_map(prefix),
            "path": path,
        }
        try:
            return self._channel.ask(request)
        except wire.WireError as error:
            raise InferenceError(f"the observation {error}") from error

    def _put(self, observation: Observation, ago: int = 0) -> dict[str, Place]:
        return {name: self._images.put(name, image, ago) for name, image in observation.images.items()}

    def expect(self, camera: str, image: NDArray[np.uint8]) -> None:
        """Copies an image that the next inference will most likely hold, while others are still on their way.

        Raises:
            InferenceError: as `infer`.
        """
        if self.busy:
            raise InferenceError("an inference is under way; its images must stay")
        self._images.put(camera, image)

    def reset(self) -> None:
        """A new task begins; takes effect before the next inference."""
        self._channel.ask({"do": "reset"})

    def close(self) -> None:
        """Ends process and thread, and frees what they share."""
        self._closed.set()
        self._channel.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._free()

    def _free(self) -> None:
        self._channel.close()
        self._images.close()

    # -- on the worker's thread

    def _run(self) -> None:
        try:
            self._live()
        finally:
            if self._closed.is_set():
                self._free()  # `close` may have waited in vain

    def _live(self) -> None:
        failures, loaded = 0, False
        while not self._closed.is_set():
            try:
                # Whoever asks between two processes is told that it is down.
                with self._spawn() as connection, self._channel.over(connection, self._load_request()):
                    ready = self._load()
                    loaded = True
                    self._on_event(ready)
                    if self.health.server:
                        self._channel.ask({"do": "check"})  # also warms it up
                    while not self._closed.is_set():
                        failures *= not self._serve()
                return
            except Exception as error:
                # Nothing may end this thread without a word, a mistake of ours least of all.
                failures += 1
                # What could be loaded once is no mistake of the files: the GPU of a process that was killed may not
                # be free yet. What never could does not get better by trying again.
                expected = isinstance(error, VlaError | OSError) and (loaded or not isinstance(error, ConfigError))
                last = not expected or failures > self.spec.restarts
                wait = min(self.spec.longest_backoff, self.spec.backoff * 2 ** (failures - 1))
                reason = self._reason(error)
                self._end()
                if self._closed.is_set():
                    return
                self._on_event(Down(reason, None if last else wait))
                if last:
                    return
                self.restarts += 1
                self._sleep(wait)
            finally:
                self._end()

    def _spawn(self) -> socket.socket:
        interpreter = self.spec.interpreter or sys.executable
        if shutil.which(interpreter) is None:
            raise ConfigError(
                f"interpreter '{interpreter}' does not exist or is not executable; correct the policy file"
            )
        ours, theirs = socket.socketpair()
        environment = worker_environment(own_interpreter=not self.spec.interpreter) | dict(self.spec.environment)
        command = [interpreter, str(Path(__file__).with_name("child.py"))]
        command += ["--socket", str(theirs.fileno()), "--memory", str(self._images.fd), "--parent", str(os.getpid())]
        for name, folder in package_folders().items():
            command += ["--package", f"{name}={folder}"]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), self._images.fd),
                env=environment,
            )
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=_forward, args=(self._process.stderr, self._lines), daemon=True)
        self._reader.start()
        return ours

    def _load_request(self) -> bytes:
        request = {
            "do": "load",
            "id": 0,
            "backend": self.spec.backend,
            "checkpoint": str(self.spec.checkpoint),
            "robot": str(self.spec.robot),
            "options": dict(self.spec.options),
        }
        try:
            return wire.pack(request)
        except wire.WireError as error:
            raise ConfigError(f"options of backend '{self.spec.backend}': the request {error}") from error

    def _load(self) -> Ready:
        answer = self._answer(0, self.spec.load_timeout, "loading")
        if "error" in answer:
            raise ConfigError(with_trace(answer))
        self.health.begin(answer)
        self.no_paths = str(answer.get("no_paths", ""))
        try:
            metadata = PolicyMetadata.model_validate(answer["metadata"])
            return Ready(metadata, answer["seconds"], gpu_memory_of(answer))
        except ValidationError as error:
            raise ConfigError(f"backend '{self.spec.backend}' states malformed metadata: {error}") from error

    def _serve(self) -> bool:
        """Answers, or news from the process. True: it gave an answer."""
        asked = self._channel.asked
        heard, quiet = self._channel.wait(_CHECK if self.health.server else None)
        if heard and not asked:
            self._answer(-1, 0.1, "waiting")  # nothing was asked: it can only have ended
        if quiet:
            self._channel.ask({"do": "check"})
        answered = False
        while asked and not self._closed.is_set():
            identifier, what = asked.popleft()
            with self.health.waiting():
                limit = self.health.hang(self.spec.inference_timeout)
                answer = self._answer(identifier, limit, "inference" if what == "infer" else what)
            outage = bool(answer.get("unavailable"))
            if what != "reset":
                self.health.heard(answer["error"] if outage else "", what == "infer")
            if what == "infer":
                self._channel.inferring = False
                self._on_event(event_of(identifier, answer))
                answered = "error" not in answer
            elif "error" in answer and not outage:
                raise _Failure(f"{what}: {with_trace(answer)}")
        return answered

    def _answer(self, identifier: int, timeout: float, during: str) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                answer = self._channel.receive(max(0.0, left))
            except EOFError:
                raise _Failure(f"worker ended during {during}") from None
            if self._closed.is_set():
                raise _Failure("closing")
            if answer is not None:
                if answer.get("id") == identifier:
                    return answer
                raise _Failure(f"worker answered {answer.get('id')} when asked {identifier}")
            if left <= 0:
                raise _Failure(f"worker hangs: no answer for {timeout:g} s during {during}")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ConfigError):
            return str(error)
        if not isinstance(error, VlaError | OSError):
            return f"the node's side failed: {''.join(traceback.format_exception(error))}"
        process = self._process
        if process is None:
            return str(error)
        try:
            code: int | None = process.wait(timeout=1.0 if "ended" in str(error) or isinstance(error, OSError) else 0.0)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            return str(error)
        self._reader.join(timeout=1.0)
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        tail = "; last words: " + " | ".join(self._lines) if self._lines else ""
        return f"{error} ({how}){tail}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stderr is not None:
            self._reader.join(timeout=1.0)

    def _sleep(self, duration: float) -> None:
        deadline = time.monotonic() + duration
        while not self._closed.is_set() and (left := deadline - time.monotonic()) > 0:
            self._channel.wait(left)


def _forward(stream: Any, lines: "deque[str]") -> None:
    """Passes the worker's words on to the node's log and keeps the last ones."""
    with stream:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            print(f"[worker] {line}", file=sys.stderr, flush=True)
