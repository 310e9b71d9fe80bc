"""The one loop: proposals in, verified motion with a verified stop out.

Proof obligation (induction over messages). Every message that leaves is one Motion that was verified from its first to
its last knot and ends at rest. Its beginning, up to the splice, is the curve that was committed before, so whenever it
arrives before the splice the controller moves from a verified curve to a verified curve without a step. If no further
message arrives, for whatever cause, the controller plays the stop at its end. Hence every state that is ever reached
lies on a verified curve from which a verified stop follows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_safety.core.advice import Advice, Advices
from vla_safety.core.config import SafetyConfig
from vla_safety.core.findings import Decision, Finding, Verdict
from vla_safety.core.guard import Guard
from vla_safety.core.latch import Memory
from vla_safety.core.modes import ENABLED, MOVING, Event, Mode, transition
from vla_safety.core.motion import Motion, nanoseconds
from vla_safety.core.planning import hold_at
from vla_safety.core.records import Answer, Output, Plan, Status, refusal
from vla_safety.core.speed import cap_everywhere, is_speed
from vla_safety.core.validation import OVERRIDE, Form, Proposal, validate
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant, StateMonitor


class SafetyFilter:
    """Composes the checks. All calls come from one thread; none raises for any input.

    Args:
        base_frame: that proposals may name.
        gripper: joint that no angle margin is taken of.
        memory: where a latched e-stop survives a restart; None: it does not.
        shadow: judges every proposal as if the robot could be led on to it from where it was measured, but commands
            nothing: something else moves the robot.
    """

    def __init__(
        self,
        config: SafetyConfig,
        verifier: Verifier,
        base_frame: str,
        gripper: str | None = None,
        memory: Memory | None = None,
        shadow: bool = False,
    ):
        self.config = config
        limits = verifier.limits
        self._angles = np.array([name != gripper for name in limits.names])
        proposals = config.proposals
        self._form = Form(
            limits.names,
            base_frame,
            proposals.max_points,
            proposals.max_horizon,
            proposals.max_stamp_age,
            proposals.max_stamp_lead,
        )
        self.shadow = shadow
        self._guard = Guard(config, verifier, self._angles, memory, shadow)
        self._conductor = self._guard.conductor
        self._supervisor = self._guard.supervisor
        self._authority = self._guard.authority
        self._way_out = self._guard.way_out
        self._advices = Advices()
        self._pending: tuple[Verifier, Finding] | None = None

    # ---------------------------------------------------------------- inputs

    @property
    def pending(self) -> tuple[Motion, ...]:
        """Motions to be published, in order."""
        return tuple(self._conductor.outbox)

    def drain(self) -> Output:
        """What is to be published since the last call."""
        return self._guard.drain()

    def observe(
        self,
        stamp_ns: int,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        now: Instant,
    ) -> Finding | None:
        """Takes a joint state; what is wrong with it, if it was dropped."""
        try:
            return self.monitor.receive(stamp_ns, names, positions, velocities, now)
        except Exception as error:  # an input that cannot even be judged is no input; the watchdog goes on counting
            return Finding("state_invalid", repr(error)[:80])

    def propose(self, proposal: Proposal, now: Instant) -> Decision:
        """Judges a proposal; if it is taken, the first message of its motion is in the output."""
        try:
            self._guard.look(now)
            with np.errstate(all="ignore"):  # overflow is judged by its result, which no comparison accepts
                decision = self._judge(proposal, now)
        except Exception as error:
            self._guard.fail(now, error)
            assert self.finding is not None
            decision = self._decision(Verdict.REFUSED, proposal, now, self.finding)
        if decision.verdict == Verdict.REFUSED and decision.finding is not None:
            self._guard.refused[proposal.source] = decision.finding
        self._guard.decide(decision)
        return decision

    def cycle(self, now: Instant) -> None:
        """Supervises, then extends what is committed by the next segment. To be called every `cycle.period`."""
        try:
            with np.errstate(all="ignore"):
                self._guard.cycle(now)
                self._take_pending(now)
        except Exception as error:
            self._guard.fail(now, error)

    def retract(self, now: Instant, again: bool = True) -> None:
        """The messages in the output were not sent, because it took too long to make them (a late command is a stale
        one): what was committed before goes on to its stop. Where there was nothing before, the robot is not taken or
        led back after all. `again`: a stop is made anew, for now."""
        self._guard.retract(now, again)

    def report(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """What a device or a monitor says: a finding stops and latches, None takes back what `cause` said before."""
        self._guard.look(now)
        self._guard.report(cause, finding, now)

    # ---------------------------------------------------------------- people

    def arm(self, now: Instant) -> Answer:
        """Takes the robot where it stands, if every input is fresh and the robot is safe and at rest."""
        self._guard.look(now)
        if transition(self.mode, Event.ARM) is None:
            return Answer(
                False, f"not from mode {self.mode.name}; " + ("reset first" if self.mode == Mode.ESTOP else "")
            )
        if self.mode != Mode.DISARMED:
            if self.mode == Mode.HOLD:
                self._authority.clear()
            self._guard.enter(Event.ARM, None)
            return Answer(True, "armed already")
        self._take_pending(now)
        finding = self._blocked(now)
        if finding is not None:
            return refusal(finding)
        measured = self.monitor.newest
        assert measured is not None
        motion = hold_at(
            measured.position,
            now.clock_ns + nanoseconds(self.config.cycle.settle),
            self.verifier,
            self.config.position_slack,
        )
        if isinstance(motion, Finding):
            return refusal(motion)
        self._authority.clear()
        self._supervisor.restart(now)
        self._guard.settle()
        self._conductor.begin(now, motion)
        self._way_out.taken_over(motion.knot(0))
        self._guard.enter(Event.ARM, None)
        return Answer(True, "armed")

    def disarm(self, now: Instant, who: str = "operator") -> Answer:
        """Stops, then commands nothing more."""
        self._guard.look(now)
        if self._way_out.active:
            self._guard.stop(now, Finding("disarmed", who))
        if transition(self.mode, Event.DISARM) is None:
            return Answer(False, "the e-stop is latched; reset first")
        if self.mode != Mode.DISARMED:
            self._guard.halt(now, Event.DISARM, Finding("disarmed", who))
        return Answer(True, "disarmed")

    def estop(self, now: Instant, who: str = "operator") -> Answer:
        """Stops and latches."""
        self._guard.look(now)
        self._guard.halt(now, Event.ESTOP, Finding("estop", who))
        return Answer(True, "e-stop latched")

    def reset(self, now: Instant) -> Answer:
        """Leaves a latched e-stop, if its cause is gone and the robot rests. Never moves: arm afterwards."""
        self._guard.look(now)
        if transition(self.mode, Event.RESET) is None:
            return Answer(True, f"nothing to reset in mode {self.mode.name}")
        finding = self._blocked(now)
        if finding is not None:
            return refusal(finding)
        if not self._guard.unlatch():
            return Answer(False, "the latched e-stop cannot be removed from disk; check its folder, then reset again")
        self._conductor.forget()
        self._guard.enter(Event.RESET, None)
        return Answer(True, "reset; arm to go on")

    def deadman(self, held: bool, now: Instant) -> None:
        """What the dead-man signal says. An override or a retreat without it stops at once."""
        self._authority.deadman(held, now)
        absent = self._authority.absent(now)
        if absent is not None:
            self._guard.look(now)
        if absent is not None and self.mode == Mode.OVERRIDE:
            self._guard.halt(now, Event.OVERRIDE_LOST, absent)
        elif absent is not None and self._way_out.active:
            self._guard.stop(now, absent)

    def inherit(self, before: "SafetyFilter") -> None:
        """This filter takes the place of another, at rest: it knows the path that was travelled, and of a stop that did
        not arrive."""
        self._guard.inherit(before._guard)

    def advise(self, advice: Advice, now: Instant) -> None:
        """What a monitor says: slower, or stop (see Advice)."""
        self._advices.take(advice)
        self.report(f"monitor {advice.monitor}", advice.finding, now)

    def retreat(self, now: Instant) -> Answer:
        """Leads the robot slowly back along the path that it travelled, from HOLD, DISARMED or ESTOP, as long as this
        is called again and again, or the dead-man signal is held. The mode stays: a reset is still needed."""
        self._guard.look(now)
        if self.mode in MOVING or self.shadow:
            return Answer(False, "in shadow nothing is commanded" if self.shadow else "disarm first")
        unled = self._guard.unled
        if unled is not None:
            return Answer(False, f"{unled.sentence}; {unled.remedy}; then reset, before the robot can be led back")
        self._take_pending(now)
        try:
            answer = self._way_out.ask(now)
            if answer.success and self.mode == Mode.HOLD:
                self._guard.enter(Event.DISARM, Finding("retreat", "path"))
            if answer.success:
                self._guard.settle()
            return answer
        except Exception as error:
            self._guard.fail(now, error)
            return Answer(False, f"a retreat cannot be made: {error!r}")

    def _blocked(self, now: Instant) -> Finding | None:
        """What speaks against arming and against a reset."""
        return self._supervisor.blocked(now) or self._conductor.unfinished(now)

    def reconfigure(self, verifier: Verifier, now: Instant, *, finding: Finding, setup: object = None) -> Answer:
        """Changes what motions are judged against: tool, payload, zones, speed.

        While armed, the committed motion to its stop must keep the new rules; if it does not, the robot is stopped
        (mode HOLD, `finding`) and the change is taken if that stop keeps them. Else it is refused, the old rules stay
        and the robot is held. While disarmed or latched nothing is commanded but a stop: once that is over every change
        is taken, and where the robot then may not be, arming is refused until it has been led away.

        Who switches reduced speed off while the robot is armed loosens a limit: it is stopped and disarmed (I12).

        Args:
            setup: what `verifier` was made of, for a record; not looked at here.
        """
        try:
            self._guard.look(now)
            current = self.verifier if self._pending is None else self._pending[0]
            loosened = cap_everywhere(verifier.caps) > cap_everywhere(current.caps)
            stopped = loosened and self.mode in ENABLED
            if stopped:
                self._guard.halt(now, Event.DISARM, Finding("loosened", "reduced speed"))
            answer = self._reconfigure(verifier, now, finding)
            return replace(answer, message=f"{answer.message}; stopped and disarmed first") if stopped else answer
        except Exception as error:
            self._guard.fail(now, error)
            return Answer(False, f"refused, the old rules stay: {error!r}")

    def _reconfigure(self, verifier: Verifier, now: Instant, finding: Finding) -> Answer:
        conductor, measured = self._conductor, self.monitor.newest
        if self._way_out.active:
            self._guard.stop(now, finding)  # it goes by the old rules, to its end
        against = conductor.against(verifier, now, measured, commanded=self.mode in ENABLED)
        if against is not None and self.mode in ENABLED:
            self._guard.halt(now, Event.TROUBLE, finding)
            against = conductor.against(verifier, now, measured, commanded=self.mode in ENABLED)
        if against is not None and conductor.moving(now) and is_speed(against) and conductor.rests_within(verifier):
            # Stopping is how it gets slow enough: until then nothing else may begin.
            self._pending = verifier, against
            return Answer(True, "taken; it holds from the end of the stop that has begun on")
        if against is not None and (self.mode in ENABLED or conductor.moving(now)):
            return Answer(False, f"refused, the old rules stay and the robot is held: {against.sentence}")
        self._pending = None  # not before: who is refused takes no stricter rule back
        conductor.verifier = self._supervisor.verifier = verifier
        if against is not None:
            return Answer(True, f"taken; the robot may not be where it is: {against.sentence}; lead it away, then arm")
        return Answer(True, "taken")

    def _take_pending(self, now: Instant) -> None:
        """Rules that waited for rest."""
        if self._pending is not None and not self._conductor.moving(now):
            self._conductor.verifier = self._supervisor.verifier = self._pending[0]
            self._pending = None

    # ---------------------------------------------------------------- proposals

    def _judge(self, proposal: Proposal, now: Instant) -> Decision:
        def refuse(finding: Finding) -> Decision:
            return self._decision(Verdict.REFUSED, proposal, now, finding)

        finding = self._admit(proposal, now)
        if finding is not None:
            return refuse(finding)
        chunk = validate(proposal, self._form)
        if isinstance(chunk, Finding):
            return refuse(chunk)
        if self.shadow:
            measured = self.monitor.newest
            assert measured is not None
            self._conductor.follow(now, measured.position, measured.velocity)
        taken = self._conductor.lead_onto(chunk, now, self.config.proposals, self._advices.cap)
        if isinstance(taken, Finding):
            return refuse(taken)
        plan, spliced = taken
        self._authority.take(proposal.source, now)
        self._supervisor.expect_stop(None)  # a stop that led to HOLD is followed by motion; tracking is watched on
        self._guard.refused.pop(proposal.source, None)
        self._guard.enter(Event.OVERRIDE if proposal.source == OVERRIDE else Event.POLICY, None)
        verdict, accepted = Verdict.ACCEPTED, spliced.count - (len(spliced.motion) - len(plan.motion))
        if spliced.scale < 1.0:
            verdict, accepted = Verdict.SLOWED, 0
        if plan.ends_short is not None:
            verdict = Verdict.TRIMMED
        return replace(
            self._decision(verdict, proposal, now, plan.ends_short or spliced.finding),
            points_accepted=max(0, accepted),
            speed_scale=spliced.scale,
        )

    def _admit(self, proposal: Proposal, now: Instant) -> Finding | None:
        """Whether this source may move the robot now."""
        if self.mode not in ENABLED:
            return Finding("mode", self.mode.name)
        if self._pending is not None:
            return self._pending[1]
        return self._authority.against(proposal.source, now) or self.monitor.check(now)

    def _decision(self, verdict: Verdict, proposal: Proposal, now: Instant, finding: Finding | None) -> Decision:
        count = max(proposal.points, len(proposal.times_ns))
        return Decision(verdict, proposal.source, proposal.sequence, finding, count, stamp_ns=now.clock_ns)

    # ---------------------------------------------------------------- views

    @property
    def mode(self) -> Mode:
        """What the filter does."""
        return self._guard.mode

    @property
    def finding(self) -> Finding | None:
        """Why it is in this mode."""
        return self._guard.finding

    @property
    def escalated(self) -> bool:
        """A stop did not arrive, in this run or the one before; what is behind the controller must stop the robot."""
        return self._guard.failed is not None

    @property
    def led_back(self) -> bool:
        """Whether a retreat is under way."""
        return self._way_out.active

    @property
    def monitor(self) -> StateMonitor:
        """Of joint states."""
        return self._guard.monitor

    @property
    def committed(self) -> Motion | None:
        """What the controller plays."""
        return self._conductor.committed

    @property
    def plan(self) -> Plan | None:
        """What is being followed; None: what is committed goes to its stop."""
        return self._conductor.plan

    @property
    def verifier(self) -> Verifier:
        """What motions are judged against."""
        return self._conductor.verifier

    def status(self) -> Status:
        """A picture for people; computes forward kinematics once."""
        return self._guard.status()
