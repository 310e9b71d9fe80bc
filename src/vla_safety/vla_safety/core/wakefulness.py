"""Whether this process slept: frozen, swapped out or starved, so that what waits in its queues is of the past.

On a robot the clock is read from the machine and is always right. Under simulated time the clock is itself a message
that waits in a queue: a process that wakes could judge old proposals by an old clock, find them fresh, and command a
motion part of which lies in the past. So after a sleep nothing is judged until the clock has moved and the queues had
time to be emptied. And what comes without a stamp may be as old as the sleep was long, whatever the clock.
"""

from vla_safety.core.motion import nanoseconds

DRAIN = 0.03  # s that the queues are given
DOUBT = 0.3  # s in which what is received may have waited outside: the middleware's threads have to wake up too


class Wakefulness:
    """Watches the steady clock.

    Args:
        longest: s between two looks, above which the process slept.
    """

    def __init__(self, longest: float):
        self._longest = nanoseconds(longest)
        self._drain = nanoseconds(DRAIN)
        self._looked: int | None = None
        self.gap_ns = 0  # between the last two looks
        self._slept_ns = self._woken_ns = -nanoseconds(DOUBT)
        self._woke: tuple[int, int] | None = None  # clock and steady clock at the first look after a sleep

    def look(self, clock_ns: int, steady_ns: int) -> bool:
        """Whether the clock can be believed. To be called often: at each input, and by a timer on the steady clock."""
        before, self._looked = self._looked, steady_ns
        self.gap_ns = 0 if before is None else steady_ns - before
        if before is not None and self.gap_ns > self._longest:
            self._woke, self._slept_ns, self._woken_ns = (clock_ns, steady_ns), before, steady_ns
        if self._woke is not None and clock_ns != self._woke[0] and steady_ns - self._woke[1] >= self._drain:
            self._woke = None
        return self._woke is None

    def worked(self, steady_ns: int) -> None:
        """What took so long until now was work of the process's own: no sleep."""
        self._looked = steady_ns

    @property
    def slept_ns(self) -> int:
        """How long a sleep was that what is looked at now may have waited for, ns; 0: there was none."""
        if self._looked is None or self._looked - self._woken_ns >= nanoseconds(DOUBT):
            return 0
        return self._woken_ns - self._slept_ns

    def age_ns(self, received_ns: int) -> int:
        """How old a message may be at the last look, ns; 0: there was no sleep that it could have waited for.

        Args:
            received_ns: when the middleware received it, on the steady clock; a busy executor looks at it much later.
        """
        if self._looked is None or received_ns - self._woken_ns >= nanoseconds(DOUBT):
            return 0
        return self._looked - min(received_ns, self._slept_ns)
