"""I10: what the e-stop's file says, and what happens when it cannot be written or understood."""

import json

import pytest

from vla_contract.errors import ConfigError
from vla_safety.core.findings import Finding
from vla_safety.core.latch import CarriedFile, LatchFile


def test_i10_what_was_kept_is_recalled_until_it_is_forgotten(tmp_path):
    memory = LatchFile(tmp_path / "not" / "there" / "robot.json")
    assert memory.error == "" and memory.recall() is None
    memory.keep(Finding("tracking_error", "fr3_joint3", 1.0, 0.05))
    assert memory.error == ""
    found = LatchFile(str(memory.path)).recall()
    assert found == Finding("tracking_error", "fr3_joint3", 1.0, 0.05), "with its numbers, for the person who resets"
    assert [path.name for path in memory.path.parent.iterdir()] == ["robot.json"], "no draft is left"
    memory.keep(Finding("zone:table", "fr3_hand", 1.0, 0.05))
    assert memory.recall().reason == "zone:table"
    assert memory.forget() and memory.recall() is None and memory.forget(), "twice is once"
    assert memory.error == ""


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '{"reason": "estop"}',
        '{"subject": "x"}',
        '"x"',
        "null",
        '{"reason": "estop", "subject": "x"}',
    ],
)
def test_i10_an_unreadable_file_is_a_latch(tmp_path, content):
    path = tmp_path / "robot.json"
    path.write_text(content)
    assert LatchFile(path).recall() == Finding("estop", "an earlier run (unreadable latch)")


def test_i10_a_reason_that_nobody_knows_is_an_estop(tmp_path):
    path = tmp_path / "robot.json"
    path.write_text(json.dumps({"reason": "of another version", "subject": "who", "value": 1, "limit": 2}))
    assert LatchFile(path).recall() == Finding("estop", "who", 1, 2)


def test_i10_what_cannot_be_written_or_removed_is_told(tmp_path):
    (tmp_path / "file").write_text("no folder")
    memory = LatchFile(tmp_path / "file" / "robot.json")
    memory.keep(Finding("estop", "x"))
    assert "file" in memory.error and isinstance(memory.error, str)
    memory = LatchFile(tmp_path / "folder")
    memory.path.mkdir()
    assert memory.forget() is False and "folder" in memory.error
    memory.path.rmdir()
    memory.keep(Finding("estop", "x"))
    assert memory.error == ""


def test_what_is_mounted_is_recalled(tmp_path):
    memory = CarriedFile(tmp_path / "not" / "there" / "robot.json")
    assert memory.recall() is None
    assert memory.keep("rod", "cup", True) == "" and CarriedFile(str(memory.path)).recall() == ("rod", "cup", True)
    memory.path.write_text('{"tool": "rod", "payload": ""}')
    assert memory.recall() == ("rod", "", False)


@pytest.mark.parametrize("content", ["", "[]", '{"tool": "rod"}', '{"payload": "rod"}', "3"])
def test_i07_what_is_mounted_must_be_known(tmp_path, content):
    path = tmp_path / "robot.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="robot.json' should name what is mounted.* is mounted into `tool` and `payl"):
        CarriedFile(path).recall()
