"""The benchmark of strategies: its clock, its counts, its figures."""

from pathlib import Path

import numpy as np
import pytest

from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory
from vla_contract.robot import load_robot, resolve_path
from vla_learning import strategies as bench
from vla_learning.stage import Stage


class Nod:
    """Moves one joint to and fro, and is done after two seconds."""

    def __init__(self, robot):
        self._robot = robot

    def reset(self):
        pass

    def infer(self, observation, prefix):
        times = 0.1 * np.arange(1, 17)
        t = observation.stamp_ns * 1e-9 + times
        positions = np.tile(self._robot.home, (16, 1))
        positions[:, 0] += 0.2 * np.sin(2 * t)
        progress = 1.0 if t[0] > 2 else 0.0
        return ActionChunk(observation.stamp_ns, self._robot.joints, Trajectory(times, positions), progress=progress)


@pytest.fixture(scope="module")
def stage():
    made = Stage(load_robot(resolve_path(bench.ROBOT, Path())))
    yield made
    made.close()


@pytest.mark.parametrize("strategy", bench.STRATEGIES)
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_figures(stage, strategy, delay):
    traces = [bench.play(stage, Nod(stage.robot), strategy, delay, 20_000, "red")]
    row = bench.summarise(strategy, delay, traces)
    assert row.strategy == strategy and row.delay_ms == 1000 * delay and row.success_rate == 0.0
    assert 2.0 < row.mean_duration_s < 12.0
    if strategy in ("async", "ensemble", "rtc"):
        assert row.starved_ticks == 0 and row.splice_step_ratio < 1.25 and row.largest_velocity_jump < 0.2
    if strategy == "sync":
        assert row.starved_ticks > 0


def test_plot(tmp_path):
    rows = [bench.Row(s, d, 1, 0.5, 6.0, 1.0, 0.1, 0) for s in ("async", "sync") for d in (0.0, 100.0)]
    bench.plot(rows, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000
