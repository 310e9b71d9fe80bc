"""Plays a plan to the controller, message by message, each with its verified stop; and stops it.

What is committed is what the controller plays: the filter decides whether there is a plan, the conductor keeps the
promise that every message begins on the curve that was committed before and ends at rest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.limits import JointLimits
from vla_safety.core.config import Cycle, Proposals
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Array, Motion, State, Timeline, nanoseconds, rest, seconds
from vla_safety.core.planning import at_once, longest_prefix, next_message, soonest_stop
from vla_safety.core.records import Plan
from vla_safety.core.retreat import Ratchet
from vla_safety.core.splicing import Splice, complete, splice
from vla_safety.core.validation import RETREAT, Chunk
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant, Measured, StateMonitor

_EASE = 2.0  # times as slow as the limits would allow, when an arm gives way


@dataclass(frozen=True)
class Ending:
    """A plan is over.

    Attributes:
        finding: what ended it before its own end, or why it is not the whole proposal; None: nothing did.
        rests: it was played to its end, and that is at rest as it was meant.
    """

    plan: Plan
    finding: Finding | None
    rests: bool = False


class Conductor:
    """What is committed, and the plan that it follows.

    Args:
        angles: (n,) joints whose position is held where it is measured; the others keep their grip.
        shadow: nothing is sent.

    Attributes:
        verifier: what every message is judged against.
        plan: what is being played; None: what is committed goes to its stop.
        outbox: messages to be sent, in order.
    """

    def __init__(self, verifier: Verifier, cycle: Cycle, angles: NDArray[np.bool_], shadow: bool = False):
        self.verifier = verifier
        self.timeline = Timeline()
        self.plan: Plan | None = None
        self._ratchet: Ratchet | None = None
        self.outbox: list[Motion] = []
        self.lead = nanoseconds(cycle.lead)
        self.fraction = cycle.stop_fraction
        self._cycle = cycle
        self._angles = angles
        self._shadow = shadow

    @property
    def committed(self) -> Motion | None:
        """What the controller plays."""
        return self.timeline.current

    def commit(self, now: Instant, motion: Motion) -> None:
        """Sends a motion that was verified."""
        self.timeline.commit(now.clock_ns, motion)
        if not self._shadow:
            self.outbox.append(motion)

    def begin(self, now: Instant, motion: Motion) -> None:
        """Forgets what was, and commits `motion`."""
        self.forget()
        self.commit(now, motion)

    def forget(self) -> None:
        """Nothing is committed."""
        self.timeline.clear()
        self.plan = self._ratchet = None

    def follow(self, now: Instant, position: Array, velocity: Array) -> None:
        """In shadow: the robot is commanded where it was measured (n,), and its plan is forgotten."""
        self.forget()
        state = State(position, velocity, np.zeros_like(position))
        self.timeline.commit(now.clock_ns, Motion.at(now.clock_ns + self.lead, state))

    def lead_onto(self, chunk: Chunk, now: Instant, settings: Proposals, cap: float) -> tuple[Plan, Splice] | Finding:
        """Makes a plan that leads on to a chunk at a speed scale of at most `cap`, and commits its first message; or
        says why there is none, and everything stays as it was."""
        committed = self.committed
        assert committed is not None
        earliest = now.clock_ns + self.lead
        limits, pace = self.verifier.limits, self.verifier.pace
        spliced = splice(committed, complete(chunk), now.clock_ns, earliest, limits, settings, cap, pace)
        if isinstance(spliced, Finding):
            return spliced
        looked = None
        if self._ratchet is None:  # else a message has rules of its own
            looked = at_once(spliced, now.clock_ns, earliest, self.verifier, self._cycle)
        if isinstance(looked, tuple):
            message, followed = looked
            self.plan = Plan(spliced.motion, chunk.source, chunk.sequence, spliced.scale, followed, None)
            self.commit(now, message)
            return self.plan, spliced
        motion, trimmed = longest_prefix(spliced, self.verifier, self.fraction, looked)
        if motion is None:
            assert trimmed is not None
            return trimmed
        plan = Plan(motion, chunk.source, chunk.sequence, spliced.scale, spliced.splice_ns, trimmed)
        return self._play(plan, now) or (plan, spliced)

    def retreat(self, now: Instant, motion: Motion, sequence: int) -> None:
        """Plays a motion from rest where the robot may not be (see Ratchet): first it is held where that begins."""
        self.begin(now, motion.knots(0, 0))
        self._ratchet = Ratchet(self.verifier, motion.positions[0])
        self.plan = Plan(motion, RETREAT, sequence, 1.0, int(motion.times[1]), None)

    def leading_to(self, position: Array) -> float:
        """s that it takes to lead the controller, which holds what was committed last, to `position` (n,) at rest."""
        committed = self.committed
        if committed is None:
            return 0.0
        return _EASE * _rest_to_rest(np.abs(position - committed.positions[-1]), self.verifier.limits)

    def _play(self, plan: Plan, now: Instant) -> Finding | None:
        """Commits the first message of a plan. If that does not verify: why; everything stays as it was then."""
        message, followed, blocked = self._next(plan, now)
        if blocked is not None:
            return blocked
        self.plan = plan
        if message is not None:
            self.commit(now, message)
            plan.followed = followed
        return None

    def extend(self, now: Instant) -> Ending | None:
        """Commits the next segment of the plan with its stop, if that verifies; how the plan ended, if it did."""
        plan = self.plan
        if plan is None:
            return None
        splice_ns = now.clock_ns + self.lead
        if splice_ns < plan.motion.start:
            return None
        if plan.followed < plan.motion.end and splice_ns > plan.followed:
            self.plan = None
            late = Finding("late_cycle", "filter", seconds(splice_ns - plan.followed), 0.0)
            return Ending(plan, plan.blocked or late)
        message, followed, plan.blocked = self._next(plan, now)
        if message is not None:
            self.commit(now, message)
            plan.followed = followed
        elif now.clock_ns >= plan.motion.end:
            self.plan = None
            rests = plan.ends_short is None and plan.motion.knot(len(plan.motion) - 1).at_rest
            return Ending(plan, plan.ends_short, rests)
        return None

    def _next(self, plan: Plan, now: Instant) -> tuple[Motion | None, int, Finding | None]:
        splice_ns, verifier = now.clock_ns + self.lead, self._rules(plan.motion, now)
        return next_message(plan.motion, plan.followed, now.clock_ns, splice_ns, verifier, self._cycle)

    def _rules(self, motion: Motion, now: Instant) -> Verifier:
        """What a message that goes on along `motion` is judged against."""
        if self._ratchet is None:
            return self.verifier
        return self._ratchet.at(motion.since(now.clock_ns).positions[0])

    def drop(self) -> Plan | None:
        """Gives up the plan; what is committed goes to its stop. Returns what was given up."""
        plan, self.plan = self.plan, None
        return plan

    def stop(self, now: Instant) -> int:
        """Commits the stop that can begin soonest; if it does not verify, the one that is committed plays out.

        Returns:
            When the robot rests, ns.
        """
        committed = self.committed
        assert committed is not None
        at = now.clock_ns + self.lead
        motion = soonest_stop(committed, now.clock_ns, at, self._rules(committed, now), self.fraction)
        self.commit(now, motion)
        return motion.end

    def halt(self, now: Instant, monitor: StateMonitor) -> int | None:
        """Stops what moves; where the committed motion is over, replaces what a stranger may play.

        Returns:
            When a stop that was begun will be over, ns.
        """
        committed = self.committed
        assert committed is not None
        if now.clock_ns < committed.end:
            return self.stop(now)
        self._hold_still(now, committed, monitor)
        return None

    def _hold_still(self, now: Instant, committed: Motion, monitor: StateMonitor) -> None:
        """Where the arm really is: after a freeze it need not be where the last message ended. A filter that does not
        see sends nothing; the controller holds what it has."""
        measured = monitor.newest
        if measured is None or monitor.check(now) is not None:
            return
        still = rest(committed.positions[-1])
        at = now.clock_ns + self.lead
        if monitor.tracking(still)[1] is not None:
            there = rest(np.where(self._angles, measured.position, still.position))  # a gripper keeps its grip
            # Where nobody else commands the robot, the controller leads it from where it was commanded: within limits.
            at += nanoseconds(_rest_to_rest(np.abs(there.position - still.position), self.verifier.limits))
            if self.verifier.verify(Motion.at(at, there)).safe:
                still = there
        self.commit(now, Motion.at(at, still))

    def give_way(self, now: Instant, monitor: StateMonitor) -> int | None:
        """Commands the arm where it was measured, at rest: what it leans on is not pushed any more. Nothing where the
        filter does not see, or the arm is further away than it may be when it follows, or that motion does not verify:
        then the robot is held as it is.

        Returns:
            When that will be over, ns.
        """
        committed, measured = self.committed, monitor.newest
        if committed is None or measured is None or monitor.check(now) is not None:
            return None
        held = committed.positions[-1]
        if monitor.tracking(rest(held))[1] is not None:
            return None
        there = np.where(self._angles, measured.position, held)  # a gripper keeps its grip
        at = now.clock_ns + self.lead
        end = at + nanoseconds(self.leading_to(there)) + self.lead
        still = np.zeros((2, len(held)))
        motion = Motion(np.array([at, end]), np.stack([held, there]), still, still)
        if not self.verifier.verify(motion).safe:
            return None
        self.commit(now, motion)
        return end

    def retract(self) -> bool:
        """What is in the outbox was not sent. False: there is nothing else that is committed."""
        unsent, self.outbox = len(self.outbox), []
        return all(self.timeline.retract() for _ in range(unsent))

    def moving(self, now: Instant) -> bool:
        """Whether what is committed is not over yet."""
        return self.committed is not None and now.clock_ns < self.committed.end

    def unfinished(self, now: Instant) -> Finding | None:
        """What is committed, if it is not over yet. What was measured last may be of before it began."""
        committed = self.committed
        if committed is None or self._shadow or (self.plan is None and not self.moving(now)):
            return None
        subject = "the commanded stop" if self.plan is None else "the commanded motion"
        return Finding("stopping", subject, seconds(committed.end - now.clock_ns))

    def against(
        self, verifier: Verifier, now: Instant, measured: Measured | None, *, commanded: bool
    ) -> Finding | None:
        """What other rules have against what is yet to be played; or, when that is over and the robot is not
        `commanded` any more, against where it was measured."""
        motion = None if self.committed is None else self.committed.since(now.clock_ns)
        if measured is not None and (motion is None or not commanded) and not self.moving(now):
            motion = Motion.at(now.clock_ns, rest(measured.position))
        return None if motion is None or self._shadow else verifier.verify(motion).finding

    def rests_within(self, verifier: Verifier) -> bool:
        """Whether the end of what is committed keeps other rules."""
        committed = self.committed
        return committed is None or verifier.verify(Motion.at(committed.end, rest(committed.positions[-1]))).safe

    def shift(self, ns: int) -> None:
        """The clock jumped by `ns`, the controller's as well: what is committed goes on from where it was. The plan is
        of no use any more: to be dropped."""
        self.timeline.shift(ns)


def _rest_to_rest(distance: Array, limits: JointLimits) -> float:
    """s that a quintic from rest to rest over `distance` (n,) needs within the limits. With u = t / T it is
    10 u^3 - 15 u^4 + 6 u^5; its derivatives are at most 15/8, 10/sqrt(3) and 60."""
    return float(
        max(
            np.max(15 / 8 * distance / limits.max_velocity),
            np.max(np.sqrt(10 / np.sqrt(3) * distance / limits.max_acceleration)),
            np.max(np.cbrt(60 * distance / limits.max_jerk)),
        )
    )
