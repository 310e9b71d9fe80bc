"""Frames made of random numbers, in the right shapes."""

from pathlib import Path

import numpy as np
import pytest

from vla_learning.frames import Frames

ROBOT_FILE = Path(__file__).parents[2] / "vla_bringup" / "config" / "robots" / "fr3_sim.yaml"


def random_frames(count: int, seed: int = 0) -> Frames:
    """The tool goes straight to a cube whose place shows in the images' brightness: learnable, and fast to make."""
    rng = np.random.default_rng(seed)
    cubes = rng.uniform((0.4, -0.2, 0.02), (0.6, 0.2, 0.03), (count, 3, 3))
    tool = rng.uniform((0.4, -0.2, 0.1), (0.6, 0.2, 0.3), (count, 3))
    steps = np.linspace(0, 1, 16)[None, None, :, None]
    moves = steps * (cubes - tool[:, None])[:, :, None]
    images = rng.integers(0, 30, (count, 2, 96, 96, 3))
    images += (np.clip((cubes[..., 1] + 0.2) / 0.4, 0, 1) * 200).astype(int)[:, None, None, None, :]
    return Frames(
        images=images.astype(np.uint8),
        joints=rng.normal(0, 0.3, (count, 8)).astype(np.float32),
        tool=tool.astype(np.float32),
        chunks=np.concatenate([moves, np.ones((count, 3, 16, 1))], -1).astype(np.float32),
        progress=rng.uniform(0, 1, (count, 3)).astype(np.float32),
        cubes=cubes.astype(np.float32),
        tray=rng.uniform((0.4, -0.2, 0), (0.6, 0.2, 0.001), (count, 3)).astype(np.float32),
        held=rng.integers(-1, 3, count).astype(np.int8),
        placed=rng.random((count, 3)) < 0.2,
        episode=np.arange(count),
    )


@pytest.fixture(scope="session")
def frames() -> Frames:
    return random_frames(64)


@pytest.fixture(scope="session")
def robot_file() -> str:
    return str(ROBOT_FILE)
