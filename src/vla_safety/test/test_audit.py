import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from rig import HOME, ROBOT, Rig, smooth_chunk

from vla_safety.audit import main as audit_main
from vla_safety.building import assemble, read_parts
from vla_safety.core.audit import AuditError, AuditLog, Soundness, chain, files_of, read, verify, verify_all
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


def test_i19_a_line_whose_hash_is_right_and_whose_number_is_not_is_found(tmp_path):
    """Hashes are no secret: who leaves a record out and makes all later ones again must give them other numbers too."""
    for number in (0, 2):
        path = tmp_path / f"{number}.jsonl"
        body = f'{{"n":{number},"k":"cycle","t":1'
        path.write_text(f'{body},"h":"{chain(AuditLog(path).head, body + "}")}"}}\n')
        if number == 0:
            assert [record["t"] for record in read(path)] == [1]
            continue
        with pytest.raises(AuditError, match="was changed, or one before it is missing"):
            list(read(path))


def test_files_are_those_of_every_folder_that_is_given(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.jsonl").write_text("")
    given = [tmp_path / "a", tmp_path / "b", tmp_path / "a" / "a.jsonl"]
    assert [path.name for path in files_of(given)] == ["a.jsonl", "b.jsonl", "a.jsonl"]


def test_files_of_a_folder_come_in_the_order_of_their_records_names(tmp_path):
    """A name comes before those that it is the beginning of, whatever the suffix begins with."""
    for name in ("fr3-2.jsonl", "fr3-2.part00001.jsonl", "fr3.jsonl"):
        (tmp_path / name).write_text("")
    assert [path.name for path in files_of([tmp_path])] == ["fr3.jsonl", "fr3-2.jsonl", "fr3-2.part00001.jsonl"]


def test_i19_a_killed_writer_loses_one_record_at_the_most(tmp_path):
    path = tmp_path / "audit.jsonl"
    busy_session(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])
    found = verify(path)
    assert found.partial and found.broken is None and found.records == content.count(b"\n") - 1
    assert replay(path).different is None


def test_i19_killed_between_an_answer_and_its_record_one_record_is_lost(tmp_path):
    """A proposal is recorded with its answer after that has left; not later than the next call."""
    path = tmp_path / "audit.jsonl"
    rig = recorded_rig(path)
    object.__setattr__(rig.filter, "committed", rig.filter.inner.committed)
    before = path.read_bytes()
    rig.propose(smooth_chunk(rig, HOME + 0.05 * (np.arange(len(HOME)) == 0)))
    assert path.read_bytes() == before and rig.filter.inner.plan is not None
    assert verify(path).broken is None and replay(path).different is None
    rig.filter.settle()
    rig.filter.settle()
    (line,) = path.read_bytes()[len(before) :].splitlines()
    record = json.loads(line)
    assert record["k"] == "propose" and len(record["out"]["motions"]) == len(record["out"]["decisions"]) == 1
    rig.propose(smooth_chunk(rig, HOME, sequence=1))
    rig.observe()
    result = replay(path)
    assert result.different is None and result.decisions == 2
    rig.filter.propose(smooth_chunk(rig, HOME, sequence=2), rig.instant)
    rig.filter.retract(rig.instant)  # too late to be sent
    rig.collect()
    result = replay(path)
    assert result.different is None and result.decisions == len(rig.decisions) > 2


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


def test_i19_a_disk_that_is_full_when_an_answer_is_written_stops_the_robot(tmp_path, monkeypatch):
    rig = recorded_rig(tmp_path / "audit.jsonl")
    written, failed = os.write, []

    def full(file, line):
        if b'"k":"out"' in line and not failed:
            failed.append(line)
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file, line)

    monkeypatch.setattr(os, "write", full)
    rig.filter.estop(rig.instant)
    rig.collect()
    assert failed
    rig.observe()
    assert "audit" in rig.filter.inner._supervisor.causes and rig.filter.inner.mode == Mode.ESTOP


def test_an_existing_record_is_never_overwritten(tmp_path):
    path = tmp_path / "audit.jsonl"
    AuditLog(path).close()
    with pytest.raises(AuditError, match="File exists"):
        AuditLog(path)


