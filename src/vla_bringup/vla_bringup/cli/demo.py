"""`demo`: one scene, one sentence, one verdict, and pictures of it."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_bringup.cli import STARTED
from vla_bringup.cli.console import FAILED, OK, Console, finite, reported
from vla_bringup.cli.panel import Panel
from vla_bringup.episode import VERDICTS
from vla_bringup.files import run_folder
from vla_bringup.judge import cube, named_cube
from vla_bringup.session import Session, TrialResult
from vla_bringup.system import demo_system
from vla_contract.errors import VlaError
from vla_contract.robot import Robot


@dataclass
class Demo:
    """The options of the command, in its order."""

    instruction: str
    seed: int
    out: Path | None
    robot: str
    policy: str
    safety: str
    target: str | None
    timeout: float
    lockstep: bool
    view: bool
    film: bool
    domain: int | None
    console: Console

    def run(self) -> None:
        """Runs the demo and ends the process."""
        nothing: dict[str, Any] = {
            "success": False,
            "placed": None,
            "duration_s": None,
            "startup_s": None,
            "decisions": {},
        }
        with reported(self.console, nothing):
            self._run()

    def _run(self) -> None:
        console = self.console
        target = cube(self.target) if self.target else named_cube(self.instruction)
        folder = self.out or run_folder("demo")
        folder.mkdir(parents=True, exist_ok=True)
        view = self.view and self._display()
        began = time.monotonic()
        system = demo_system(self.robot, self.policy, self.safety, seed=self.seed, lockstep=self.lockstep, view=view)
        with Session(system, folder / "log", domain=self.domain, say=console.say) as session:
            session.prepare(self.seed)
            startup = time.monotonic() - STARTED
            console.say(f"ready after {startup:.1f} s: scene {self.seed}, filter {session.operator.mode}")
            with Panel(console, f"vla demo · ROS domain {session.domain}", self.instruction) as panel:
                result = session.trial(self.instruction, target, self.timeout, panel)
            digest = session.operator.status.policy_digest if session.operator.status else ""
            robot = session.robot
        report = self._report(result, target, startup, digest, folder)
        report["wall_s"] = time.monotonic() - began
        result.episode.save(folder / "episode.npz")
        console.say(describe(result, report))
        if self.film:
            report.update(draw(result, robot, self._caption(result), folder, console))
        report["total_s"] = time.monotonic() - STARTED
        (folder / "report.json").write_text(json.dumps(finite(report), indent=2) + "\n")
        console.say(f"report: {folder / 'report.json'}")
        console.finish(report, OK if result.verdict.success else FAILED)

    def _display(self) -> bool:
        if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            return True
        self.console.say(
            "--view: no display here (neither DISPLAY nor WAYLAND_DISPLAY is set): no window, the film is written"
        )
        return False

    def _caption(self, result: TrialResult) -> str:
        return f'"{self.instruction}"  ->  {result.verdict.placed or "nothing"} in the tray'

    def _report(self, result: TrialResult, target: str, startup: float, digest: str, folder: Path) -> dict[str, Any]:
        return {
            "success": result.verdict.success,
            "placed": result.verdict.placed,
            "duration_s": result.task.duration,
            "startup_s": startup,
            "decisions": {name: result.episode.decisions.get(name, 0) for name in VERDICTS},
            "target": target,
            "instruction": self.instruction,
            "seed": self.seed,
            "outcome": result.task.outcome,
            "message": result.task.message,
            "policy_digest": digest,
            **result.episode.facts(),
            "folder": str(folder),
        }


def describe(result: TrialResult, report: dict[str, Any]) -> str:
    """The end of the story in a line or two."""
    verdict, decisions = result.verdict, report["decisions"]
    head = "SUCCESS" if verdict.success else "FAILURE"
    policy = f"the policy ended with {result.task.outcome}{f' ({result.task.message})' if result.task.message else ''}"
    counts = ", ".join(f"{count} {name}" for name, count in decisions.items() if count) or "none"
    return (
        f"{head}: {verdict.placed or 'nothing'} is in the tray, asked for {verdict.target}; {policy} "
        f"after {result.task.duration:.1f} s; safety decisions: {counts}"
    )


def draw(
    result: TrialResult, robot: Robot, caption: str, folder: Path, console: Console, name: str = "demo"
) -> dict[str, Any]:
    """Writes film and contact sheet; where this machine cannot draw, says so and goes on."""
    try:
        from vla_bringup.cli.pictures import film_episode

        return film_episode(result.episode, robot, caption, folder, console, name)
    except VlaError as error:
        console.say(f"no pictures: {error}")
        return {"pictures_error": str(error)}
