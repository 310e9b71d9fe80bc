"""Images as they come from the middleware: what is none is refused by name, until one comes again."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CAMERAS, JOINTS
from rclpy.serialization import serialize_message

from vla_node_base.conversions import image_msg, image_view
from vla_policy_node.cameras import Cameras
from vla_policy_node.core.observations import ObservationBuffer, StreamError, Tolerances
from vla_policy_node.core.statistics import Arrivals

NOW = 10**9


@pytest.fixture
def rig(robot):
    taken, arrived = {}, []
    node = SimpleNamespace(create_subscription=lambda kind, topic, take, qos, raw: taken.update({topic: take}))
    buffer = ObservationBuffer(("front",), JOINTS, Tolerances())
    arrivals = defaultdict(Arrivals)
    runtime = SimpleNamespace(robot=robot, buffer=buffer)
    clocks = (lambda: NOW, lambda: NOW)
    Cameras(node, runtime, ["front"], arrivals, clocks, lambda camera, image: arrived.append((camera, image)))
    buffer.add_joints(NOW - 1, NOW, JOINTS, [0.0] * 3, [0.0] * 3)
    take = taken[robot.cameras["front"].topic]
    return SimpleNamespace(take=take, buffer=buffer, arrived=arrived, arrivals=arrivals)


def message(stamp, frame="front_frame"):
    pixels = np.full((*CAMERAS["front"], 3), 7, np.uint8)
    return bytes(serialize_message(image_msg(pixels, frame, stamp)))


def test_images_arrive(rig):
    rig.take(message(NOW - 2_000_000))
    ((camera, image),) = rig.arrived
    assert camera == "front" and rig.buffer.pair(NOW, NOW).images["front"] is image
    assert (image_view(image) == 7).all() and image_view(image).shape == (*CAMERAS["front"], 3)
    assert rig.arrivals["front"].count == 1 and rig.arrivals["front"].quantiles()[0] == pytest.approx(0.002)


def test_half_an_image_is_refused_until_a_whole_one_comes(rig):
    rig.take(message(NOW - 3)[:-100])
    with pytest.raises(StreamError, match="camera front: serialised image is not whole"):
        rig.buffer.pair(NOW, NOW)
    assert not rig.arrived
    rig.take(message(NOW - 2))
    assert rig.buffer.pair(NOW, NOW).stamp_ns == NOW - 2


def test_another_frame_is_refused_until_the_right_one_comes(rig):
    rig.take(message(NOW - 3, "elsewhere"))
    with pytest.raises(StreamError, match="elsewhere"):
        rig.buffer.pair(NOW, NOW)
    rig.take(message(NOW - 2))
    assert rig.buffer.pair(NOW, NOW).stamp_ns == NOW - 2
