"""When to infer, and how a new chunk continues the plan that is already being executed.

While a chunk plays, the next one is computed. When it comes, the plan is kept up to the splice time (the filter and the
controller may have taken that part already: the frozen prefix), and from there the motion fades onto the new chunk.
Points that have passed are dropped. If the robot does not follow the plan (the filter slowed, trimmed or refused it),
the new plan starts from what the controller really plays.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError, ConfigError, unknown
from vla_contract.interpolation import Trajectory
from vla_contract.limits import JointLimits
from vla_policy_node.core.base import alongside
from vla_policy_node.core.pacing import Pacer, Refill
from vla_policy_node.core.shaping import Shaper
from vla_policy_node.core.splicing import APART, end_of, join, knots, portion, rest_at, snap, state_at
from vla_policy_node.core.targets import Ensemble, Target, TargetMaker

Array = NDArray[np.float64]
Base = Literal["plan", "command", "rest"]
Strategy = Literal["sync", "async", "ensemble", "rtc"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

_NS = 1e-9
_HISTORY = 1.0  # s of the past that the plan keeps: an observation is older than the plan's present
_JITTER = 0.005  # s, of camera stamps
_STILL = 1e-4  # rad or m, and by seconds: what moves less is at rest


@dataclass(frozen=True)
class Schedule:
    """How chunks follow each other.

    Attributes:
        strategy: `sync`: execute a part of a chunk, rest, observe, infer; an inference that takes no time is not rested
            for. `async`: infer while the chunk plays, then fade onto the new one. `ensemble`: as `async`, onto the
            average of all chunks that speak of the same time. `rtc` (real-time chunking): as `async`, and the policy is
            told what will be executed meanwhile, so that its new chunk begins with it.
        execution_horizon: s of each chunk before the next observation is sent to the model; adapted to the measured
            latency, see `core.pacing`.
        margin: s between a chunk's publication and the splice; covers the filter's and the controller's lead.
        blend: s, shortest fade from the old plan to the new.
        step: s between published points.
        acceleration_share: of the limit, that smoothing aims at.
        limit_share: of the velocity, acceleration and jerk limits, that a plan may use.
        stiffness: least smoothing.
        ensemble_decay: weights of an ensemble are exp(-decay * i), i = 0 for the oldest chunk. ACT has 0.01 and a chunk
            every 0.02 s; at a chunk every 0.4 s so much weight on the old fills the turning points of the motion.
        followed: rad or m, most between plan and command if the plan is being followed.
        tracking: rad, most between command and measurement if the controller plays the command (gripper apart).
    """

    strategy: Strategy = "async"
    execution_horizon: float = 0.4
    margin: float = 0.1
    blend: float = 0.25
    step: float = 0.05
    acceleration_share: float = 0.5
    limit_share: float = 0.8
    stiffness: float = 0.1
    ensemble_decay: float = -1.0
    followed: float = 1e-3
    tracking: float = 0.1


@dataclass(frozen=True)
class Reality:
    """What the robot does while a chunk arrives.

    Attributes:
        positions: (n,) rad or m, measured.
        command: what the controller plays, times in s since `command_stamp_ns`, with velocities and accelerations as
            far as the controller was given them; None: unknown.
    """

    positions: Array
    command: Trajectory | None = None
    command_stamp_ns: int = 0


@dataclass(frozen=True)
class Splice:
    """A chunk to publish, and how well it fitted.

    Attributes:
        chunk: points from now on; the same stamp, now with velocities and accelerations.
        base: what it continues: the old plan, the controller's command, or the robot at rest.
        step: rad or m, largest difference of a joint between the published motion, where it begins, and what the
            controller plays there; 0 where that is not known.
        mismatch: rad or m, what the step would have been without the fade.
        blend, stretch: of the fade [s], and of the time from the splice on (> 1: slower than the policy wanted).
        clipped: joints whose targets were beyond where plans may go: 1 % of the range inside its position limits, for
            the gripper at them. They are held there.
        excess: largest ratio of a derivative to its bound; > 1: no blend or stretch kept it, or the position limits.
    """

    chunk: ActionChunk
    base: Base
    step: float
    mismatch: float
    blend: float
    stretch: float
    clipped: tuple[str, ...]
    excess: float


class ChunkScheduler:
    """One task's plan.

    Args:
        limits: of the robot's joints, in its order.
        gripper: index of the joint that follows set-points instead of a curve; None: none.
    """

    def __init__(self, limits: JointLimits, gripper: int | None, schedule: Schedule = Schedule()):
        self.schedule = schedule
        self.strategy: str = schedule.strategy
        self._limits = limits
        self._arm = np.array([k for k in range(len(limits)) if k != gripper], dtype=np.intp)
        self._targets = TargetMaker(limits, gripper, schedule.acceleration_share, schedule.stiffness)
        self._ensemble = Ensemble(self._targets, schedule.ensemble_decay)
        self._shaper = Shaper(limits, gripper, schedule.limit_share, schedule.blend, schedule.step)
        self._plan: Trajectory | None = None
        self._epoch_ns = 0
        self._observed_ns = -1
        self._pacer = Pacer(schedule.execution_horizon, schedule.margin, schedule.blend)
        self._length = 0.0  # s that the newest chunk reaches beyond its observation
        self._rests = False  # the plan ends at rest, and the next observation is taken there
        self._starving = False
        self.starved = 0

    @property
    def observed_ns(self) -> int:
        """Stamp of the observation that was used last [ns]; -1: none in this task."""
        return self._observed_ns

    def choose(self, strategy: str) -> None:
        """Another strategy, from the next chunk on.

        Raises:
            ConfigError: when it is not known.
        """
        if strategy not in STRATEGIES:
            raise ConfigError(unknown("strategy", strategy, STRATEGIES))
        if strategy != self.strategy:
            self._ensemble.clear()
        self.strategy = strategy

    # -- when

    def reset(self) -> None:
        """A new task begins, or the robot was moved by somebody else: no plan."""
        self._plan = None
        self._ensemble.clear()
        self._observed_ns = -1
        self._rests = self._starving = False

    def begin(self, observed_ns: int) -> None:
        """An inference starts, from the observation of `observed_ns`."""
        self._observed_ns = observed_ns

    def due(self, now_ns: int, newest_ns: int) -> bool:
        """Whether the next inference should start; `newest_ns` is the stamp of the observation at hand."""
        if newest_ns <= self._observed_ns:
            return False
        if self._plan is None or self._observed_ns < 0:
            return True
        if self._rests:
            return self._seconds(newest_ns) >= self._plan.end
        # By stamps, not by the clock: which observation is used must not depend on how busy the machine is.
        refill = self.refill
        since = (newest_ns - self._observed_ns) * _NS
        return since >= refill.horizon - _JITTER or self.queue(now_ns) <= refill.threshold

    @property
    def latency(self) -> float:
        """s from observation to chunk that the next inference should be expected to take; 0: none measured."""
        return self._pacer.expected

    @property
    def refill(self) -> Refill:
        """When the next observation goes to the model, as the newest chunk and the measured latencies have it."""
        return self._pacer.refill(self._length)

    def queue(self, now_ns: int) -> float:
        """s of published motion ahead; <= 0: the plan has ended."""
        return float("-inf") if self._plan is None else self._plan.end - self._seconds(now_ns)

    def watch(self, now_ns: int) -> bool:
        """Counts starvation: true at the moment when the plan of a task runs out."""
        empty = self._plan is not None and self.queue(now_ns) <= 0
        edge = empty and not self._starving and not self._rests
        self._starving = empty
        self.starved += edge
        return edge

    def prefix(self, observed_ns: int, observed: Array) -> Trajectory | None:
        """The part of the plan that will be executed whatever the next inference says: from the observation to the
        expected splice, times in s since `observed_ns`. None: nothing is planned there, the robot is not there (n,), or
        the policy need not know."""
        if self._plan is None or self.strategy != "rtc":
            return None
        start = self._seconds(observed_ns)
        end = min(start + self.latency + self.schedule.margin, self._plan.end)
        if start < self._plan.start or end <= start or not self._near(state_at(self._plan, start)[0], observed):
            return None
        return _shifted(portion(self._plan, start, end), -start)

    # -- how

    def splice(self, chunk: ActionChunk, observed: Array, now_ns: int, reality: Reality) -> Splice:
        """Continues the motion with `chunk`.

        Args:
            chunk: of the backend: positions for `stamp_ns + times`.
            observed: (n,) rad or m, joint positions in the observation of `chunk.stamp_ns`.
            now_ns: the time of publication.

        Raises:
            ChunkError: when the chunk has passed already, or is not for this robot.
        """
        if self._plan is None:
            self._epoch_ns = chunk.stamp_ns
        stamp = self._seconds(chunk.stamp_ns)
        now = max(self._seconds(now_ns), stamp + APART)
        at = now + self.schedule.margin
        self._pacer.measured(now - stamp)
        # Nobody need rest while a policy thinks that answers at once.
        rests = self.strategy == "sync" and now - stamp > _JITTER
        # Who has rested since the observation plays the chunk from its beginning; who was moving when the strategy was
        # changed drops what has passed, as ever.
        rested = rests and (self._rests or self._plan is None)
        base, kind, played = self._base(now, at, reality)
        start, at = snap(base, max(now, base.start)), snap(base, max(at, base.start))
        origin = at if rested else stamp
        target = self._target(chunk, observed, origin, now, kind)
        until = target.goals.end
        if rests:
            target = self._targets.hold_after(target, at - origin + self.schedule.execution_horizon)
            until = min(until, at + self.schedule.execution_horizon)
        if target.curve.end < at + 2 * self.schedule.step:
            why = chunk.shortened or "inference takes longer than the horizon; use a longer horizon or a faster model"
            raise ChunkError(
                f"chunk ends {target.curve.end - stamp:.2f} s after its observation, its splice is {at - stamp:.2f} s "
                f"after it: {why}"
            )
        head = portion(base, start, at)
        state = end_of(head)
        shape = self._shaper.shape(state, target, at)
        published = join(head, shape.curve)
        mismatch = np.abs(shape.wanted - state[0])[self._arm]
        self._plan = self._with_history(base, kind, start, published)
        self._length = published.end - stamp
        self._rests, self._starving = rests, False
        base_motion = chunk.base
        if base_motion is not None:
            base_motion = alongside(base_motion, origin - stamp, at - stamp, shape.stretch, until - stamp)
        return Splice(
            replace(chunk, trajectory=_shifted(published, -stamp), base=base_motion),
            kind,
            0.0 if played is None else _apart(published, played, max(start, played.start)),
            float(mismatch.max(initial=0.0)),
            shape.blend,
            shape.stretch,
            target.clipped,
            shape.excess,
        )

    def _target(self, chunk: ActionChunk, observed: Array, origin: float, now: float, kind: Base) -> Target:
        """What the chunk asks for from `origin` on, as the strategy sees it."""
        target = self._targets.make(chunk, observed, origin)
        if self.strategy != "ensemble":
            return target
        if kind != "plan":
            self._ensemble.clear()
        return self._ensemble.add(target, now)

    def stop(self, now_ns: int, reality: Reality) -> Trajectory | None:
        """A motion that comes to rest as soon as the bounds allow; times in s since the newest observation. None:
        nothing moves, or nothing is planned."""
        if self._plan is None or self._observed_ns < 0:
            return None
        now = self._seconds(now_ns)
        at = now + self.schedule.margin
        base, kind, _ = self._base(now, at, reality)
        if kind == "rest" and (played := self._command(now, at, reality, near=False)) and played[0].start <= now:
            # The robot is not where it was told to be; what it was told goes on all the same, if nobody ends it.
            base, kind = played[0], "command"
        start, at = snap(base, max(now, base.start)), snap(base, max(at, base.start))
        head = portion(base, start, at)
        state = end_of(head)
        ahead = self._plan.positions[self._plan.times > at]
        if np.abs(state[1]).max() < _STILL and np.abs(ahead - state[0]).max(initial=0.0) < _STILL:
            return None
        tail = self._shaper.brake(state, at, self._targets.low, self._targets.high)
        published = join(head, tail)
        self._plan = self._with_history(base, kind, start, published)
        return _shifted(published, -self._seconds(self._observed_ns))

    def _seconds(self, ns: int) -> float:
        return (ns - self._epoch_ns) * _NS

    def _base(self, now: float, at: float, reality: Reality) -> tuple[Trajectory, Base, Trajectory | None]:
        """What is being executed, up to the splice at least; and what the controller plays, if that is known."""
        plan = self._plan if self._plan is not None and self._plan.start <= now <= self._plan.end else None
        command = self._command(now, at, reality)
        if plan is not None and plan.end < at:
            # The chunk comes just in time: behind the plan's end the controller brakes, or else this does.
            plan = self._braked(plan, at) if command is None else None
        if command is None:
            tracked = plan is not None and self._near(state_at(plan, now)[0], reality.positions)
            if plan is not None and tracked and reality.command is None:
                return plan, "plan", None
            still = np.clip(reality.positions, self._limits.min_position, self._limits.max_position)
            return rest_at(still, now, at), "rest", None
        curve, meet, there = command
        if plan is not None and np.abs(state_at(plan, meet)[0] - there).max() <= self.schedule.followed:
            return plan, "plan", curve
        return curve, "command", curve

    def _braked(self, plan: Trajectory, at: float) -> Trajectory:
        """`plan`, then to rest, and at rest until `at`."""
        tail = self._shaper.brake(end_of(plan), plan.end, self._targets.low, self._targets.high)
        braked = join(plan, tail)
        return braked if braked.end >= at else join(braked, rest_at(braked.positions[-1], braked.end, at))

    def _command(
        self, now: float, at: float, reality: Reality, near: bool = True
    ) -> tuple[Trajectory, float, Array] | None:
        """The controller's trajectory up to `at`, if the robot really follows it (`near`), or if it is not over; and
        when it is met (now, or when it begins), and where (n,)."""
        played = reality.command
        if played is None:
            return None
        times = played.times + self._seconds(reality.command_stamp_ns)
        velocities = np.zeros_like(played.positions) if played.velocities is None else played.velocities
        accelerations = np.zeros_like(played.positions) if played.accelerations is None else played.accelerations
        curve = Trajectory(times, played.positions, velocities, accelerations)
        meet = max(now, curve.start)
        there = state_at(curve, meet)[0]
        if not self._near(there, reality.positions) and (near or curve.end <= now):
            return None
        if curve.start > now:
            # It begins in a moment; until then the robot is about where it begins.
            at = max(at, curve.start)
        if curve.end < at:
            end = rest_at(curve.positions[-1], max(curve.end, now), at)
            curve = end if curve.end <= now else join(curve, end)
        return curve, meet, there

    def _near(self, one: Array, other: Array) -> bool:
        return bool((np.abs(one - other)[self._arm] <= self.schedule.tracking).all())

    def _with_history(self, base: Trajectory, kind: Base, start: float, published: Trajectory) -> Trajectory:
        """The plan: what is published, after what was executed before."""
        past = (base.times >= start - _HISTORY) & (base.times < start - 1e-9)
        return join(knots(base, past), published) if kind == "plan" and past.any() else published


def _apart(one: Trajectory, other: Trajectory, time: float) -> float:
    """rad or m, of the joint that differs most at `time` s."""
    return float(np.abs(state_at(one, time)[0] - state_at(other, time)[0]).max())


def _shifted(curve: Trajectory, by: float) -> Trajectory:
    return Trajectory(curve.times + by, curve.positions, curve.velocities, curve.accelerations)
