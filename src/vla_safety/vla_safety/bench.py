"""How long a verdict and a stop take: `python -m vla_safety.bench [--json] [--plot DIR]`.

Measured on chunks of 50 points that the robot of a robot file can execute, with every check on and 20 zones of all
shapes. One verdict is validation, splicing, verification of the whole chunk with its stop, and the first message with
its own. A stop is measured on a robot in motion, each time from a new motion: from the joint state, or the e-stop
button, that demands it to the message that the controller gets. What comes before that is not in it: a joint state is
looked at in the next cycle (`stop_wait_max_ms`), a button at once. `--plot` draws what a verdict costs against the
number of zones, bodies and points.
"""

import argparse
import gc
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from json import dumps
from pathlib import Path

import numpy as np

from vla_contract.robot import Robot, load_robot
from vla_safety.building import Parts, assemble, first_setup, read_parts
from vla_safety.core.config import SafetyConfig
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Finding
from vla_safety.core.motion import NS, Array
from vla_safety.core.shapes import Sphere
from vla_safety.core.tools import ToolShape, ToolSpec
from vla_safety.core.validation import POLICY, Proposal
from vla_safety.core.watchdogs import Instant
from vla_safety.core.zones import SHAPES, ZoneSpec

_POINTS, _ZONES, _DT = 50, 20, 0.02
_STOPS = 2000  # of each kind: what p99.9 needs
_ASTRAY = 0.08  # rad between a joint and its command, that no robot may be
_PERIOD_NS = 20_000_000  # 50 Hz
_OTHERS_PERIOD = 0.1  # s between collision checks of servoing in MoveIt, by default (collision_check_rate)
_COUNTS = {"zones": (2, 5, 10, 20, 50, 100), "bodies": (0, 5, 10, 20, 40), "points": (10, 25, 50, 100, 200)}


def default_robot() -> Path:
    """The robot file beside this workspace's bringup package."""
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("vla_bringup")) / "config/robots/fr3_sim.yaml"


def add_zones(config: SafetyConfig, count: int) -> SafetyConfig:
    """The same configuration with keep-out zones of all shapes around the workspace, up to `count` zones."""
    extra = []
    for k in range(count - len(config.zones)):
        shape = SHAPES[k % len(SHAPES)]
        fields: dict[str, object] = {"center": (0.2 + 0.8 * np.cos(k), 0.8 * np.sin(k), 0.1 * (k % 8))}
        if shape == "box":
            fields |= {"size": (0.1, 0.1, 0.08), "rpy": (0.0, 0.0, float(k))}
        elif shape == "mesh":
            fields["points"] = [(x, y, 0.0) for x in (-0.05, 0.05) for y in (-0.05, 0.05)] + [(0.0, 0.0, 0.1)]
        else:
            fields |= {"radius": 0.04} if shape == "sphere" else {"radius": 0.04, "length": 0.1}
        extra.append(ZoneSpec.model_validate({"name": f"{shape}_{k}", "kind": "keep_out", shape: fields}))
    return config.model_copy(update={"zones": (*config.zones, *extra)})


def add_bodies(config: SafetyConfig, parent: str, count: int) -> SafetyConfig:
    """The same configuration with a tool of `count` small balls mounted on link `parent`."""
    if count == 0:
        return config
    balls = tuple(ToolShape(sphere=Sphere(center=(0.0, 0.0, -0.002 * k), radius=0.002)) for k in range(count))
    tool = ToolSpec(parent=parent, shapes=balls, mass=0.0)
    return config.model_copy(update={"tools": {**config.tools, "balls": tool}, "tool": "balls"})


def _chunk(home: Array, joints: tuple[str, ...], t0: float, stamp_ns: int, sequence: int, points: int) -> Proposal:
    """A slow sway about home, continuous from chunk to chunk."""
    times = np.arange(points) * _DT
    phase = 1.5 * np.maximum(0.0, t0 + times)[:, None]
    size = 0.1 * np.cos(np.arange(len(home))) * (np.arange(len(home)) < 7)
    q, v, a = (home + size * (1 - np.cos(phase)), 1.5 * size * np.sin(phase), 2.25 * size * np.cos(phase) * (phase > 0))
    nanoseconds = [round(t * NS) for t in times]
    return Proposal(
        POLICY, sequence, stamp_ns, "", joints, nanoseconds, q.tolist(), v.tolist(), a.tolist(), points, stamp_ns
    )