def test_a_record_is_for_its_owner_and_group_only(tmp_path):
    mask = os.umask(0)
    try:
        AuditLog(tmp_path / "audit.jsonl").close()
    finally:
        os.umask(mask)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("line", [b"[]", b"3", b"null", b"\xff", b"{", b'{"n":7,"k":"observe","head":"ab"}'])
def test_i19_a_file_that_begins_with_anything_else_is_no_record(tmp_path, line):
    """Whatever its first line says of itself, unless it continues another file."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line + b"\n")
    assert verify(path) == Soundness(0, 1, False, "0" * 64, "0" * 64, 0)


# ------------------------------------------------------------------ one record in several files


def test_a_file_that_has_reached_its_size_is_continued(tmp_path):
    log = AuditLog(tmp_path / "a.jsonl")
    log.write("x", {})
    size = (tmp_path / "a.jsonl").stat().st_size
    for part_bytes, files in ((size, 2), (size + 1, 1)):
        log = AuditLog(tmp_path / f"{part_bytes}.jsonl", part_bytes)
        log.write("x", {})
        log.write("x", {})
        assert len(list(tmp_path.glob(f"{part_bytes}.*"))) == files


def rotated(folder, part_bytes=12_000, keep_bytes=0):
    """A busy session in many files; the folder's files in order."""
    rig = Rig(arm=False)
    parts = read_parts(ROBOT)
    log = AuditLog(folder / "robot.jsonl", part_bytes, keep_bytes)
    rig.filter = RecordedFilter(assemble(parts), log, parts)
    rig.filter.config = rig.filter.inner.config
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    for k in range(3):
        object.__setattr__(rig.filter, "committed", rig.filter.inner.committed)
        goal = HOME.copy()
        goal[0], goal[-1] = 0.3 * (-1) ** k, 0.02
        rig.propose(smooth_chunk(rig, goal, duration=0.8, sequence=k))
        rig.run(1.2)
    log.close()
    return rig, files_of([folder])


def test_i19_a_record_in_many_files_is_one_chain_and_replays_as_one(tmp_path):
    rig, files = rotated(tmp_path)
    assert len(files) >= 4 and files[0].name == "robot.jsonl" and files[1].name == "robot.part00001.jsonl"
    assert all(file.stat().st_size < 250_000 for file in files)
    found = verify_all([tmp_path])
    assert [path for path, _ in found] == files and not any(s.broken or s.partial for _, s in found)
    assert [s.origin for _, s in found[1:]] == [s.head for _, s in found[:-1]]
    result = replay(files)
    assert result.different is None and result.decisions == len(rig.decisions) > 2
    with pytest.raises(AuditError, match="from its first on"):
        replay(files[1:])
    for words in (["verify", str(tmp_path)], ["replay", str(tmp_path), "--json"], ["verify", *map(str, files)]):
        assert audit_main(words) == 0


def test_i19_a_file_that_was_exchanged_cut_or_taken_from_the_middle_is_found(tmp_path):
    _, files = rotated(tmp_path)
    content = files[1].read_bytes()
    lines = content.splitlines(keepends=True)
    files[1].write_bytes(b"".join(lines[:-1]))  # its last record is gone: by itself it is a whole chain
    assert verify(files[1]).broken is None
    assert [s.broken for _, s in verify_all([tmp_path])][2] == 1
    with pytest.raises(AuditError, match="is missing"):
        list(read(files))
    files[1].write_bytes(content)
    files[2].write_bytes(files[2].read_bytes().replace(b'"observe"', b'"Observe"', 1))
    assert verify_all([tmp_path])[2][1].broken is not None and audit_main(["verify", str(tmp_path)]) == 1


def test_retention_deletes_the_oldest_files_and_never_the_one_that_is_written(tmp_path):
    (tmp_path / "notes.txt").write_text("not a record")
    _, files = rotated(tmp_path, keep_bytes=40_000)
    assert sum(file.stat().st_size for file in files[:-1]) <= 40_000
    assert files[0].name != "robot.jsonl" and files[-1].exists() and (tmp_path / "notes.txt").exists()
    assert not any(s.broken for _, s in verify_all([tmp_path])), "the rest is a whole chain"


