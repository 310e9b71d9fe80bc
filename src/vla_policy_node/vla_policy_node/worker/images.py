"""The memory that node and worker share: images pass here without being sent."""

import mmap
import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import InferenceError

Place = tuple[int, int, int]  # offset in bytes, rows, columns: of RGB pixels, one byte each


class SharedImages:
    """One place for each camera. The node writes, the worker reads: nothing may be written while an inference reads.

    Args:
        shapes: camera -> (height, width).

    Attributes:
        fd: of the memory, for the worker to map.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]):
        self._places: dict[str, Place] = {}
        self._views: dict[str, NDArray[np.uint8]] = {}
        self._lies: dict[str, NDArray[np.uint8]] = {}  # what was copied last
        size = 3 * sum(height * width for height, width in shapes.values())
        self.fd = os.memfd_create("vla_observation")
        os.ftruncate(self.fd, size)
        memory = np.frombuffer(mmap.mmap(self.fd, size), dtype=np.uint8) if size else np.empty(0, np.uint8)
        offset = 0
        for name, (height, width) in shapes.items():
            self._places[name] = offset, height, width
            self._views[name] = memory[offset : offset + 3 * height * width].reshape(height, width, 3)
            offset += 3 * height * width

    def put(self, name: str, image: NDArray[np.uint8]) -> Place:
        """Where the camera's image lies now: copied there, unless this very array was the last that was.

        Raises:
            InferenceError: when the camera or the size (height, width, 3) was not announced.
        """
        if name not in self._places:
            raise InferenceError(
                f"camera '{name}' was not announced; announced are {', '.join(self._places) or 'none'}"
            )
        view = self._views[name]
        if image.shape != view.shape:
            raise InferenceError(f"image of camera '{name}' has shape {image.shape}, expected {view.shape}")
        if self._lies.get(name) is not image:
            np.copyto(view, image)
            self._lies[name] = image
        return self._places[name]
