"""What follows a stop that did not arrive: the controller is deactivated, once it said yes; else it is asked again."""

from typing import Protocol

from vla_safety.core.motion import nanoseconds

RETRY = 1.0  # s without an answer, after which it is asked again


class Pending(Protocol):
    """An answer that comes later."""

    def done(self) -> bool: ...

    def result(self) -> object: ...


class Switch(Protocol):
    """Deactivates the controller. None: there is nobody to ask now. Must not wait."""

    def __call__(self) -> Pending | None: ...


class Deactivation:
    """Asks from the moment of the escalation until it is done or the escalation is over. Never activates: people do.

    Attributes:
        state: "", "asked", "done" or "failed": what became of it.
    """

    def __init__(self, switch: Switch):
        self._switch = switch
        self._pending: Pending | None = None
        self._asked_ns: int | None = None
        self.state = ""

    def step(self, escalated: bool, steady_ns: int) -> None:
        """To be called in each cycle; `steady_ns` on the steady clock."""
        if not escalated:
            self._pending, self._asked_ns, self.state = None, None, ""
            return
        if self.state == "done":
            return
        if self._pending is not None and self._pending.done():
            self.state = "done" if self._agreed(self._pending) else "failed"
            self._pending = None
        waited = self._asked_ns is None or steady_ns - self._asked_ns >= nanoseconds(RETRY)
        if self.state != "done" and waited:
            self._asked_ns = steady_ns
            self._pending = self._switch()
            self.state = "failed" if self._pending is None else "asked"

    @staticmethod
    def _agreed(pending: Pending) -> bool:
        try:
            return bool(getattr(pending.result(), "ok", False))
        except Exception:  # a call that failed is an answer: no
            return False
