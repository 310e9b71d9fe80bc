"""An append-only, hash-chained record of everything the filter was told and everything it answered.

One JSON object a line. `h` is the sha256 of the previous line's `h` and of the line's own text without `h`, so a
changed, removed or inserted line breaks the chain from there on. (Lines cut off at the end do not; the diagnostics show
the newest hash, which is the anchor for that.) The first record holds the whole configuration, so a file can be
replayed anywhere. Each line is handed to the operating system before the next call of the filter: a killed process
loses none but the one in hand.

A record that grows beyond a size goes on in a next file (`NAME.part00001.jsonl`), whose first line names the file
before and its newest hash: one chain through all of them.

Old files are deleted by one rule: only those of the same robot, by their names, and only of records that nobody writes.
Who writes a file holds a lock on it, which ends with the process however that ends.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_contract.errors import VlaError

_START = "0" * 64
# The node names a record by its robot and when it was begun; a file's name is that and the number of the part.
_PART = r"(?:\.part\d{5,})?"
_BEGUN = r"-\d{8}T\d{6}\.\d{6}"
CONTINUED = "continued"  # kind of the first record of a file that goes on from another


class AuditError(VlaError):
    """A record could not be written, or a file is not a sound record."""


class AuditLog:
    """Writes one record.

    Args:
        path: its first file, `ROBOT-YYYYmmddTHHMMSS.ffffff.jsonl` if older records of the robot shall be known by it.
        part_bytes: size from which it goes on in a next file; 0: never.
        keep_bytes: size of all records of this robot in the folder, above which their oldest files are deleted when a
            file is begun; never the one that is written, nor any of a record that another process writes.
            0: nothing is deleted.

    Raises:
        AuditError: when the file exists already or cannot be made.
    """

    def __init__(self, path: str | Path, part_bytes: int = 0, keep_bytes: int = 0):
        self._first = self.path = Path(path)
        self._part_bytes, self._keep_bytes = part_bytes, keep_bytes
        self.head = _START
        self._count = self._part = self._size = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AuditError(f"audit folder '{self.path.parent}': {error.strerror}; choose another one") from error
        self._file = self._open()

    def write(self, kind: str, data: dict[str, Any]) -> None:
        """Appends a record.

        Raises:
            AuditError: when the disk does not take it (it is full, gone, …).
        """
        if self._part_bytes and self._size >= self._part_bytes:
            self._next_part()
        self._append(kind, data)

    def _append(self, kind: str, data: dict[str, Any]) -> None:
        body = json.dumps({"n": self._count, "k": kind, **data}, separators=(",", ":"))
        digest = chain(self.head, body)
        line = f'{body[:-1]},"h":"{digest}"}}\n'.encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise AuditError(f"audit file '{self.path}': {error.strerror}") from error
        if written != len(line):
            raise AuditError(f"audit file '{self.path}': only {written} of {len(line)} bytes fit")
        self.head = digest
        self._count += 1
        self._size += len(line)

    def _open(self) -> int:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        except OSError as error:
            raise AuditError(
                f"audit file '{self.path}' cannot be made: {error.strerror}; choose another folder"
            ) from error
        _lock(file)
        self._make_room()
        return file

    def _next_part(self) -> None:
        before, file = self.path, self._file
        self._part += 1
        self._size = 0
        self.path = self._first.with_name(f"{self._first.stem}.part{self._part:05}{self._first.suffix}")
        self._file = self._open()  # before the other is closed: of a record that is written one file is always locked
        try:
            _finish(file)
        except OSError as error:
            raise AuditError(f"audit file '{before}': {error.strerror}") from error
        self._append(CONTINUED, {"after": before.name, "head": self.head})

    def _make_room(self) -> None:
        """Deletes the oldest files. One that cannot be deleted stays: a full disk stops the robot, this does not."""
        if not self._keep_bytes:
            return
        suffix, mine = self._first.suffix, self._first.stem
        robot = re.sub(f"{_BEGUN}$", "", mine)
        own = re.compile(f"(?P<record>{re.escape(robot)}(?:{_BEGUN})?){_PART}{re.escape(suffix)}")
        try:
            named = {p: found["record"] for p in self.path.parent.iterdir() if (found := own.fullmatch(p.name))}
            stats = {p: p.stat() for p in named if p != self.path}
            busy = {named[p] for p in stats if named[p] != mine and not _closed(p)}
            total = sum(stat.st_size for stat in stats.values())
            for path in sorted(stats, key=lambda p: (stats[p].st_mtime_ns, p.name)):
                if total <= self._keep_bytes:
                    return
                # An empty one may just have been made, and not be locked yet; nothing is gained by deleting it.
                if named[path] in busy or stats[path].st_size == 0:
                    continue
                path.unlink()
                total -= stats[path].st_size
        except OSError:
            return

    def close(self) -> None:
        """Through to the disk."""
        _finish(self._file)


def _finish(file: int) -> None:
    """Through to the disk, whatever becomes of that closed."""
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _lock(file: int) -> None:
    """Says that this file is written. Where files cannot be locked none counts as closed, and others' stay."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _closed(path: Path) -> bool:
    """Whether nobody writes a file any more."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def chain(previous: str, body: str) -> str:
    """The hash of a record, hex."""
    return hashlib.sha256(previous.encode() + body.encode()).hexdigest()


@dataclass(frozen=True)
class Soundness:
    """What `verify` found in one file.

    Attributes:
        broken: number (from 1) of the first line that does not fit; None: the chain is whole.
        partial: the last line is incomplete: the process was killed while it wrote.
        head: the newest hash; origin: the one before the first line; first: number of the first record.
    """

    records: int
    broken: int | None
    partial: bool
    head: str
    origin: str = _START
    first: int = 0


def verify(path: str | Path) -> Soundness:
    """Follows the chain of a file, from the hash that its first line goes on from.

    Raises:
        AuditError: when it cannot be read.
    """
    origin, first = _origin(path)
    head, records, partial, broken = origin, 0, False, None
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n"):
            partial = True
            break
        digest = _follow(head, first + records, line)
        if digest is None:
            broken = number
            break
        head, records = digest, records + 1
    return Soundness(records, broken, partial, head, origin, first)


def verify_all(paths: Sequence[str | Path]) -> list[tuple[Path, Soundness]]:
    """Follows the chains of files and from file to file; folders stand for the files in them.

    A file that goes on from another one of them must go on from exactly its end, else its first line counts as broken.
    That the file before is not there is no fault: the oldest are deleted in time.

    Raises:
        AuditError: when one cannot be read, or there is none.
    """
    found = [(path, verify(path)) for path in files_of(paths)]
    ends = {path.name: sound for path, sound in found}
    checked = []
    for path, sound in found:
        before = ends.get(_before(path)) if sound.broken is None and sound.first else None
        fits = before is None or (before.head, before.first + before.records) == (sound.origin, sound.first)
        checked.append((path, sound if fits else replace(sound, broken=1)))
    return checked


def files_of(paths: Sequence[str | Path]) -> list[Path]:
    """Record files, each record's in order; folders stand for the files in them.

    Raises:
        AuditError: when there is none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        # "x.jsonl" comes before "x.part00001.jsonl": the suffix does not count.
        files += sorted(path.glob("*.jsonl"), key=lambda p: p.name.removesuffix(".jsonl")) if path.is_dir() else [path]
    if not files:
        raise AuditError(f"no audit files (*.jsonl) in {', '.join(map(str, paths))}")
    return files


