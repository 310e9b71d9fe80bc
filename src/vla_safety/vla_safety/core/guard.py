"""Everything that can stop the robot, and the mode that it leaves it in.

Proof obligation (I7, I10). Nothing in here begins a motion: a guard extends the plan that the filter accepted, ends it,
or replaces it by a stop; after a touch that is where the arm then rests, so that it does not go on pushing. An error in
any check ends in `fail`. The e-stop latches; `enter` knows no way out of it but a reset, by the table in `modes`.
"""

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.authority import Authority
from vla_safety.core.conductor import Conductor, Ending
from vla_safety.core.config import SafetyConfig
from vla_safety.core.findings import Decision, Finding, Verdict
from vla_safety.core.latch import Latch, Memory
from vla_safety.core.modes import ENABLED, Event, Mode, transition
from vla_safety.core.motion import seconds
from vla_safety.core.records import Output, Plan, Status
from vla_safety.core.supervision import Supervisor
from vla_safety.core.validation import POLICY, RETREAT
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant
from vla_safety.core.wayout import WayOut
from vla_safety.core.ways import TOUCHES, WAYS, Way

_LET_GO = frozenset({"retreat_released", "deadman_released", "deadman_silent"})


class Guard:
    """Modes, supervision and stops around a Conductor.

    Attributes:
        mode, finding: what the filter does, and why.
        failed: why a stop did not arrive; None: all did, or a person has armed the robot or led it back since.
        refused: by source, why its last proposal was refused since one was accepted.
    """

    def __init__(
        self,
        config: SafetyConfig,
        verifier: Verifier,
        angles: NDArray[np.bool_],
        memory: Memory | None = None,
        shadow: bool = False,
    ):
        self._angles = angles
        self._shadow = shadow
        self._memory = memory
        self.conductor = Conductor(verifier, config.cycle, angles, shadow)
        self.supervisor = Supervisor(config, verifier)
        self.monitor = self.supervisor.monitor
        self.authority = Authority(config.watchdogs)
        self.way_out = WayOut(config, self.conductor, self.supervisor, self.authority, angles)
        self.mode = Mode.DISARMED
        self.finding: Finding | None = None
        self.failed: Finding | None = None
        self.refused: dict[str, Finding] = {}
        self._leaning = False
        self._counts = [0] * len(Verdict)
        self._decisions: list[Decision] = []
        remembered = None if memory is None else memory.recall()
        if remembered is not None:
            self.failed = remembered.failed
            if remembered.finding is not None:
                self.enter(Event.ESTOP, remembered.finding)

    def inherit(self, before: "Guard") -> None:
        """Takes the place of another guard, at rest: with the path that was travelled, a stop that failed, and one that
        has yet to be seen to arrive."""
        self.failed = self.failed or before.failed
        self.supervisor.inherit(before.supervisor)
        self.way_out.inherit(before.way_out)

    def drain(self) -> Output:
        """What is to be published since the last call."""
        output = Output(self.conductor.outbox, self._decisions)
        self.conductor.outbox, self._decisions = [], []
        return output

    # ---------------------------------------------------------------- the cycle

    def cycle(self, now: Instant) -> None:
        """Supervises, then extends what is committed by the next segment."""
        if not self.look(now, between=False):
            self._supervise(now)
        self._ended(self.conductor.extend(now), now)
        self.way_out.record(now)

    def _ended(self, ending: Ending | None, now: Instant) -> None:
        if ending is None:
            return
        plan, committed = ending.plan, self.conductor.committed
        if committed is not None and (plan.source == RETREAT or not ending.rests):
            self.supervisor.expect_stop(committed.end)
        if plan.source == RETREAT:
            self._say_stopped(plan, ending.finding or Finding("retreat_end", "path"), now)
        elif ending.rests:
            self.authority.give_back(plan.source)
        else:
            silent = Finding("chunk_timeout", plan.source, self.authority.silence(plan.source, now))
            self._trouble(plan, now, ending.finding or self.refused.get(plan.source) or silent)

    def _trouble(self, plan: Plan, now: Instant, finding: Finding) -> None:
        self.enter(Event.TROUBLE, finding)
        self._say_stopped(plan, finding, now)

    # ---------------------------------------------------------------- supervision

    def look(self, now: Instant, *, between: bool = True) -> bool:
        """Whether the clock has jumped since the last cycle; then what moves stops and the e-stop latches. To be called
        before anything is made for `now`: what is committed has to be brought to the new clock first. `between` two
        cycles: see Supervisor.check_clock."""
        jump, jumped = self.supervisor.check_clock(now, between=between)
        if jumped is None:
            return False
        self.conductor.shift(jump)
        self.monitor.forget()
        self.halt(now, Event.ESTOP, jumped)
        return True

    def _supervise(self, now: Instant) -> None:
        failed = None if self._shadow else self.supervisor.check_stop(now, self.conductor.timeline)
        if failed is not None:
            self._escalate(failed)
        if self.mode not in ENABLED:
            self._supervise_retreat(now)
            self._let_go(now)
            return
        stale = self.monitor.check(now)
        if stale is not None:
            if self.conductor.plan is not None or self.mode != Mode.HOLD:
                self.halt(now, Event.TROUBLE, stale)
            return
        finding = None if self._shadow else self.supervisor.check_measured(self.conductor.timeline)
        if finding is not None:
            self.halt(now, Event.ESTOP, finding)
        elif self.mode == Mode.OVERRIDE:
            lost = self.authority.lost(now)
            if lost is not None:
                self.halt(now, Event.OVERRIDE_LOST, lost)

    def _let_go(self, now: Instant) -> None:
        """An arm that was stopped by a touch leans on what it touched: once it rests, it is held where it is."""
        if not self._leaning or self.conductor.moving(now) or self.monitor.newest is None:
            return
        if self.monitor.at_rest() is not None:
            return
        self._leaning = False
        if self.mode == Mode.ESTOP and not self.way_out.active:
            due = self.conductor.give_way(now, self.monitor)
            if due is not None:
                self.way_out.let_go()
                self.supervisor.expect_stop(due)

    def _supervise_retreat(self, now: Instant) -> None:
        lost = self.way_out.lost(now) if self.way_out.active else None
        if lost is None:
            return
        if lost.reason == "tracking_error":
            self.latch(lost)
        self.stop(now, lost)
        self._leaning |= lost.reason == "retreat_pressed"

    # ---------------------------------------------------------------- stops

    def halt(self, now: Instant, event: Event, finding: Finding) -> None:
        """Enters the mode that `event` leads to; what moves stops."""
        target = transition(self.mode, event)
        if target is None:
            return
        was = self.mode
        if target == Mode.ESTOP:
            self._leaning &= finding.reason in TOUCHES  # whatever else says stop: it does not even let go
            self.latch(finding)
        else:
            self.enter(event, finding)
        if was in ENABLED or self.conductor.plan is not None:
            self.stop(now, finding)

    def stop(self, now: Instant, finding: Finding) -> None:
        """Gives up the plan and commits the stop that can begin soonest."""
        if self.way_out.active and finding.reason not in _LET_GO:
            self.way_out.bar()
        plan = self.conductor.drop()
        due = self.conductor.halt(now, self.monitor)
        if due is not None:
            self.supervisor.expect_stop(due)
        self._say_stopped(plan, finding, now)

    def _say_stopped(self, plan: Plan | None, finding: Finding, now: Instant) -> None:
        source, sequence = (plan.source, plan.sequence) if plan is not None else (POLICY, 0)
        self.decide(Decision(Verdict.STOPPED, source, sequence, finding, stamp_ns=now.clock_ns))

    def report(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """What a device or a monitor says: a finding stops and latches, None takes back what `cause` said before."""
        if finding is None:
            self.supervisor.causes.pop(cause, None)
            return
        if self.mode in ENABLED or self.way_out.active:
            self._leaning = finding.reason in TOUCHES
        known = self.supervisor.causes.get(cause)
        self.supervisor.causes[cause] = finding
        if known is None or self.mode != Mode.ESTOP:
            self.halt(now, Event.ESTOP, finding)

    def retract(self, now: Instant, again: bool = True) -> None:
        """See SafetyFilter."""
        if not self.conductor.outbox:
            return
        late = Finding("late_cycle", "filter", seconds(self.conductor.lead), 0.0)
        if not self.conductor.retract():
            self._take_back(now, late)
            return
        self.look(now)  # not before: what was not sent is no motion to be stopped
        plan = self.conductor.drop()
        if plan is not None and self.mode in ENABLED:
            self._watch_end(now)
            self._trouble(plan, now, late)
            return
        due = self.conductor.halt(now, self.monitor) if again else None
        if due is not None:
            self.supervisor.expect_stop(due)
        elif not again:
            self._watch_end(now)
        if plan is not None:
            self._say_stopped(plan, late, now)

    def _take_back(self, now: Instant, late: Finding) -> None:
        """The first message was not sent: the robot is not taken, and not led back."""
        plan = self.conductor.drop()
        if self.mode in ENABLED:
            self.enter(Event.DISARM, late)
        if plan is not None:
            self._say_stopped(plan, late, now)

    def fail(self, now: Instant, error: Exception) -> None:
        """A check erred: nothing can be trusted but the committed stop. It plays out, and the e-stop latches."""
        plan = self.conductor.drop()
        self._leaning = False
        self._watch_end(now)
        finding = Finding("internal", repr(error)[:200])
        moving = self.mode in ENABLED
        self.latch(finding)
        if moving or plan is not None:
            self._say_stopped(plan, finding, now)

    def _watch_end(self, now: Instant) -> None:
        """What is committed is a stop from now on, and the robot must be seen to arrive."""
        if self.conductor.committed is not None and self.conductor.moving(now):
            self.supervisor.expect_stop(self.conductor.committed.end)

    @property
    def unled(self) -> Finding | None:
        """What a person must look at and reset before anything is commanded: a stop that did not arrive, a check that
        erred."""
        if self.mode != Mode.ESTOP or self.finding is None:
            return None
        if self.failed is not None:
            return self.failed
        way = WAYS.get(self.finding.reason.partition(":")[0])
        return self.finding if way in (Way.HAND, Way.RESTART) else None

    # ---------------------------------------------------------------- bookkeeping

    def latch(self, finding: Finding) -> None:
        """Enters the e-stop; the first cause is the one that is kept."""
        if self.mode == Mode.ESTOP:
            return
        self.enter(Event.ESTOP, finding)
        self._remember()

    def _escalate(self, failed: Finding) -> None:
        """A stop did not arrive. An e-stop that is latched already keeps its first cause; this is kept beside it."""
        self._leaning = False
        if self.failed is not None and self.mode == Mode.ESTOP:
            return
        self.failed = failed
        if self.mode != Mode.ESTOP:
            self.enter(Event.ESTOP, failed)
        self._remember()

    def _remember(self) -> None:
        if self._memory is not None:
            self._memory.keep(Latch(self.finding, self.failed))

    def enter(self, event: Event, finding: Finding | None) -> None:
        """The mode that `event` leads to, if it means anything in this one."""
        target = transition(self.mode, event)
        if target is not None:
            self.mode, self.finding = target, finding

    def unlatch(self) -> bool:
        """Forgets the latched e-stop on disk, but no stop that failed; False: it cannot be removed."""
        if self._memory is None:
            return True
        return self._memory.forget() if self.failed is None else self._memory.keep(Latch(None, self.failed))

    def settle(self) -> None:
        """A person has reset, and arms the robot or leads it back: a stop that failed is of the past. Where that cannot
        be removed from disk, the next start takes it up again."""
        if self.failed is not None:
            self.failed = None
            if self._memory is not None:
                self._memory.forget()

    def decide(self, decision: Decision) -> None:
        """Counts and publishes a decision."""
        self._counts[decision.verdict] += 1
        self._decisions.append(decision)

    @property
    def speed_scale(self) -> float:
        """Of what is being played."""
        plan = self.conductor.plan
        return 1.0 if plan is None else plan.scale

    def status(self) -> Status:
        """A picture for people; computes forward kinematics once."""
        margin, zone, own, error = self.supervisor.picture(self.conductor.timeline, self._angles)
        error = error if self.mode in ENABLED else float("nan")
        return Status(self.mode, self.finding, self.speed_scale, margin, zone, own, error, tuple(self._counts))
