"""`./vla bench latency`: figures from made-up notes, the stub, the virtual clock, a short run of the real graph."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from vla_bringup.files import find
from vla_bringup.latency import graphs, report, starvation, stub
from vla_bringup.latency.bare import run_bare
from vla_bringup.latency.figures import Sample, Seen, growth, overheads, quantiles, samples, seen_from
from vla_bringup.latency.graphs import STACK, WORKER, BenchError, Graph, Phase, run_graph
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.observation import Observation
from vla_contract.robot import load_robot

MS = 1_000_000


@pytest.fixture(scope="module")
def robot():
    return load_robot(find("robots", "fr3"))


def test_a_chunk_is_followed_to_the_command_that_was_made_of_it():
    seen = Seen(
        stamps={7: 100 * MS},
        chunks={1: (7, 140 * MS, 30 * MS), 2: (8, 150 * MS, 30 * MS), 3: (7, 160 * MS, 30 * MS)},
        # The second is a cycle's; the third is what the first chunk led to.
        commands=[(120 * MS, 121 * MS), (139 * MS, 141 * MS), (142 * MS, 143 * MS), (180 * MS, 181 * MS)],
        decisions=[
            (143 * MS, 1, 0, 2 * MS),
            (155 * MS, 2, 0, 2 * MS),  # its images' stamp is not known
            (156 * MS, 9, 0, 2 * MS),  # a chunk that was not seen
            (165 * MS, 3, 3, 2 * MS),  # refused: nothing of it is commanded
        ],
    )
    (sample,) = samples(seen, 0.1)
    assert sample == Sample(total=43.0, inference=30.0, policy=10.0, filter=2.0) and sample.overhead == 13.0
    again = json.loads(json.dumps({name: getattr(seen, name) for name in seen.__dataclass_fields__}))
    assert samples(seen_from(again), 0.1) == [sample]


def test_a_slow_model_is_asked_less_often_and_that_wait_is_no_latency():
    seen = Seen(
        stamps={k: 33 * k * MS for k in range(30)},
        # One inference took 300 ms: so much is expected of the next (nine in ten: 273 ms), as the policy node does.
        chunks={1: (0, 300 * MS, 0), 2: (10, 360 * MS, 0), 3: (19, 640 * MS, 0)},
        commands=[(641 * MS, 642 * MS)],
        decisions=[(642 * MS, 3, 0, MS)],
    )
    (sample,) = samples(seen, 0.1)
    assert sample.lost == 0.0 and sample.overhead == pytest.approx(642 - 19 * 33)
    (sample,) = samples(replace(seen, chunks={2: (10, 360 * MS, 0), 3: (19, 640 * MS, 0)}), 0.1)
    assert sample.lost == pytest.approx((19 - 14) * 33), "a quick model could have used the images of 462 ms"


def test_a_process_that_ends_while_it_is_measured_is_named():
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(graphs.BenchError, match=f"vla_policy .process {gone.pid}. ended .* see its log"):
        graphs._Watch({"vla_policy": gone.pid})


def test_a_command_from_before_the_chunk_does_not_count():
    seen = Seen({7: 0}, {1: (7, 140 * MS, 0)}, [(139 * MS, 140 * MS)], [(143 * MS, 1, 0, 0)])
    assert samples(seen, 0.1) == []


def test_images_that_were_lost_count_from_when_they_were_taken():
    seen = Seen(
        stamps={k: 33 * k * MS for k in range(10)},
        chunks={1: (0, 20 * MS, 5 * MS), 2: (5, 190 * MS, 5 * MS)},
        commands=[(191 * MS, 192 * MS)],
        decisions=[(192 * MS, 2, 0, MS)],
    )
    (sample,) = samples(seen, 0.06)  # due from 60 ms on: the images of 66, 99 and 132 ms did not come
    assert sample.arrived == pytest.approx(192 - 165 - 5) and sample.overhead == pytest.approx(192 - 66 - 5)
    (sample,) = samples(seen, 0.16)
    assert sample.overhead == sample.arrived


def test_quantiles():
    assert quantiles([1.0, 2.0, 3.0])["p50_ms"] == 2.0 and math.isnan(quantiles([])["p50_ms"])
    assert overheads([Sample(5, 2, 1, 1)]) == [3]


def test_growth_sees_a_leak_and_no_start_up():
    times = np.arange(0.0, 101.0)
    start_up = np.minimum(times, 20.0)
    assert growth(list(zip(times, start_up, strict=True))) == 0.0
    assert growth(list(zip(times, start_up + 0.1 * times, strict=True))) == pytest.approx(5.0)
    assert math.isnan(growth([]))


def test_the_stub_takes_its_time_and_moves_without_a_jump(robot):
    backend = stub.load(find("robots", "fr3"), robot, {"cameras": ["front"]})
    home = np.array(robot.home)
    start = home + 0.05
    began = time.perf_counter()
    chunk = backend.infer(Observation(0, {}, start, np.zeros_like(home), "sleep constant 20"), None)
    assert time.perf_counter() - began >= 0.02
    assert np.abs(chunk.positions[0] - start).max() < 0.01
    stamp = 5_000_000_000
    later = backend.infer(Observation(stamp, {}, start, np.zeros_like(home), "burn spiky 0.1"), None)
    np.testing.assert_allclose(later.positions[:, 1:], np.tile(home[1:], (16, 1)), atol=1e-12)
    steps = np.abs(np.diff(later.positions[:, 0]))
    assert 0 < steps.max() < 0.05


def test_shapes_of_delays():
    random = np.random.default_rng(1)
    assert {stub.factor("constant", random) for _ in range(9)} == {1.0}
    spiky = [stub.factor("spiky", random) for _ in range(2000)]
    assert set(spiky) == {1.0, 5.0} and 0.02 < np.mean(np.array(spiky) > 1) < 0.1
    assert np.median([stub.factor("lognormal", random) for _ in range(2000)]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("words", ["", "sleep", "doze constant 3", "sleep odd 3", "sleep constant long"])
def test_an_instruction_that_says_nothing_to_the_stub(words):
    with pytest.raises(InferenceError):
        stub.parse(words)


def test_a_wrong_option_of_the_stub(robot):
    with pytest.raises(ConfigError, match="paec"):
        stub.load(find("robots", "fr3"), robot, {"paec": 1})


def test_the_motion_never_runs_out(robot):
    found = starvation.measure(robot, 3000, seed=3)
    assert found.ticks == 3000 and found.starved == found.refused == 0 and found.chunks > 50
    assert 0.5 * found.horizon >= found.longest_delay > 0.2


def test_a_target_without_a_figure_is_missed():
    target = report.TARGETS[0]
    assert target.met({"p50_ms": 3.5}) and not target.met({"p50_ms": 3.6})
    assert not target.met({}) and not target.met({"p50_ms": float("nan")})


@pytest.mark.slow
def test_the_way_alone(robot, tmp_path):
    alone = Graph("alone", True, 2, {}, [Phase("", 1.0)])
    found = run_bare(alone, robot.path, tmp_path)
    assert len(found) > 10 and min(found) > 0.1, "a command for nearly every picture, and none before it was taken"


def test_a_way_that_leads_nowhere_is_named(robot, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(BenchError, match=r"could not be measured; see .*bare.log"):
        run_bare(Graph("alone", True, 2, {}, [Phase("", 1.0)]), robot.path, tmp_path)


@pytest.mark.slow
def test_the_real_graph(robot, tmp_path):
    graph = Graph("short", True, 3, {"execution_horizon": 0.1}, [Phase("sleep constant 30", 2.0)])
    done = []
    result = run_graph(graph, robot.path, 100.0, tmp_path, done.append)
    assert done == [2.0] and abs(result.clock_drift_ms) < 5.0
    assert set(result.delivered) == {"front", "wrist", "extra2"} and min(result.delivered.values()) > 0
    (phase,) = result.phases
    found = samples(phase.seen, 0.1)
    assert found and all(30 <= sample.inference < sample.total for sample in found)
    assert {*STACK, WORKER} == set(phase.usage)
    assert all(used.rss_mb > 20 and used.cpu_share > 0 for used in phase.usage.values())
    assert len(list((tmp_path / "audit").glob("*.jsonl"))) == 1
    report.plot({"shipped": found, "default": []}, "a title", tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 10_000
