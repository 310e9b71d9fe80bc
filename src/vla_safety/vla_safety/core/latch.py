"""The e-stop survives a restart: a file that is there while it is latched."""

import json
import os
from pathlib import Path
from typing import Protocol

from vla_safety.core.findings import Finding
from vla_safety.core.reasons import REASONS


class Memory(Protocol):
    """Where a latched e-stop is kept."""

    def keep(self, finding: Finding) -> None:
        """Latches. Must not raise; what cannot be kept is still latched in the running filter."""

    def forget(self) -> bool:
        """Unlatches; False: it could not be removed, and the e-stop stays."""

    def recall(self) -> Finding | None:
        """Why it is latched; None: it is not. An unreadable memory is a latched one."""


class LatchFile:
    """A file, written through to the disk before `keep` returns.

    Attributes:
        error: why the last write failed; empty: it did not.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.error = ""

    def keep(self, finding: Finding) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_name(self.path.name + ".new")
            with draft.open("w") as file:
                json.dump({"reason": finding.reason, "subject": finding.subject}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
            self._sync_folder()
            self.error = ""
        except OSError as error:
            self.error = str(error)

    def forget(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            self.error = str(error)
            return False
        return True

    def recall(self) -> Finding | None:
        if not self.path.exists():
            return None
        try:
            content = json.loads(self.path.read_text())
            reason, subject = str(content["reason"]), str(content["subject"])
        except (OSError, ValueError, KeyError, TypeError):
            reason, subject = "estop", "an earlier run (unreadable latch)"
        if reason.partition(":")[0] not in REASONS:
            reason = "estop"
        return Finding(reason, subject)

    def _sync_folder(self) -> None:
        if not self.path.parent.exists():
            return
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
