"""ROS in front of `core.base`: publishes the mobile base's commands, beside the arm's chunks.

The safety filter knows joints, not wheels. So the base drives only while the filter says that it is armed, and rests as
soon as it says otherwise, or says nothing.
"""

import math
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from vla_msgs.msg import SafetyState

from vla_contract.chunk import ActionChunk
from vla_contract.robot import MobileBase
from vla_node_base.conversions import time_msg
from vla_node_base.node import VlaNode
from vla_node_base.qos import COMMAND
from vla_policy_node.core.base import BaseDriver

_FRESH_NS = 500_000_000  # of the filter's state: it comes at 10 Hz, of simulated time where that is used


class Driver:
    """Publishes `geometry_msgs/TwistStamped` at the base's rate while it should move, and a zero when it rests.

    Args:
        base: None: the robot has none, nothing is published.
        clocks: the node's now, and what receipt is judged by [ns].
    """

    def __init__(self, node: VlaNode, base: MobileBase | None, clocks: tuple[Callable[[], int], Callable[[], int]]):
        self._driver = None if base is None else BaseDriver(base)
        self._now, self._watch = clocks
        self._armed_until = -math.inf
        self._silent = True
        if base is None:
            return
        self._node, self._base = node, base
        self._publisher = node.create_publisher(TwistStamped, base.topic, COMMAND)
        node.create_timer(1 / base.rate, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def watch(self, state: SafetyState) -> None:
        """The safety filter's state, just received."""
        self._armed_until = self._watch() + _FRESH_NS if state.mode == SafetyState.ARMED else -math.inf

    def take(self, chunk: ActionChunk, from_ns: int) -> None:
        """A chunk that was published, whose motion counts from `from_ns` on."""
        if self._driver is not None:
            self._driver.take(chunk.base, chunk.stamp_ns, from_ns)

    def release(self) -> None:
        """The task is over: to rest, as quickly as the limits allow."""
        if self._driver is not None:
            self._driver.release()

    def halt(self) -> None:
        """The node ends: nobody will ramp the base down any more, so it is told to stand now."""
        if self._driver is not None and not self._silent:
            self._driver.release()
            self._say(np.zeros(3))

    def _tick(self) -> None:
        assert self._driver is not None
        if self._watch() > self._armed_until:
            self._driver.release()
        twist = self._driver.command(self._now())
        if self._driver.limited:
            self._node.get_logger().warning(
                f"the policy drives the base faster than {list(self._base.max_velocity)} (m/s, m/s, rad/s): slowed",
                throttle_duration_sec=5.0,
            )
        # One zero is the last word; then the topic is somebody else's.
        if twist.any() or not self._silent:
            self._say(twist)

    def _say(self, twist: NDArray[np.float64]) -> None:
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = time_msg(self._now()), self._base.frame
        message.twist.linear.x, message.twist.linear.y, message.twist.angular.z = twist.tolist()
        self._publisher.publish(message)
        self._silent = not twist.any()
