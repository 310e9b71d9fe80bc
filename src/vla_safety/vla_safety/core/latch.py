"""What survives a restart: the e-stop, as a file that is there while it is latched; what is mounted; reduced speed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from vla_contract.errors import ConfigError
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
            numbers = {"value": finding.value, "limit": finding.limit}
            _write_through(self.path, {"reason": finding.reason, "subject": finding.subject, **numbers})
            self.error = ""
        except OSError as error:
            self.error = str(error)

    def forget(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
            _sync(self.path.parent)
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
            numbers = float(content["value"]), float(content["limit"])
        except (OSError, ValueError, KeyError, TypeError):
            return Finding("estop", "an earlier run (unreadable latch)")
        if reason.partition(":")[0] not in REASONS:
            reason = "estop"
        return Finding(reason, subject, *numbers)


class CarriedFile:
    """Names of the tool that is mounted and the payload that is carried, and reduced speed, for the next start."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def keep(self, tool: str, payload: str, reduced: bool) -> str:
        """Why they could not be written; empty: they were."""
        try:
            _write_through(self.path, {"tool": tool, "payload": payload, "reduced": reduced})
        except OSError as error:
            return str(error)
        return ""

    def recall(self) -> tuple[str, str, bool] | None:
        """Tool, payload, reduced speed; None: nobody has said yet.

        Raises:
            ConfigError: when the file is there, but cannot be understood.
        """
        try:
            content = json.loads(self.path.read_text())
            return str(content["tool"]), str(content["payload"]), bool(content.get("reduced", False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"'{self.path}' should name what is mounted, but cannot be read ({error!r}); delete it, write what is "
                "mounted into `tool` and `payload` of the safety file, and start again"
            ) from error


def _write_through(path: Path, content: Mapping[str, str | bool | float]) -> None:
    """All of it or nothing, and on the disk when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if not path.exists():
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
