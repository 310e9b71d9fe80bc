"""Whether this process slept: frozen, swapped out or starved, so that what waits in its queues is of the past.

On a robot the clock is read from the machine and is always right. Under simulated time the clock is itself a message
that waits in a queue: a process that wakes could judge old proposals by an old clock, find them fresh, and command a
motion part of which lies in the past. So after a sleep nothing is judged until the clock has moved and the queues had
time to be emptied. On a robot the same is told of what comes without a stamp: it may be as old as the sleep was long.
"""

from vla_safety.core.motion import nanoseconds

DRAIN = 0.03  # s that the queues are given
DOUBT = 0.3  # s in which what has no stamp may still have come out of them: a busy executor is slow with it


class Wakefulness:
    """Watches the steady clock.

    Args:
        longest: s between two looks, above which the process slept.
    """

    def __init__(self, longest: float):
        self._longest = nanoseconds(longest)
        self._drain = nanoseconds(DRAIN)
        self._looked: int | None = None
        self._slept_ns = self._woken_ns = -nanoseconds(DOUBT)
        self._woke: tuple[int, int] | None = None  # clock and steady clock at the first look after a sleep

    def look(self, clock_ns: int, steady_ns: int) -> bool:
        """Whether the clock can be believed. To be called often: at each input, and by a timer on the steady clock."""
        before, self._looked = self._looked, steady_ns
        if before is not None and steady_ns - before > self._longest:
            self._woke, self._slept_ns, self._woken_ns = (clock_ns, steady_ns), before, steady_ns
        if self._woke is not None and clock_ns != self._woke[0] and steady_ns - self._woke[1] >= self._drain:
            self._woke = None
        return self._woke is None

    @property
    def age_ns(self) -> int:
        """By how much what came now may be older than it seems, ns."""
        if self._looked is None or self._looked - self._woken_ns >= nanoseconds(DOUBT):
            return 0
        return self._looked - self._slept_ns

    @property
    def draining(self) -> bool:
        """Whether the queues had no time yet to be emptied."""
        return self._woke is not None
