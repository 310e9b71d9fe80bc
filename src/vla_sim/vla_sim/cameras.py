"""Draws and publishes the cameras in a thread of its own, so that drawing never delays control.

The thread owns the OpenGL context and a copy of the physics state. MuJoCo lets go of Python's lock while it draws.
"""

import array
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mujoco
import numpy as np
from numpy.typing import NDArray
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image

from vla_contract.errors import VlaError
from vla_contract.robot import Camera
from vla_node_base.conversions import image_msg, time_msg
from vla_node_base.qos import SENSOR
from vla_sim.core.cell import Cell
from vla_sim.core.pacing import Schedule
from vla_sim.core.rendering import SceneRenderer

_NICENESS = 5  # of the drawing thread; control goes first
_LONGEST_QUEUE = 4  # pictures; older ones are dropped when the machine cannot keep up
_TIMEOUT = 20.0  # s


@dataclass(frozen=True)
class _Order:
    camera: str
    stamp_ns: int
    state: NDArray[np.float64]


def quiet_publisher(node: Node) -> Callable[..., Publisher]:
    """`create_publisher` without QoS events: the executor would look at two more entities per publisher in every
    cycle, and the subscriber's side reports an incompatible profile anyway."""
    return partial(node.create_publisher, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False))


class CameraThread:
    """Pictures of all cameras of the robot file, on their topics.

    Raises (from `start`):
        RenderingUnavailable: when this machine cannot draw.
    """

    def __init__(self, node: Node, cell: Cell):
        self._cell = cell
        self._cameras = dict(cell.robot.cameras)
        self._schedules = {name: Schedule(camera.rate) for name, camera in self._cameras.items()}
        publisher = quiet_publisher(node)
        self._images = {name: publisher(Image, camera.topic, SENSOR) for name, camera in self._cameras.items()}
        self._infos = {name: publisher(CameraInfo, camera.info_topic, SENSOR) for name, camera in self._cameras.items()}
        self._templates = {name: self._info(name, camera) for name, camera in self._cameras.items()}
        self._numbers = {name: cell.camera_id(name) for name in self._cameras}
        self._data = mujoco.MjData(cell.model)
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._ending = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self.drawn = 0
        self.dropped = 0
        self.seconds = 0.0  # spent drawing and publishing

    def start(self) -> None:
        """Starts the thread and waits until it can draw."""
        # Mesa's software renderer draws small pictures faster without threads of its own to wait for (p95 of 224x224 on
        # two busy cores: 19 ms instead of 62 ms), and in this thread's low priority.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="cameras", daemon=True)
        self._thread.start()
        if not started.wait(_TIMEOUT):
            raise VlaError(f"OpenGL did not start within {_TIMEOUT:.0f} s; see the drivers' messages above")
        self._check()

    def stop(self) -> None:
        """Ends the thread; pictures that wait are dropped."""
        with self._changed:
            self._ending = True
            self._orders.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_TIMEOUT)
            self._thread = None

    def next_ns(self) -> int:
        """Simulated time of the next picture."""
        return min(schedule.next_ns() for schedule in self._schedules.values())

    def capture(self) -> None:
        """Orders the pictures that are due at the cell's time."""
        self._check()
        due = [name for name, schedule in self._schedules.items() if schedule.due(self._cell.time_ns)]
        if not due:
            return
        state = self._cell.save_state()
        with self._changed:
            self._orders.extend(_Order(name, self._cell.time_ns, state) for name in due)
            while len(self._orders) > max(_LONGEST_QUEUE, len(due)):
                self._orders.popleft()
                self.dropped += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Waits until every picture that was ordered is published."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._error or not (self._orders or self._busy), _TIMEOUT)
        self._check()
        if not done:
            raise VlaError(f"a picture took more than {_TIMEOUT:.0f} s")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, started: threading.Event) -> None:
        renderer = None
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            renderer = SceneRenderer(self._cell.model)
            started.set()
            while (order := self._next()) is not None:
                self._draw(renderer, order)
        except Exception as error:  # handed to the thread that uses this object
            with self._changed:
                self._error = error
                self._busy = False
                self._changed.notify_all()
        finally:
            started.set()
            if renderer is not None:
                renderer.close()

    def _next(self) -> _Order | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ending or self._orders)
            if self._ending:
                return None
            self._busy = True
            return self._orders.popleft()

    def _draw(self, renderer: SceneRenderer, order: _Order) -> None:
        began = time.monotonic()
        model, data, camera = self._cell.model, self._data, self._cameras[order.camera]
        mujoco.mj_setState(model, data, order.state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        pixels = renderer.render(data, self._numbers[order.camera], camera.width, camera.height)
        info = self._templates[order.camera]
        info.header.stamp = time_msg(order.stamp_ns)
        self._images[order.camera].publish(image_msg(pixels, camera.frame, order.stamp_ns))
        self._infos[order.camera].publish(info)
        self.drawn += 1
        self.seconds += time.monotonic() - began

    def _info(self, name: str, camera: Camera) -> CameraInfo:
        """A pinhole without distortion."""
        matrix = self._cell.intrinsics(name, camera.width, camera.height)
        info = CameraInfo(height=camera.height, width=camera.width, distortion_model="plumb_bob")
        info.header.frame_id = camera.frame
        info.d = array.array("d", [0.0] * 5)
        info.k = matrix.ravel()
        info.r = np.eye(3).ravel()
        info.p = np.hstack([matrix, np.zeros((3, 1))]).ravel()
        return info
