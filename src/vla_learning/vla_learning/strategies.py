"""What inference delay does to a policy, by strategy: `./vla bench policy`.

Closed loop in the simulated cell on a virtual clock: the delay is injected, the machine's own speed does not count. The
scheduler is the running system's; `naive` is what many systems do, switching to each new chunk at once.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.robot import Robot, load_robot, resolve_path
from vla_learning.evaluation import EVALUATION_SEEDS
from vla_learning.instructions import PLAIN
from vla_learning.rollout import DONE, load_policy
from vla_learning.stage import COLOURS, Stage
from vla_policy_node.backends import Backend
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule
from vla_policy_node.core.shaping import Shaper
from vla_sim.core.controller import JointTrajectoryCommand

Array = NDArray[np.float64]

ROBOT = "package://vla_bringup/config/robots/fr3_sim.yaml"
CHECKPOINT = "package://vla_policy_node/models/flow"
STRATEGIES = ("naive", "sync", "async", "ensemble", "rtc")
DELAYS = (0.0, 0.1, 0.2, 0.3, 0.5)
_TICK_NS = 20_000_000
_CAMERA_NS = 66_666_667
_LIMIT_NS = 40_000_000_000
_DONE_IN_A_ROW = 3
_MARGIN = 0.04  # s from chunk to splice: no filter and no network here
_UNSHOWN = ("strategy", "episodes")


@dataclass
class Trace:
    """What one episode showed. Steps are the largest over the arm's joints between two control ticks of 20 ms, rad."""

    success: bool = False
    duration: float = 0.0
    starved: int = 0
    boundary: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    jump: float = 0.0  # rad/s, largest change of velocity in a tick with a splice


@dataclass(frozen=True)
class Row:
    """One strategy at one delay."""

    strategy: str
    delay_ms: float
    episodes: int
    success_rate: float
    mean_duration_s: float
    splice_step_ratio: float
    largest_velocity_jump: float
    starved_ticks: int


class Player:
    """One strategy between a policy and the cell's controller."""

    def __init__(self, robot: Robot, strategy: str):
        limits = robot.limits()
        gripper = None if robot.gripper is None else robot.joints.index(robot.gripper.joint)
        schedule = Schedule(margin=_MARGIN)
        self.scheduler = ChunkScheduler(limits, gripper, schedule)
        self.scheduler.choose("async" if strategy == "naive" else strategy)
        self._shaper = Shaper(limits, gripper, schedule.limit_share, schedule.blend, schedule.step)
        self._low, self._high = limits.min_position, limits.max_position
        self._naive = strategy == "naive"

    def motion(self, chunk: ActionChunk, observed: Array, now_ns: int, desired: Array) -> tuple[Trajectory, float]:
        """What to send, in s since the chunk's stamp, and when the new chunk begins in it."""
        splice = self.scheduler.splice(chunk, observed, now_ns, Reality(desired))
        now = (now_ns - chunk.stamp_ns) * 1e-9
        if self._naive:
            times = chunk.trajectory.times
            ahead = times > now + 1e-3
            slopes = np.gradient(chunk.positions, times, axis=0)[ahead]
            return self._to_rest(Trajectory(times[ahead], chunk.positions[ahead], slopes)), now
        return self._to_rest(splice.chunk.trajectory), now + _MARGIN

    def _to_rest(self, motion: Trajectory) -> Trajectory:
        """Controllers want a trajectory to end at rest; this end is hardly ever reached."""
        assert motion.velocities is not None
        accelerations = np.zeros_like(motion.positions) if motion.accelerations is None else motion.accelerations
        state = motion.positions[-1], motion.velocities[-1], accelerations[-1]
        tail = self._shaper.brake(state, motion.end, self._low, self._high)
        assert tail.velocities is not None and tail.accelerations is not None
        parts = (
            (motion.times, tail.times),
            (motion.positions, tail.positions),
            (motion.velocities, tail.velocities),
            (accelerations, tail.accelerations),
        )
        columns = [np.concatenate([head, rest[1:]]) for head, rest in parts]
        return Trajectory(*columns[:3]) if motion.accelerations is None else Trajectory(*columns)


