"""ROS in front of the observation buffer: subscribes to the cameras that a policy names, and looks at what comes."""

import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from sensor_msgs.msg import Image

from vla_contract.errors import VlaError
from vla_node_base.conversions import NS
from vla_node_base.node import VlaNode
from vla_node_base.qos import SENSOR
from vla_node_base.serialized import ImageBytes, image_from_bytes
from vla_policy_node.core.statistics import Arrivals
from vla_policy_node.preflight import ImageFormat, image_misfits
from vla_policy_node.runtime import Runtime

_FINGERPRINT = 257  # every so many bytes of a picture tell whether it changed


class Cameras:
    """Puts images into the runtime's buffer; those that are not as the robot file says are refused there, by name.

    Args:
        names: of the robot file's cameras.
        arrivals: camera -> where its delays are counted.
        clocks: the node's now, and what receipt is judged by [ns].
        arrived: called with camera and image when one is in the buffer.
    """

    def __init__(
        self,
        node: VlaNode,
        runtime: Runtime,
        names: Iterable[str],
        arrivals: Mapping[str, Arrivals],
        clocks: tuple[Callable[[], int], Callable[[], int]],
        arrived: Callable[[str, ImageBytes], None],
    ):
        self._runtime, self._arrivals, self._arrived = runtime, arrivals, arrived
        self._now, self._watch = clocks
        self._formats: dict[str, ImageFormat] = {}
        for name in names:
            # As bytes: nothing is made of a picture that no inference looks at.
            node.create_subscription(
                Image, runtime.robot.cameras[name].topic, lambda data, n=name: self._take(n, data), SENSOR, raw=True
            )

    def _take(self, camera: str, data: bytes) -> None:
        buffer = self._runtime.buffer
        try:
            image = image_from_bytes(data)
        except VlaError as error:
            buffer.refuse_images(camera, f"camera {camera}: {error}")
            self._formats.pop(camera, None)
            return
        found = ImageFormat(image.width, image.height, image.encoding, image.frame_id)
        if found != self._formats.get(camera):
            misfits = image_misfits(self._runtime.robot, camera, found)
            buffer.refuse_images(camera, "; ".join(misfits))
            self._formats[camera] = found
        self._arrivals[camera].came((self._now() - image.stamp_ns) / NS)
        sample = np.frombuffer(image.data, dtype=np.uint8)[::_FINGERPRINT].tobytes()
        buffer.add_image(camera, image.stamp_ns, self._watch(), image, zlib.crc32(sample))
        self._arrived(camera, image)
