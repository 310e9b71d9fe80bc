"""I1, I2, I8, I11: ANY proposal and ANY joint state, given to a filter that is armed and whose robot moves, and sources
that take the robot from each other.

Cases come in blocks. A block has a filter of its own and depends on nothing but its seed and its number, so a violation
is seen again by running its block.
"""

import json
import sys
import time

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.findings import Decision, Verdict
from vla_safety.core.motion import Motion
from vla_safety.core.reasons import REASONS
from vla_safety.core.records import Output
from vla_safety.core.validation import Proposal
from vla_safety.proof.anything import any_joint_state, any_proposal
from vla_safety.proof.oracle import TOUCH, envelope_faults
from vla_safety.proof.rig import GRIPPER_SLACK, HOME, LIMITS, Rig, shipped_fence, smooth_chunk
from vla_safety.proof.switching import Switches
from vla_safety.proof.tally import Tally

BLOCK = 1000  # cases
JUDGED = 100  # cases between two looks of the oracle
PATIENCE = 0.25  # s of CPU for one call: far above what any takes, far below what would stop the robot's cycle for good
CONTEND = 0.07  # probability that sources contend for the robot after a case: about two switches each time
N = len(HOME)
Array = NDArray[np.float64]


def run_block(seed: int, block: int, cases: int = BLOCK) -> Tally:
    """Counts of one block."""
    return _Block(seed, block).run(cases)


class _Block:
    def __init__(self, seed: int, block: int):
        self.again = {"part": "cases", "seed": seed, "block": block}
        self.rng = np.random.default_rng([seed, block])
        self.rig = Rig(delay=int(self.rng.integers(0, 20)))
        self.tally = Tally()
        self.switches = Switches(self.tally)
        self.case = 0
        self.reported = -1

    def run(self, cases: int) -> Tally:
        for self.case in range(cases):
            if self.rng.random() < 0.15:
                self._joint_state()
            else:
                self._proposal()
            self.tally.counts["cases"] += 1
            self._live()
            if self.case % JUDGED == JUDGED - 1:
                self._judge()
        self.rig.run(1.0)
        self._judge()
        return self.tally

    def _violated(self, what: str, given: object = None) -> None:
        self.reported = self.case
        text = "" if given is None else repr(given)
        self.tally.violated(what, {**self.again, "case": self.case, "given": text[:2000]})

    # -- a case

    def _proposal(self) -> None:
        rig = self.rig
        proposal = any_proposal(self.rng, rig)
        before = rig.filter.committed
        began = time.thread_time()
        try:
            decision = rig.filter.propose(proposal, rig.instant)
        except Exception as error:
            self._violated(f"propose raised {error!r}", proposal)
            return
        self._took(time.thread_time() - began, proposal)
        self.tally.counts[f"verdict {decision.verdict.name.lower()}"] += 1
        output = rig.collect()
        leak = self.switches.proposed(proposal, decision, output, rig.controller.state)
        fault = _wrong_decision(decision, output, proposal) or _wrong_output(output) or leak
        if fault is None and decision.verdict == Verdict.REFUSED and rig.filter.committed is not before:
            internal = rig.filter.finding is not None and rig.filter.finding.reason == "internal"
            fault = None if internal else "a refused proposal changed what is committed"
        if fault is not None:
            self._violated(fault, proposal)

    def _joint_state(self) -> None:
        rig = self.rig
        if self.rng.random() < 0.005:
            self._cycles(30)  # to rest
        if self.rng.random() < 0.3:
            rig.advance(0.004)  # newer than what the filter has
        given = any_joint_state(self.rng, rig)
        began = time.thread_time()
        try:
            finding = rig.filter.observe(*given, rig.instant)
        except Exception as error:
            self._violated(f"observe raised {error!r}", given)
            return
        self._took(time.thread_time() - began, given)
        self.tally.counts["joint states used" if finding is None else "joint states dropped"] += 1
        if finding is None:  # the filter acts on it before a better one comes
            rig.filter.cycle(rig.instant)
            fault = self._wrong_cycle()
            if fault is not None:
                self._violated(f"after a joint state: {fault}", given)
        if finding is not None and (finding.reason not in REASONS or not finding.sentence or not finding.remedy):
            self._violated(f"a joint state was dropped without a reason: {finding}", given)

    def _took(self, seconds: float, given: object) -> None:
        self.tally.high("CPU seconds of a call", seconds)
        if seconds > PATIENCE:
            self._violated(f"a call took {seconds:.3f} s of CPU", given)

    # -- between cases

    def _live(self) -> None:
        """Keeps the robot armed and moving, so that cases meet a live filter."""
        rig, rng = self.rig, self.rng
        draw = rng.random()
        if draw < 0.08:
            self._drive()
        if draw < 0.2:
            self._cycles(1)
        elif draw < 0.21:
            self._cycles(int(rng.integers(2, 8)))
        elif draw < 0.2125:
            self._operator()
        if rng.random() < CONTEND:
            self._contend()
        if rig.filter.mode.name in ("DISARMED", "ESTOP"):
            self._again()

    def _operator(self) -> None:
        """A person stops the robot, at any instant of a motion, between two cycles."""
        rig = self.rig
        rig.advance(float(self.rng.integers(0, 40)) * 1e-3)
        rig.observe()
        act = rig.filter.estop if self.rng.random() < 0.5 else rig.filter.disarm
        act(rig.instant)
        fault = _wrong_output(rig.collect())
        if fault is not None:
            self._violated(f"stopped by a person: {fault}")
        self.tally.counts["stopped by a person"] += 1

    def _drive(self) -> None:
        goal = HOME + self.rng.normal(0, 0.3, N)
        goal[-1] = self.rng.uniform(0, 0.04)
        self._ask("policy", goal, 0.8)

    def _contend(self) -> None:
        """A planner, now and then a human, takes the robot over from the policy, which goes on asking for it."""
        rig, rng = self.rig, self.rng
        for source in ("policy", "planner", "override")[: 3 if rng.random() < 0.04 else 2]:
            self._wish(source)
            self._cycles(int(rng.integers(0, 2)))
        for _ in range(25):
            if self._wish("policy"):
                return
            if rig.filter.mode.name == "HOLD" and rig.filter.arm(rig.instant).success:  # a person takes it back
                self.switches.armed()
            elif rig.filter.mode.name == "OVERRIDE" and rng.random() < 0.3:
                rig.filter.disarm(rig.instant)
                rig.collect()
                return
            self._cycles(1)

    def _wish(self, source: str) -> bool:
        """A source asks for a short motion to rest from what is commanded; whether it may."""
        duration = float(self.rng.choice([0.1, 0.2, 0.3]))
        q, v, _ = self.rig.controller.state
        goal = q + v * (0.08 + 0.5 * duration) + self.rng.normal(0, 0.01, N) * ([1] * (N - 1) + [0])
        return self._ask(source, goal, duration)

    def _ask(self, source: str, goal: Array, duration: float) -> bool:
        """Whether a motion to `goal` (n,) was taken."""
        rig = self.rig
        chunk = smooth_chunk(rig, np.clip(goal, LIMITS.min_position, LIMITS.max_position), duration, source=source)
        decision = rig.filter.propose(chunk, rig.instant)
        output = rig.collect()
        fault = _wrong_decision(decision, output, chunk) or _wrong_output(output)
        fault = fault or self.switches.proposed(chunk, decision, output, rig.controller.state)
        if fault is not None:
            self._violated(fault, chunk)
        return decision.verdict <= Verdict.TRIMMED

    def _cycles(self, count: int) -> None:
        rig = self.rig
        self.tally.counts["cycles"] += count
        moving = rig.controller.state[1].any()
        self.tally.counts["cycles in motion"] += count * bool(moving)
        for _ in range(count):
            rig.advance(rig.filter.config.cycle.period)
            rig.observe()
            rig.filter.cycle(rig.instant)
            fault = self._wrong_cycle()
            if fault is not None:
                self._violated(f"in a cycle: {fault}")

    def _wrong_cycle(self) -> str | None:
        """What is wrong with what the cycle that was just made says."""
        plan, output = self.rig.filter.plan, self.rig.collect()
        return _wrong_output(output) or self.switches.cycled(None if plan is None else plan.source, output)

    def _again(self) -> None:
        finding = self.rig.filter.finding
        reason = "" if finding is None else finding.reason
        self.tally.counts[f"armed again after {reason}"] += 1
        if reason == "internal" and self.reported != self.case:
            self._violated(f"a check erred: {finding}")
        try:
            self.rig.arm_again()
        except AssertionError as error:
            # E.g. a joint state that lied about where the robot is: judge what was played, then begin anew.
            self.tally.counts["began anew"] += 1
            self._judge()
            if "moves" in str(error):
                self._violated(f"the robot does not rest: {error}")
            self.rig = Rig(delay=self.rig.delay)
        self.switches.armed()

    def _judge(self) -> None:
        """The oracle looks at everything that the controller has played."""
        rig = self.rig
        times, rows = rig.controller.trace.samples()
        self.tally.counts["milliseconds judged"] += max(0, len(times) - 1)
        for fault in envelope_faults(times, rows, LIMITS, GRIPPER_SLACK):
            self._violated(fault)
        touch = shipped_fence().deepest(rows[:, 0], rows[:, 1], 1e-3)
        self.tally.low("clearance m", touch.distance)
        if touch.distance < -TOUCH:
            self._violated(f"{touch.what} overlap by {-touch.distance:.6f} m")
        rig.forget()


