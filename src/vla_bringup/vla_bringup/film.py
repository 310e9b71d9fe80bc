"""Pictures of an episode, drawn afterwards from its recorded states, so that filming costs the running system nothing.

The film shows the overview camera with what the policy's own cameras see as insets.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vla_bringup.episode import Episode, Frames
from vla_contract.robot import Robot
from vla_sim.core.cell import Cell

OVERVIEW = "overview"
WIDTH, HEIGHT = 640, 480  # px, of the film
INSET = 128  # px
RATE = 15.0  # Hz, frames per simulated second
TILES = (4, 2)  # columns, rows of the contact sheet
BAND = 26  # px, height of a caption

Picture = NDArray[np.uint8]


class Film:
    """Draws the frames of an episode.

    Raises:
        ConfigError: when the robot file does not fit the recorded joints.
        RenderingUnavailable: when this machine cannot draw (from vla_sim).
    """

    def __init__(self, robot: Robot, episode: Episode, caption: str):
        self._robot = robot
        self._frames: Frames = episode.frames(RATE)
        self._caption = caption
        self._cell = Cell(robot)

    def __len__(self) -> int:
        return len(self._frames)

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._cell.close()

    def picture(self, index: int) -> Picture:
        """uint8 RGB (HEIGHT, WIDTH, 3) of one moment."""
        frames = self._frames
        objects = {name: (rows[index, :3], rows[index, [6, 3, 4, 5]]) for name, rows in frames.poses.items()}
        self._cell.pose(frames.joint_positions[index], objects)
        canvas = Image.fromarray(self._cell.render(OVERVIEW, WIDTH, HEIGHT))
        draw = ImageDraw.Draw(canvas)
        left = WIDTH
        for name in reversed(list(self._robot.cameras)):
            left -= INSET + 8
            box = (left, 8, left + INSET, 8 + INSET)
            canvas.paste(Image.fromarray(self._cell.render(name, INSET, INSET)), box[:2])
            draw.rectangle((box[0] - 1, 7, box[2], box[3]), outline=(255, 255, 255))
            draw.text(
                (left + 4, 10 + INSET),
                name,
                font=_font(13),
                fill=(255, 255, 255),
                stroke_width=2,
                stroke_fill=(30, 30, 30),
            )
        draw.rectangle((0, HEIGHT - BAND, WIDTH, HEIGHT), fill=(24, 26, 30))
        draw.text((8, HEIGHT - BAND + 4), self._caption, font=_font(15), fill=(235, 235, 235))
        draw.text(
            (WIDTH - 64, HEIGHT - BAND + 4), f"{frames.times[index]:5.1f} s", font=_font(15), fill=(235, 235, 235)
        )
        return np.asarray(canvas)

    def write(self, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Picture]:
        """Writes an H.264 MP4 and returns the pictures that the contact sheet is made of.

        Args:
            progress: called with frames done and frames in total.
        """
        chosen = set(self._moments())
        kept = []
        writer = _writer(path)
        try:
            for index in range(len(self)):
                picture = self.picture(index)
                writer.send(picture)
                if index in chosen:
                    kept.append(picture)
                progress(index + 1, len(self))
        finally:
            writer.close()
        return kept

    def _moments(self) -> list[int]:
        return sorted(set(np.linspace(0, len(self) - 1, TILES[0] * TILES[1]).round().astype(int).tolist()))


def contact_sheet(pictures: Sequence[Picture], title: str, path: Path) -> None:
    """Writes a PNG with the pictures in rows under a title."""
    columns, rows = TILES
    width, height = WIDTH // 2, HEIGHT // 2
    sheet = Image.new("RGB", (columns * width, rows * height + 40), (24, 26, 30))
    ImageDraw.Draw(sheet).text((12, 9), title, font=_font(20), fill=(240, 240, 240))
    for number, picture in enumerate(pictures[: columns * rows]):
        tile = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, ((number % columns) * width, 40 + (number // columns) * height))
    sheet.save(path)


def _writer(path: Path) -> Generator[None, Picture | None, None]:
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (WIDTH, HEIGHT),
        fps=RATE,
        codec="libx264",
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=["-preset", "veryfast", "-crf", "23", "-movflags", "+faststart"],
    )
    writer.send(None)
    return writer


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
