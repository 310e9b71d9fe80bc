"""Lockstep with a simulator: its clock waits until every participant has done what was due.

A policy that needs 300 ms on a busy laptop then behaves as it would on a machine that needs none of that time, so an
evaluation depends on seed and policy, not on what else the machine does.
"""

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from vla_msgs.msg import LockstepAck

from vla_node_base.conversions import time_msg

ACK_TOPIC = "/vla_sim/lockstep_ack"
ACK_QOS = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)


class Lockstep:
    """Acknowledges times to the simulator. When not `enabled` it does nothing."""

    def __init__(self, node: Node, enabled: bool):
        self._name = node.get_name()
        self._publisher = node.create_publisher(LockstepAck, ACK_TOPIC, ACK_QOS) if enabled else None
        self._acknowledged = -1

    def acknowledge(self, stamp_ns: int) -> None:
        """Everything that was due up to `stamp_ns` is done."""
        if self._publisher is not None and stamp_ns > self._acknowledged:
            self._acknowledged = stamp_ns
            self._publisher.publish(LockstepAck(participant=self._name, stamp=time_msg(stamp_ns)))
