"""What a campaign has done so far: a JSON file for each part, rewritten often, so that it can go on where it was."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vla_safety
from vla_safety.proof.tally import Tally

SAVE_PERIOD = 10.0  # s


def fingerprint() -> str:
    """sha256 over the sources of the filter: which code was judged."""
    root = Path(vla_safety.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if "proof" not in path.relative_to(root).parts:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@dataclass
class Progress:
    """Of one part.

    Attributes:
        goal: units to be done; done: those that are.
        wall_s: time spent on it, over all sittings; began: of the first sitting, UTC.
        memory: whatever the part needs to go on.
    """

    part: str
    unit: str
    seed: int
    goal: int
    done: int = 0
    wall_s: float = 0.0
    began: str = ""
    ended: str = ""
    code: str = ""
    tally: Tally = field(default_factory=Tally)
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """All units are done."""
        return self.done >= self.goal

    def record(self) -> dict[str, Any]:
        """As JSON."""
        plain = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "tally"}
        return {**plain, "tally": self.tally.record()}

    @staticmethod
    def of(record: dict[str, Any]) -> "Progress":
        """From JSON."""
        return Progress(**{**record, "tally": Tally.of(record["tally"])})


class Keeper:
    """Keeps a part's progress in a file, and tells people about it now and then.

    Args:
        say: gets a line every few seconds.
    """

    def __init__(self, folder: Path, progress: Progress, say: Callable[[Progress], None]):
        self.path = folder / f"{progress.part}.json"
        self.progress = progress
        self._say = say
        self._saved = time.monotonic()

    def advance(self, units: int, tally: Tally | None = None, *, force: bool = False) -> None:
        """Some more is done."""
        progress = self.progress
        progress.done += units
        if tally is not None:
            progress.tally.add(tally)
        if force or progress.complete or time.monotonic() - self._saved > SAVE_PERIOD:
            self.save()

    def save(self) -> None:
        """Writes the file whole or not at all."""
        now = time.monotonic()
        self.progress.wall_s += now - self._saved
        self.progress.ended = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
        self._saved = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.progress.record(), indent=1) + "\n")
        os.replace(draft, self.path)
        self._say(self.progress)


def load(folder: Path, part: str) -> Progress | None:
    """What is kept of a part; None: nothing."""
    path = folder / f"{part}.json"
    return Progress.of(json.loads(path.read_text())) if path.is_file() else None


def begin(folder: Path, fresh: Progress, *, resume: bool) -> Progress:
    """Goes on where the part was, if it was the same seed and the same code; else begins anew."""
    fresh.code, fresh.began = fingerprint(), f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    kept = load(folder, fresh.part) if resume else None
    if kept is None or kept.seed != fresh.seed:
        return fresh
    if kept.code != fresh.code:
        if fresh.part != "mutants":  # which looks at each module by itself
            return fresh
        kept.code = fresh.code
    kept.goal = fresh.goal
    return kept
