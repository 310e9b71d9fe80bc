"""`./vla train`: the shipped policy again, from nothing.

Demonstrations by the expert, training, two rounds of corrections (the policy steers, the expert labels where it went),
training to the end, evaluation in closed loop. Every step leaves its result in the working folder; a run that was
interrupted goes on where it was.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vla_contract.errors import ConfigError, VlaError
from vla_contract.robot import resolve_path
from vla_learning.card import publish
from vla_learning.demonstrations import Recipe, make
from vla_learning.evaluation import Report, evaluate
from vla_learning.phases import CHECKPOINT, Phase, train
from vla_learning.training import Settings

ROBOT = "package://vla_bringup/config/robots/fr3_sim.yaml"
TRAINING_SEEDS = 1_000_000  # scenes from here on are for training, below for evaluation
_SHARD = 100  # episodes per folder
_PLAN_FILE = "plan.json"
_TRIAL = 200  # steps that measure the speed, for --hours
_OVERHEAD = 0.75  # share of --hours that goes into steps; the rest makes frames and evaluates


@dataclass(frozen=True)
class Plan:
    """What to make. Written to the working folder, so that a resumed run is the same run.

    Attributes:
        robot: path of the robot file.
        episodes: demonstrations; each of the `rounds` of corrections adds a quarter as many.
        steps: of training, all phases together.
        trials: evaluation episodes per kind of instruction; 0: no evaluation.
    """

    robot: str
    episodes: int = 800
    rounds: int = 2
    steps: int = 10_000
    batch: int = 64
    seed: int = 0
    trials: int = 60


def run(
    plan: Plan, work: Path, out: Path | None, device: str, hours: float | None, progress: Progress | None = None
) -> Report | None:
    """Carries a plan out in folder `work`; the checkpoint ends up in `out` too. Returns the evaluation's report.

    Raises:
        ConfigError: when `work` holds another plan's results.
    """
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    plan = _agree(plan, work)
    device, world = _machine(device)
    processes = max(1, min(os.cpu_count() or 1, 12))
    bar = _Bars(progress)
    per_round = max(1, plan.episodes // 4)

    data = _frames(work, "demonstrations", plan, 0, plan.episodes, None, processes, bar)
    settings = Settings(steps=plan.steps, batch=plan.batch, seed=plan.seed, device=device)
    if hours is not None:
        settings = _fit_to_time(settings, work, data, world, hours * 3600 * _OVERHEAD - (time.monotonic() - started))
    for k in range(plan.rounds):
        until = settings.steps * (k + 1) // (plan.rounds + 2)
        bar.steps(Phase(work, tuple(data), settings, until, world))
        first = plan.episodes + k * per_round
        data += _frames(work, f"corrections-{k + 1}", plan, first, per_round, work / CHECKPOINT, processes, bar)
    bar.steps(Phase(work, tuple(data), settings, settings.steps, world))

    report = None
    if plan.trials:
        done = bar.begin("evaluation", 3 * plan.trials)
        report = evaluate(work / CHECKPOINT, plan.robot, plan.trials, lambda _: done(1))
    if out is not None:
        publish(work / CHECKPOINT, out, asdict(plan) | {"steps": settings.steps}, report)
    return report


def _agree(plan: Plan, work: Path) -> Plan:
    path = work / _PLAN_FILE
    if path.exists():
        before = json.loads(path.read_text())
        if before != asdict(plan):
            changed = [f"{k}: {before.get(k)} then, {v} now" for k, v in asdict(plan).items() if before.get(k) != v]
            raise ConfigError(f"'{work}' holds a run of another plan ({'; '.join(changed)}); use another folder")
    path.write_text(json.dumps(asdict(plan), indent=2) + "\n")
    return plan


def _machine(device: str) -> tuple[str, int]:
    """Torch's device and the number of training processes."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no GPU; use --device cpu")
    return device, 1 if device != "cpu" else max(1, min(os.cpu_count() or 1, 4))


