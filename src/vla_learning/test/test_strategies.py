"""The benchmark of strategies: its clock, its counts, its figures."""

from pathlib import Path

import numpy as np
import pytest

from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory
from vla_contract.robot import load_robot, resolve_path
from vla_learning import strategies as bench
from vla_learning.delayed import Meter, SlidingTable, Trace, play
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
    traces = [play(stage, Nod(stage.robot), strategy, delay, 20_000, "red")]
    row = bench.summarise("still", strategy, delay, traces)
    assert row.strategy == strategy and row.delay_ms == 1000 * delay and row.success_rate == 0.0
    assert 2.0 < row.mean_duration_s < 12.0
    if strategy in ("async", "ensemble", "rtc"):
        assert row.starved_ticks == 0 and row.splice_step_ratio < 1.25 and row.largest_velocity_jump < 0.2
        assert traces[0].strain <= 1.0 and row.largest_position_jump < 2e-3
    if strategy == "sync" and delay:
        assert row.starved_ticks > 0


def test_the_meter_sees_what_a_real_arm_would_not_do(stage):
    trace = Trace()
    meter, zero = Meter(stage.robot, trace), np.zeros(8)
    slow, fast = np.full(8, 0.1), np.full(8, 0.5)
    meter.note((zero, slow), (0.002 + zero, slow), splice=True)
    assert trace.strain < 0.1 and trace.jump < 1e-9 and trace.kick == 0 and trace.boundary == [pytest.approx(0.002)]
    meter.note((zero, slow), (0.002 + zero, slow), splice=False)
    assert not trace.inside, "the seam"
    meter.note((zero, slow), (0.006 + zero, fast), splice=True)
    assert trace.strain > 1 and trace.jump == pytest.approx(0.004) and trace.kick == pytest.approx(0.4)


def test_the_table_slides_and_takes_everything_along(stage):
    stage.start(20_000)
    start = {name: truth.position for name, truth in stage.cell.truth().items()}
    table = SlidingTable(stage, phase=0.0)
    for _ in range(75):  # a quarter of its period
        stage.cell.run(0.02)
        table.move()
    for name, truth in stage.cell.truth().items():
        np.testing.assert_allclose(truth.position - start[name], [0, 0.04, 0], atol=2e-3)


def test_plot(tmp_path):
    rows = [
        bench.Row(task, s, d, 1, 0.5, 0.5, 6.0, 1.0, 0.1, 0.1, 0)
        for task in ("still", "sliding")
        for s in ("async", "sync")
        for d in (0.0, 100.0)
    ]
    bench.plot(rows, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000
