"""A filter, a clock and a controller, in one process.

The controller follows the documentation of joint_trajectory_controller and plays with the oracle's own curves; it
shares no code with the filter's core.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BPoly

from vla_contract.limits import JointLimits
from vla_contract.robot import Robot, load_robot
from vla_safety.bench import default_robot
from vla_safety.building import Parts, assemble, read_parts
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Decision
from vla_safety.core.motion import Motion
from vla_safety.core.records import Output
from vla_safety.core.validation import Proposal
from vla_safety.core.watchdogs import Instant
from vla_safety.proof.oracle import Curve, Fence, envelope_faults, read_zones

Array = NDArray[np.float64]

ROBOT: Robot = load_robot(default_robot())
LIMITS: JointLimits = ROBOT.limits()
HOME: Array = np.array(ROBOT.home)
SAFETY_FILE = ROBOT.resolve(ROBOT.safety)
GRIPPER_SLACK = 1e-3 * (np.arange(len(HOME)) == len(HOME) - 1)  # m; position_tolerance of the shipped safety file
MS = 1_000_000
START = 1_700_000_000_000_000_000


@cache
def _shipped() -> Parts:
    return read_parts(ROBOT)


@cache
def shipped_fence() -> Fence:
    """The oracle of the shipped cell: its zones, and the arm itself."""
    return Fence(ROBOT, read_zones(SAFETY_FILE))


def make_filter(safety: str | Path = "") -> SafetyFilter:
    """A filter for the robot of the demo."""
    return assemble(read_parts(ROBOT, safety) if safety else _shipped())


def proposal(
    stamp: int,
    times: Sequence[float] | Array,
    q: object,
    v: object = None,
    a: object = None,
    source: str = "policy",
    sequence: int = 1,
    names: Sequence[str] = ROBOT.joints,
    received: int | None = None,
    frame: str = "base",
) -> Proposal:
    """A proposal as the node makes it of a message; `times` s, rows (K, n)."""

    def rows(x: object) -> Sequence[Sequence[float]]:
        return () if x is None else np.asarray(x, dtype=float).tolist()

    return Proposal(
        source,
        sequence,
        stamp,
        frame,
        names,
        [round(t * 1e9) for t in times],
        rows(q),
        rows(v),
        rows(a),
        len(times),
        stamp if received is None else received,
    )


@dataclass
class Trace:
    """What the controller played, every millisecond: times (m,) s, and rows (m, 4, n): q, v, a, jerk."""

    times: list[Array] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)

    def samples(self) -> tuple[Array, Array]:
        """(m,) and (m, 4, n)."""
        if not self.times:
            return np.zeros(0), np.zeros((0, 4, len(HOME)))
        return np.concatenate(self.times), np.concatenate(self.rows)

    def arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        """Times (m,) and q, v, a, jerk, each (m, n)."""
        times, rows = self.samples()
        return times, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]

    def cut(self) -> None:
        """Forgets all but the last sample, which the next one is compared with."""
        if self.times:
            self.times, self.rows = [self.times[-1][-1:]], [self.rows[-1][-1:]]


class Controller:
    """joint_trajectory_controller, from its documentation: replaces at once, leads to a point ahead by a quintic."""

    def __init__(self, q: Array):
        self.state = np.array([q, np.zeros_like(q), np.zeros_like(q)])
        self.curve: tuple[float, float, Curve] | None = None
        self.trace = Trace()
        self.messages: list[tuple[int, Motion]] = []

    def take(self, motion: Motion, now: int) -> None:
        """A message arrives."""
        self.messages.append((now, motion))
        times = (motion.times - START) * 1e-9
        knots = np.stack([motion.positions, motion.velocities, motion.accelerations], axis=1)
        t = (now - START) * 1e-9
        if t < times[0] - 1e-9:
            times, knots = np.concatenate([[t], times]), np.concatenate([self.state[None], knots])
        assert motion.end >= now, "the controller would refuse a trajectory that has ended"
        assert not knots[-1, 1:].any(), "must end at rest"
        if len(knots) == 1:
            self.curve = None
            self.state = knots[0]
            return
        origin = float(times[0])
        self.curve = (origin, float(times[-1]), Curve(times - origin, knots))

    def play(self, since: int, until: int) -> None:
        """Plays every millisecond in [since, until)."""
        t = (np.arange(since, until, MS) - START) * 1e-9
        if self.curve is None:
            rows = np.repeat(np.vstack([self.state, np.zeros_like(self.state[:1])])[None], len(t), axis=0)
        else:
            rows = self._rows(t)
        if len(t):
            self.trace.times.append(t)
            self.trace.rows.append(rows)
            self.state = rows[-1, :3]
        # the state at `until` itself, for a bridge from it
        if self.curve is not None:
            self.state = self._rows(np.array([(until - START) * 1e-9]))[0, :3]

    def _rows(self, t: Array) -> Array:
        assert self.curve is not None
        origin, end, curve = self.curve
        rows = curve.rows(np.clip(t, origin, end) - origin)
        rows[t > end, 1:] = 0
        return rows


class Rig:
    """Filter, controller and clock, in steps of one cycle. `delay` ms from filter to controller."""

    def __init__(self, safety: str | Path = "", delay: int = 3, q: Array = HOME, arm: bool = True):
        self.filter = make_filter(safety)
        self.now = START
        self.delay = delay
        self.controller = Controller(np.array(q, dtype=float))
        self.decisions: list[Decision] = []
        self.measured_offset = np.zeros(len(ROBOT.joints))
        self.silent = False
        self.offline: list[tuple[int, Motion]] = []
        if arm:
            self.observe()
            answer = self.filter.arm(self.instant)
            assert answer.success, answer.message
            self.collect()
            self.run(0.4)

    @property
    def instant(self) -> Instant:
        """Now, on both clocks."""
        return Instant(self.now, self.now)

    def observe(self) -> None:
        """A joint state arrives, unless they are silent."""
        if not self.silent:
            q, v = self.controller.state[0] + self.measured_offset, self.controller.state[1]
            self.filter.observe(self.now, ROBOT.joints, q, v, self.instant)

    def collect(self) -> Output:
        """What the filter says is sent on its way."""
        output = self.filter.drain()
        self.decisions += output.decisions
        self.offline += [(self.now + self.delay * MS, motion) for motion in output.motions]
        return output

    def propose(self, p: Proposal) -> Decision:
        """A proposal arrives."""
        decision = self.filter.propose(p, self.instant)
        self.collect()
        return decision

    def advance(self, duration: float) -> None:
        """Lets the controller play, delivering messages when they are due; the filter does not run."""
        end = self.now + round(duration * 1000) * MS
        while self.now < end:
            due = min([t for t, _ in self.offline] + [end])
            due = max(due, self.now)
            if due > self.now:
                self.controller.play(self.now, due)
                self.now = due
            for item in [i for i in self.offline if i[0] <= self.now]:
                self.offline.remove(item)
                self.controller.take(item[1], self.now)

    def run(self, duration: float) -> None:
        """Cycles of the filter, with joint states before each."""
        period = self.filter.config.cycle.period
        for _ in range(round(duration / period)):
            self.advance(period)
            self.observe()
            self.filter.cycle(self.instant)
            self.collect()

    def arm_again(self) -> None:
        """Waits for rest, resets a latched stop, and arms."""
        self.run(1.0)
        if self.filter.mode.name == "ESTOP":
            answer = self.filter.reset(self.instant)
            assert answer.success, answer.message
        answer = self.filter.arm(self.instant)
        assert answer.success, answer.message
        self.collect()
        self.run(0.4)

    def forget(self) -> None:
        """Drops the record of what was played and said; a run of any length needs no more memory."""
        self.controller.trace.cut()
        self.controller.messages.clear()
        self.decisions.clear()


def smooth_chunk(
    rig: Rig,
    goal: Array,
    duration: float = 1.0,
    points: int = 20,
    stamp_age: float = 0.05,
    source: str = "policy",
    sequence: int = 1,
) -> Proposal:
    """A quintic from where the robot is commanded to be soon to `goal` (n,), as a proposal."""
    at = rig.now + 80 * MS
    committed = rig.filter.committed
    origin = rig.controller.state
    if committed is not None:
        state = committed.state(at)
        origin = np.array([state.position, state.velocity, state.acceleration])
    end = np.array([goal, np.zeros_like(goal), np.zeros_like(goal)])
    curve = BPoly.from_derivatives([0, duration], [origin, end])
    t = np.linspace(0, duration, points)
    stamp = rig.now - round(stamp_age * 1e9)
    offset = (at - stamp) * 1e-9
    rows = [curve(t), curve.derivative(1)(t), curve.derivative(2)(t)]
    return proposal(stamp, t + offset, *rows, source=source, sequence=sequence, received=rig.now)


def check_envelope(controller: Controller, tolerance: float = 1e-3) -> None:
    """Position, velocity, acceleration and jerk of everything that was played; relative `tolerance` (I2: 0.1 %)."""
    times, rows = controller.trace.samples()
    faults = envelope_faults(times, rows, LIMITS, GRIPPER_SLACK, tolerance)
    assert not faults, "; ".join(faults)