def _frames(
    work: Path, name: str, plan: Plan, first: int, count: int, policy: Path | None, processes: int, bar: "_Bars"
) -> list[Path]:
    """Folders of `count` episodes; those that exist already are kept."""
    recipe = Recipe(plan.robot, None if policy is None else str(policy))
    folders = []
    done = bar.begin(name, count)
    for k in range(0, count, _SHARD):
        folder = work / f"{name}-{k // _SHARD:03d}"
        size = min(_SHARD, count - k)
        if folder.exists():
            done(size)
        else:
            base = TRAINING_SEEDS * (1 + plan.seed) + first + k
            make(recipe, range(base, base + size), processes, lambda _: done(1)).save(folder)
        folders.append(folder)
    return folders


def _fit_to_time(settings: Settings, work: Path, data: Sequence[Path], world: int, seconds: float) -> Settings:
    """As many steps as fit into `seconds` at this machine's speed; the choice is kept for a resumed run."""
    path = work / "steps.json"
    if not path.exists():
        speeds: list[float] = []
        train(Phase(work, tuple(data), settings, _TRIAL, world), lambda m: speeds.append(m["samples_per_s"]))
        steps = max(2 * _TRIAL, int(seconds * speeds[-1] / settings.batch)) if speeds else settings.steps
        path.write_text(json.dumps(steps))
    return replace(settings, steps=int(json.loads(path.read_text())))


class _Bars:
    """Progress bars; without `progress`, nothing is shown."""

    def __init__(self, progress: Progress | None):
        self._progress = progress

    def begin(self, name: str, total: int) -> Callable[[float], None]:
        """A new bar; the result advances it."""
        if self._progress is None:
            return lambda _: None
        task = self._progress.add_task(name, total=total)
        return lambda step: self._progress.advance(task, step)  # type: ignore[union-attr]

    def steps(self, phase: Phase) -> None:
        """Trains with a bar that shows the losses."""
        task = (
            None if self._progress is None else self._progress.add_task(f"training to {phase.until}", total=phase.until)
        )

        def show(metrics: dict[str, float]) -> None:
            if self._progress is not None and task is not None:
                miss = 1000 * metrics["cube_error_m"]
                text = f"training: flow loss {metrics['flow']:.3f}, cube read to {miss:.0f} mm"
                self._progress.update(task, completed=metrics["step"], description=text)

        train(phase, show)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 130 interrupted (run again with --resume)."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        robot = str(resolve_path(options.robot, Path.cwd()))
    except ConfigError as error:
        console.print(f"[red]{error}")
        return 1
    plan = Plan(robot, options.episodes, steps=options.steps, seed=options.seed, trials=options.trials)
    work = Path(options.work)
    if work.exists() and any(work.iterdir()) and not options.resume:
        console.print(f"[red]'{work}' is not empty: add --resume to go on with it, or choose another --work")
        return 1
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            report = run(plan, work, Path(options.out), options.device, options.hours, progress)
    except VlaError as error:
        console.print(f"[red]{error}")
        return 1
    except KeyboardInterrupt:
        console.print(f"interrupted; './vla train --resume --work {work}' goes on")
        return 130
    if options.json:
        print(json.dumps({"out": str(options.out), **({} if report is None else report.summary())}))
    elif report is not None:
        console.print(report.table())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vla train", description=__doc__)
    parser.add_argument("--robot", default=ROBOT, help="robot file of the simulated cell")
    parser.add_argument("--out", default="runs/flow", help="folder for the finished checkpoint")
    parser.add_argument("--work", default=".vla/learning/run", help="folder for demonstrations and states")
    parser.add_argument("--episodes", type=int, default=Plan.episodes, help="demonstrations")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="training steps")
    parser.add_argument("--hours", type=float, help="choose the steps so that the whole run takes about so long")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=Plan.trials, help="evaluation episodes per kind of instruction")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
