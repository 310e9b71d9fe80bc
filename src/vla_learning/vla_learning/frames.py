"""Labelled observations: what was seen, and what the expert would have done for each of the three colours."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ConfigError
from vla_learning.stage import HORIZON

IMAGE = 96  # px
CAMERAS = ("front", "wrist")


@dataclass(frozen=True)
class Frames:
    """`N` observations. Lengths in m, angles in rad, base frame; colours in the order red, green, blue.

    Attributes:
        images: (N, 2, 96, 96, 3) uint8 RGB, front and wrist.
        joints: (N, 8) measured positions.
        tool: (N, 3) position of the tool.
        chunks: (N, 3, 16, 4) the expert's chunk for each colour: tool relative to `tool`, gripper in [0, 1].
        progress: (N, 3) of the task, in [0, 1], if that colour were named.
        cubes: (N, 3, 3) positions.
        tray: (N, 3) position.
        held: (N,) index of the held cube, -1: none.
        placed: (N, 3) the cube lies in the tray.
        episode: (N,) number of the scene's seed.
    """

    images: NDArray[np.uint8]
    joints: NDArray[np.float32]
    tool: NDArray[np.float32]
    chunks: NDArray[np.float32]
    progress: NDArray[np.float32]
    cubes: NDArray[np.float32]
    tray: NDArray[np.float32]
    held: NDArray[np.int8]
    placed: NDArray[np.bool_]
    episode: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.joints)

    @staticmethod
    def empty() -> "Frames":
        """No frames, with the right shapes and types."""
        return Frames(
            images=np.empty((0, len(CAMERAS), IMAGE, IMAGE, 3), np.uint8),
            joints=np.empty((0, 8), np.float32),
            tool=np.empty((0, 3), np.float32),
            chunks=np.empty((0, 3, HORIZON, 4), np.float32),
            progress=np.empty((0, 3), np.float32),
            cubes=np.empty((0, 3, 3), np.float32),
            tray=np.empty((0, 3), np.float32),
            held=np.empty(0, np.int8),
            placed=np.empty((0, 3), np.bool_),
            episode=np.empty(0, np.int64),
        )

    @staticmethod
    def concatenate(parts: Sequence["Frames"]) -> "Frames":
        """All frames of `parts`, in order."""
        every = [Frames.empty(), *parts]
        return Frames(**{f.name: np.concatenate([getattr(p, f.name) for p in every]) for f in fields(Frames)})

    def save(self, folder: Path) -> None:
        """Writes one .npy file per array; the folder appears only once it is complete."""
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(partial / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)
        partial.rename(folder)

    @staticmethod
    def open(folders: Sequence[Path]) -> "Frames":
        """Frames of several folders one after the other, their images left on disk: processes share them in the
        system's page cache. Only rows of `images` can then be read.

        Raises:
            ConfigError: when an array is missing.
        """
        parts = [Frames.load(folder, images_on_disk=True) for folder in folders]
        rest = Frames.concatenate([replace(part, images=Frames.empty().images) for part in parts])
        return replace(rest, images=cast("NDArray[np.uint8]", _Rows([part.images for part in parts])))

    @staticmethod
    def load(folder: Path, images_on_disk: bool = False) -> "Frames":
        """Reads what `save` wrote.

        Raises:
            ConfigError: when an array is missing.
        """
        try:
            arrays = {
                f.name: np.load(
                    folder / f"{f.name}.npy",
                    mmap_mode="r" if images_on_disk and f.name == "images" else None,
                    allow_pickle=False,
                )
                for f in fields(Frames)
            }
            return Frames(**arrays)
        except OSError as error:
            raise ConfigError(f"demonstrations in '{folder}' are incomplete ({error}); delete the folder") from error


class _Rows:
    """Arrays one after the other, of which rows can be read by number."""

    def __init__(self, parts: Sequence[NDArray[np.uint8]]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._parts) else 0

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        which = np.searchsorted(self._ends, rows, side="right")
        first = np.concatenate([[0], self._ends])[which]
        return np.stack([self._parts[part][row] for part, row in zip(which, rows - first, strict=True)])
