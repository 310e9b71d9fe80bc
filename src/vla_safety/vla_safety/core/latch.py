"""What survives a restart: a latched e-stop and a stop that did not arrive; what is mounted; reduced speed."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vla_contract.errors import ConfigError
from vla_safety.core.findings import Finding
from vla_safety.core.reasons import REASONS

_UNREADABLE = Finding("estop", "an earlier run (unreadable latch)")


@dataclass(frozen=True)
class Latch:
    """What is kept.

    Attributes:
        finding: why the e-stop is latched; None: it was reset.
        failed: why a stop did not arrive; None: all did, or somebody has armed the robot or led it back since.
    """

    finding: Finding | None
    failed: Finding | None = None


class Memory(Protocol):
    """Where a latched e-stop is kept, and a stop that did not arrive."""

    def keep(self, latch: Latch) -> bool:
        """Replaces what is kept. False: it could not be; must not raise, the running filter is latched anyway."""

    def forget(self) -> bool:
        """Keeps nothing any more; False: it could not be removed, and the e-stop stays."""

    def recall(self) -> Latch | None:
        """What is kept; None: nothing. An unreadable memory is a latched one, and of a stop that failed."""


class LatchFile:
    """A file, written through to the disk before `keep` returns.

    Attributes:
        error: why the last write failed; empty: it did not.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.error = ""

    def keep(self, latch: Latch) -> bool:
        content = {} if latch.finding is None else _content(latch.finding)
        if latch.failed is not None:
            content["failed"] = _content(latch.failed)
        try:
            _write_through(self.path, content)
            self.error = ""
        except OSError as error:
            self.error = str(error)
        return not self.error

    def forget(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
            _sync(self.path.parent)
        except OSError as error:
            self.error = str(error)
            return False
        return True

    def recall(self) -> Latch | None:
        if not self.path.exists():
            return None
        try:
            content = json.loads(self.path.read_text())
            failed = _finding(content["failed"]) if "failed" in content else None
            if failed is not None and "reason" not in content:
                return Latch(None, failed)
            finding = _finding(content)
        except (OSError, ValueError, KeyError, TypeError):
            return Latch(_UNREADABLE, _UNREADABLE)
        # A file of a version that kept no failed stop beside its first cause.
        return Latch(finding, finding if failed is None and finding.reason == "stop_failed" else failed)


def _content(finding: Finding) -> dict[str, Any]:
    return {"reason": finding.reason, "subject": finding.subject, "value": finding.value, "limit": finding.limit}


def _finding(content: Mapping[str, Any]) -> Finding:
    reason, subject = str(content["reason"]), str(content["subject"])
    known = reason.partition(":")[0] in REASONS
    return Finding(reason if known else "estop", subject, float(content["value"]), float(content["limit"]))


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


def _write_through(path: Path, content: Mapping[str, Any]) -> None:
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
