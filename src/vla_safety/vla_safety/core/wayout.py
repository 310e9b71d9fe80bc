"""When a retreat may begin, who lets it go on, and what ends it. The path and its rules are in `retreat`."""

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.authority import Authority
from vla_safety.core.conductor import Conductor
from vla_safety.core.config import SafetyConfig
from vla_safety.core.findings import Finding
from vla_safety.core.motion import State, nanoseconds, seconds
from vla_safety.core.records import Answer, refusal
from vla_safety.core.retreat import Trail, left, way_back
from vla_safety.core.supervision import Supervisor
from vla_safety.core.validation import RETREAT
from vla_safety.core.watchdogs import Instant

_HARDER = 0.25  # of its limit, by which a touch may become harder on the way out of it


class WayOut:
    """Leads the robot back along the path that it travelled, while a human confirms.

    Args:
        angles: (n,) joints that go back; a gripper keeps its grip.
    """

    def __init__(
        self,
        config: SafetyConfig,
        conductor: Conductor,
        supervisor: Supervisor,
        authority: Authority,
        angles: NDArray[np.bool_],
    ):
        self._settings = config.retreat
        self._reach = config.proposals.start_tolerance
        self._tolerance = config.watchdogs.tracking_tolerance
        self._settle = nanoseconds(config.cycle.settle)
        self._conductor, self._supervisor, self._authority = conductor, supervisor, authority
        self._angles = angles
        self._trail = Trail(config.retreat.memory)
        self._confirmed_ns: int | None = None
        self._count = 0
        self._led = False  # since it was armed last
        self._barred = False
        self._felt: dict[str, Finding] = {}  # the touches that it is led out of, at their softest

    @property
    def active(self) -> bool:
        """Whether the robot is being led back."""
        plan = self._conductor.plan
        return plan is not None and plan.source == RETREAT

    def inherit(self, before: "WayOut") -> None:
        """Takes over the path."""
        self._trail, self._led = before._trail, before._led

    def record(self, now: Instant) -> None:
        """Remembers where the robot is commanded to be; to be called in each cycle."""
        touches = self._supervisor.touches()
        self._felt = {cause: finding for cause, finding in self._felt.items() if cause in touches}
        self._barred = self._barred and self._unconfirmed(now) is None
        if not self._led:  # what it goes back along is not travelled again
            self._trail.record(now.clock_ns, self._conductor.timeline.state(now.clock_ns))

    def taken_over(self, state: State) -> None:
        """The robot was armed at rest in `state`."""
        self._trail.rebase(state, self._tolerance, self._angles)
        self._led = False

    def bar(self) -> None:
        """Something else than letting go stopped it: who still holds on must let go before it begins again."""
        self._barred = True

    def let_go(self) -> None:
        """The arm is about to be commanded where it leans: that is no way that was travelled."""
        self._led = True

    def ask(self, now: Instant) -> Answer:
        """A human asks for it, or confirms it."""
        self._barred = self._barred and self._unconfirmed(now) is None
        self._confirmed_ns = now.watch_ns
        plan = self._conductor.plan
        if plan is not None and self.active:
            return Answer(True, f"going back, {left(plan.motion, now.clock_ns):.0%} of the path is left")
        finding = self._unconfirmed(now) or self._supervisor.in_the_way(now)
        if finding is None and self._barred:
            finding = Finding("retreat_held", "operator")
        if finding is None:
            finding = self._conductor.unfinished(now) or self._begin(now)
        return Answer(True, "going back") if finding is None else refusal(finding)

    def lost(self, now: Instant) -> Finding | None:
        """Why the robot must stop on its way back."""
        supervisor = self._supervisor
        return (
            self._unconfirmed(now)
            or self._pressed()
            or supervisor.monitor.check(now)
            or supervisor.check_tracking(self._conductor.timeline)
        )

    def _pressed(self) -> Finding | None:
        """Whether a touch has become harder. A new one stops by itself; one that is known is what it is led out of."""
        for cause, finding in self._supervisor.touches().items():
            softest = self._felt[cause] = min(self._felt.get(cause, finding), finding, key=lambda each: each.share)
            if not finding.share <= softest.share + _HARDER:
                return Finding("retreat_pressed", finding.subject, finding.share, softest.share)
        return None

    def _unconfirmed(self, now: Instant) -> Finding | None:
        if self._authority.has_deadman:
            return self._authority.absent(now)
        limit = self._settings.confirmation
        silence = float("inf") if self._confirmed_ns is None else seconds(now.watch_ns - self._confirmed_ns)
        return None if 0 <= silence <= limit else Finding("retreat_released", "operator", silence, limit)

    def _begin(self, now: Instant) -> Finding | None:
        conductor, measured = self._conductor, self._supervisor.monitor.newest
        assert measured is not None  # or it would be in the way
        held = conductor.committed
        grip = measured.position if held is None else held.positions[-1]
        position = np.where(self._angles, measured.position, grip)
        lost = self._trail.cut(position, self._reach, self._angles)
        path = self._trail.path()
        if lost is not None or path is None:
            return lost or Finding("retreat_end", "path")
        self._led = True
        start = now.clock_ns + max(self._settle, nanoseconds(conductor.leading_to(position)))
        motion = way_back(path, position, start, conductor.verifier, self._settings, self._angles)
        self._supervisor.restart(now)
        self._count += 1
        conductor.retreat(now, motion, self._count)
        return None
