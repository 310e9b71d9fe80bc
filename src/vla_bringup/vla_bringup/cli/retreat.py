"""`./vla retreat`: the robot goes back as long as a key is held."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from vla_bringup.cli.console import FAILED, OK, Console, reported
from vla_bringup.files import find
from vla_contract.errors import ConfigError
from vla_contract.robot import load_robot

ANSWER_TIMEOUT = 5.0  # s
_CALL = 0.15  # s between two confirmations
_FIRST = 0.8  # s: a keyboard waits that long before it repeats a key that is held
_NEXT = 0.2  # s: and repeats it at least this often then
_HOLD, _END = b" ", (b"q", b"\x03", b"\x04")


class HeldKey:
    """Whether a key is held, from the characters that a terminal repeats meanwhile. Times in s."""

    def __init__(self) -> None:
        self._until = 0.0
        self._last = float("-inf")

    def press(self, now: float) -> None:
        """The character came."""
        held = now - self._last <= _FIRST
        self._until = now + (_NEXT if held else _FIRST)
        self._last = now

    def held(self, now: float) -> bool:
        """Whether it is held still, as far as one can know."""
        return now < self._until


def lead_back(robot: str, domain: int | None, console: Console) -> None:
    """Confirms a retreat while the space bar is held, and ends the process: 0 it went back, 1 refused, 3 no filter."""
    with reported(console, {"success": False}):
        from vla_bringup.operator import Operator

        if not sys.stdin.isatty():
            raise ConfigError("a retreat needs a person at a terminal who holds a key; standard input is none")
        with Operator(load_robot(find("robots", robot)), domain) as operator, _keys() as keyboard:
            console.say("hold the space bar: the robot goes back the way it came; let go: it stops; q: end\r")
            key, moved, message, called = HeldKey(), False, "", 0.0
            while True:
                for character in _read(keyboard, _CALL / 3):
                    if character in _END:
                        console.finish({"success": moved, "message": message}, OK)
                    if character == _HOLD:
                        key.press(time.monotonic())
                now = time.monotonic()
                if not key.held(now) or now - called < _CALL:
                    continue
                called = now
                success, message = operator.trigger("retreat", ANSWER_TIMEOUT)
                if not success:
                    break
                moved = True
        console.say(message if moved else f"refused: {message}")
        console.finish({"success": moved, "message": message}, OK if moved else FAILED)


@contextmanager
def _keys() -> Iterator[int]:
    """The terminal, giving every key at once; as it was before afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _read(descriptor: int, timeout: float) -> list[bytes]:
    """Characters that came, after `timeout` s at the latest."""
    if not select.select([descriptor], [], [], timeout)[0]:
        return []
    return [bytes([code]) for code in os.read(descriptor, 64)]
