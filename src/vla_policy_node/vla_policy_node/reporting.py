"""What the node tells people: status, diagnostics, and what it is about to do."""

import math
import time
from collections import defaultdict

import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from rclpy.node import Node
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray
from vla_msgs.msg import PolicyStatus, ReasoningTrace

from vla_node_base.conversions import duration_msg, time_msg
from vla_node_base.diagnostics import ERROR, OK, WARN, Diagnostics
from vla_node_base.qos import EVENT, LATCHED
from vla_policy_node.core.scheduling import Splice
from vla_policy_node.core.statistics import Arrivals
from vla_policy_node.core.task import Task
from vla_policy_node.runtime import Runtime, State

# Half a tick of the node less than what is promised: it is asked at every tick, which comes a little early or late.
_STATUS_PERIOD = 0.475  # s
_REASON_PERIOD = 0.1  # s; a reason holds figures that change all the time
_DIAGNOSTICS_PERIOD = 0.975  # s
_LINE = 0.006  # m, width of a drawn path
_LIFETIME = 2.0  # s
_SHOWN = (
    "policy", "chunks", "chunk_rate", "inference_p50", "inference_p95", "inference_p99", "queue", "starved",
    "splice_step", "worker_restarts",
)  # fmt: skip


class Reporter:
    """Publishes `vla_policy/status`, `vla_policy/reasoning`, `vla_policy/markers` and `/diagnostics`.

    Attributes:
        splice: the newest one of the running task.
        images: camera -> its images as they arrived.
        subtask: what a planner wants done now; empty: the whole task.
    """

    def __init__(self, node: Node):
        self.splice: Splice | None = None
        self.subtask = ""
        self.images: defaultdict[str, Arrivals] = defaultdict(Arrivals)
        self._source = node.get_name()
        self._status = node.create_publisher(PolicyStatus, "vla_policy/status", LATCHED)
        self._trace = node.create_publisher(ReasoningTrace, "vla_policy/reasoning", EVENT)
        self._markers = node.create_publisher(MarkerArray, "vla_policy/markers", LATCHED)
        self._diagnostics = Diagnostics(node)
        self._phase = "", ""  # of a task, its figures left out
        self._no_paths, self._missed = "", False
        self._log = node.get_logger()
        self._said: tuple[State, str] = (State.UNCONFIGURED, "")
        self._last = self._last_diagnostics = -math.inf

    def judge(self, runtime: Runtime, task: Task | None, missing: str) -> tuple[State, str]:
        """The state to report, and why; `missing`: the stream that a due inference waits for."""
        if not runtime.usable:
            return runtime.state, runtime.reason
        if waits := (missing if task is not None else "") or runtime.worker.health.trouble:
            return State.WAITING, f"waiting for {waits}"
        return (State.RUNNING, self.shortened) if task is not None else (State.READY, "")

    def report(self, runtime: Runtime, task: Task | None, now_ns: int, state: State, reason: str) -> bool:
        """Publishes if it is time to, or something has changed; says whether it did."""
        since = time.monotonic() - self._last
        news = state != self._said[0] or (reason != self._said[1] and since >= _REASON_PERIOD)
        if not news and since < _STATUS_PERIOD:
            return False
        self._said, self._last = (state, reason), time.monotonic()
        self._no_paths = runtime.worker.no_paths
        message = self._message(runtime, task, now_ns, state, reason)
        self._status.publish(message)
        if time.monotonic() - self._last_diagnostics >= _DIAGNOSTICS_PERIOD:
            self._last_diagnostics = time.monotonic()
            self._diagnose(runtime, task, state, message)
        return True

    def enter(self, task: Task, phase: str, now_ns: int) -> None:
        """Traces a phase of the task when it begins. Its figures may change all the time: they make no new one."""
        words = task.id, "".join(letter for letter in phase if not letter.isdigit())
        if words != self._phase:
            self._phase = words
            self.think(task, phase, now_ns)

    def think(self, task: Task, text: str, now_ns: int) -> None:
        """Traces what the node means to do."""
        trace = ReasoningTrace(
            source=self._source,
            task_id=task.id,
            instruction=task.instruction,
            subtask=self.subtask,
            text=text,
            confidence=math.nan,
        )
        trace.header.stamp = time_msg(now_ns)
        self._trace.publish(trace)

    @property
    def shortened(self) -> str:
        """Why the newest chunk ends before the policy wanted it to; empty: it does not."""
        return self.splice.chunk.shortened if self.splice else ""

    @property
    def watched(self) -> bool:
        """Whether somebody looks at where chunks lead the tool."""
        return bool(self._markers.get_subscription_count())

    def show(self, path: NDArray[np.float64] | None, frame: str, now_ns: int) -> None:
        """Draws where the newest chunk leads the tool: (K, 3) m in `frame`."""
        if path is None:
            if self._no_paths and self.watched and not self._missed:
                self._missed = True
                self._log.warning(f"vla_policy/markers stay empty: paths cannot be drawn: {self._no_paths}")
            return
        marker = Marker(ns="chunk", type=Marker.LINE_STRIP, action=Marker.ADD)
        marker.header.frame_id = frame
        marker.header.stamp = time_msg(now_ns)
        marker.pose.orientation.w = 1.0
        marker.scale.x = _LINE
        marker.color = ColorRGBA(r=0.1, g=0.6, b=1.0, a=0.9)
        marker.lifetime = duration_msg(_LIFETIME)
        marker.points = [Point(x=x, y=y, z=z) for x, y, z in path.tolist()]
        self._markers.publish(MarkerArray(markers=[marker]))

    def _message(self, runtime: Runtime, task: Task | None, now_ns: int, state: State, reason: str) -> PolicyStatus:
        ages = runtime.buffer.ages(now_ns)
        p50, p95, p99 = runtime.meter.quantiles()
        metadata = runtime.metadata
        message = PolicyStatus(
            state=int(state),
            reason=reason,
            policy=metadata.name if metadata else "",
            policy_digest=metadata.digest if metadata else "",
            task_id=task.id if task else "",
            instruction=task.instruction if task else "",
            chunks=runtime.meter.chunks,
            chunk_rate=runtime.meter.rate(now_ns),
            inference_p50=p50,
            inference_p95=p95,
            inference_p99=p99,
            queue=runtime.scheduler.queue(now_ns) if task else 0.0,
            starved=runtime.scheduler.starved,
            splice_step=self.splice.step if self.splice else math.nan,
            progress=task.progress if task else math.nan,
            streams=list(ages),
            stream_ages=list(ages.values()),
            worker_restarts=runtime.worker.restarts,
        )
        message.header.stamp = time_msg(now_ns)
        return message

    def _diagnose(self, runtime: Runtime, task: Task | None, state: State, status: PolicyStatus) -> None:
        level = {State.FAILED: ERROR, State.WAITING: WARN, State.LOADING: WARN}.get(state, OK)
        if state == State.RUNNING and self.shortened:
            level = WARN
        gpu_memory, health = runtime.gpu_memory, runtime.worker.health
        values = {key: getattr(status, key) for key in _SHOWN}
        values["subtask"] = self.subtask or "none"
        values |= {f"age of {name}": age for name, age in zip(status.streams, status.stream_ages, strict=True)}
        values["gpu_memory"] = "none used" if math.isnan(gpu_memory) else f"{gpu_memory * 1e-6:.0f} MB"
        values["paths"] = f"cannot be drawn: {self._no_paths}" if self._no_paths else "drawn while somebody looks"
        if health.server:
            values |= {"server": health.server, "server_trouble": health.trouble or "none"}
            values |= {"server_outages": health.outages, "unanswered": task.unanswered if task else 0}
        for name, arrivals in self.images.items():
            p50, p99 = arrivals.quantiles()
            values[f"images of {name}"] = arrivals.count
            values[f"image delay of {name}"] = f"p50 {1e3 * p50:.2f} ms, p99 {1e3 * p99:.2f} ms"
        if self.splice is not None:
            values |= {key: getattr(self.splice, key) for key in ("base", "mismatch", "blend", "stretch", "excess")}
            values["shortened"] = self.shortened or "no"
        self._diagnostics.publish(level, status.reason or state.name.lower(), values)
