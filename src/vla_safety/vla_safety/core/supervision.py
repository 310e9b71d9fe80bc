"""What goes on beside the motion: clock, inputs, the robot's whereabouts, and causes that people and devices report.

A supervisor can only ask for a stop. Whatever reports a cause (a button, a force limit, later a statistical monitor)
can therefore make the filter stricter, never looser (I16).
"""

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.config import SafetyConfig
from vla_safety.core.findings import Finding
from vla_safety.core.motion import NS, Array, Timeline, nanoseconds, seconds
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant, StateMonitor
from vla_safety.core.ways import TOUCHES

_NOTED = 0.05  # of its limit, by which a touch has become harder or softer


def is_news(told: Finding | None, finding: Finding | None) -> bool:
    """Whether a cause is worth reporting after what was told of it: it came, it went, a touch has changed."""
    if finding is None or told is None:
        return finding is not told
    return finding.reason in TOUCHES and not abs(finding.share - told.share) <= _NOTED  # NaN is news


class Supervisor:
    """Watches; decides nothing.

    Attributes:
        monitor: of joint states.
        verifier: what measured positions are judged against.
        causes: what is reported to be wrong now, by reporter; while there is one, nobody arms and nobody resets.
        stop_due: ns, when a stop that is watched is over; None: there is none.
    """

    def __init__(self, config: SafetyConfig, verifier: Verifier):
        self._settings = config.watchdogs
        self.verifier = verifier
        self.monitor = StateMonitor(verifier.limits.names, config.watchdogs, verifier.limits.max_velocity)
        self.causes: dict[str, Finding] = {}
        self._clock: Instant | None = None
        self.stop_due: int | None = None
        self._takes_over = False

    def inherit(self, before: "Supervisor") -> None:
        """Takes the place of another one: a stop that was watched is watched on, from the first look on, since nothing
        was seen meanwhile."""
        self._takes_over = before.stop_due is not None

    def restart(self, now: Instant) -> None:
        """Begins anew, e.g. when the robot is armed."""
        self._clock = now
        self.expect_stop(None)

    def expect_stop(self, end_ns: int | None) -> None:
        """The robot must rest soon after `end_ns`; None: it need not any more."""
        self.stop_due, self._takes_over = end_ns, False

    def blocked(self, now: Instant) -> Finding | None:
        """What speaks against arming or resetting: a cause, stale inputs, motion."""
        for finding in self.causes.values():
            return finding
        return self.monitor.check(now) or self.monitor.at_rest()

    def touches(self) -> dict[str, Finding]:
        """What is felt now, by reporter."""
        return {cause: finding for cause, finding in self.causes.items() if finding.reason in TOUCHES}

    def in_the_way(self, now: Instant) -> Finding | None:
        """What speaks against a retreat: as `blocked`, but a touch is what it leads out of."""
        for finding in self.causes.values():
            if finding.reason not in TOUCHES:
                return finding
        return self.monitor.check(now) or self.monitor.at_rest()

    def check_clock(self, now: Instant, *, between: bool = False) -> tuple[int, Finding | None]:
        """Whether the clock and the watch moved alike since the last cycle, and neither went back.

        Args:
            between: two cycles. Without a jump the next one is then compared with the last one as well: what is told
                between them may have been heard a little before what was told already.

        Returns:
            ns by which the clock jumped, and the finding if that is too much.
        """
        before = self._clock
        if not between:
            self._clock = now
        if before is None:
            return 0, None
        moved = now.clock_ns - before.clock_ns
        jump = moved - max(0, now.watch_ns - before.watch_ns)
        if moved >= 0 and abs(jump) <= self._settings.clock_tolerance * NS:
            return 0, None
        self._clock = now
        if self.stop_due is not None:
            self.stop_due += jump
        return jump, Finding("clock_jump", "clock", seconds(jump), self._settings.clock_tolerance)

    def check_measured(self, timeline: Timeline) -> Finding | None:
        """Whether the robot is where it was commanded to be, and outside every forbidden volume."""
        measured = self.monitor.newest
        if measured is None:
            return None
        return self.check_tracking(timeline) or self.verifier.clearances(measured.position)[1]

    def check_tracking(self, timeline: Timeline) -> Finding | None:
        """Whether the robot is where it was commanded to be."""
        measured = self.monitor.newest
        commanded = None if measured is None else timeline.state(measured.stamp_ns)
        return None if commanded is None else self.monitor.tracking(commanded)[1]

    def check_stop(self, now: Instant, timeline: Timeline) -> Finding | None:
        """Whether a stop that was commanded arrives: the robot follows it, and rests when it is over."""
        if self._takes_over:
            self.expect_stop(now.clock_ns)
        if self.stop_due is None:
            return None
        measured = self.monitor.newest
        commanded = None if measured is None else timeline.state(measured.stamp_ns)
        if commanded is not None and now.clock_ns <= self.stop_due:
            deviating = self.monitor.tracking(commanded)[1]
            if deviating is not None:
                return Finding("stop_failed", deviating.subject, deviating.value, deviating.limit)
        if now.clock_ns < self.stop_due + nanoseconds(self._settings.stop_grace):
            return None
        moving = self.monitor.check(now) or self.monitor.at_rest()  # who does not see has not seen it rest
        if moving is None:
            self.stop_due = None
            return None
        value = moving.value if np.isfinite(moving.value) else float("nan")
        return Finding("stop_failed", moving.subject, value, moving.limit)

    def picture(self, timeline: Timeline, angles: NDArray[np.bool_]) -> tuple[float, float, float, float]:
        """How far the robot is from a position limit [rad], a zone and itself [m], and where it was commanded [rad].

        NaN where unknown. `angles` (n,) selects the joints that angles are taken of.
        """
        measured, nan = self.monitor.newest, float("nan")
        if measured is None:
            return nan, nan, nan, nan
        limits = self.verifier.limits
        room: Array = np.minimum(limits.max_position - measured.position, measured.position - limits.min_position)
        zone, own = (x if np.isfinite(x) else nan for x in self.verifier.clearances(measured.position)[0][:2])
        commanded = timeline.state(measured.stamp_ns)
        error = nan if commanded is None else float(self.monitor.tracking(commanded)[0][angles].max())
        return float(room[angles].min()), zone, own, error
