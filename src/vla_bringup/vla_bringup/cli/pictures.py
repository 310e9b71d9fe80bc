"""Film and contact sheet of an episode, with a progress bar."""

from pathlib import Path
from typing import Any

from vla_bringup.cli.console import Console
from vla_bringup.episode import Episode
from vla_bringup.film import Film, contact_sheet
from vla_contract.robot import Robot


def film_episode(
    episode: Episode, robot: Robot, caption: str, folder: Path, console: Console, name: str = "demo"
) -> dict[str, Any]:
    """Writes `<name>.mp4` and `contact_sheet.png` (for other names `<name>.png`) into `folder`; returns their paths.

    Raises:
        VlaError: when this machine cannot draw.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    film = Film(robot, episode, caption)
    video = folder / f"{name}.mp4"
    sheet = folder / ("contact_sheet.png" if name == "demo" else f"{name}.png")
    columns = (
        TextColumn("drawing the film"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console.rich, transient=True, disable=not console.live) as progress:
            bar = progress.add_task("film", total=len(film))
            pictures = film.write(video, lambda done, total: progress.update(bar, completed=done))
        contact_sheet(pictures, caption, sheet)
    finally:
        film.close()
    console.say(f"film: {video}")
    console.say(f"contact sheet: {sheet}")
    return {"film": str(video), "contact_sheet": str(sheet)}
