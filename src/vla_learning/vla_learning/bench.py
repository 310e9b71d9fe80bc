"""`./vla bench inference`: how long the flow policy thinks about a chunk on this machine."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vla_contract.errors import VlaError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.robot import Robot, load_robot, resolve_path
from vla_policy_node.backends.flow import load

ROBOT = "package://vla_bringup/config/robots/fr3_sim.yaml"
CHECKPOINT = "package://vla_policy_node/models/flow"
BUDGET_MS = 100.0  # for one chunk on two cores
PLAIN, GUIDED = "chunk", "chunk continuing a prefix"  # real-time chunking's price is the second over the first
_WARM_UP = 5


def measure(robot: Robot, checkpoint: Path, threads: int, runs: int) -> dict[str, dict[str, float]]:
    """ms (median, 99th percentile) of: a whole chunk, one drawn to a prefix, one with a new sentence.

    Raises:
        VlaError: when the checkpoint cannot be loaded.
    """
    policy = load(checkpoint, robot, {"threads": threads})
    rng = np.random.default_rng(0)
    home = np.array(robot.home)
    images = {
        name: rng.integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
        for name, camera in robot.cameras.items()
    }
    prefix = Trajectory([0.1, 0.2, 0.3, 0.4], np.tile(home, (4, 1)))
    sentences = iter(f"put the red cube in the tray {i}" for i in range(2 * runs + 2 * _WARM_UP))

    def observation(sentence: str) -> Observation:
        return Observation(0, images, home, np.zeros(len(home)), sentence)

    plain = observation("put the red cube in the tray")
    return _times(
        {
            PLAIN: lambda: policy.infer(plain, None),
            GUIDED: lambda: policy.infer(plain, prefix),
            "chunk for a new sentence": lambda: policy.infer(observation(next(sentences)), None),
        },
        runs,
    )


def _times(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, dict[str, float]]:
    """The calls in turn, so that whatever else the machine does meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(-_WARM_UP, runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if run >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"p50_ms": round(float(np.median(taken)), 2), "p99_ms": round(float(np.percentile(taken, 99)), 2)}
        for name, taken in times.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 within the budget, 1 over it or failed."""
    parser = argparse.ArgumentParser(prog="vla bench inference", description=__doc__)
    parser.add_argument("--robot", default=ROBOT, help="robot file")
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="folder with model.safetensors and policy.json")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        robot = load_robot(resolve_path(options.robot, Path.cwd()))
        results = measure(robot, resolve_path(options.checkpoint, Path.cwd()), options.threads, options.runs)
    except VlaError as error:
        console.print(f"[red]{error}")
        return 1
    ratio = round(results[GUIDED]["p50_ms"] / results[PLAIN]["p50_ms"], 3)
    if options.json:
        machine = {"cores": os.cpu_count(), "torch": torch.__version__, "threads": options.threads}
        print(json.dumps({"budget_ms": BUDGET_MS, "machine": machine, "rtc_over_plain": ratio, **results}))
    else:
        table = Table("flow policy", "median ms", "99 % ms")
        for name, row in results.items():
            table.add_row(name, str(row["p50_ms"]), str(row["p99_ms"]))
        Console().print(table)
        Console().print(f"real-time chunking over plain inference: {ratio:.2f}")
    return 0 if results[PLAIN]["p50_ms"] <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
