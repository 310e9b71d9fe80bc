"""Motions for the policy node's replay backend: they exercise the whole system without a learned model.

The scripted expert knows the ground truth, so its recording solves one scene and no other; it says nothing about the
policy that ships.
"""

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from vla_contract.robot import Robot
from vla_learning.stage import COLOURS, DT, HORIZON, Pace, Stage

Array = NDArray[np.float64]

STEP = 0.05  # s between the points of a recording
LONGEST = 30.0  # s
GRACE = 6  # chunks to play after the cube lies in the tray, so that the arm leaves


def solve(robot: Robot, seed: int, colour: str) -> Array:
    """Commanded joint positions (K, n), one per STEP, with which the expert puts the cube of `colour` into the tray."""
    stage = Stage(robot)
    stage.start(seed)
    name, pace, left = COLOURS[colour], Pace(), GRACE
    rows = [stage.cell.controller.desired[0].copy()]
    run = stage.cell.run

    def recorded(seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            run(STEP)
            rows.append(stage.cell.controller.desired[0].copy())

    stage.cell.run = recorded  # type: ignore[method-assign]
    pace = Pace(period=0.4, latency=0.1)
    while stage.cell.time_ns < LONGEST * 1e9 and left:
        situation = stage.situation()
        plan = stage.expert.plan(situation, name, stage.tool_velocity(), HORIZON, DT)
        stage.advance(stage.joints_for(plan.tool, plan.gripper), pace)
        left -= name in stage.placed()
    assert name in stage.placed(), f"the expert did not solve scene {seed}"
    return np.array(rows)


def swing(robot: Robot, amplitude: float = 0.8, period: float = 3.0, rounds: int = 20) -> Array:
    """The base joint to one side and back, smoothly: (K, n), one row per STEP."""
    times = np.arange(0, period * rounds, STEP)
    positions = np.tile(np.array(robot.home), (len(times), 1))
    positions[:, 0] += amplitude * (1 - np.cos(2 * np.pi * times / period)) ** 2 / 4
    return positions


def policy_file(folder: Path, robot: Robot, positions: Array, cameras: tuple[str, ...] = ()) -> Path:
    """Writes a recording and a policy file that replays it; returns the latter."""
    recording = folder / "recording.npz"
    np.savez(recording, joint_names=np.array(robot.joints), times=STEP * np.arange(len(positions)), positions=positions)
    path = folder / "replay.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "backend": "replay",
                "checkpoint": str(recording),
                "options": {"horizon": HORIZON, "dt": DT, "cameras": list(cameras)},
                "done": {"progress": 0.999, "chunks": 1},
            }
        )
    )
    return path