def play(stage: Stage, policy: Backend, strategy: str, delay: float, seed: int, colour: str) -> Trace:
    """One episode with every inference taking `delay` s."""
    stage.start(seed)
    policy.reset()
    player, trace, cell = Player(stage.robot, strategy), Trace(), stage.cell
    instruction = PLAIN.format(c=colour)
    pending: tuple[int, ActionChunk, Array] | None = None
    next_image, splice_ns, finished = 0, -1, 0
    before = cell.controller.desired
    while cell.time_ns < _LIMIT_NS and finished < _DONE_IN_A_ROW:
        now = cell.time_ns
        if now >= next_image:
            next_image += _CAMERA_NS
            if pending is None and player.scheduler.due(now, now):
                seen = stage.observe(instruction)
                player.scheduler.begin(now)
                try:
                    answer = policy.infer(seen, player.scheduler.prefix(now))
                    pending = now + round(delay * 1e9), answer, seen.positions
                except InferenceError:
                    pass  # what plays goes on; the next observation decides
        if pending is not None and now >= pending[0]:
            _, chunk, observed = pending
            pending = None
            finished = finished + 1 if chunk.progress >= DONE else 0
            try:
                motion, start = player.motion(chunk, observed, now, cell.controller.desired[0])
                cell.command(_command(stage.robot, motion, chunk.stamp_ns))
                splice_ns = chunk.stamp_ns + round(start * 1e9)
            except ChunkError:
                pass  # its time has passed: the robot comes to rest
        queue = player.scheduler.queue(now)
        trace.starved += bool(np.isfinite(queue) and queue <= 0)
        cell.run(_TICK_NS * 1e-9)
        after = cell.controller.desired
        _note(trace, before, after, now <= splice_ns < now + _TICK_NS)
        before = after
    trace.duration = cell.time_ns * 1e-9
    cell.run(0.5)
    trace.success = stage.placed() == (COLOURS[colour],)
    return trace


def _note(trace: Trace, before: Sequence[Array], after: Sequence[Array], splice: bool) -> None:
    step = float(np.abs(after[0] - before[0])[:-1].max())
    (trace.boundary if splice else trace.inside).append(step)
    if splice:
        trace.jump = max(trace.jump, float(np.abs(after[1] - before[1])[:-1].max()))


def _command(robot: Robot, motion: Trajectory, stamp_ns: int) -> JointTrajectoryCommand:
    return JointTrajectoryCommand.from_arrays(
        robot.joints, motion.times, motion.positions, motion.velocities, motion.accelerations, stamp_ns
    )


def summarise(strategy: str, delay: float, traces: Sequence[Trace]) -> Row:
    """The figures of one strategy at one delay."""
    boundary = np.concatenate([trace.boundary for trace in traces])
    inside = np.concatenate([trace.inside for trace in traces])
    ratio = np.percentile(boundary, 99) / np.percentile(inside, 99) if len(boundary) else float("nan")
    return Row(
        strategy,
        round(1e3 * delay, 1),
        len(traces),
        round(float(np.mean([trace.success for trace in traces])), 4),
        round(float(np.mean([trace.duration for trace in traces])), 2),
        round(float(ratio), 3),
        round(max(trace.jump for trace in traces), 3),
        int(sum(trace.starved for trace in traces)),
    )


def bench(
    robot: Robot,
    checkpoint: Path,
    strategies: Sequence[str],
    delays: Sequence[float],
    episodes: int,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """All combinations, on the same scenes."""
    stage = Stage(robot)
    rows = []
    try:
        policy = load_policy(checkpoint, stage)
        colours = list(COLOURS)
        for delay in delays:
            for strategy in strategies:
                traces = [
                    play(stage, policy, strategy, delay, EVALUATION_SEEDS + k, colours[k % len(colours)])
                    for k in range(episodes)
                ]
                rows.append(summarise(strategy, delay, traces))
                report(rows[-1])
    finally:
        stage.close()
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Success, duration and velocity jump against the delay."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "success_rate": "success",
        "mean_duration_s": "time to completion [s]",
        "largest_velocity_jump": "largest velocity jump at a splice [rad/s]",
    }
    figure, axes = pyplot.subplots(1, len(shown), figsize=(12, 3.6), layout="constrained")
    for axis, (key, label) in zip(axes, shown.items(), strict=True):
        for strategy in dict.fromkeys(row.strategy for row in rows):
            mine = [row for row in rows if row.strategy == strategy]
            axis.plot([r.delay_ms for r in mine], [getattr(r, key) for r in mine], "o-", label=strategy)
        axis.set_xlabel("inference delay [ms]")
        axis.set_title(label, fontsize="medium")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="vla bench policy", description=__doc__)
    parser.add_argument("--episodes", type=int, default=12, help="per strategy and delay")
    parser.add_argument("--delays", type=float, nargs="+", default=list(DELAYS), help="s")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--robot", default=ROBOT)
    parser.add_argument("--checkpoint", default=CHECKPOINT)
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    console = Console(stderr=True)
    table = Table("strategy", "delay ms", "success", "mean s", "splice step ratio", "jump rad/s", "starved ticks")

    def report(row: Row) -> None:
        table.add_row(row.strategy, *(f"{value:g}" for key, value in asdict(row).items() if key not in _UNSHOWN))
        console.print(f"{row.strategy:8s} {row.delay_ms:3.0f} ms: {row.success_rate:.2f}, {row.mean_duration_s:.1f} s")

    robot = load_robot(resolve_path(options.robot, Path.cwd()))
    checkpoint = resolve_path(options.checkpoint, Path.cwd())
    rows = bench(robot, checkpoint, options.strategies, options.delays, options.episodes, report)
    console.print(table)
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
