"""`vla_wait_for_filter`: ends with status 0 as soon as the safety filter tells its state, with 3 when it does not."""

import sys

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from vla_msgs.msg import SafetyState

STATE_TOPIC = "/vla_safety/state"
NOT_READY = 3


def main() -> None:
    rclpy.init()
    node = Node("vla_wait_for_filter")
    timeout = float(node.declare_parameter("timeout", 30.0).value)
    latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    future: rclpy.Future = rclpy.Future()
    node.create_subscription(SafetyState, STATE_TOPIC, lambda m: future.done() or future.set_result(m), latched)
    try:
        rclpy.spin_until_future_complete(node, future, timeout_sec=timeout)
    except KeyboardInterrupt:
        pass
    up = future.done()
    if not up:
        node.get_logger().error(
            f"the safety filter did not tell its state on {STATE_TOPIC} within {timeout:g} s: "
            "nothing else starts; see its log"
        )
    node.destroy_node()
    rclpy.try_shutdown()
    sys.exit(0 if up else NOT_READY)
