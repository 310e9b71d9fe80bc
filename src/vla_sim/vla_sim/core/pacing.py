"""When the simulated clock may move: in step with the wall clock, or with those who acknowledge it."""

from dataclasses import dataclass, field

NS = 1_000_000_000


@dataclass
class RealTimePace:
    """Simulated time follows the wall clock. A simulator that falls behind slows down, it never jumps.

    Attributes:
        largest_lag_ns: what it may be behind before the rest is given up [ns].
    """

    largest_lag_ns: int = 100_000_000
    slipped_ns: int = 0  # given up so far
    _origin: tuple[int, int] | None = None  # wall and simulated time that belong together

    def target(self, wall_ns: int, sim_ns: int) -> int:
        """The simulated time to advance to now [ns]."""
        if self._origin is None:
            self._origin = (wall_ns, sim_ns)
        wall, sim = self._origin
        target = sim + wall_ns - wall
        lag = target - sim_ns
        if lag > self.largest_lag_ns:
            lost = lag - self.largest_lag_ns
            self.slipped_ns += lost
            self._origin = (wall + lost, sim)
            target -= lost
        return target

    def restart(self) -> None:
        """Forgets the past, e.g. after a pause."""
        self._origin = None


@dataclass
class LockstepPace:
    """Simulated time goes at most `slack_ns` beyond the oldest acknowledgement.

    Whoever acknowledges takes part from then on. Before anyone does, time follows the wall clock. Who is silent for
    `timeout_ns` of wall time while the others wait is dropped, so that a dead process holds nobody for ever.
    """

    slack_ns: int
    timeout_ns: int = 20 * NS
    acknowledged: dict[str, int] = field(default_factory=dict)  # participant -> simulated time [ns]
    _heard: dict[str, int] = field(default_factory=dict)  # participant -> wall time [ns]
    _free: RealTimePace = field(default_factory=RealTimePace)

    def acknowledge(self, participant: str, stamp_ns: int, wall_ns: int) -> None:
        """`participant` has done everything up to `stamp_ns`."""
        self.acknowledged[participant] = max(stamp_ns, self.acknowledged.get(participant, stamp_ns))
        self._heard[participant] = wall_ns

    def target(self, wall_ns: int, sim_ns: int) -> int:
        """The simulated time to advance to now [ns]; not later than allowed, possibly before `sim_ns`."""
        if not self.acknowledged:
            return self._free.target(wall_ns, sim_ns)
        return min(self.acknowledged.values()) + self.slack_ns

    def drop_silent(self, wall_ns: int) -> list[str]:
        """Removes and names those who hold the others up and have not been heard for `timeout_ns`."""
        stamps = self.acknowledged.values()
        newest = max(stamps, default=0)
        # Who is ahead of the others waits for them and has nothing to say; when nobody is ahead, all are in the way.
        level = min(stamps, default=0) == newest
        silent = [
            name
            for name, stamp in self.acknowledged.items()
            if wall_ns - self._heard[name] > self.timeout_ns and (stamp < newest or level)
        ]
        for name in silent:
            del self.acknowledged[name], self._heard[name]
        if silent and not self.acknowledged:
            self._free.restart()
        return silent


class Schedule:
    """Instants k / rate of the simulated clock."""

    def __init__(self, rate: float):
        self._period = NS / rate
        self._count = 0

    def next_ns(self) -> int:
        """The next instant [ns], rounded up."""
        return -int(-self._count * self._period // 1)

    def due(self, now_ns: int) -> bool:
        """True once for every instant; instants that were missed are skipped."""
        if now_ns < self.next_ns():
            return False
        self._count = int(now_ns // self._period) + 1
        return True
