"""The command line of `./vla bench latency`."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vla_bringup.cli.console import Console, finite, interruptible, reported
from vla_bringup.files import find, run_folder
from vla_bringup.latency import report, starvation, stub
from vla_bringup.latency.bare import run_bare
from vla_bringup.latency.figures import Sample, growth, overheads, quantiles, samples
from vla_bringup.latency.graphs import STACK, Graph, GraphResult, Phase, PhaseResult, run_graph
from vla_contract.robot import load_robot
from vla_policy_node.core.scheduling import Schedule

DELAY_MS = 30  # of the model in P1
MODEL_MS = 76  # of the model in P2
_OFTEN = {"execution_horizon": 0.1}  # s: many chunks in little time
_USUAL: dict[str, float] = {}
_VARIANTS = tuple(f"{kind} {shape} {DELAY_MS}" for kind in stub.KINDS for shape in stub.SHAPES)


class Bench:
    """All measurements of one run.

    Args:
        step: called with what is going on and how many seconds of work are done.
    """

    def __init__(self, options: argparse.Namespace, folder: Path, step: Callable[[str, float], None]):
        self._options, self._folder, self._step = options, folder, step
        self._robot = find("robots", options.robot)
        self._pace = stub.pace()
        self._bare: list[float] = []
        self._way: list[float] = []
        self._phases: list[PhaseResult] = []

    def seconds(self) -> float:
        """That the phases and the virtual clock take, about."""
        o = self._options
        latency = 2 * o.rounds * (len(_VARIANTS) + 1) * o.seconds
        return latency + self._usual_seconds() + 2 * o.seconds + 2 * o.seconds + self._ticks() / 1e4

    def _ticks(self) -> int:
        return 1_000_000 if self._options.long else 100_000

    def _usual_seconds(self) -> float:
        return float(max(60.0 * self._options.minutes, 4 * self._options.seconds))

    def run(self) -> dict[str, Any]:
        """Everything; see README."""
        result: dict[str, Any] = report.machine()
        found = self._transports()
        usual, burning, cameras = self._usual(), self._burning(), self._cameras()
        result |= self._latency(found)
        result |= self._model(usual, burning)
        result |= {
            "stops": sum(phase.stops for phase in self._phases),
            "delivered": min(cameras.delivered.values()),
            "image_delays": dict(cameras.phases[-1].delays),
            "delivered_two_cameras": min(min(r.delivered.values()) for r in found["shipped"]),
            "delivered_default_transport": min(min(r.delivered.values()) for r in found["default"]),
            "clock_drift_ms": max((r.clock_drift_ms for rs in found.values() for r in rs), key=abs),
        }
        result |= self._usage(usual)
        self._step("starvation on a virtual clock", 0.0)
        starved = starvation.measure(
            load_robot(self._robot), self._ticks(), tick=lambda done: self._step("", 0.5 if done else 0.0)
        )
        result |= {"starved_ticks": starved.starved, "starvation": asdict(starved)}
        met = [target.met(result) for target in report.TARGETS]
        return result | {"targets_met": int(sum(met)), "targets": len(met)}

    # -- runs

    def _play(self, graph: Graph, note: str) -> GraphResult:
        self._step(note, 0.0)
        folder = self._folder / graph.name
        result = run_graph(graph, self._robot, self._pace, folder, lambda seconds: self._step("", seconds))
        self._phases += result.phases
        return result

    def _transports(self) -> dict[str, list[GraphResult]]:
        """The way alone, shipped and default in turn."""
        phases = [Phase(variant, self._options.seconds) for variant in _VARIANTS]
        found: dict[str, list[GraphResult]] = {"shipped": [], "default": []}
        for number in range(self._options.rounds):
            self._step(f"the way alone, round {number + 1}", 0.0)
            alone = Graph(f"bare-{number}", True, 2, {}, [Phase("", 2 * self._options.seconds)])
            self._way += run_bare(alone, self._robot, self._folder / alone.name)
            self._step("", 2 * self._options.seconds)
            for name in found:
                graph = Graph(f"{name}-{number}", name == "shipped", 2, _OFTEN, phases)
                found[name].append(self._play(graph, f"{name} transport, round {number + 1}"))
        return found

    def _usual(self) -> GraphResult:
        phase = Phase(f"sleep constant {MODEL_MS}", self._usual_seconds())
        return self._play(Graph("usual", True, 2, _USUAL, [phase]), "usual schedule, a model that waits")

    def _burning(self) -> GraphResult:
        phase = Phase(f"burn constant {MODEL_MS}", 2 * self._options.seconds)
        graph = Graph("burning", True, 2, _USUAL, [phase])
        # Right before and right after: what else the machine does changes within minutes.
        self._measure_bare()
        result = self._play(graph, "usual schedule, a model that computes")
        self._measure_bare()
        return result

    def _cameras(self) -> GraphResult:
        phase = Phase(f"sleep constant {MODEL_MS}", 2 * self._options.seconds)
        return self._play(Graph("three-cameras", True, 3, _USUAL, [phase]), "three cameras")

    def _measure_bare(self) -> None:
        """The computing model with nothing of ours beside it, in the same run."""
        for _ in range(8):
            began = time.perf_counter()
            stub.spend("burn", MODEL_MS * 1e-3, self._pace)
            self._bare.append((time.perf_counter() - began) * 1e3)

    # -- figures

    def _latency(self, found: dict[str, list[GraphResult]]) -> dict[str, Any]:
        pooled = {name: _by_instruction(results) for name, results in found.items()}
        waiting = {
            name: [s for instruction, each in by.items() if instruction.startswith("sleep") for s in each]
            for name, by in pooled.items()
        }
        computing = [
            s for instruction, each in pooled["shipped"].items() if instruction.startswith("burn") for s in each
        ]
        ours, theirs = (quantiles(overheads(waiting[name])) for name in ("shipped", "default"))
        burned = quantiles(overheads(computing))
        arrived = {name: quantiles([s.arrived for s in each])["p50_ms"] for name, each in waiting.items()}
        self._picture(waiting)
        way = quantiles(self._way)
        return {
            "p50_ms": ours["p50_ms"],
            "p99_ms": ours["p99_ms"],
            "way_p50_ms": way["p50_ms"],
            "way_p99_ms": way["p99_ms"],
            "way_ratio": ours["p50_ms"] / way["p50_ms"],
            "default_transport_p50_ms": theirs["p50_ms"],
            "default_transport_p99_ms": theirs["p99_ms"],
            "default_ratio": theirs["p50_ms"] / ours["p50_ms"],
            "arrived_p50_ms": arrived["shipped"],
            "default_transport_arrived_p50_ms": arrived["default"],
            "computing_p50_ms": burned["p50_ms"],
            "computing_p99_ms": burned["p99_ms"],
            "breakdown_p50_ms": report.breakdown(waiting["shipped"]),
            "rows": [
                {"instruction": instruction, "transport": name, **quantiles(overheads(each))}
                for name, by in pooled.items()
                for instruction, each in by.items()
            ],
        }

    def _picture(self, waiting: dict[str, list[Sample]]) -> None:
        facts = report.machine()
        title = f"Two cameras 640×480 at 30 Hz · {facts['machine']}, {facts['cores']} cores · {facts['date']}"
        report.plot(waiting, title, self._folder / "latency.png")

    def _model(self, usual: GraphResult, burning: GraphResult) -> dict[str, Any]:
        """P2: how much longer an answer takes than the model alone."""
        bare = float(np.median(self._bare))
        waits, computes = (
            float(np.median([s.total for s in _samples(result)] or [np.nan])) for result in (usual, burning)
        )
        inference = float(np.median([s.inference for s in _samples(usual)] or [np.nan]))
        return {
            "overhead_sleeping": waits / inference - 1,
            "overhead_burning": computes / bare - 1,
            "bare_model_ms": {"sleeping": inference, "burning": bare},
        }

    def _usage(self, usual: GraphResult) -> dict[str, Any]:
        used = usual.phases[0].usage
        return {
            "stack_cpu_share": sum(used[name].cpu_share for name in STACK),
            "stack_rss_mb": sum(used[name].rss_mb for name in STACK),
            "memory_growth_mb": sum(growth(used[name].memory) for name in STACK),
            "minutes": usual.phases[0].phase.seconds / 60,
            "processes": {name: {"cpu_share": u.cpu_share, "rss_mb": u.rss_mb} for name, u in used.items()},
            "memory": {name: u.memory for name, u in used.items()},
        }


def _by_instruction(results: list[GraphResult]) -> dict[str, list[Sample]]:
    by: dict[str, list[Sample]] = {variant: [] for variant in _VARIANTS}
    for result in results:
        for phase in result.phases:
            by[phase.phase.instruction] += samples(phase.seen, _OFTEN["execution_horizon"])
    return by


def _samples(result: GraphResult) -> list[Sample]:
    return [sample for phase in result.phases for sample in samples(phase.seen, Schedule().execution_horizon)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla bench latency",
        description="From the cameras' stamp to the filtered command, without the model: the real policy node, filter "
        "and transport, beside a stand-in for robot and model. About four minutes.",
    )
    parser.add_argument("--robot", default="fr3", help="name in config/robots, or path")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each model and transport, in each round")
    parser.add_argument("--rounds", type=int, default=2, help="in which both transports take turns")
    parser.add_argument("--minutes", type=float, default=0.0, help="to watch memory, e.g. 30")
    parser.add_argument("--long", action="store_true", help="a million ticks on the virtual clock, not 100,000")
    parser.add_argument("--out", type=Path, help="folder for picture, tables and logs (default: .vla/runs/…)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    return parser


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measures, shows, and ends the process with 0; what missed its target is said, and is no error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with reported(console, {"p50_ms": None, "p99_ms": None}):
        folder = options.out or run_folder("latency")
        folder.mkdir(parents=True, exist_ok=True)
        columns = TextColumn("{task.description:40}"), BarColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console.rich, transient=True, disable=not console.live) as progress:
            bar = progress.add_task("latency", total=None)

            def step(note: str, seconds: float) -> None:
                if note and not console.live:
                    console.say(note)
                progress.update(bar, advance=seconds, **({"description": note} if note else {}))

            bench = Bench(options, folder, step)
            progress.update(bar, total=bench.seconds())
            result = bench.run()
        (folder / "latency.json").write_text(json.dumps(finite(result), indent=1))
        (folder / "latency.md").write_text(report.markdown(result))
        for line in report.lines(result):
            console.say(line)
        console.say(f"picture, tables, logs: {folder}")
        del result["memory"]
        console.finish(result, 0)


def main() -> None:
    """The command line."""
    options = _parser().parse_args()
    interruptible(lambda: measure(options, Console(options.json)))


if __name__ == "__main__":
    main()
