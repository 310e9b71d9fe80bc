"""Two processes that measure whether images arrive: `python -m vla_system_tests.images publish|subscribe`.

DDS discovery ends at different moments on the two sides, so the publisher sends warm-up images until the subscriber
says that it sees both cameras; only then it sends the `--frames` images per camera that count, and stays until the
subscriber is gone. The subscriber prints one JSON object: frames per camera, and delays from stamp to callback.
"""

import argparse
import json
import time

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Empty

from vla_node_base.conversions import image_msg, to_ns
from vla_node_base.qos import LATCHED, SENSOR

CAMERAS = ("front", "wrist")
WIDTH, HEIGHT = 640, 480
WARM_UP, COUNTED = "warm_up", "counted"  # in the frame of an image's header
READY = "/image_subscriber/ready"
PATIENCE = 30.0  # s for the other process to appear
SILENCE = 2.0  # s without an image after which the stream is over


def topic(camera: str) -> str:
    """Where a camera publishes."""
    return f"/camera/{camera}/image_raw"


def publish(frames: int, rate: float) -> None:
    """Sends `frames` random images per camera once the subscriber is ready; ends when it has gone."""
    node = Node("image_publisher")
    publishers = {camera: node.create_publisher(Image, topic(camera), SENSOR) for camera in CAMERAS}
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    ready, sent = False, 0

    def start(message: Empty) -> None:
        nonlocal ready
        ready = True

    def tick() -> None:
        nonlocal sent
        if sent < frames:
            for publisher in publishers.values():
                publisher.publish(image_msg(pixels, COUNTED if ready else WARM_UP, time.time_ns()))
            sent += ready

    node.create_subscription(Empty, READY, start, LATCHED)
    node.create_timer(1 / rate, tick)
    deadline = time.monotonic() + PATIENCE
    while not ready and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    while ready and (sent < frames or any(p.get_subscription_count() for p in publishers.values())):
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()


def subscribe(frames: int) -> None:
    """Counts images until all have come, or none for a while; prints the counts and delays."""
    node = Node("image_subscriber")
    ready = node.create_publisher(Empty, READY, LATCHED)
    delays: dict[str, list[float]] = {camera: [] for camera in CAMERAS}
    seen: set[str] = set()
    last = time.monotonic() + PATIENCE

    def receive(camera: str, message: Image) -> None:
        nonlocal last
        last = time.monotonic()
        if message.header.frame_id == COUNTED:
            delays[camera].append((time.time_ns() - to_ns(message.header.stamp)) * 1e-6)
        elif camera not in seen:
            seen.add(camera)
            if len(seen) == len(CAMERAS):
                ready.publish(Empty())

    for camera in CAMERAS:
        node.create_subscription(Image, topic(camera), lambda m, camera=camera: receive(camera, m), SENSOR)
    while any(len(d) < frames for d in delays.values()) and time.monotonic() - last < SILENCE:
        rclpy.spin_once(node, timeout_sec=0.1)
    merged = np.array([d for camera in delays.values() for d in camera])
    percentiles = {f"p{p}_ms": float(np.percentile(merged, p)) for p in (50, 99)} if len(merged) else {}
    print(json.dumps({"received": {camera: len(d) for camera, d in delays.items()}, **percentiles}), flush=True)
    node.destroy_node()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["publish", "subscribe"])
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--rate", type=float, default=30.0)
    options = parser.parse_args()
    rclpy.init()
    try:
        if options.role == "publish":
            publish(options.frames, options.rate)
        else:
            subscribe(options.frames)
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