def measure(
    robot: Robot, verdicts: int = 200, zones: int = _ZONES, bodies: int = 0, points: int = _POINTS
) -> dict[str, float]:
    """Latencies [ms] over `verdicts` chunks, with the filter's cycle at 50 Hz between them.

    Args:
        zones: in all; bodies: beside the robot's own; points: of each chunk, 20 ms apart.
    """
    parts = read_parts(robot)
    safety = _filter(parts, add_bodies(add_zones(parts.config, zones), parts.robot.tool_frame, bodies))
    home = np.array(robot.home)
    now = NS
    observe = _observer(safety, robot, home)
    observe(now)
    answer = safety.arm(Instant(now, now))
    if not answer.success:
        raise RuntimeError(answer.message)
    now += NS // 2
    start, judged, cycled = now, [], []
    for k in range(verdicts):
        observe(now)
        proposal = _chunk(home, robot.joints, (now - start) / NS, now, k, points)
        began = time.perf_counter()
        decision = safety.propose(proposal, Instant(now, now))
        judged.append(time.perf_counter() - began)
        if decision.points_accepted == 0:
            assert decision.finding is not None
            raise RuntimeError(f"chunk {k} was refused, which is no measure of a verdict: {decision.finding.sentence}")
        for _ in range(10):
            now += _PERIOD_NS
            observe(now)
            began = time.perf_counter()
            safety.cycle(Instant(now, now))
            cycled.append(time.perf_counter() - began)
        safety.drain()
    skipped = min(5, verdicts // 2)
    verdict, cycle = (np.array(x) * 1e3 for x in (judged[skipped:], cycled[skipped:]))
    median = float(np.percentile(verdict, 50))
    return {
        "verdict_p50_ms": median,
        "verdict_p99_ms": float(np.percentile(verdict, 99)),
        "cycle_p50_ms": float(np.percentile(cycle, 50)),
        "cycle_p99_ms": float(np.percentile(cycle, 99)),
        "cpu_share": float(cycle.mean() * 1e-3 / (_PERIOD_NS / NS) + verdict.mean() * 1e-3 / (10 * _PERIOD_NS / NS)),
        "verdicts_per_check_at_10_hz": _OTHERS_PERIOD * 1e3 / median,
        "checks_at_10_hz_per_chunk": points * _DT / _OTHERS_PERIOD,
    }


def reactions(robot: Robot, stops: int = _STOPS, zones: int = _ZONES) -> dict[str, float]:
    """ms from what demands a stop to the message of that stop, over `stops` motions for a joint state and as many for
    the e-stop button, with `zones` in all; `…_work_…` is the processor's time for it, which other work does not spoil.

    Raises:
        RuntimeError: when the robot was not in motion, or was not stopped for that reason.
    """
    from vla_safety.messages import motion_msg

    parts = read_parts(robot)
    safety, rng, now = _filter(parts, add_zones(parts.config, zones)), np.random.default_rng(0), NS
    home, period = np.array(robot.home), round(safety.config.cycle.period * NS)
    moved = np.array([name in robot.arm_joints for name in robot.joints], dtype=float)
    observe = _observer(safety, robot, home)
    took: dict[str, list[tuple[float, float]]] = {"tracking_error": [], "estop_input": []}
    gc.collect()
    gc.freeze()  # as the node does before it is active
    for k in range(2 * stops):
        observe(now)
        safety.cycle(Instant(now, now))
        for answer in (safety.reset(Instant(now, now)), safety.arm(Instant(now, now))):
            if not answer.success:
                raise RuntimeError(answer.message)
        now += NS // 2
        observe(now)
        goal = home + (-1) ** (k // 2) * rng.uniform(0.05, 0.15, len(home)) * moved
        decision = safety.propose(_swing(safety, robot, goal, now, k), Instant(now, now))
        if decision.points_accepted == 0 and decision.speed_scale == 1:
            raise RuntimeError(f"motion {k} was refused, so there is nothing to stop: {decision.finding}")
        for _ in range(int(rng.integers(6, 11))):
            now += period
            observe(now)
            safety.cycle(Instant(now, now))
        safety.drain()
        now += period
        state = safety.committed.state(now) if safety.committed is not None else None
        if state is None or safety.plan is None or not np.abs(state.velocity).max() > 0.05:
            raise RuntimeError(f"the robot is not in motion before stop {k}, which is no measure of a reaction")
        reason = tuple(took)[k % 2]
        astray, velocity = (state.position + _ASTRAY * (np.arange(len(home)) == 0)).tolist(), state.velocity.tolist()
        began, began_work = time.perf_counter(), time.thread_time()
        if reason == "tracking_error":
            safety.observe(now, robot.joints, astray, velocity, Instant(now, now))
            safety.cycle(Instant(now, now))
        else:
            safety.report("estop_input", Finding("estop_input", "button"), Instant(now, now))
        messages = [motion_msg(motion, robot.joints) for motion in safety.drain().motions]
        took[reason].append((time.perf_counter() - began, time.thread_time() - began_work))
        if not messages or safety.finding is None or safety.finding.reason != reason:
            raise RuntimeError(f"no stop for {reason} after {k} stops, but {safety.finding}")
        safety.report("estop_input", None, Instant(now, now))
        now += NS
    gc.unfreeze()
    figures = {"stop_wait_max_ms": period * 1e3 / NS, "stops": 2.0 * stops}
    for name, reason in (("stop", "tracking_error"), ("button", "estop_input")):
        passed, worked = np.array(took[reason]).T * 1e3
        figures[f"{name}_reaction_p50_ms"] = float(np.percentile(passed, 50))
        figures[f"{name}_reaction_p999_ms"] = float(np.percentile(passed, 99.9))
        figures[f"{name}_work_p999_ms"] = float(np.percentile(worked, 99.9))
    return figures


def _swing(safety: SafetyFilter, robot: Robot, goal: Array, now: int, sequence: int) -> Proposal:
    """From rest where the robot is commanded to be to rest at `goal` (n,), within 0.8 s."""
    assert safety.committed is not None
    start = safety.committed.state(now).position
    u, duration = np.linspace(0, 1, _POINTS)[:, None], 0.8
    q = start + (10 * u**3 - 15 * u**4 + 6 * u**5) * (goal - start)
    v = 30 * (u * (1 - u)) ** 2 * (goal - start) / duration
    a = 60 * u * (1 - u) * (1 - 2 * u) * (goal - start) / duration**2
    times = [round((0.1 + duration * x) * NS) for x in u[:, 0]]
    return Proposal(POLICY, sequence, now, "", robot.joints, times, q.tolist(), v.tolist(), a.tolist(), _POINTS, now)


def _filter(parts: Parts, config: SafetyConfig) -> SafetyFilter:
    return assemble(replace(parts, config=config, setup=first_setup(config)))


def _observer(safety: SafetyFilter, robot: Robot, home: Array) -> Callable[[int], None]:
    zero = np.zeros(len(home))

    def observe(now: int) -> None:
        committed = safety.committed
        state = None if committed is None else committed.state(now)
        position, velocity = (home, zero) if state is None else (state.position, state.velocity)
        safety.observe(now, robot.joints, position, velocity, Instant(now, now))

    return observe


def costs(robot: Robot, verdicts: int = 40) -> dict[str, dict[int, tuple[float, float]]]:
    """What a verdict costs [ms, p50 and p99] against the number of zones, of bodies, and of points; the others as in
    `measure`. The counts take turns, so that a machine that slows down slows all of them."""
    rounds = 4
    found: dict[str, dict[int, list[dict[str, float]]]] = {what: {n: [] for n in ns} for what, ns in _COUNTS.items()}
    for _ in range(rounds):
        for what, counts in _COUNTS.items():
            for count in counts:
                found[what][count].append(measure(robot, max(10, verdicts // rounds), **{what: count}))
    return {
        what: {
            count: (
                float(np.median([m["verdict_p50_ms"] for m in runs])),
                float(np.median([m["verdict_p99_ms"] for m in runs])),
            )
            for count, runs in by_count.items()
        }
        for what, by_count in found.items()
    }


def plot(robot: Robot, folder: str | Path, verdicts: int = 40) -> Path:
    """Draws `costs` into `safety_cost.png` in a folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    own = len(assemble(read_parts(robot)).verifier.model.body_links)
    labels = {"zones": "zones", "bodies": f"bodies beyond the robot's {own}", "points": "points in the chunk"}
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
    for axis, (what, by_count) in zip(axes, costs(robot, verdicts).items(), strict=True):
        counts = list(by_count)
        axis.plot(counts, [by_count[n][0] for n in counts], "o-", label="p50")
        axis.plot(counts, [by_count[n][1] for n in counts], "^:", label="p99")
        axis.set_xlabel(labels[what])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("verdict [ms]")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    path = Path(folder) / "safety_cost.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def main(
    json: bool = False, robot: str | Path = "", verdicts: int = 200, plot_into: str = "", stops: int = _STOPS
) -> dict[str, float]:
    """Measures, prints, and returns the figures."""
    loaded = load_robot(robot or default_robot())
    result = {**measure(loaded, verdicts), **reactions(loaded, stops)}
    if plot_into:
        print(f"drawn: {plot(loaded, plot_into)}")
    if json:
        print(dumps(result))
    else:
        print(f"{platform.processor() or platform.machine()}, {_POINTS} points, {_ZONES} zones, {verdicts} verdicts")
        for name, value in result.items():
            print(f"  {name:28s} {value:8.3f}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--robot", default="", help="robot file")
    parser.add_argument("--verdicts", type=int, default=200)
    parser.add_argument("--stops", type=int, default=_STOPS, help="of each kind")
    parser.add_argument("--plot", default="", metavar="DIR", help="draws cost against zones, bodies and points there")
    options = parser.parse_args()
    main(options.json, options.robot, options.verdicts, options.plot, options.stops)
