"""The benchmark of strategies: its clock, its counts, its figures."""

import json
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


class TestCommand:
    @pytest.fixture(autouse=True)
    def place(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VLA_ROOT", str(tmp_path))

    @pytest.fixture
    def nodding(self, monkeypatch):
        monkeypatch.setattr(bench, "load", lambda checkpoint, robot, options: Nod(robot))
        monkeypatch.setattr("vla_learning.delayed.LIMITS", {"still": 2.0, "sliding": 2.0})

    def last_line(self, capsys):
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    def test_writes_its_picture_into_a_folder_of_its_own(self, nodding, capsys, tmp_path):
        few = ["--episodes", "1", "--delays", "0.1", "--strategies", "async", "rtc"]
        assert bench.main([*few, "--json"]) == 0
        result = self.last_line(capsys)
        picture = Path(result["picture"])
        assert picture.parent.parent == tmp_path / ".vla" / "runs" and picture.stat().st_size > 10_000
        assert [row["strategy"] for row in result["rows"]] == ["async", "rtc"] == list(result["splice_step_ratio"])
        assert bench.main([*few, "--plot", str(tmp_path / "here" / "mine.png")]) == 0
        assert (tmp_path / "here" / "mine.png").is_file() and not capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "code", "told"),
        [
            (["--robot", "/nowhere.yaml"], 2, "/nowhere.yaml"),
            (["--checkpoint", "/nowhere"], 2, "/nowhere"),
            (["--episodes", "0"], 2, "--episodes is 0, expected 1 or more"),
            (["--delays", "0.1", "-0.2"], 2, "--delays holds -0.2, expected seconds, 0 or more"),
            (["--plot", "picture.pdf"], 2, "expected a file that ends in .png"),
            (["--plot", "/proc/picture/strategies.png"], 2, "name another place with --plot"),
        ],
    )
    def test_a_failure_ends_with_a_json_line_too(self, capsys, options, code, told):
        assert bench.main([*options, "--json"]) == code
        result = self.last_line(capsys)
        assert told in result["error"] and result["exit_code"] == code and result["rows"] == []

    def test_an_interruption_keeps_what_was_measured(self, nodding, monkeypatch, capsys):
        def interrupted(stage, policy, strategy, *rest):
            if strategy == "rtc":
                raise KeyboardInterrupt
            return play(stage, policy, strategy, *rest)

        monkeypatch.setattr(bench, "play", interrupted)
        code = bench.main(["--episodes", "1", "--delays", "0.1", "--strategies", "async", "rtc", "--json"])
        result = self.last_line(capsys)
        assert code == result["exit_code"] == 130 and result["error"] == "interrupted"
        assert [row["strategy"] for row in result["rows"]] == ["async"]
