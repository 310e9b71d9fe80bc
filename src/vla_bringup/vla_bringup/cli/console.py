"""What every command has in common: where words go, where the JSON goes, and what an exit code means."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

OK = 0
FAILED = 1  # the task, trial or request failed
USAGE = 2  # usage or configuration
NOT_READY = 3  # the system is not ready, or went down
INTERRUPTED = 130  # Ctrl-C

EPILOG = "Exit codes: 0 done · 1 the task failed · 2 usage or configuration · 3 system not ready · 130 Ctrl-C."


class Console:
    """Words for people; with `json` they go to stderr, so that stdout holds one JSON object and nothing else."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self._rich: Any = None

    @property
    def rich(self) -> Any:
        """A rich console (imported on first use)."""
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=self.as_json, highlight=False)
        return self._rich

    @property
    def live(self) -> bool:
        """Whether a live panel can be shown."""
        return bool(self.rich.is_terminal)

    def say(self, line: str) -> None:
        """One line for people."""
        print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def error(self, line: str) -> None:
        """One line of bad news."""
        print(f"error: {line}", file=sys.stderr, flush=True)

    def finish(self, result: Mapping[str, Any], code: int) -> NoReturn:
        """Prints the JSON if it is wanted, and ends the process with `code`."""
        if self.as_json:
            print(json.dumps(finite(result)), flush=True)
        sys.stdout.flush()
        raise SystemExit(code)


@contextmanager
def reported(console: Console, fallback: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turns the suite's errors into a message, an exit code and (with --json) an object with the key `error`.

    Args:
        fallback: keys that the JSON must have even then.
    """
    from vla_contract.errors import ConfigError, MismatchError, VlaError

    def fail(text: str, code: int) -> NoReturn:
        console.error(text)
        console.finish({**(fallback or {}), "error": text, "exit_code": code}, code)

    try:
        yield
    except (ConfigError, MismatchError) as error:
        fail(str(error), USAGE)
    except VlaError as error:
        fail(str(error), NOT_READY)
    except OSError as error:  # e.g. a folder for results that cannot be written to
        fail(f"'{error.filename}': {error.strerror}" if error.filename else str(error), USAGE)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


def finite(value: Any) -> Any:
    """A copy with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def interruptible(action: Callable[[], None]) -> None:
    """Runs `action` with SIGTERM meaning the same as Ctrl-C, so that both leave nothing behind."""
    import signal

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        action()
    finally:
        signal.signal(signal.SIGTERM, previous)
