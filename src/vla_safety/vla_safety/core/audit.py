"""An append-only, hash-chained record of everything the filter was told and everything it answered.

One JSON object a line. `h` is the sha256 of the previous line's `h` and of the line's own text without `h`, so a
changed, removed or inserted line breaks the chain from there on. (Lines cut off at the end do not; the diagnostics show
the newest hash, which is the anchor for that.) The first record holds the whole configuration, so a file can be
replayed anywhere. Each line is handed to the operating system before the filter goes on: a killed process loses none
but the one in hand.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_contract.errors import VlaError

_START = "0" * 64


class AuditError(VlaError):
    """A record could not be written, or a file is not a sound record."""


class AuditLog:
    """Writes one file.

    Raises:
        AuditError: when the file exists already or cannot be made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.head = _START
        self._count = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        except OSError as error:
            raise AuditError(
                f"audit file '{self.path}' cannot be made: {error.strerror}; choose another folder"
            ) from error

    def write(self, kind: str, data: dict[str, Any]) -> None:
        """Appends a record.

        Raises:
            AuditError: when the disk does not take it (it is full, gone, …).
        """
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

    def close(self) -> None:
        """Through to the disk."""
        os.fsync(self._file)
        os.close(self._file)


def chain(previous: str, body: str) -> str:
    """The hash of a record, hex."""
    return hashlib.sha256(previous.encode() + body.encode()).hexdigest()


@dataclass(frozen=True)
class Soundness:
    """What `verify` found. `broken`: number (from 1) of the first line that does not fit, None: the chain is whole.

    Attributes:
        partial: the last line is incomplete: the process was killed while it wrote.
    """

    records: int
    broken: int | None
    partial: bool
    head: str


def verify(path: str | Path) -> Soundness:
    """Follows the chain of a file.

    Raises:
        AuditError: when it cannot be read.
    """
    head, records, partial, broken = _START, 0, False, None
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n"):
            partial = True
            break
        digest = _follow(head, records, line)
        if digest is None:
            broken = number
            break
        head, records = digest, records + 1
    return Soundness(records, broken, partial, head)


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in order.

    Raises:
        AuditError: at the first line that does not fit.
    """
    head, count = _START, 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n"):
            return
        digest = _follow(head, count, line)
        if digest is None:
            raise AuditError(f"{path}:{number}: the record was changed, or one before it is missing")
        yield json.loads(line)
        head, count = digest, count + 1


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
