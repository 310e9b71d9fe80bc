"""The memory that node and worker share: images pass here without being sent."""

import mmap
import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import InferenceError
from vla_contract.policy import MOST_EARLIER

Place = tuple[int, int, int]  # offset in bytes, rows, columns: of RGB pixels, one byte each


class SharedImages:
    """One place for each camera in the present, and one for each earlier observation that a policy may look back at;
    what is never written takes no memory. The node writes, the worker reads: nothing may be written while an inference
    reads.

    Args:
        shapes: camera -> (height, width).
        exact: every image has that size; else it has room for as many pixels.

    Attributes:
        fd: of the memory, for the worker to map; -1 once it is closed.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], exact: bool = True):
        self._exact = exact
        # By camera, and steps into the past.
        self._places: dict[tuple[str, int], Place] = {}
        self._views: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._lies: dict[tuple[str, int], NDArray[np.uint8]] = {}  # what was copied last
        size = (1 + MOST_EARLIER) * 3 * sum(height * width for height, width in shapes.values())
        self.fd = os.memfd_create("vla_observation")
        os.ftruncate(self.fd, size)
        memory = np.frombuffer(mmap.mmap(self.fd, size), dtype=np.uint8) if size else np.empty(0, np.uint8)
        offset = 0
        for ago in range(1 + MOST_EARLIER):
            for name, (height, width) in shapes.items():
                self._places[name, ago] = offset, height, width
                self._views[name, ago] = memory[offset : offset + 3 * height * width].reshape(height, width, 3)
                offset += 3 * height * width

    def put(self, name: str, image: NDArray[np.uint8], ago: int = 0) -> Place:
        """Where the camera's image lies now: copied there, unless this very array was the last that was.

        Args:
            ago: steps into the past, up to `MOST_EARLIER`.

        Raises:
            InferenceError: when the camera or the size (height, width, 3) was not announced, or all is closed.
        """
        if self.fd < 0:
            raise InferenceError("the memory for images is closed with its worker; make a new worker")
        key = name, ago
        if key not in self._places:
            announced = ", ".join(name for name, ago in self._places if ago == 0) or "none"
            raise InferenceError(f"camera '{name}' was not announced; announced are {announced}")
        view = self._views[key]
        if not self._exact and image.ndim == 3 and image.shape[2] == 3 and 0 < image.size <= view.size:
            offset, (height, width, _) = self._places[key][0], image.shape
            np.copyto(view.reshape(-1)[: image.size].reshape(image.shape), image)
            return offset, height, width
        if image.shape != view.shape:
            raise InferenceError(f"image of camera '{name}' has shape {image.shape}, expected {view.shape}")
        if self._lies.get(key) is not image:
            np.copyto(view, image)
            self._lies[key] = image
        return self._places[key]

    def close(self) -> None:
        """Frees the memory, once nothing else has it mapped."""
        # The map here, and the file descriptor that it holds, go with the last view.
        self._places, self._views, self._lies = {}, {}, {}
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
