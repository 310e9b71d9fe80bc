"""The chain from streams to chunks for one robot and one policy, without ROS: buffer, worker, scheduler.

The node feeds it and publishes what comes out. Nothing here blocks; everything runs on the caller's thread, except that
the worker's events arrive on its own thread and are taken in by `take_events`.
"""

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, ConfigError, InferenceError, VlaError
from vla_contract.observation import Observation
from vla_contract.policy import PolicyMetadata
from vla_contract.robot import Robot
from vla_policy_node.config import PolicyFile
from vla_policy_node.core.observations import ObservationBuffer, StreamError
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Splice
from vla_policy_node.core.statistics import Meter
from vla_policy_node.preflight import check_policy
from vla_policy_node.worker.client import Worker
from vla_policy_node.worker.events import Answer, Down, Event, Ready, Refusal

Array = NDArray[np.float64]


class State(IntEnum):
    """As in PolicyStatus.msg."""

    UNCONFIGURED = 0
    LOADING = 1
    READY = 2
    RUNNING = 3
    WAITING = 4
    FAILED = 5


@dataclass(frozen=True)
class Pending:
    """An inference under way."""

    id: int
    stamp_ns: int
    positions: Array
    instruction: str


@dataclass(frozen=True)
class Result:
    """A chunk that came back, not yet spliced."""

    answer: Answer
    asked: Pending


