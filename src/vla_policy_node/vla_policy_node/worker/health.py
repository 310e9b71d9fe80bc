"""Whether the server of a policy that runs elsewhere answers. The worker's thread writes it, all may read it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_SLOW = 1.0  # s; people are told what is waited for then,
_UNUSUAL = 2.0  # if that is also so many times what the quickest of the last answers took: some servers are that slow
_MARGIN = 5.0  # s beyond the backend's own time-outs: for what it computes


class Health:
    """Of one worker.

    Attributes:
        server: its address, for people; empty: the policy runs in the worker's process.
        outages: times that it was lost.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.server = ""
        self.outages = 0
        self._clock = clock
        self._patience = 0.0
        self._trouble = ""
        self._since: float | None = None
        self._waited = 0.0
        self._took: deque[float] = deque(maxlen=5)

    def begin(self, loaded: Mapping[str, Any]) -> None:
        """A process has loaded, and says by `server` and `patience` (s) if its policy runs elsewhere."""
        self.server, self._patience = str(loaded.get("server", "")), float(loaded.get("patience", 0.0))
        # The state of READY is earned by an answer.
        self._trouble = f"{self.server}: not heard of yet" if self.server else ""
        self._took.clear()

    def hang(self, timeout: float) -> float:
        """s without an answer that are a hang; `timeout`: those of a policy that does not wait for others."""
        return max(timeout, self._patience + _MARGIN) if self.server else timeout

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """An answer of the process is waited for meanwhile."""
        self._since = began = self._clock()
        try:
            yield
        finally:
            self._since = None
            self._waited = self._clock() - began

    def heard(self, trouble: str, inferred: bool) -> None:
        """How what was waited for last ended; empty: the server answered. `inferred`: it was an inference."""
        if inferred and not trouble:
            self._took.append(self._waited)
        self.outages += bool(trouble) and not self._trouble
        self._trouble = trouble

    @property
    def trouble(self) -> str:
        """Why no answer comes now: address, cause and next attempt; empty: one is expected."""
        since, took = self._since, tuple(self._took)
        slow = max(_SLOW, _UNUSUAL * min(took, default=0.0))
        if self.server and since is not None and (waited := self._clock() - since) > slow:
            before = f" ({self._trouble})" if self._trouble else ""
            return f"{self.server}: no answer for {waited:.1f} s, it is given up after {self._patience:g} s{before}"
        return self._trouble
