"""I1, I2, I8: ANY proposal and ANY joint state, given to a filter that is armed and whose robot moves.

Cases come in blocks. A block has a filter of its own and depends on nothing but its seed and its number, so a violation
is seen again by running its block.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla_safety.core.findings import Decision, Verdict
from vla_safety.core.motion import Motion
from vla_safety.core.reasons import REASONS
from vla_safety.core.records import Output
from vla_safety.core.validation import OVERRIDE, POLICY, Proposal
from vla_safety.proof.oracle import TOUCH, envelope_faults
from vla_safety.proof.rig import GRIPPER_SLACK, HOME, LIMITS, MS, ROBOT, Rig, shipped_fence, smooth_chunk
from vla_safety.proof.tally import Tally

BLOCK = 1000  # cases
JUDGED = 100  # cases between two looks of the oracle
PATIENCE = 0.25  # s of CPU for one call: far above what any takes, far below what would stop the robot's cycle for good
N = len(HOME)
NUMBERS = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 1e-300, 1.0, -1.0, 1e6, 2**53)
INTEGERS = (0, 1, -1, 10**8, 10**9, 10**10, 2**31, 2**63 - 1, -(2**63), 2**64, 10**30, -(10**30))
Rows = list[Any]


def run_block(seed: int, block: int, cases: int = BLOCK) -> Tally:
    """Counts of one block."""
    return _Block(seed, block).run(cases)


class _Block:
    def __init__(self, seed: int, block: int):
        self.again = {"part": "cases", "seed": seed, "block": block}
        self.rng = np.random.default_rng([seed, block])
        self.rig = Rig(delay=int(self.rng.integers(0, 20)))
        self.tally = Tally()
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
        fault = _wrong_decision(decision, output, proposal) or _wrong_output(output)
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
            fault = _wrong_output(rig.collect())
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
        chunk = smooth_chunk(self.rig, np.clip(goal, LIMITS.min_position, LIMITS.max_position), 0.8)
        self.rig.propose(chunk)

    def _cycles(self, count: int) -> None:
        rig = self.rig
        self.tally.counts["cycles"] += count
        moving = rig.controller.state[1].any()
        self.tally.counts["cycles in motion"] += count * bool(moving)
        for _ in range(count):
            rig.advance(rig.filter.config.cycle.period)
            rig.observe()
            rig.filter.cycle(rig.instant)
            fault = _wrong_output(rig.collect())
            if fault is not None:
                self._violated(f"in a cycle: {fault}")

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


# ---------------------------------------------------------------- generators


def any_proposal(rng: np.random.Generator, rig: Rig) -> Proposal:
    """A plausible proposal with up to four things wrong, or none; sometimes nothing right at all."""
    given = _plausible(rng, rig)
    faults = int(rng.choice([0, 1, 1, 1, 2, 2, 3, 4]))
    for k in rng.integers(0, len(_FAULTS), faults).tolist():
        _FAULTS[k](rng, given, rig)
    return Proposal(**given)


def _plausible(rng: np.random.Generator, rig: Rig) -> dict[str, Any]:
    """From where the robot is, in any direction, at a speed between none and twice the limits."""
    count = int(rng.choice([1, 2, 3, 8, 20, 50]))
    times = rng.uniform(0.02, 0.2) + np.arange(count) * rng.choice([0.01, 0.02, 0.05, 0.1])
    speed = rng.normal(0, 1, N) * LIMITS.max_velocity * rng.choice([0.05, 0.3, 1.0, 2.0])
    wave = np.sin(np.outer(times, rng.uniform(0, 6, N)))
    rows = rig.controller.state[0] + np.outer(times, speed) * rng.choice([0.2, 1.0]) + wave * rng.choice([0.0, 0.05])
    v = np.gradient(rows, times, axis=0) if count > 1 and rng.random() < 0.4 else None
    a = np.gradient(v, times, axis=0) if v is not None and rng.random() < 0.5 else None
    return {
        "source": OVERRIDE if rng.random() < 0.01 else POLICY,
        "sequence": int(rng.integers(0, 2**63)),
        "stamp_ns": rig.now - int(rng.integers(0, 100 * MS)),
        "frame": "base",
        "joint_names": list(ROBOT.joints),
        "times_ns": [round(t * 1e9) for t in times.tolist()],
        "positions": rows.tolist(),
        "velocities": [] if v is None else v.tolist(),
        "accelerations": [] if a is None else a.tolist(),
        "points": count,
        "received_ns": rig.now,
    }


def _kind(rng: np.random.Generator) -> str:
    return ("positions", "velocities", "accelerations")[int(rng.integers(0, 3))]


def _number(rng: np.random.Generator) -> float:
    if rng.random() < 0.5:
        return float(NUMBERS[int(rng.integers(0, len(NUMBERS)))])
    return float(np.frombuffer(rng.bytes(8), dtype=np.float64)[0])  # any bits at all


def _integer(rng: np.random.Generator) -> int:
    if rng.random() < 0.7:
        return INTEGERS[int(rng.integers(0, len(INTEGERS)))]
    return int.from_bytes(rng.bytes(8), "little", signed=True)


def _cell(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    rows = given[_kind(rng)]
    if rows and len(rows[-1]):
        row = rows[int(rng.integers(0, len(rows)))]
        if len(row):
            row[int(rng.integers(0, len(row)))] = _number(rng)


def _row(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    rows = given[_kind(rng)]
    if rows:
        rows[int(rng.integers(0, len(rows)))] = [_number(rng) for _ in range(int(rng.integers(0, 12)))]


def _rows(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    count, width = int(rng.integers(0, 6)), int(rng.choice([0, 1, N - 1, N, N, N, N + 1]))
    given[_kind(rng)] = [[_number(rng) for _ in range(width)] for _ in range(count)]


def _ragged(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    rows = given[_kind(rng)]
    if rows:
        k = int(rng.integers(0, len(rows)))
        rows[k] = rows[k][:-1] if rng.random() < 0.5 else [*rows[k], 0.0]


def _count(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    kind = _kind(rng)
    rows: Rows = given[kind]
    given[kind] = rows[:-1] if rng.random() < 0.5 else rows * 2


def _points(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    given["points"] = int(rng.choice([0, 1, 401, 10**6, -1, 2**31]))


def _many(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    count = int(rng.choice([399, 400, 401, 5000], p=[0.02, 0.02, 0.48, 0.48]))
    if rng.random() < 0.01:
        count = 1_000_000
    given["times_ns"] = range(10**8, 10**8 + count * 10**6, 10**6)
    given["positions"] = [rig.controller.state[0].tolist()] * count
    given["points"] = count


def _names(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    names = given["joint_names"]
    what = int(rng.integers(0, 8))
    if what == 0 and names:
        names[int(rng.integers(0, len(names)))] = names[0]
    elif what == 1 and names:
        names[int(rng.integers(0, len(names)))] = ("", "nope", "fr3_joint1 ", "FR3_JOINT1", "\x00", "é" * 500)[
            int(rng.integers(0, 6))
        ]
    elif what == 2:
        names[:] = names[:-1]
    elif what == 3:
        names.append("extra")
    elif what == 4:
        names.clear()
    elif what == 5:
        names *= 20
    else:  # another order, all else unchanged: legal, and meant as it says
        order = rng.permutation(len(names)).tolist()
        given["joint_names"] = [names[k] for k in order]
        for kind in ("positions", "velocities", "accelerations"):
            rows = given[kind]
            given[kind] = [[row[k] for k in order] if len(row) == len(order) else row for row in rows]


def _times(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    times: Any = list(given["times_ns"][:1000])
    what = int(rng.integers(0, 6))
    if not times or any(type(t) is not int for t in times):
        return
    if what == 0:
        times[int(rng.integers(0, len(times)))] = _integer(rng)
    elif what == 1:
        times = times[::-1]
    elif what == 2:
        times = [times[0]] * len(times)
    elif what == 3:
        times = [t - 10**9 for t in times]
    elif what == 4:
        times = [t * int(rng.choice([0, 3, 1000, 10**12])) for t in times]
    else:
        times[int(rng.integers(0, len(times)))] = (1.5, np.nan, True, None, np.int64(3))[int(rng.integers(0, 5))]
    given["times_ns"] = times


def _stamp(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    shift = (0, 36 * 10**11, -36 * 10**11, 10**9, -(10**9), 9 * 10**7, 11 * 10**7, -99 * 10**7)
    given["stamp_ns"] = (
        _integer(rng) if rng.random() < 0.4 else given["stamp_ns"] + shift[int(rng.integers(0, len(shift)))]
    )


def _frame(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    given["frame"] = ("", "base", "map", "base ", "/base", "x" * 10_000, "\x00", "é")[int(rng.integers(0, 8))]


def _source(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    given["source"] = ("", "planner", "rogue", "POLICY", "x" * 10_000, OVERRIDE)[
        int(rng.choice(6, p=[0.2, 0.2, 0.2, 0.2, 0.19, 0.01]))
    ]


def _nothing(rng: np.random.Generator, given: dict[str, Any], rig: Rig) -> None:
    for key in ("times_ns", "positions", "velocities", "accelerations"):
        if rng.random() < 0.5:
            given[key] = []


_FAULTS: Sequence[Callable[[np.random.Generator, dict[str, Any], Rig], None]] = (
    _cell, _cell, _row, _rows, _ragged, _count, _points, _many, _names, _names, _times, _times, _stamp, _frame,
    _source, _nothing,
)  # fmt: skip


def any_joint_state(rng: np.random.Generator, rig: Rig) -> tuple[int, list[Any], list[Any], list[Any]]:
    """Stamp, names, positions, velocities: right but for a few things; seldom well-formed and wrong."""
    stamp, names = rig.now - int(rng.integers(1, 20 * MS)), list(ROBOT.joints)
    q, v = rig.controller.state[0].tolist(), rig.controller.state[1].tolist()
    lie = rng.random() < 0.004
    if lie:  # well-formed, and not where the robot is
        q = (rig.controller.state[0] + rng.normal(0, rng.choice([0.01, 0.1, 1.0]), N)).tolist()
        return rig.now, names, q, v
    for what in rng.integers(0, 8, int(rng.integers(1, 3))).tolist():
        values = q if rng.random() < 0.6 else v
        if what == 0:
            values[int(rng.integers(0, len(values)))] = (np.nan, np.inf, -np.inf)[int(rng.integers(0, 3))]
            if values is v:
                stamp = _integer(rng)  # an unknown speed alone is no reason to drop a state
        elif what == 1:
            stamp = _integer(rng)
        elif what == 2:
            stamp = rig.now + int(rng.choice([-(36 * 10**11), 36 * 10**11, 10**10, -(10**10)]))
        elif what == 3 and names:
            names[int(rng.integers(0, len(names)))] = ("", "nope", names[0])[int(rng.integers(0, 3))]
        elif what == 4:
            del q[-int(rng.integers(1, N + 1)) :]
        elif what == 5:
            names = names[: int(rng.integers(0, N))]
        elif what == 6:
            q, names = [], []
        else:
            names, q, v = names * 2, q * 2, v * 2
        if not q or not v:
            break
    return stamp, names, q, v
