"""One DiagnosticStatus per node on /diagnostics."""

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE


class Diagnostics:
    """Publishes the health of one node."""

    def __init__(self, node: Node):
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def publish(self, level: bytes, message: str, values: Mapping[str, object]) -> None:
        """`level` is OK, WARN, ERROR or STALE; floats are shown with six significant digits."""
        status = DiagnosticStatus(level=level, name=self._node.get_name(), message=message)
        for key, value in values.items():
            status.values.append(KeyValue(key=key, value=f"{value:.6g}" if isinstance(value, float) else str(value)))
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)
