"""A filter, a clock and a controller for tests.

The controller is an oracle: it plays messages with scipy's Bernstein polynomials and judges them by dense sampling and
Pinocchio. It shares no code with the filter's core.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.interpolate import BPoly

from vla_contract.limits import JointLimits
from vla_contract.robot import Robot, load_robot
from vla_safety.building import build_filter
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Decision
from vla_safety.core.motion import Motion
from vla_safety.core.validation import Proposal
from vla_safety.core.watchdogs import Instant

BRINGUP = Path(__file__).resolve().parents[2] / "vla_bringup"
ROBOT: Robot = load_robot(BRINGUP / "config/robots/fr3_sim.yaml")
LIMITS: JointLimits = ROBOT.limits()
HOME = np.array(ROBOT.home)
MS = 1_000_000
START = 1_700_000_000_000_000_000


def make_filter(safety: str | Path = "") -> SafetyFilter:
    return build_filter(ROBOT, safety)


def proposal(
    stamp, times, q, v=None, a=None, source="policy", sequence=1, names=ROBOT.joints, received=None, frame="base"
):
    def rows(x):
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
    """What the controller played: times (m,) s, and q, v, a, jerk (m, n); jerk is NaN at seams."""

    times: list[float] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)

    def arrays(self):
        stacked = np.array(self.rows)
        return np.array(self.times), stacked[:, 0], stacked[:, 1], stacked[:, 2], stacked[:, 3]


class Controller:
    """joint_trajectory_controller, from its documentation: replaces at once, leads to a point ahead by a quintic."""

    def __init__(self, q):
        self.state = np.array([q, np.zeros_like(q), np.zeros_like(q)])
        self.curve = None
        self.trace = Trace()
        self.messages: list[tuple[int, Motion]] = []

    def take(self, motion: Motion, now: int):
        self.messages.append((now, motion))
        times = (motion.times - START) * 1e-9
        knots = [
            np.array([motion.positions[k], motion.velocities[k], motion.accelerations[k]]) for k in range(len(motion))
        ]
        t = (now - START) * 1e-9
        if t < times[0] - 1e-9:
            times, knots = np.concatenate([[t], times]), [self.state, *knots]
        assert motion.end >= now, "the controller would refuse a trajectory that has ended"
        assert not knots[-1][1:].any(), "must end at rest"
        if len(knots) == 1:
            self.curve = None
            self.state = knots[0]
            return
        origin = times[0]
        curve = BPoly.from_derivatives(times - origin, knots)
        self.curve = (origin, times[-1], [curve] + [curve.derivative(k) for k in (1, 2, 3)])

    def play(self, since: int, until: int):
        """Plays every millisecond in [since, until)."""
        t = (np.arange(since, until, MS) - START) * 1e-9
        if self.curve is None:
            rows = np.repeat(np.vstack([self.state, np.zeros_like(self.state[:1])])[None], len(t), axis=0)
        else:
            origin, end, derivatives = self.curve
            rows = np.stack([d(np.clip(t, origin, end) - origin) for d in derivatives], axis=1)
            rows[t > end, 1:] = 0
        self.trace.times += t.tolist()
        self.trace.rows += list(rows)
        if len(rows):
            self.state = rows[-1, :3]
        # the state at `until` itself, for a bridge from it
        if self.curve is not None:
            origin, end, derivatives = self.curve
            u = min(max((until - START) * 1e-9, origin), end) - origin
            self.state = np.array([d(u) for d in derivatives[:3]])
            if (until - START) * 1e-9 > end:
                self.state[1:] = 0


class Rig:
    """Filter, controller and clock, in steps of one cycle. `delay` ms from filter to controller."""

    def __init__(self, safety: str | Path = "", delay: int = 3, q=HOME, arm: bool = True):
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
        return Instant(self.now, self.now)

    def observe(self):
        if not self.silent:
            q, v = self.controller.state[0] + self.measured_offset, self.controller.state[1]
            self.filter.observe(self.now, ROBOT.joints, q, v, self.instant)

    def collect(self):
        output = self.filter.drain()
        self.decisions += output.decisions
        self.offline += [(self.now + self.delay * MS, motion) for motion in output.motions]

    def propose(self, p: Proposal) -> Decision:
        decision = self.filter.propose(p, self.instant)
        self.collect()
        return decision

    def advance(self, duration: float):
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

    def run(self, duration: float):
        """Cycles of the filter, with joint states before each."""
        period = self.filter.config.cycle.period
        for _ in range(round(duration / period)):
            self.advance(period)
            self.observe()
            self.filter.cycle(self.instant)
            self.collect()


def smooth_chunk(rig: Rig, goal, duration=1.0, points=20, stamp_age=0.05, **options):
    """A quintic from where the robot is commanded to be soon to `goal`, as a proposal."""
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
    return proposal(
        stamp, t + offset, curve(t), curve.derivative(1)(t), curve.derivative(2)(t), received=rig.now, **options
    )


def check_envelope(controller: Controller, tolerance=1e-3):
    """Position, velocity, acceleration and jerk of everything that was played; relative `tolerance` (I2: 0.1 %)."""
    times, q, v, a, j = controller.trace.arrays()
    assert np.isfinite(q).all()
    slack = 1e-6 + 1e-3 * (np.arange(q.shape[1]) == q.shape[1] - 1)  # the gripper's tolerance in cell.yaml
    assert (q <= LIMITS.max_position + slack).all() and (q >= LIMITS.min_position - slack).all()
    for name, values, limit in (
        ("v", v, LIMITS.max_velocity),
        ("a", a, LIMITS.max_acceleration),
        ("j", j, LIMITS.max_jerk),
    ):
        worst = (np.abs(values) / limit).max()
        assert worst <= 1 + tolerance, f"{name} is {worst} of its limit"
    dt = np.diff(times)
    # Across messages: positions and velocities are continuous, so their differences are bounded by the derivatives.
    assert (np.abs(np.diff(q, axis=0)) <= LIMITS.max_velocity * dt[:, None] * 1.001 + 1e-7).all()
    assert (np.abs(np.diff(v, axis=0)) <= LIMITS.max_acceleration * dt[:, None] * 1.001 + 1e-5).all()
    assert (np.abs(np.diff(a, axis=0)) <= LIMITS.max_jerk * dt[:, None] * 1.001 + 1e-3).all()
