"""I10: what the e-stop's file says, what a filter that starts again takes from it, and what cannot be understood."""

import json

import numpy as np
import pytest
from rig import HOME, MS, ROBOT, Rig, smooth_chunk

from vla_contract.errors import ConfigError
from vla_safety.building import assemble, read_parts
from vla_safety.core.findings import Finding
from vla_safety.core.latch import CarriedFile, Latch, LatchFile
from vla_safety.core.modes import Mode

TOUCH = Finding("contact_force", "wrench", 80.0, 50.0)
ASTRAY = Finding("stop_failed", "fr3_joint3", 1.0, 0.05)
UNREADABLE = Finding("estop", "an earlier run (unreadable latch)")
AWAY = HOME + np.array([0.8, 0, 0, 0, 0, 0, 0, -0.01])
PARTS = read_parts(ROBOT)


def test_i10_what_was_kept_is_recalled_until_it_is_forgotten(tmp_path):
    memory = LatchFile(tmp_path / "not" / "there" / "robot.json")
    assert memory.error == "" and memory.recall() is None
    kept = Latch(Finding("tracking_error", "fr3_joint3", 1.0, 0.05))
    assert memory.keep(kept) and memory.error == ""
    assert LatchFile(str(memory.path)).recall() == kept, "with its numbers, for the person who resets"
    assert [path.name for path in memory.path.parent.iterdir()] == ["robot.json"], "no draft is left"
    for kept in (Latch(Finding("zone:table", "fr3_hand", 1.0, 0.05)), Latch(TOUCH, ASTRAY), Latch(None, ASTRAY)):
        assert memory.keep(kept) and LatchFile(memory.path).recall() == kept
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
        "{}",
        '{"failed": 3}',
        '{"failed": null}',
        '{"failed": {"reason": "stop_failed"}}',
        '{"reason": "estop", "subject": "x", "value": 1, "limit": 2, "failed": "x"}',
    ],
)
def test_i10_an_unreadable_file_is_a_latch_and_may_be_of_a_stop_that_failed(tmp_path, content):
    path = tmp_path / "robot.json"
    path.write_text(content)
    assert LatchFile(path).recall() == Latch(UNREADABLE, UNREADABLE)


def test_i10_a_reason_that_nobody_knows_is_an_estop(tmp_path):
    path = tmp_path / "robot.json"
    path.write_text(json.dumps({"reason": "of another version", "subject": "who", "value": 1, "limit": 2}))
    assert LatchFile(path).recall() == Latch(Finding("estop", "who", 1, 2))
    path.write_text(json.dumps({"reason": "stop_failed", "subject": "who", "value": 1, "limit": 2}))
    failed = Finding("stop_failed", "who", 1, 2)
    assert LatchFile(path).recall() == Latch(failed, failed), "a file of a version that knew one finding only"


def test_i10_what_cannot_be_written_or_removed_is_told(tmp_path):
    (tmp_path / "file").write_text("no folder")
    memory = LatchFile(tmp_path / "file" / "robot.json")
    assert memory.keep(Latch(UNREADABLE)) is False
    assert "file" in memory.error and isinstance(memory.error, str)
    memory = LatchFile(tmp_path / "folder")
    memory.path.mkdir()
    assert memory.forget() is False and "folder" in memory.error
    memory.path.rmdir()
    assert memory.keep(Latch(UNREADABLE)) and memory.error == ""


# ------------------------------------------------------------------ a filter that starts again


def failed_stop(memory, cause=None):
    """A stop, for `cause` if there is one, that the robot does not follow."""
    rig = Rig(arm=False)
    rig.filter = assemble(PARTS, memory)
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    rig.propose(smooth_chunk(rig, AWAY, duration=2.0))
    rig.run(0.4)
    if cause is None:
        rig.filter.estop(rig.instant)
    else:
        rig.filter.report("contact", cause, rig.instant)
    rig.collect()
    rig.measured_offset[2] = 0.3
    for _ in range(40):
        rig.advance(0.04)
        q = rig.controller.state[0] + rig.measured_offset
        rig.filter.observe(rig.now, ROBOT.joints, q, np.full(len(HOME), 0.1), rig.instant)
        rig.filter.cycle(rig.instant)
        rig.collect()
    assert rig.filter.escalated and rig.filter.mode == Mode.ESTOP
    return rig


def see(safety, rig):
    rig.now += MS
    q = rig.controller.state[0] + rig.measured_offset
    assert safety.observe(rig.now, ROBOT.joints, q, np.zeros(len(HOME)), rig.instant) is None


@pytest.mark.parametrize("cause", [None, TOUCH])
def test_i10_a_stop_that_failed_holds_through_restarts_until_somebody_arms(tmp_path, cause):
    memory = LatchFile(tmp_path / "robot.json")
    rig = failed_stop(memory, cause)
    first, again = rig.filter.finding, assemble(PARTS, LatchFile(memory.path))
    assert again.escalated and again.mode == Mode.ESTOP
    assert repr(again.finding) == repr(first) and first.reason == ("estop" if cause is None else "contact_force")
    assert "fr3_joint3 is off by or moves at 0.3" in again.retreat(rig.instant).message, "no retreat before the reset"
    see(again, rig)
    assert again.reset(rig.instant).success
    assert again.escalated, "the drives stay cut: a reset moves nothing and frees nothing"
    again = assemble(PARTS, LatchFile(memory.path))
    assert again.escalated and again.mode == Mode.DISARMED
    again.estop(rig.instant)
    again = assemble(PARTS, LatchFile(memory.path))
    assert again.escalated and again.mode == Mode.ESTOP and again.finding.reason == "estop"
    see(again, rig)
    assert again.reset(rig.instant).success and again.arm(rig.instant).success and not again.escalated
    again = assemble(PARTS, LatchFile(memory.path))
    assert not again.escalated and again.mode == Mode.DISARMED and not memory.path.exists()


def test_i10_a_stop_that_failed_is_written_once_and_again_after_a_reset():
    class Counting:
        kept: list = []

        def keep(self, latch):
            self.kept.append(latch)
            return True

        def forget(self):
            return True

        def recall(self):
            return None

    memory = Counting()
    rig = failed_stop(memory)
    assert [latch.failed is not None for latch in memory.kept] == [False, True], "not in each cycle"
    rig.measured_offset[2] = 0.0
    rig.run(0.2)
    assert rig.filter.reset(rig.instant).success and memory.kept[-1] == Latch(None, memory.kept[1].failed)


def test_i10_a_reset_that_cannot_be_written_is_refused(tmp_path):
    memory = LatchFile(tmp_path / "state" / "robot.json")
    rig = failed_stop(memory)
    memory.path.unlink()
    memory.path.parent.rmdir()
    memory.path.parent.write_text("no folder")
    rig.measured_offset[2] = 0.0
    rig.run(0.2)
    answer = rig.filter.reset(rig.instant)
    assert not answer.success and rig.filter.mode == Mode.ESTOP and rig.filter.escalated


def test_i10_a_filter_that_takes_the_place_of_another_takes_over_the_stop_that_failed():
    rig = failed_stop(None)
    rig.measured_offset[2] = 0.0
    rig.run(0.2)
    assert rig.filter.reset(rig.instant).success
    reloaded = assemble(PARTS)
    assert not reloaded.escalated
    reloaded.inherit(rig.filter)
    assert reloaded.escalated
    see(reloaded, rig)
    assert reloaded.arm(rig.instant).success and not reloaded.escalated


# ------------------------------------------------------------------ what is mounted


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