class Runtime:
    """One loaded policy.

    Args:
        decode: from what the buffer keeps of an image to pixels uint8 (H, W, 3), RGB; raises VlaError.
        notify: called on the worker's thread when `take_events` has something to do.
    """

    def __init__(
        self,
        robot: Robot,
        policy: PolicyFile,
        decode: Callable[[object], NDArray[np.uint8]],
        notify: Callable[[], None],
    ):
        self.robot = robot
        self.policy = policy
        self.metadata: PolicyMetadata | None = None
        self.buffer: ObservationBuffer[object] = ObservationBuffer((), robot.joints, policy.tolerances)
        gripper = None if robot.gripper is None else robot.joints.index(robot.gripper.joint)
        self.scheduler = ChunkScheduler(robot.limits(), gripper, policy.timing)
        self.meter = Meter()
        self.state, self.reason = State.LOADING, "loading the model"
        self.gpu_memory = float("nan")  # bytes, of the worker
        self.broken = ""  # why the worker is down for good
        self.simulated = False  # there is no robot: a policy may read ground truth
        self.truth: Mapping[str, Array] = {}  # the newest, where a policy reads it: object -> (7,), see Observation
        self.pending: Pending | None = None
        self._decode, self._notify = decode, notify
        self._decoded: dict[str, tuple[object, NDArray[np.uint8]]] = {}  # camera -> the newest that was, and its pixels
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        shapes = {name: (camera.height, camera.width) for name, camera in robot.cameras.items()}
        self.worker = Worker(policy.worker(robot.path), shapes, self._on_event)
        self._sequence = 0

    def start(self) -> None:
        """Begins to load the model."""
        self.worker.start()

    def close(self) -> None:
        """Ends the worker."""
        self.worker.close()

    def _on_event(self, event: Event) -> None:
        self._events.put(event)
        self._notify()

    @property
    def usable(self) -> bool:
        """The model is loaded and its worker lives."""
        return self.state == State.READY

    def begin_task(self) -> None:
        """Forgets the last task."""
        self.pending = None
        self.scheduler.reset()
        self.worker.reset()

    def take_events(self) -> list[Result | Refusal | Down | Ready]:
        """What the worker said since the last call, with `state` and `metadata` brought up to date."""
        taken: list[Result | Refusal | Down | Ready] = []
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return taken
            if isinstance(event, Ready):
                taken.append(self._ready(event))
            elif isinstance(event, Down):
                self._down(event)
                taken.append(event)
            elif self.pending is not None and event.id == self.pending.id:
                asked, self.pending = self.pending, None
                taken.append(event if isinstance(event, Refusal) else Result(event, asked))

    def _ready(self, event: Ready) -> Ready | Down:
        try:
            check_policy(event.metadata, self.robot)
            if event.metadata.ground_truth and not self.simulated:
                raise ConfigError(
                    f"policy '{event.metadata.name}' reads the simulator's ground truth, and use_sim_time is off: this "
                    "is a robot; choose a policy that looks at its cameras"
                )
        except VlaError as error:
            down = Down(str(error), None)
            self._down(down)
            return down
        if self.metadata is None:
            self.buffer = ObservationBuffer(
                tuple(event.metadata.cameras), self.robot.joints, self.policy.tolerances, event.metadata.history
            )
        self.metadata, self.gpu_memory = event.metadata, event.gpu_memory
        self.state, self.reason = State.READY, ""
        return event

    def _down(self, event: Down) -> None:
        self.pending, self.gpu_memory = None, float("nan")
        if event.restart_in is None:
            self.state, self.reason, self.broken = State.FAILED, event.reason, event.reason
        else:
            self.state = State.LOADING
            self.reason = f"starts again in {event.restart_in:g} s: {event.reason}"

    def expect(self, camera: str, image: object, stamp_ns: int, now_ns: int) -> None:
        """Gives an image to the worker while the other cameras' are still on their way, if an inference of `stamp_ns`
        would be due: then only the last camera's is copied between the observation and its inference."""
        if not self.usable or self.pending is not None or self.worker.busy or not self.scheduler.due(now_ns, stamp_ns):
            return
        try:
            self.worker.expect(camera, self._pixels({camera: image})[camera])
        except VlaError:
            pass  # whether it matters, and what is wrong with it, shows when it is to be used

    def try_infer(self, now_ns: int, watch_ns: int, since_ns: int, instruction: str, path: bool = False) -> bool:
        """Starts the next inference if it is due and the streams make an observation of `since_ns` or later.

        Args:
            path: somebody wants to see where the chunk leads the tool.

        Raises:
            StreamError: when it is due and a stream is missing, stale, skewed, frozen or not as the robot file says.
        """
        if not self.usable or self.pending is not None or self.worker.busy:
            return False
        newest = self.buffer.newest_stamp()
        if not self.scheduler.due(now_ns, max(newest, 0)):
            return False
        paired = self.buffer.pair(now_ns, watch_ns)
        if newest < since_ns or not self.buffer.joints_reach(newest, now_ns, not self.simulated):
            return False
        pixels = self._pixels(paired.images)
        earlier = tuple(
            Observation(one.stamp_ns, self._pixels(one.images), one.positions, one.velocities, instruction)
            for one in self.buffer.earlier(paired.stamp_ns, since_ns)
        )
        observation = Observation(
            paired.stamp_ns, pixels, paired.positions, paired.velocities, instruction, self.truth, earlier
        )
        self.scheduler.begin(paired.stamp_ns)
        try:
            identifier = self.worker.infer(observation, self.scheduler.prefix(paired.stamp_ns, paired.positions), path)
        except InferenceError as error:
            raise StreamError([str(error)]) from error
        self.pending = Pending(identifier, paired.stamp_ns, paired.positions, instruction)
        return True

    def _pixels(self, images: Mapping[str, object]) -> dict[str, NDArray[np.uint8]]:
        pixels = {}
        for name, image in images.items():
            decoded = self._decoded.get(name)
            if decoded is None or decoded[0] is not image:
                try:
                    decoded = self._decoded[name] = image, self._decode(image)
                except VlaError as error:
                    raise StreamError([f"camera {name}: {error}"]) from error
            pixels[name] = decoded[1]
        return pixels

    def splice(self, result: Result, now_ns: int, reality: Reality, task_id: str, instruction: str) -> Splice:
        """The chunk to publish now, complete with names, digest and sequence.

        Raises:
            ChunkError: when it is malformed, or its time has passed.
        """
        assert self.metadata is not None
        chunk = result.answer.chunk
        if chunk.stamp_ns != result.asked.stamp_ns:
            raise ChunkError(f"chunk is stamped {chunk.stamp_ns}, its observation {result.asked.stamp_ns}")
        self.meter.inferred(result.answer.seconds)
        self.gpu_memory = result.answer.gpu_memory
        spliced = self.scheduler.splice(chunk, result.asked.positions, now_ns, reality)
        self._sequence += 1
        complete = replace(
            spliced.chunk,
            sequence=self._sequence,
            policy=self.metadata.name,
            policy_digest=self.metadata.digest,
            task_id=task_id,
            instruction=instruction,
            inference_time=result.answer.seconds,
        )
        self.meter.published(now_ns)
        return replace(spliced, chunk=complete)

    def stop(self, now_ns: int, reality: Reality, task_id: str, instruction: str) -> ActionChunk | None:
        """A chunk that leads to rest as soon as the bounds allow; None: nothing moves.

        Raises:
            VlaError: when there is no such motion.
        """
        motion = self.scheduler.stop(now_ns, reality)
        if motion is None or self.metadata is None:
            return None
        self._sequence += 1
        return ActionChunk(
            stamp_ns=self.scheduler.observed_ns,
            joint_names=self.robot.joints,
            trajectory=motion,
            sequence=self._sequence,
            policy=self.metadata.name,
            policy_digest=self.metadata.digest,
            task_id=task_id,
            instruction=instruction,
        )
