"""The way alone: what images, a chunk and a command take through three processes that compute nothing.

    python -m vla_bringup.latency.bare ROLE ROBOT_FILE SECONDS

The same messages, topics, quality of service and transport as in the system under test, but every message is taken as
bytes, and what is sent lies ready. No chain of rclpy nodes is faster on the machine at hand, so P1 is read against it.
"""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.msg import ActionChunk

from vla_bringup.latency.graphs import BenchError, Graph, surroundings, write_files
from vla_bringup.latency.world import PICTURES, end_with_parent, pictures
from vla_contract.chunk import ActionChunk as Chunk
from vla_contract.interpolation import Trajectory
from vla_contract.robot import Robot, load_robot
from vla_node_base.conversions import NS, time_msg, trajectory_msg
from vla_node_base.node import spinner
from vla_node_base.qos import COMMAND, SENSOR
from vla_node_base.serialized import chunk_bytes

_CHUNK, _COMMAND = 32, 12  # points of a usual message
_SETTLE = 1.0  # s that are not counted
_PATIENCE = 60.0  # s until the first command
_CHUNK_TOPIC = "vla_policy/chunk"
_STAMP = slice(4, 12)  # where a serialised message that begins with a header has its stamp


def run_bare(graph: Graph, robot: Path, folder: Path) -> list[float]:
    """ms from the images' stamp to the command's arrival, one for each time that all cameras were filmed.

    Raises:
        BenchError: when no command comes.
        ConfigError: when the robot file is wrong.
    """
    seconds = sum(phase.seconds for phase in graph.phases)
    file, _ = write_files(graph, robot, 1.0, folder)
    log = folder / "bare.log"
    with ExitStack() as stack:
        environment = stack.enter_context(surroundings(graph, folder))
        words = stack.enter_context(log.open("wb"))

        def start(role: str) -> "subprocess.Popen[str]":
            # Left, it closes what the process reads, and waits: see `end_with_parent`.
            return stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", __name__, role, str(file), str(seconds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    text=True,
                    env={**os.environ, **environment},
                )
            )

        for role in ("policy", "filter"):
            start(role)
        cameras = start("cameras")
        assert cameras.stdout is not None
        said = cameras.stdout.read()  # until it ends, which it does by itself
    if not said.strip():
        raise BenchError(f"the way alone could not be measured; see {log}")
    return [float(value) for value in json.loads(said)]


def _cameras(node: Node, robot: Robot, seconds: float) -> None:
    """Both ends of the way; prints what it took each time."""
    found: list[tuple[int, int]] = []
    sent, end = 0, time.monotonic() + _PATIENCE
    shown = [
        (node.create_publisher(Image, camera.topic, SENSOR), pictures(camera, seed))
        for seed, camera in enumerate(robot.cameras.values())
    ]

    def film() -> None:
        nonlocal sent
        stamp = time_msg(time.time_ns())
        for publisher, each in shown:
            picture = each[sent % PICTURES]
            picture.header.stamp = stamp
            publisher.publish(picture)
        sent += 1

    def take(data: bytes, info: Any) -> None:
        nonlocal end
        if not found:
            end = time.monotonic() + _SETTLE + seconds
        sec, nanosec = struct.unpack("<iI", data[_STAMP])
        stamp = sec * NS + nanosec
        found.append((stamp, info["received_timestamp"] - stamp))

    node.create_subscription(JointTrajectory, robot.controller.topic, take, COMMAND, raw=True)
    rate = max(camera.rate for camera in robot.cameras.values())
    node.create_timer(1 / rate, film, clock=Clock(clock_type=ClockType.STEADY_TIME))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while (left := end - time.monotonic()) > 0:
        executor.spin_once(timeout_sec=min(left, 0.1))
    if found:
        settled = found[0][0] + round(_SETTLE * NS)
        print(json.dumps([took * 1e-6 for stamp, took in found if stamp >= settled]), flush=True)


def _policy(node: Node, robot: Robot) -> None:
    """A chunk as soon as all cameras have shown the same instant."""
    ready = bytearray(chunk_bytes(Chunk(0, robot.joints, _still(robot, _CHUNK)), robot.base_frame))
    publisher = node.create_publisher(ActionChunk, _CHUNK_TOPIC, COMMAND)
    newest: dict[str, bytes] = {}

    def take(camera: str, data: bytes) -> None:
        newest[camera] = data[_STAMP]
        if len(newest) == len(robot.cameras) and len(set(newest.values())) == 1:
            ready[_STAMP] = data[_STAMP]
            publisher.publish(bytes(ready))

    for name, camera in robot.cameras.items():
        node.create_subscription(Image, camera.topic, lambda data, name=name: take(name, data), SENSOR, raw=True)
    _spin(node)


def _filter(node: Node, robot: Robot) -> None:
    """A command for every chunk."""
    ready = bytearray(serialize_message(trajectory_msg(_still(robot, _COMMAND), robot.joints)))
    publisher = node.create_publisher(JointTrajectory, robot.controller.topic, COMMAND)

    def take(data: bytes) -> None:
        ready[_STAMP] = data[_STAMP]
        publisher.publish(bytes(ready))

    node.create_subscription(ActionChunk, _CHUNK_TOPIC, take, COMMAND, raw=True)
    _spin(node)


def _still(robot: Robot, points: int) -> Trajectory:
    home = np.tile(np.array(robot.home), (points, 1))
    return Trajectory(0.05 * np.arange(1, points + 1), home, np.zeros_like(home), np.zeros_like(home))


def _spin(node: Node) -> None:
    spin_some: Callable[[], None] = spinner(node, events=True)
    while True:
        spin_some()


def main() -> None:
    """The command line."""
    role, robot, seconds = sys.argv[1], load_robot(sys.argv[2]), float(sys.argv[3])
    end_with_parent()
    rclpy.init()
    node = rclpy.create_node(f"bare_{role}", enable_rosout=False, start_parameter_services=False)
    if role == "cameras":
        _cameras(node, robot, seconds)
    else:
        {"policy": _policy, "filter": _filter}[role](node, robot)


if __name__ == "__main__":
    main()