def read(path: str | Path | Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """The records of a file, or of the files that one record was continued in, in order.

    Raises:
        AuditError: at the first line that does not fit.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    head, count = _origin(paths[0])
    for part in paths:
        for number, line in enumerate(_lines(part), start=1):
            if not line.endswith(b"\n"):
                return
            digest = _follow(head, count, line)
            if digest is None:
                raise AuditError(f"{part}:{number}: the record was changed, or one before it is missing")
            record = json.loads(line)
            if record["k"] != CONTINUED:
                yield record
            head, count = digest, count + 1


def _first_line(path: str | Path) -> dict[str, Any]:
    """The first record, if it continues another file, else nothing; it is not believed, only where to look for."""
    for line in _lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            return {}
        return record if isinstance(record, dict) and record.get("k") == CONTINUED else {}
    return {}


def _origin(path: str | Path) -> tuple[str, int]:
    """Hash and number that the first line of a file goes on from."""
    record = _first_line(path)
    head, number = record.get("head", _START), record.get("n", 0)
    return (head, number) if isinstance(head, str) and isinstance(number, int) else (_START, 0)


def _before(path: Path) -> str:
    """Name of the file that this one continues; empty: none."""
    return str(_first_line(path).get("after", ""))


def _follow(head: str, count: int, line: bytes) -> str | None:
    """The hash of a line, if it is the right one."""
    text = line.decode("utf-8", errors="replace").rstrip("\n")
    cut = len(text) - 64 - len(',"h":""}')
    body, tail = text[:cut] + "}", text[cut:]
    digest = chain(head, body)
    if tail != f',"h":"{digest}"}}':
        return None
    return digest if body.startswith(f'{{"n":{count},') else None


def _lines(path: str | Path) -> Iterator[bytes]:
    try:
        with Path(path).open("rb") as file:
            yield from file
    except OSError as error:
        raise AuditError(f"audit file '{path}' cannot be read: {error.strerror}") from error
