"""`eval`: the success rate over randomised scenes, through the whole running system."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from vla_bringup.cli.console import OK, Console, finite, reported
from vla_bringup.cli.demo import draw
from vla_bringup.episode import VERDICTS
from vla_bringup.files import run_folder
from vla_bringup.session import Session, TrialResult
from vla_bringup.system import demo_system
from vla_bringup.trials import Outcome, Trial, interval, plan, summary, touched


@dataclass
class Evaluation:
    """The options of the command, in its order."""

    trials: int
    seed: int
    instruction: str | None
    target: str | None
    blank: bool
    wording: Literal["usual", "unseen"]
    realtime: bool
    observe_only: bool
    out: Path | None
    robot: str
    policy: str
    safety: str
    timeout: float
    films: int
    domain: int | None
    console: Console
    decisions: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Runs the evaluation and ends the process. Failed trials are a result: the exit code is 0 when all ran."""
        known = summary([], self.seed, "")
        with reported(self.console, known):  # an interrupted evaluation tells what it has seen
            self._run(known)

    def _run(self, known: dict[str, Any]) -> None:
        planned = plan(self.trials, self.seed, self.instruction, self.target, self.blank, self.wording)
        folder = self.out or run_folder("eval")
        folder.mkdir(parents=True, exist_ok=True)
        outcomes: list[Outcome] = []
        failures: list[tuple[Trial, TrialResult]] = []
        digest, began = "", time.monotonic()
        self.decisions.clear()
        system = demo_system(
            self.robot,
            self.policy,
            self.safety,
            seed=planned[0].seed,
            lockstep=not self.realtime,
            allow_blank=self.blank,
            observe_only=self.observe_only,
        )
        with Session(system, folder / "log", domain=self.domain, say=self.console.say) as session:
            digest = session.operator.status.policy_digest if session.operator.status else ""
            with _Bar(self.console, len(planned)) as bar:
                for trial in planned:
                    session.prepare(trial.seed)
                    result = session.trial(trial.instruction, trial.target, self.timeout)
                    outcomes.append(_outcome(trial, result))
                    self.decisions.update(result.episode.decisions)
                    self.decisions["bridged"] += sum(
                        n for (_, reason, _), n in result.episode.reasons.items() if reason == "bridge"
                    )
                    if not result.verdict.success and len(failures) < self.films:
                        failures.append((trial, result))
                    known.update(self._write(folder, outcomes, digest))
                    bar.show(outcomes)
            robot = session.robot
        for trial, result in failures:
            caption = f"{trial.instruction or '(blank)'} -> {result.verdict.placed or 'nothing'} (seed {trial.seed})"
            draw(result, robot, caption, folder, self.console, f"failure-{trial.index:03d}")
        report = self._write(folder, outcomes, digest)
        report["wall_s"] = time.monotonic() - began
        self._tell(report, folder)
        self.console.finish(report, OK)

    def _write(self, folder: Path, outcomes: list[Outcome], digest: str) -> dict[str, Any]:
        report = {
            **summary(outcomes, self.seed, digest),
            "blank": self.blank,
            "wording": self.wording,
            "lockstep": not self.realtime,
            "observe_only": self.observe_only,
            "decisions": {name: self.decisions[name] for name in (*VERDICTS, "bridged")},
            "touched": touched(self.decisions),
        }
        (folder / "report.json").write_text(json.dumps(finite(report), indent=2) + "\n")
        return report

    def _tell(self, report: dict[str, Any], folder: Path) -> None:
        from rich.table import Table

        table = Table(title=f"{report['trials']} trials, seed {self.seed}")
        for heading in ("instruction", "trials", "successes", "wrong cube", "95 % interval"):
            table.add_column(heading, justify="left" if heading == "instruction" else "right")
        for label, row in report["per_instruction"].items():
            table.add_row(
                label, str(row["trials"]), str(row["successes"]), str(row["wrong_object"]), _percent(row["ci95"])
            )
        self.console.rich.print(table)
        self.console.say(
            f"success: {report['successes']} of {report['trials']} = {report['success_rate']:.1%}, 95 % interval "
            f"{_percent(report['ci95'])} (Clopper-Pearson); wrong cube in the tray: {report['wrong_object']}"
        )
        share = report["touched"]
        if share is not None:
            self.console.say(f"the safety filter touched {share:.2%} of the chunks{self._shadow}")
        self.console.say(f"report: {folder / 'report.json'}")

    @property
    def _shadow(self) -> str:
        return " (it only observed: what it would have done)" if self.observe_only else ""


def _outcome(trial: Trial, result: TrialResult) -> Outcome:
    verdict, task = result.verdict, result.task
    return Outcome(
        trial, verdict.success, verdict.wrong_object, verdict.placed, task.outcome, task.message, task.duration
    )


def _percent(bounds: list[float]) -> str:
    return f"{bounds[0]:.0%}..{bounds[1]:.0%}"


class _Bar:
    """A progress bar with the running success rate; plain lines where there is no terminal."""

    def __init__(self, console: Console, total: int):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console, self._total = console, total
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.completed}/{task.total} trials · {task.description}"),
            TimeRemainingColumn(),
            console=console.rich,
            disable=not console.live,
        )
        self._task = self._progress.add_task("no result yet", total=total)

    def __enter__(self) -> "_Bar":
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def show(self, outcomes: list[Outcome]) -> None:
        last, good = outcomes[-1], sum(o.success for o in outcomes)
        rate = f"{good / len(outcomes):.0%} success ({_percent(list(interval(good, len(outcomes))))})"
        self._progress.update(self._task, completed=len(outcomes), description=rate)
        line = (
            f"{len(outcomes):3d}/{self._total} {'ok  ' if last.success else 'FAIL'} {last.trial.label}: "
            f"{last.placed or 'nothing'} in the tray, {last.outcome} after {last.duration_s:.1f} s · {rate}"
        )
        if self._console.live:
            self._progress.console.print(line)
        else:
            self._console.say(line)
