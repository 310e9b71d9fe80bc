"""Running one command of a step: output to a log file, a live line on the terminal, the log's tail on failure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .state import SetupError

_HEARTBEAT_S = 20.0  # without a terminal, a line this often shows that the step is alive
_TAIL_LINES = 25


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to whatever command follows."""
    print(text, file=sys.stderr, flush=True)


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, indented, without empty lines and with very long ones cut."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    kept = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join("        " + line[:300] for line in kept[-lines:])


def _last_line(log: Path) -> str:
    """The newest non-empty line of a growing log (reads only its end)."""
    with log.open("rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - 2000))
        lines = [line for line in handle.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def run(
    what: str,
    command: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    remedy: str,
    cwd: Path | None = None,
) -> None:
    """Run a command to its end with its output appended to ``log``.

    Raises SetupError with the tail of the log when it exits with another code than 0. The child reads nothing, so that
    no hidden question can make setup hang; it is ended when setup is interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr.isatty()
    started = shown = time.monotonic()
    words = [str(word) for word in command]
    with log.open("ab") as output:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        begin = output.tell()
        try:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd
            )
        except OSError as error:
            raise SetupError(what, f"cannot start {words[0]}: {error.strerror}", remedy) from error
        try:
            while True:
                try:
                    code = child.wait(timeout=0.2 if terminal else 1.0)
                    break
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                    if terminal:
                        sys.stderr.write(f"\r\033[K  {now - started:4.0f} s  {_last_line(log)[:100]}")
                        sys.stderr.flush()
                    elif now - shown >= _HEARTBEAT_S:
                        shown = now
                        say(f"  {now - started:4.0f} s  {_last_line(log)[:120]}")
        except BaseException:
            child.terminate()
            child.wait()
            raise
        finally:
            if terminal:
                sys.stderr.write("\r\033[K")
    if code != 0:
        with log.open("rb") as handle:  # only what this command said
            handle.seek(begin)
            part = log.with_suffix(".failed")
            part.write_bytes(handle.read())
        raise SetupError(
            what, f"`{' '.join(words[:6])} …` ended with code {code}; {log} ends with\n{tail(part)}", remedy
        )


def succeeds(command: Sequence[str | Path], env: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> bool:
    """Whether a short probe exits with 0 within its time."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=env,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
