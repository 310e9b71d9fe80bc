"""What inference delay does to a policy, by strategy: `./vla bench policy`.

Closed loop in the simulated cell on a virtual clock: the delay is injected, the machine's own speed does not count.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_contract.errors import ConfigError, MismatchError, VlaError
from vla_contract.robot import Robot, load_robot, resolve_path
from vla_learning.delayed import TASKS, FreshNoise, Trace, play
from vla_learning.evaluation import EVALUATION_SEEDS
from vla_learning.stage import COLOURS, Stage
from vla_policy_node.backends import Backend
from vla_policy_node.backends.flow import load

ROBOT = "package://vla_bringup/config/robots/fr3_sim.yaml"
CHECKPOINT = "package://vla_policy_node/models/flow"
STRATEGIES = ("sync", "naive", "async", "ensemble", "rtc")
DELAYS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # s
_LIMIT_RATIO = 1.0  # of strain, from which on the real arm stops itself
_COLUMNS = {
    "strategy": "strategy",
    "delay_ms": "delay ms",
    "success_rate": "success",
    "kept_rate": "and in the arm's limits",
    "mean_duration_s": "mean s",
    "splice_step_ratio": "splice step ratio",
    "largest_position_jump": "jump rad",
    "largest_velocity_jump": "jump rad/s",
    "starved_ticks": "starved ticks",
}


@dataclass(frozen=True)
class Row:
    """One strategy at one delay.

    Attributes:
        success_rate: share of episodes; kept_rate: of those that also asked the arm for no velocity and acceleration
            beyond its limits, where a real one stops itself.
        splice_step_ratio: 99th percentile of the joint steps in ticks with a splice to that in all other ticks.
        largest_position_jump: rad, largest_velocity_jump: rad/s, in a tick with a splice.
        starved_ticks: of 20 ms, without a set-point of the plan.
    """

    task: str
    strategy: str
    delay_ms: float
    episodes: int
    success_rate: float
    kept_rate: float
    mean_duration_s: float
    splice_step_ratio: float
    largest_position_jump: float
    largest_velocity_jump: float
    starved_ticks: int


def step_ratio(traces: Sequence[Trace]) -> float:
    """99th percentile of the joint steps in ticks with a splice, to that in all other ticks; 0: no splices."""
    boundary = np.concatenate([trace.boundary for trace in traces])
    inside = np.concatenate([trace.inside for trace in traces])
    return float(np.percentile(boundary, 99) / np.percentile(inside, 99)) if len(boundary) else 0.0


def summarise(task: str, strategy: str, delay: float, traces: Sequence[Trace]) -> Row:
    """The figures of one strategy at one delay."""
    return Row(
        task,
        strategy,
        round(1e3 * delay, 1),
        len(traces),
        round(float(np.mean([trace.success for trace in traces])), 4),
        round(float(np.mean([trace.success and trace.strain <= _LIMIT_RATIO for trace in traces])), 4),
        round(float(np.mean([trace.duration for trace in traces])), 2),
        round(step_ratio(traces), 3),
        round(max(trace.jump for trace in traces), 4),
        round(max(trace.kick for trace in traces), 3),
        int(sum(trace.starved for trace in traces)),
    )


def bench(
    robot: Robot,
    checkpoint: Path,
    strategies: Sequence[str],
    delays: Sequence[float],
    episodes: int,
    task: str = "still",
    fresh_noise: bool = False,
    report: Callable[[Row, Sequence[Trace]], None] = lambda row, traces: None,
) -> list[Row]:
    """All combinations, on the same scenes; `report` gets each row with the episodes behind it.

    Raises:
        VlaError: when robot or checkpoint do not fit.
    """
    stage = Stage(robot)
    rows = []
    try:
        loaded = load(checkpoint, robot, {})
        policy: Backend = FreshNoise(loaded) if fresh_noise else loaded
        colours = list(COLOURS)
        for delay in delays:
            for strategy in strategies:
                traces = [
                    play(stage, policy, strategy, delay, EVALUATION_SEEDS + k, colours[k % len(colours)], task)
                    for k in range(episodes)
                ]
                rows.append(summarise(task, strategy, delay, traces))
                report(rows[-1], traces)
    finally:
        stage.close()
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Success, duration and jumps against the delay; one line of pictures for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "success_rate": "success",
        "kept_rate": "success inside the arm's limits",
        "mean_duration_s": "time to completion [s]",
        "largest_velocity_jump": "largest velocity jump at a splice [rad/s]",
    }
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure, axes = pyplot.subplots(
        len(tasks), len(shown), figsize=(15, 3.4 * len(tasks)), layout="constrained", squeeze=False
    )
    for line, task in zip(axes, tasks, strict=True):
        for axis, (key, label) in zip(line, shown.items(), strict=True):
            for strategy in dict.fromkeys(row.strategy for row in rows):
                mine = [row for row in rows if row.strategy == strategy and row.task == task]
                axis.plot([r.delay_ms for r in mine], [getattr(r, key) for r in mine], "o-", alpha=0.8, label=strategy)
            axis.set_xlabel("inference delay [ms]")
            axis.set_title(f"{task}: {label}", fontsize="medium")
            axis.grid(alpha=0.3)
            axis.set_ylim(bottom=0, top=1.05 if key.endswith("rate") else None)
    axes[0][0].legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit codes as everywhere: 0 measured, 2 configuration, 3 failed, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="vla bench policy", description=__doc__)
    parser.add_argument("--episodes", type=int, default=12, help="per strategy and delay")
    parser.add_argument("--delays", type=float, nargs="+", default=list(DELAYS), help="s")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument(
        "--tasks", nargs="+", default=["still"], choices=TASKS, help="sliding: the table goes to and fro under the arm"
    )
    parser.add_argument(
        "--fresh-noise", action="store_true", help="another draw of noise for every chunk, as published flow policies"
    )
    parser.add_argument("--robot", default=ROBOT)
    parser.add_argument("--checkpoint", default=CHECKPOINT)
    parser.add_argument("--plot", type=Path, help="PNG to write (default: .vla/runs/…/policy.png)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    result: dict[str, Any] = {"fresh_noise": options.fresh_noise, "rows": rows}
    code, error = 0, ""
    try:
        _measure(options, rows, result)
    except (ConfigError, MismatchError) as caught:
        code, error = 2, str(caught)
    except VlaError as caught:
        code, error = 3, str(caught)
    except KeyboardInterrupt:
        code, error = 130, "interrupted"
    if error:
        print(f"error: {error}", file=sys.stderr)
        result |= {"error": error, "exit_code": code}
    if options.json:
        print(json.dumps(result | {"rows": [asdict(row) for row in rows]}), flush=True)
    return code


def _measure(options: argparse.Namespace, rows: list[Row], result: dict[str, Any]) -> None:
    """Fills `rows` as they come, and `result` at the end.

    Raises:
        VlaError: when the options, robot or checkpoint cannot be used.
    """
    if options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}, expected 1 or more")
    wrong = [delay for delay in options.delays if not 0 <= delay < math.inf]
    if wrong:
        raise ConfigError(f"--delays holds {wrong[0]}, expected seconds, 0 or more")
    robot = load_robot(resolve_path(options.robot, Path.cwd()))
    checkpoint = resolve_path(options.checkpoint, Path.cwd())
    picture = _picture(options.plot)
    console = Console(stderr=True)
    table = Table("task", *_COLUMNS.values())
    every: dict[str, list[Trace]] = {name: [] for name in options.strategies}

    def report(row: Row, traces: Sequence[Trace]) -> None:
        rows.append(row)
        every[row.strategy] += traces
        values = [getattr(row, key) for key in _COLUMNS]
        table.add_row(row.task, values[0], *(f"{value:g}" for value in values[1:]))
        console.print(
            f"{row.task} {row.strategy:8s} {row.delay_ms:3.0f} ms: {row.success_rate:.2f}, {row.mean_duration_s:.1f} s"
        )

    for task in options.tasks:
        bench(
            robot, checkpoint, options.strategies, options.delays, options.episodes, task, options.fresh_noise, report
        )
    console.print(table)
    # A 99th percentile of some 200 ticks with splices is a matter of luck; over all delays and tasks it is less so.
    pooled = {name: round(step_ratio(traces), 3) for name, traces in every.items()}
    console.print(f"splice step ratio over all: {', '.join(f'{name} {ratio:g}' for name, ratio in pooled.items())}")
    plot(rows, picture)
    console.print(f"picture: {picture}", soft_wrap=True)
    result |= {"splice_step_ratio": pooled, "picture": str(picture)}


def _picture(asked: Path | None) -> Path:
    """Where the picture goes: where it was asked for, else into a folder of its own beside those of other commands.

    Raises:
        ConfigError: when nothing can be written there. That is to be known before an hour of episodes, not after.
    """
    runs = Path(os.environ.get("VLA_ROOT", Path.cwd())) / ".vla" / "runs"
    path = asked or runs / f"policy-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}" / "policy.png"
    if path.suffix != ".png":
        raise ConfigError(f"--plot is '{path}', expected a file that ends in .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"'{path.parent}' cannot be made: {error.strerror}; name another place with --plot"
        ) from error
    return path.absolute()


if __name__ == "__main__":
    sys.exit(main())
