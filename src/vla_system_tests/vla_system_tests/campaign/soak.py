"""An hour of operation: episode after episode through the whole running system, watched from outside."""

import time
from pathlib import Path

import numpy as np

from vla_bringup.session import Session, TrialResult
from vla_bringup.trials import Trial, plan
from vla_contract.limits import JointLimits
from vla_safety.proof.tally import Tally
from vla_system_tests.campaign.rounds import system, workspace
from vla_system_tests.campaign.state import Keeper
from vla_system_tests.motion import Fence

PATIENCE = 60.0  # s; nobody is killed here, so lockstep waits long for a busy machine
WARM = 3  # episodes after which memory must not grow any more
GROWTH = 0.10  # of the resident memory, that counts as growth
SPEED_NOISE = 1.05  # measured velocities against their limits: a simulated sensor is no interpolant


def run_soak(keeper: Keeper, folder: Path, policy: str, lockstep: bool) -> None:
    """Episodes until the goal, in s of wall time, is reached."""
    progress, fence = keeper.progress, workspace()
    keeper.progress.memory["lockstep"] = lockstep
    with system(folder / "soak" / "log", policy, lockstep=lockstep, patience=PATIENCE) as session:
        limits = session.robot.limits()
        memory: list[dict[str, int]] = []
        since = time.monotonic()
        number = int(progress.memory.get("episodes", 0))
        while not progress.complete:
            (trial,) = plan(1, progress.seed * 100_003 + number)
            session.prepare(trial.seed)
            result = session.trial(trial.instruction, trial.target)
            tally = _judge(result, trial, fence, limits, progress.seed, number)
            memory.append({name: _resident(pid) for name, pid in session.runner.pids().items()})
            tally.add(_memory(memory, number, progress.seed))
            number += 1
            progress.memory["episodes"] = number
            progress.memory["resident_MB"] = [{k: round(v / 1e6, 1) for k, v in row.items()} for row in memory[-200:]]
            now = time.monotonic()
            keeper.advance(int(now - since), tally, force=True)
            since += int(now - since)
        _finish(session)


def _judge(result: TrialResult, trial: Trial, fence: Fence, limits: JointLimits, seed: int, number: int) -> Tally:
    tally, episode = Tally(), result.episode
    again = {"part": "soak", "seed": seed, "episode": number, "scene": trial.seed}
    tally.counts["episodes"] += 1
    tally.counts["successes"] += result.verdict.success
    tally.counts["wrong object"] += result.verdict.wrong_object
    for verdict, count in episode.decisions.items():
        tally.counts[f"verdict {verdict}"] += count
    for (verdict, reason, _), count in episode.reasons.items():
        tally.counts[f"{verdict} for {reason}"] += count
    positions, stamps = np.array(episode.joint_positions), np.array(episode.joint_times) * 1e-9
    tally.counts["joint states judged"] += len(positions)
    tally.counts["simulated ms"] += round(1e3 * result.task.duration)
    outside = fence.violations(positions) if len(positions) else []
    tally.counts["fence exits"] += bool(outside)
    for fault in outside:
        tally.violated(fault, again)
    slack = 0.01  # rad or m: measured, not commanded
    if len(positions) and not (
        (positions <= limits.max_position + slack).all() and (positions >= limits.min_position - slack).all()
    ):
        tally.violated("a joint was measured beyond its range", again)
    if len(positions) > 1:
        speeds = np.abs(np.diff(positions, axis=0)) / np.maximum(np.diff(stamps), 1e-3)[:, None] / limits.max_velocity
        tally.high("measured speed / limit", float(speeds[:, :-1].max()))
        if speeds[:, :-1].max() > SPEED_NOISE:
            tally.violated(f"measured speed is {speeds[:, :-1].max():.3f} of its limit", again)
    if episode.clearances:
        tally.low("zone clearance m", float(np.nanmin(episode.clearances)))
    if episode.tracking_errors:
        tally.high("tracking error rad", float(np.nanmax(episode.tracking_errors)))
    return tally


def _memory(rows: list[dict[str, int]], number: int, seed: int) -> Tally:
    """Resident memory of each process, against what it was when it had warmed up."""
    tally = Tally()
    if len(rows) <= WARM:
        return tally
    for name, value in rows[-1].items():
        share = value / max(1, rows[WARM - 1][name])
        tally.high(f"memory of {name} / after {WARM} episodes", share)
        if share > 1 + GROWTH and len(rows) > 2 * WARM and all(row[name] <= value for row in rows):
            tally.counts[f"episodes with {name} at its highest memory"] += 1
    return tally


def _resident(pid: int) -> int:
    """Bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _finish(session: Session) -> None:
    session.check()
    session.operator.trigger("disarm")
