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

from vla_safety.core.config import SafetyConfig
from vla_safety.core.findings import Decision, Finding, Verdict
from vla_safety.core.latch import Memory
from vla_safety.core.modes import ENABLED, Event, Mode, transition
from vla_safety.core.motion import Motion, State, Timeline, nanoseconds, rest, seconds
from vla_safety.core.planning import hold_at, longest_prefix, next_message, soonest_stop
from vla_safety.core.records import Answer, Output, Plan, Status
from vla_safety.core.splicing import complete, splice
from vla_safety.core.supervision import Supervisor
from vla_safety.core.validation import OVERRIDE, POLICY, Form, Proposal, validate
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant

_SETTLE = 0.3  # s that the controller is given to come from where it is to where the robot was measured at arming


class SafetyFilter:
    """Composes the checks. All calls come from one thread; none raises for any input.

    Args:
        base_frame: that proposals may name.
        gripper: joint that no angle margin is taken of.
        memory: where a latched e-stop survives a restart; None: it does not.
        shadow: judges every proposal as if the robot could be led on to it from where it was measured, but commands
            nothing: something else moves the robot.

    Attributes:
        escalated: a stop did not arrive; what is behind the controller must stop the robot.
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
        self.verifier = verifier
        limits = verifier.limits
        self._joints = limits.names
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
        self.supervisor = Supervisor(config, verifier)
        self.monitor = self.supervisor.monitor
        self._memory = memory
        self.shadow = shadow
        self.mode = Mode.DISARMED
        self.finding: Finding | None = None
        self.escalated = False
        remembered = None if memory is None else memory.recall()
        if remembered is not None:
            self._enter(Event.ESTOP, remembered)
        self.speed_cap = 1.0
        self._timeline = Timeline()
        self._plan: Plan | None = None
        self._heard: dict[str, int] = {}
        self._refused: Finding | None = None
        self._counts = [0] * len(Verdict)
        self._output = Output()
        self._lead = nanoseconds(config.cycle.lead)
        self._fraction = config.cycle.stop_fraction
        self._segment = nanoseconds(config.cycle.segment)

    # ---------------------------------------------------------------- inputs

    @property
    def pending(self) -> bool:
        """Whether there is a motion to be published."""
        return bool(self._output.motions)

    def drain(self) -> Output:
        """What is to be published since the last call."""
        output, self._output = self._output, Output()
        return output

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
            with np.errstate(all="ignore"):  # overflow is judged by its result, which no comparison accepts
                decision = self._judge(proposal, now)
        except Exception as error:
            self._fail(now, error)
            assert self.finding is not None
            decision = self._decision(Verdict.REFUSED, proposal, now, self.finding)
        if decision.verdict == Verdict.REFUSED:
            self._refused = decision.finding
        self._decide(decision)
        return decision

    def cycle(self, now: Instant) -> None:
        """Supervises, then extends what is committed by the next segment. To be called every `cycle.period`."""
        try:
            with np.errstate(all="ignore"):
                self._supervise(now)
                if self._plan is not None:
                    self._extend(now)
        except Exception as error:
            self._fail(now, error)

    def retract(self, now: Instant) -> None:
        """The messages in the output were not sent, because it took too long to make them (a late command is a stale
        one): what was committed before goes on to its stop. A stop is made again, for now."""
        self._output.motions.clear()
        if not self._timeline.retract():
            return
        if self.mode in ENABLED:
            plan, self._plan = self._plan, None
            if plan is not None:
                self._trouble(plan, now, Finding("late_cycle", "filter", seconds(self._lead), 0.0))
            return
        committed = self._timeline.current
        assert committed is not None
        at = now.clock_ns + self._lead
        self._commit(now, soonest_stop(committed, now.clock_ns, at, self.verifier, self._fraction))

    def report(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """What a device or a monitor says: a finding stops and latches, None takes back what `cause` said before."""
        if finding is None:
            self.supervisor.causes.pop(cause, None)
            return
        known = self.supervisor.causes.get(cause)
        self.supervisor.causes[cause] = finding
        if known is None or self.mode != Mode.ESTOP:
            self._halt(now, Event.ESTOP, finding)

    def _fail(self, now: Instant, error: Exception) -> None:
        """A check erred: nothing can be trusted but the committed stop. It plays out, and the e-stop latches."""
        plan, self._plan = self._plan, None
        finding = Finding("internal", repr(error)[:200])
        moving = self.mode in ENABLED
        self._latch(finding)
        if moving:
            source, sequence = (plan.source, plan.sequence) if plan is not None else (POLICY, 0)
            self._decide(Decision(Verdict.STOPPED, source, sequence, finding, stamp_ns=now.clock_ns))

    # ---------------------------------------------------------------- people

    def arm(self, now: Instant) -> Answer:
        """Takes the robot where it stands, if every input is fresh and the robot is safe and at rest."""
        if transition(self.mode, Event.ARM) is None:
            return Answer(
                False, f"not from mode {self.mode.name}; " + ("reset first" if self.mode == Mode.ESTOP else "")
            )
        if self.mode != Mode.DISARMED:
            self._enter(Event.ARM, None)
            return Answer(True, "armed already")
        finding = self.supervisor.blocked(now)
        if finding is not None:
            return Answer(False, f"{finding.sentence}; {finding.remedy}")
        measured = self.monitor.newest
        assert measured is not None
        motion = hold_at(
            measured.position, now.clock_ns + nanoseconds(_SETTLE), self.verifier, self.config.position_slack
        )
        if isinstance(motion, Finding):
            return Answer(False, f"{motion.sentence}; {motion.remedy}")
        self._timeline.clear()
        self._plan = None
        self._heard.clear()
        self.supervisor.restart(now)
        self.escalated = False
        self._commit(now, motion)
        self._enter(Event.ARM, None)
        return Answer(True, "armed")

    def disarm(self, now: Instant, who: str = "operator") -> Answer:
        """Stops, then commands nothing more."""
        if transition(self.mode, Event.DISARM) is None:
            return Answer(False, "the e-stop is latched; reset first")
        if self.mode != Mode.DISARMED:
            self._halt(now, Event.DISARM, Finding("disarmed", who))
        return Answer(True, "disarmed")

    def estop(self, now: Instant, who: str = "operator") -> Answer:
        """Stops and latches."""
        self._halt(now, Event.ESTOP, Finding("estop", who))
        return Answer(True, "e-stop latched")

    def reset(self, now: Instant) -> Answer:
        """Leaves a latched e-stop, if its cause is gone and the robot rests. Never moves: arm afterwards."""
        if transition(self.mode, Event.RESET) is None:
            return Answer(True, f"nothing to reset in mode {self.mode.name}")
        finding = self.supervisor.blocked(now)
        if finding is not None:
            return Answer(False, f"{finding.sentence}; {finding.remedy}")
        if self._memory is not None and not self._memory.forget():
            return Answer(False, "the latched e-stop cannot be removed from disk; check its folder, then reset again")
        self._timeline.clear()
        self._plan = None
        self._enter(Event.RESET, None)
        return Answer(True, "reset; arm to go on")

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
            self._follow_measured(now)
        committed = self._timeline.current
        assert committed is not None
        limits = self.verifier.limits
        earliest = now.clock_ns + self._lead
        spliced = splice(
            committed, complete(chunk), now.clock_ns, earliest, limits, self.config.proposals, self.speed_cap
        )
        if isinstance(spliced, Finding):
            return refuse(spliced)
        motion, trimmed = longest_prefix(spliced, self.verifier, self._fraction)
        if motion is None:
            assert trimmed is not None
            return refuse(trimmed)
        previous, mode = self._plan, self.mode
        self._plan = Plan(motion, proposal.source, proposal.sequence, spliced.scale, spliced.splice_ns, trimmed)
        blocked = self._extend(now)
        if blocked is not None:
            self._plan = previous
            self.mode = mode
            return refuse(blocked)
        self._heard[proposal.source] = now.watch_ns
        self._refused = None
        self._enter(Event.OVERRIDE if proposal.source == OVERRIDE else Event.POLICY, None)
        accepted = spliced.count - (len(spliced.motion) - len(motion))
        verdict = Verdict.ACCEPTED
        if spliced.scale < 1.0:
            verdict, accepted = Verdict.SLOWED, 0
        if trimmed is not None:
            verdict = Verdict.TRIMMED
        return replace(
            self._decision(verdict, proposal, now, trimmed or spliced.finding),
            points_accepted=max(0, accepted),
            speed_scale=spliced.scale,
        )

    def _admit(self, proposal: Proposal, now: Instant) -> Finding | None:
        """Whether this source may move the robot now."""
        if self.mode not in ENABLED:
            return Finding("mode", self.mode.name)
        if self.mode == Mode.OVERRIDE and proposal.source != OVERRIDE:
            return Finding("authority", OVERRIDE)
        if proposal.source not in (POLICY, OVERRIDE):
            return Finding("authority", proposal.source[:80])
        return self.monitor.check(now)

    # ---------------------------------------------------------------- the cycle

    def _extend(self, now: Instant) -> Finding | None:
        """Commits the next segment of the plan with its stop, if that verifies. What is against it, else None."""
        plan = self._plan
        assert plan is not None
        splice_ns = now.clock_ns + self._lead
        if plan.followed < plan.motion.end and splice_ns > plan.followed:
            late = Finding("late_cycle", "filter", seconds(splice_ns - plan.followed), 0.0)
            self._plan = None
            self._trouble(plan, now, plan.blocked or late)
            return late
        message, followed, plan.blocked = next_message(
            plan.motion, plan.followed, now.clock_ns, splice_ns, self._segment, self.verifier, self._fraction
        )
        if message is not None:
            self._commit(now, message)
            plan.followed = followed
        elif now.clock_ns >= plan.motion.end:
            self._finish(plan, now)
        return plan.blocked

    def _finish(self, plan: Plan, now: Instant) -> None:
        """The plan was played to its end."""
        self._plan = None
        if plan.ends_short is None and plan.motion.knot(len(plan.motion) - 1).at_rest:
            return
        silence = seconds(now.watch_ns - self._heard.get(plan.source, now.watch_ns))
        finding = plan.ends_short or self._refused or Finding("chunk_timeout", plan.source, silence)
        self._trouble(plan, now, finding)

    def _trouble(self, plan: Plan, now: Instant, finding: Finding) -> None:
        self._enter(Event.TROUBLE, finding)
        self._decide(Decision(Verdict.STOPPED, plan.source, plan.sequence, finding, stamp_ns=now.clock_ns))

    # ---------------------------------------------------------------- supervision

    def _supervise(self, now: Instant) -> None:
        jump, jumped = self.supervisor.check_clock(now)
        if jumped is not None:
            # The controller's clock jumped as well: what is committed goes on from where it was, on the new clock.
            self._timeline.shift(jump)
            self.monitor.forget()
            self._halt(now, Event.ESTOP, jumped)
            return
        failed = None if self.shadow else self.supervisor.check_stop(now, self._timeline)
        if failed is not None:
            self.escalated = True
            self._latch(failed)
        if self.mode not in ENABLED:
            return
        stale = self.monitor.check(now)
        if stale is not None:
            if self._plan is not None or self.mode != Mode.HOLD:
                self._halt(now, Event.TROUBLE, stale)
            return
        finding = None if self.shadow else self.supervisor.check_measured(self._timeline)
        if finding is not None:
            self._halt(now, Event.ESTOP, finding)
            return
        if self.mode == Mode.OVERRIDE:
            silence = seconds(now.watch_ns - self._heard.get(OVERRIDE, 0))
            limit = self.config.watchdogs.override_timeout
            if not silence <= limit:
                self._halt(now, Event.OVERRIDE_LOST, Finding("override_lost", OVERRIDE, silence, limit))

    def _halt(self, now: Instant, event: Event, finding: Finding) -> None:
        """Commits the stop that can begin soonest; if it does not verify, the one that is committed plays out."""
        target = transition(self.mode, event)
        if target is None:
            return
        plan, self._plan = self._plan, None
        was = self.mode
        if target == Mode.ESTOP:
            self._latch(finding)
        else:
            self._enter(event, finding)
        if was in ENABLED:
            committed = self._timeline.current
            assert committed is not None
            if now.clock_ns < committed.end:
                at = now.clock_ns + self._lead
                motion = soonest_stop(committed, now.clock_ns, at, self.verifier, self._fraction)
                self._commit(now, motion)
                self.supervisor.expect_stop(motion.end)
            else:
                self._hold_still(now, committed)
            source = plan.source if plan is not None else POLICY
            sequence = plan.sequence if plan is not None else 0
            self._decide(Decision(Verdict.STOPPED, source, sequence, finding, stamp_ns=now.clock_ns))

    def _hold_still(self, now: Instant, committed: Motion) -> None:
        """Replaces what a stranger may play, where the arm really is: after a freeze it need not be where the last
        message ended. A filter that does not see sends nothing; the controller holds what it has."""
        measured = self.monitor.newest
        if measured is None or self.monitor.check(now) is not None:
            return
        still = rest(committed.positions[-1])
        if self.monitor.tracking(still)[1] is not None:
            still = rest(np.where(self._angles, measured.position, still.position))  # a gripper keeps its grip
        self._commit(now, Motion.at(now.clock_ns + self._lead, still))

    def _follow_measured(self, now: Instant) -> None:
        """In shadow: the robot is commanded where it was measured, and its plan is forgotten."""
        measured = self.monitor.newest
        assert measured is not None
        state = State(measured.position, measured.velocity, np.zeros_like(measured.position))
        self._timeline.clear()
        self._plan = None
        self._timeline.commit(now.clock_ns, Motion.at(now.clock_ns + self._lead, state))

    # ---------------------------------------------------------------- bookkeeping

    def _commit(self, now: Instant, motion: Motion) -> None:
        self._timeline.commit(now.clock_ns, motion)
        if not self.shadow:
            self._output.motions.append(motion)

    def _latch(self, finding: Finding) -> None:
        """Enters the e-stop; the first cause is the one that is kept."""
        if self.mode == Mode.ESTOP:
            return
        self._enter(Event.ESTOP, finding)
        if self._memory is not None:
            self._memory.keep(finding)

    def _enter(self, event: Event, finding: Finding | None) -> None:
        target = transition(self.mode, event)
        if target is not None:
            self.mode, self.finding = target, finding

    def _decision(self, verdict: Verdict, proposal: Proposal, now: Instant, finding: Finding | None) -> Decision:
        count = max(proposal.points, len(proposal.times_ns))
        return Decision(verdict, proposal.source, proposal.sequence, finding, count, stamp_ns=now.clock_ns)

    def _decide(self, decision: Decision) -> None:
        self._counts[decision.verdict] += 1
        self._output.decisions.append(decision)

    # ---------------------------------------------------------------- views

    @property
    def committed(self) -> Motion | None:
        """What the controller plays."""
        return self._timeline.current

    def status(self) -> Status:
        """A picture for people; computes forward kinematics once."""
        margin, zone, own, error = self.supervisor.picture(self._timeline, self._angles)
        error = error if self.mode in ENABLED else float("nan")
        scale = self._plan.scale if self._plan is not None else 1.0
        return Status(self.mode, self.finding, scale, margin, zone, own, error, tuple(self._counts))
