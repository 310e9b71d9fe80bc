"""What a policy sees at one instant."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Observation:
    """Streams paired at one time.

    Attributes:
        stamp_ns: capture time of the newest image [ns].
        images: camera name -> uint8 (H, W, 3), RGB, as the camera delivered it.
        positions: (n,) rad or m, in the order of the robot file.
        velocities: (n,) rad/s or m/s.
        instruction: the sentence to obey; empty: none.
        extras: for scripted experts in the simulator: object -> pose (7,) in the base frame, position [m] and
            quaternion wxyz. Empty for everybody else.
        earlier: for policies that look back (`PolicyMetadata.history`): what was seen 1 … `steps` times `dt` before,
            oldest first, at the beginning of a task the oldest there is in their place; without `extras` and `earlier`
            of their own. Empty for everybody else.
    """

    stamp_ns: int
    images: Mapping[str, NDArray[np.uint8]]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    instruction: str = ""
    extras: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    earlier: "tuple[Observation, ...]" = ()
