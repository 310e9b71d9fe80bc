"""How long a verdict takes: `python -m vla_safety.bench [--json]`.

Measured on chunks of 50 points that the robot of a robot file can execute, with every check on and 20 zones. One
verdict is validation, splicing, verification of the whole chunk with its stop, and the first message with its own.
"""

import argparse
import platform
import time
from json import dumps
from pathlib import Path

import numpy as np

from vla_contract.robot import Robot, load_robot
from vla_safety.building import build_filter
from vla_safety.core.config import SafetyConfig
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.motion import NS, Array
from vla_safety.core.validation import POLICY, Proposal
from vla_safety.core.watchdogs import Instant
from vla_safety.core.zones import Box, ZoneSpec

_POINTS, _DT = 50, 0.02
_PERIOD_NS = 20_000_000  # 50 Hz


def default_robot() -> Path:
    """The robot file beside this workspace's bringup package."""
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("vla_bringup")) / "config/robots/fr3_sim.yaml"


def add_zones(config: SafetyConfig, count: int) -> SafetyConfig:
    """The same configuration with keep-out boxes around the workspace, up to `count` zones."""
    extra = [
        ZoneSpec(
            name=f"box_{k}",
            kind="keep_out",
            box=Box(center=(0.2 + 0.8 * np.cos(k), 0.8 * np.sin(k), 0.1 * (k % 8)), size=(0.1, 0.1, 0.08)),
        )
        for k in range(count - len(config.zones))
    ]
    return config.model_copy(update={"zones": (*config.zones, *extra)})


def _chunk(home: Array, joints: tuple[str, ...], t0: float, stamp_ns: int, sequence: int) -> Proposal:
    """A slow sway about home, continuous from chunk to chunk."""
    times = np.arange(_POINTS) * _DT
    phase = 1.5 * np.maximum(0.0, t0 + times)[:, None]
    size = 0.1 * np.cos(np.arange(len(home))) * (np.arange(len(home)) < 7)
    q, v, a = (home + size * (1 - np.cos(phase)), 1.5 * size * np.sin(phase), 2.25 * size * np.cos(phase) * (phase > 0))
    nanoseconds = [round(t * NS) for t in times]
    return Proposal(
        POLICY, sequence, stamp_ns, "", joints, nanoseconds, q.tolist(), v.tolist(), a.tolist(), _POINTS, stamp_ns
    )


def measure(robot: Robot, verdicts: int = 200, zones: int = 20) -> dict[str, float]:
    """Latencies [ms] over `verdicts` chunks, with the filter's cycle at 50 Hz between them."""
    config = add_zones(build_filter(robot).config, zones)
    safety = build_filter(robot, config=config)
    home = np.array(robot.home)
    now = NS
    observe = _observer(safety, robot, home)
    observe(now)
    answer = safety.arm(Instant(now, now))
    if not answer.success:
        raise RuntimeError(answer.message)
    now += NS // 2
    start, judged, cycled, stopped = now, [], [], []
    refused = 0
    for k in range(verdicts):
        observe(now)
        proposal = _chunk(home, robot.joints, (now - start) / NS, now, k)
        began = time.perf_counter()
        decision = safety.propose(proposal, Instant(now, now))
        judged.append(time.perf_counter() - began)
        refused += decision.points_accepted == 0
        for _ in range(10):
            now += _PERIOD_NS
            observe(now)
            began = time.perf_counter()
            safety.cycle(Instant(now, now))
            cycled.append(time.perf_counter() - began)
        safety.drain()
    for _ in range(50):
        observe(now)
        began = time.perf_counter()
        safety.estop(Instant(now, now))
        stopped.append(time.perf_counter() - began)
        safety.reset(Instant(now, now))
        safety.arm(Instant(now, now))
        safety.drain()
        now += NS // 2
    verdict, cycle, stop = (np.array(x) * 1e3 for x in (judged[5:], cycled[5:], stopped))
    return {
        "verdict_p50_ms": float(np.percentile(verdict, 50)),
        "verdict_p99_ms": float(np.percentile(verdict, 99)),
        "cycle_p50_ms": float(np.percentile(cycle, 50)),
        "cycle_p99_ms": float(np.percentile(cycle, 99)),
        "cpu_share": float(cycle.mean() * 1e-3 / (_PERIOD_NS / NS) + verdict.mean() * 1e-3 / (10 * _PERIOD_NS / NS)),
        "stop_reaction_p999_ms": float(np.percentile(stop, 99.9)),
        "refused": float(refused),
    }


def _observer(safety: SafetyFilter, robot: Robot, home: Array):  # type: ignore[no-untyped-def]
    zero = np.zeros(len(home))

    def observe(now: int) -> None:
        committed = safety.committed
        state = None if committed is None else committed.state(now)
        position, velocity = (home, zero) if state is None else (state.position, state.velocity)
        safety.observe(now, robot.joints, position, velocity, Instant(now, now))

    return observe


def cost_by_zones(robot: Robot, counts: tuple[int, ...] = (2, 5, 10, 20, 50)) -> dict[int, float]:
    """Median verdict [ms] against the number of zones."""
    return {count: measure(robot, 40, count)["verdict_p50_ms"] for count in counts}


def main(json: bool = False, robot: str | Path = "", verdicts: int = 200) -> dict[str, float]:
    """Measures, prints, and returns the figures."""
    result = measure(load_robot(robot or default_robot()), verdicts)
    if json:
        print(dumps(result))
    else:
        print(f"{platform.processor() or platform.machine()}, {_POINTS} points, 20 zones, {verdicts} verdicts")
        for name, value in result.items():
            print(f"  {name:24s} {value:8.3f}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--robot", default="", help="robot file")
    parser.add_argument("--verdicts", type=int, default=200)
    options = parser.parse_args()
    main(options.json, options.robot, options.verdicts)
