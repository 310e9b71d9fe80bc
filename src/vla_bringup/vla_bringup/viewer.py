"""`vla_viewer`: a live window on the simulated cell. It mirrors joint states and ground truth; it changes nothing."""

import sys

import mujoco
import mujoco.viewer
import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from vla_msgs.msg import SceneState

from vla_contract.errors import VlaError
from vla_contract.robot import load_robot
from vla_node_base.qos import SENSOR
from vla_sim.core.cell import Cell

RATE = 30.0  # Hz


class Mirror(Node):
    """Keeps the newest state of the cell."""

    def __init__(self) -> None:
        super().__init__("vla_viewer")
        self.robot = load_robot(str(self.declare_parameter("robot", "").value))
        self.cell = Cell(self.robot)
        self._positions = np.array(self.robot.home)
        self._objects: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.create_subscription(JointState, self.robot.joint_states.topic, self._on_joints, SENSOR)
        self.create_subscription(SceneState, "/vla_sim/ground_truth", self._on_scene, SENSOR)

    def _on_joints(self, message: JointState) -> None:
        by_name = dict(zip(message.name, message.position, strict=False))
        if all(joint in by_name for joint in self.robot.joints):
            self._positions = np.array([by_name[joint] for joint in self.robot.joints])

    def _on_scene(self, message: SceneState) -> None:
        for item in message.objects:
            p, q = item.pose.position, item.pose.orientation
            self._objects[item.name] = (np.array([p.x, p.y, p.z]), np.array([q.w, q.x, q.y, q.z]))

    def show(self) -> None:
        """Brings the drawn cell up to the newest state."""
        self.cell.pose(self._positions, self._objects)


def main() -> None:
    rclpy.init()
    try:
        mirror = Mirror()
        with mujoco.viewer.launch_passive(
            mirror.cell.model, mirror.cell.data, show_left_ui=False, show_right_ui=False
        ) as window:

            def draw() -> None:
                mirror.show()
                window.sync()

            mirror.create_timer(1 / RATE, draw)
            while rclpy.ok() and window.is_running():
                rclpy.spin_once(mirror, timeout_sec=0.1)
    except VlaError as error:
        sys.exit(f"vla_viewer: {error}")
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