def _wrong_decision(decision: Decision, output: Output, proposal: Proposal) -> str | None:
    """I8, I21: taken, trimmed or refused, with a reason; a refusal leaves nothing."""
    finding = decision.finding
    if decision.verdict not in tuple(Verdict):
        return f"unknown verdict {decision.verdict}"
    if finding is not None:
        if finding.reason.partition(":")[0] not in REASONS or not finding.sentence or not finding.remedy:
            return f"{decision.verdict.name} without a known reason: {finding}"
        if finding.reason == "internal":
            return f"a check erred: {finding}"
    if decision.verdict >= Verdict.TRIMMED and finding is None:
        return f"{decision.verdict.name} without a finding"
    if decision.verdict == Verdict.REFUSED and (output.motions or decision.points_accepted):
        return "a refused proposal moved the robot"
    if not 0 <= decision.points_accepted <= max(proposal.points, len(proposal.times_ns)):
        return f"{decision.points_accepted} points accepted of {len(proposal.times_ns)}"
    if not 0 < decision.speed_scale <= 1:
        return f"speed scale {decision.speed_scale}"
    return None


def _wrong_output(output: Output) -> str | None:
    """Every message: finite, increasing times, ending at rest, of bounded length."""
    for motion in output.motions:
        if not _finite(motion):
            return "a message is not finite"
        if (np.diff(motion.times) <= 0).any():
            return "times of a message do not increase"
        if motion.velocities[-1].any() or motion.accelerations[-1].any():
            return "a message does not end at rest"
        if len(motion) > 1000 or motion.duration > 30:
            return f"a message has {len(motion)} knots over {motion.duration:.1f} s"
    return None


def _finite(motion: Motion) -> bool:
    return all(np.isfinite(x).all() for x in (motion.positions, motion.velocities, motion.accelerations))


if __name__ == "__main__":  # a block once more: SEED BLOCK
    print(json.dumps(run_block(*map(int, sys.argv[1:3])).record(), indent=1))
