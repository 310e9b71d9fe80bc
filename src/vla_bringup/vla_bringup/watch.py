"""What keeps the policy from working, said when it changes: a server that is away is no reason to wait in silence."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from vla_msgs.msg import PolicyStatus

from vla_bringup.operator import POLICY_STATES

_WORKING = ("READY", "RUNNING")
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Reasons:
    """Says state and reason of the policy when they are new; and that it works again. Numbers alone make nothing new:
    whoever tries to connect counts seconds.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._told: set[str] = set()

    def hear(self, status: PolicyStatus) -> None:
        """A status came."""
        state = POLICY_STATES.get(status.state, str(status.state))
        if state in _WORKING:
            if self._told:
                self._say(f"vla_policy is {state}")
            self._told.clear()
        elif status.reason:
            line = f"vla_policy is {state}: {status.reason}"
            words = _NUMBER.sub("", line)
            if words not in self._told:
                self._say(line)
            self._told.add(words)


@contextmanager
def policy_reasons(domain: int | None, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Listens to the policy's status, and to nothing else: call what it gives a few times a second.

    Args:
        domain: ROS domain; None: the environment's.
        say: gets the lines.
    """
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node("vla_operator", context=context)
    reasons = Reasons(say)
    node.create_subscription(PolicyStatus, "/vla_policy/status", reasons.hear, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield lambda: executor.spin_once(timeout_sec=0.0)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
