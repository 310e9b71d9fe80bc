"""System 2 over system 1: a slow planner says what is to be done now, the fast policy does it.

A planner publishes on `vla_policy/subtask` whenever it has a new thought, at 0.2 to 10 Hz. The newest one counts, from
the next inference on; nobody ever waits for it. A planner that falls silent loses its say: the policy gets the sentence
of the whole task again. While a subtask holds, the policy's progress is that of the subtask and does not end the task.
"""

from collections.abc import Callable

from vla_msgs.msg import ReasoningTrace

from vla_node_base.conversions import NS, to_ns
from vla_node_base.node import VlaNode
from vla_node_base.qos import COMMAND
from vla_policy_node.core.task import Task
from vla_policy_node.reporting import Reporter

LONGEST = 500  # characters of a sentence


class Subtasks:
    """The slot for a planner.

    Args:
        reporter: traces what holds.
        timeout: s without a word of the planner, after which the whole task counts again; 0: never.
        clocks: the node's now, and what receipt is judged by [ns].
    """

    def __init__(
        self,
        node: VlaNode,
        reporter: Reporter,
        timeout: float,
        clocks: tuple[Callable[[], int], Callable[[], int]],
    ):
        self._node, self._reporter = node, reporter
        self._now, self._watch = clocks
        self._timeout_ns = round(timeout * NS)
        self._task: Task | None = None
        self._heard_ns = 0
        node.create_subscription(ReasoningTrace, "vla_policy/subtask", self._on_thought, COMMAND)

    def begin(self, task: Task | None) -> None:
        """Another task, or none: what was thought before does not count."""
        self._task, self._reporter.subtask = task, ""

    def sentence(self, task: Task) -> str:
        """What the policy is told now."""
        if self._timeout_ns and self._watch() - self._heard_ns > self._timeout_ns:
            self._set("", f"the planner is silent for {self._timeout_ns / NS:g} s: the whole task again")
        return self._reporter.subtask or task.instruction

    def _on_thought(self, message: ReasoningTrace) -> None:
        task, text = self._task, " ".join(message.subtask.split())
        fault = ""
        if task is None:
            fault = "no task is running"
        elif message.task_id and message.task_id != task.id:
            fault = f"it is for task {message.task_id[:40]}, running is {task.id}"
        elif (stamp := to_ns(message.header.stamp)) and stamp < task.started_ns:
            fault = "it is older than the task"
        elif len(text) > LONGEST:
            fault = f"it has {len(text)} characters, at most {LONGEST} are allowed; shorten it"
        if fault:
            name = message.source[:40] or "a planner"
            self._node.get_logger().warning(f"subtask of {name} ignored: {fault}", throttle_duration_sec=1.0)
            return
        self._heard_ns = self._watch()
        self._set(text, message.text)

    def _set(self, text: str, why: str) -> None:
        if text != self._reporter.subtask and self._task is not None:
            self._reporter.subtask = text
            default = "a planner's subtask" if text else "a planner names no subtask: the whole task"
            self._reporter.think(self._task, why or default, self._now())