BEGUN = "-20261121T12000{}.000000"


def record(folder, name, age, parts=1):
    """A closed record of a robot, of several files, `age` s old."""
    log = AuditLog(folder / f"{name}.jsonl", 100)
    for _ in range(parts):
        log.write("x", {"filling": "." * 1000})
    log.close()
    files = [p for p in folder.iterdir() if p.name.startswith(name)]
    for file in files:
        os.utime(file, (1e9 - age, 1e9 - age))
    return files


def test_i19_retention_knows_whose_records_they_are(tmp_path):
    """Nothing of another robot is deleted, whatever its name begins or ends with, nor what is no record."""
    kept = [
        file
        for k, name in enumerate(["fr3_left", "my_fr3", "fr3-left", "FR3", "other"])
        for file in record(tmp_path, name + BEGUN.format(k), 100 + k)
    ]
    kept += [tmp_path / name for name in ("fr3.notes.jsonl", "fr3-20261121.jsonl", "notes.jsonl")]
    for file in kept[-3:]:
        file.write_text("x" * 2000)
    old = record(tmp_path, "fr3" + BEGUN.format(0), 50, parts=3) + record(tmp_path, "fr3" + BEGUN.format(1), 40)
    newest = record(tmp_path, "fr3" + BEGUN.format(2), 30)
    assert len(old) == 4
    AuditLog(tmp_path / f"fr3{BEGUN.format(3)}.jsonl", 0, 1500).close()
    assert all(file.exists() for file in kept + newest) and not any(file.exists() for file in old)


def test_i19_retention_leaves_a_record_that_another_process_writes(tmp_path):
    """Also its older parts; and what was left by a process that was killed is not taken for one."""
    old = record(tmp_path, "fr3" + BEGUN.format(0), 50)
    writer = "\n".join([
        "import sys",
        "from vla_safety.core.audit import AuditLog",
        f"log = AuditLog({str(tmp_path / ('fr3' + BEGUN.format(1) + '.jsonl'))!r}, 100)",
        "for _ in range(3): log.write('x', {'filling': '.' * 1000})",
        "print('written', flush=True)",
        "sys.stdin.read()",
    ])  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "written\n"
        theirs = [p for p in tmp_path.iterdir() if p not in old]
        AuditLog(tmp_path / f"fr3{BEGUN.format(2)}.jsonl", 0, 1).close()
        assert len(theirs) == 3 and all(file.exists() for file in theirs) and not old[0].exists()
        process.kill()
    AuditLog(tmp_path / f"fr3{BEGUN.format(3)}.jsonl", 0, 1).close()
    assert not any(file.exists() for file in theirs)


def test_i19_a_file_that_was_just_made_is_not_deleted(tmp_path):
    """Between its making and its lock it is empty. One that stays so (the disk was full) keeps its record no longer."""
    made = tmp_path / f"fr3{BEGUN.format(0)}.jsonl"
    made.touch()
    os.utime(made, (1, 1))
    (old,) = record(tmp_path, "fr3" + BEGUN.format(1), 50)
    old.with_name(old.name.replace(".jsonl", ".part00001.jsonl")).touch()
    AuditLog(tmp_path / f"fr3{BEGUN.format(2)}.jsonl", 0, 1).close()
    assert made.exists() and not old.exists()


def test_i19_a_disk_that_is_full_when_the_next_file_begins_stops_the_robot(tmp_path, monkeypatch):
    rig = Rig(arm=False)
    parts = read_parts(ROBOT)
    rig.filter = RecordedFilter(assemble(parts), AuditLog(tmp_path / "robot.jsonl", 60_000), parts)
    rig.filter.config = rig.filter.inner.config
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    opened = os.open

    def full(path, *rest, **options):
        if "part00001" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", full)
    rig.run(8.0)
    monkeypatch.undo()
    assert rig.filter.inner.mode == Mode.ESTOP and rig.filter.inner.finding.reason == "audit"
