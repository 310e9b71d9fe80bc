"""Finding processes: children of a node, and whatever carries a mark in its environment."""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

MARK = "VLA_TEST_MARK"


def new_mark() -> dict[str, str]:
    """An environment variable that every process inherits from who is started with it."""
    return {MARK: uuid.uuid4().hex}


def marked(mark: dict[str, str]) -> dict[int, str]:
    """Living processes with that mark: pid -> command line."""
    wanted = f"{MARK}={mark[MARK]}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0") and _state(int(folder.name)) != "Z":
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def alive(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return _state(pid) != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def until(condition: Callable[[], bool], timeout: float, what: Callable[[], str]) -> None:
    """Polls a condition of the operating system, which announces nothing."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"within {timeout:g} s: {what()}"
        time.sleep(0.05)
