"""Image resampling: the same code where a policy is trained and where it runs, so that both see the same pixels."""

import cv2
import numpy as np
from numpy.typing import NDArray


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scales an RGB image uint8 (H, W, 3) to (height, width, 3), stretching it where the aspect differs.

    Shrinking averages the covered pixels (no aliasing), enlarging interpolates linearly. Returns the input itself
    when it has that size already.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)
