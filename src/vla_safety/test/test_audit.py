import errno
import os

import numpy as np
import pytest
from rig import HOME, ROBOT, Rig, smooth_chunk

from vla_safety.building import assemble, read_parts
from vla_safety.core.audit import AuditError, AuditLog, read, verify
from vla_safety.core.modes import Mode
from vla_safety.recording import RecordedFilter, replay


def recorded_rig(path) -> Rig:
    rig = Rig(arm=False)
    parts = read_parts(ROBOT)
    rig.filter = RecordedFilter(assemble(parts), AuditLog(path), parts)
    rig.filter.config = rig.filter.inner.config
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    return rig


def busy_session(path):
    rig = recorded_rig(path)
    rng = np.random.default_rng(1)
    for k in range(8):
        goal = HOME + rng.normal(0, 0.3, len(HOME)) * np.array([1] * 7 + [0])
        goal[-1] = 0.02
        object.__setattr__(rig.filter, "committed", rig.filter.inner.committed)
        rig.propose(smooth_chunk(rig, goal, duration=0.6, sequence=k))
        rig.run(0.3)
    rig.filter.estop(rig.instant)
    rig.collect()
    rig.run(0.4)
    rig.filter.reset(rig.instant)
    rig.filter.log.close()
    return rig


def test_i19_replay_gives_the_same_decisions_bit_for_bit(tmp_path):
    path = tmp_path / "audit.jsonl"
    rig = busy_session(path)
    result = replay(path)
    assert result.different is None
    assert result.decisions == len(rig.decisions) > 8
    assert verify(path).broken is None


def test_i19_any_tampering_is_found(tmp_path):
    path = tmp_path / "audit.jsonl"
    busy_session(path)
    lines = path.read_bytes().splitlines(keepends=True)
    rng = np.random.default_rng(2)
    for _ in range(60):
        broken = list(lines)
        k = int(rng.integers(0, len(lines) - 1))
        kind = rng.integers(0, 3)
        if kind == 0:  # one bit
            line = bytearray(broken[k])
            line[int(rng.integers(0, len(line) - 1))] ^= 1 << int(rng.integers(0, 7))
            broken[k] = bytes(line)
        elif kind == 1:
            del broken[k]
        else:
            broken.insert(k, broken[k])
        path.write_bytes(b"".join(broken))
        found = verify(path)
        assert found.broken is not None and found.broken <= k + 2
        with pytest.raises(AuditError, match="was changed, or one before it is missing"):
            for _ in read(path):
                pass


def test_i19_a_killed_writer_loses_one_record_at_the_most(tmp_path):
    path = tmp_path / "audit.jsonl"
    busy_session(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])
    found = verify(path)
    assert found.partial and found.broken is None and found.records == content.count(b"\n") - 1
    assert replay(path).different is None


def test_i19_a_full_disk_stops_the_robot(tmp_path, monkeypatch):
    rig = recorded_rig(tmp_path / "audit.jsonl")
    object.__setattr__(rig.filter, "committed", rig.filter.inner.committed)
    goal = HOME.copy()
    goal[0] = 0.5
    goal[-1] = 0.02
    rig.propose(smooth_chunk(rig, goal))
    rig.run(0.3)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    rig.run(0.6)
    monkeypatch.undo()
    assert rig.filter.inner.mode == Mode.ESTOP and rig.filter.inner.finding.reason == "audit"
    assert not rig.controller.state[1:].any()
    assert "No space left" in rig.filter.reset(rig.instant).message


def test_an_existing_record_is_never_overwritten(tmp_path):
    path = tmp_path / "audit.jsonl"
    AuditLog(path).close()
    with pytest.raises(AuditError, match="File exists"):
        AuditLog(path)
