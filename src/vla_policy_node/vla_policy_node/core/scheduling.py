"""When to infer, and how a new chunk continues the plan that is already being executed.

While a chunk plays, the next one is computed. When it comes, the plan is kept up to the splice time (the filter and the
controller may have taken that part already: the frozen prefix), and from there the motion fades onto the new chunk.
Points that have passed are dropped. If the robot does not follow the plan (the filter slowed, trimmed or refused it),
the new plan starts from what the controller really plays.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla_contract.chunk import ActionChunk
from vla_contract.errors import ChunkError
from vla_contract.interpolation import Samples, Trajectory
from vla_contract.limits import JointLimits
from vla_policy_node.core.smoothing import follow_setpoint, smooth
from vla_policy_node.core.splicing import APART, Bounds, approach, join, portion, rest_at, snap, state_at

Array = NDArray[np.float64]
Base = Literal["plan", "command", "rest"]

_NS = 1e-9
_HISTORY = 1.0  # s of the past that the plan keeps: an observation is older than the plan's present
_BLENDS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # times the shortest
_STRETCHES = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
_JITTER = 0.005  # s, of camera stamps
_FINE = 0.01  # s, step of a gripper's motion
_EDGE = 0.01  # share of a joint's range that targets keep from its ends


@dataclass(frozen=True)
class Schedule:
    """How chunks follow each other.

    Attributes:
        execution_horizon: s of each chunk before the next observation is sent to the model.
        margin: s between a chunk's publication and the splice; covers the filter's and the controller's lead.
        blend: s, shortest fade from the old plan to the new.
        step: s between published points.
        acceleration: rad/s² or share of the limit that the smoother aims at.
        limit_share: share of the velocity, acceleration and jerk limits that a plan may use.
        followed: rad or m, most between plan and command if the plan is being followed.
        tracking: rad, most between command and measurement if the controller plays the command (gripper apart).
    """

    execution_horizon: float = 0.4
    margin: float = 0.1
    blend: float = 0.25
    step: float = 0.05
    acceleration_share: float = 0.5
    limit_share: float = 0.8
    stiffness: float = 0.1
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
        step: rad or m, largest joint step of the published motion at the splice.
        mismatch: rad or m, what the step would have been without the fade.
        blend, stretch: of the fade [s], and of the time from the splice on (> 1: slower than the policy wanted).
        clipped: joints whose targets were beyond their position limits.
        excess: largest ratio of a derivative to its bound; > 1: no blend or stretch kept it.
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
        self._limits = limits
        self._gripper = gripper
        self._arm = np.array([k for k in range(len(limits)) if k != gripper], dtype=np.intp)
        room = _EDGE * (limits.max_position - limits.min_position)
        self._low, self._high = limits.min_position + room, limits.max_position - room
        arm = JointLimits(
            tuple(limits.names[k] for k in self._arm),
            *(
                getattr(limits, f)[self._arm]
                for f in ("min_position", "max_position", "max_velocity", "max_acceleration", "max_jerk")
            ),
        )
        self._bounds = Bounds.share(arm, schedule.limit_share)
        self._plan: Trajectory | None = None
        self._epoch_ns = 0
        self._observed_ns = -1
        self._latencies: deque[float] = deque(maxlen=20)
        self._starving = False
        self.starved = 0

    @property
    def observed_ns(self) -> int:
        """Stamp of the observation that was used last [ns]; -1: none in this task."""
        return self._observed_ns

    # -- when

    def reset(self) -> None:
        """A new task begins, or the robot was moved by somebody else: no plan."""
        self._plan = None
        self._observed_ns = -1
        self._starving = False

    def begin(self, observed_ns: int) -> None:
        """An inference starts, from the observation of `observed_ns`."""
        self._observed_ns = observed_ns

    def due(self, now_ns: int, newest_ns: int) -> bool:
        """Whether the next inference should start; `newest_ns` is the stamp of the observation at hand."""
        if newest_ns <= self._observed_ns:
            return False
        if self._plan is None or self._observed_ns < 0:
            return True
        # By stamps, not by the clock: which observation is used must not depend on how busy the machine is.
        since = (newest_ns - self._observed_ns) * _NS
        reserve = self.latency + self.schedule.margin + self.schedule.blend
        return since >= self.schedule.execution_horizon - _JITTER or self.queue(now_ns) <= reserve

    @property
    def latency(self) -> float:
        """s from observation to splice that the next inference should be expected to take; 0: none measured."""
        return float(np.quantile(self._latencies, 0.9)) if self._latencies else 0.0

    def queue(self, now_ns: int) -> float:
        """s of published motion ahead; <= 0: the plan has ended."""
        return float("-inf") if self._plan is None else self._plan.end - self._seconds(now_ns)

    def watch(self, now_ns: int) -> bool:
        """Counts starvation: true at the moment when the plan of a task runs out."""
        empty = self._plan is not None and self.queue(now_ns) <= 0
        edge = empty and not self._starving
        self._starving = empty
        self.starved += edge
        return edge

    def prefix(self, observed_ns: int) -> Trajectory | None:
        """The part of the plan that will be executed whatever the next inference says: from the observation to the
        expected splice, times in s since `observed_ns`. None: nothing is planned there."""
        if self._plan is None:
            return None
        start = self._seconds(observed_ns)
        end = min(start + self.latency + self.schedule.margin, self._plan.end)
        if start < self._plan.start or end <= start:
            return None
        part = portion(self._plan, start, end)
        return Trajectory(part.times - start, part.positions, part.velocities, part.accelerations)

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
        self._latencies.append(now - stamp)
        target, goals, clipped = self._target(chunk, observed, stamp)
        if target.end < at + 2 * self.schedule.step:
            raise ChunkError(
                f"chunk ends {target.end - stamp:.2f} s after its observation, the splice is at {at - stamp:.2f} s: "
                "inference takes longer than the horizon; use a longer horizon or a faster model"
            )
        base, kind = self._base(now, at, reality)
        start, at = snap(base, max(now, base.start)), snap(base, max(at, base.start))
        state = state_at(base, at)
        tail, blend, stretch, excess = self._fit(state, target, at)
        if self._gripper is not None:
            self._move_gripper(tail, state, goals, at, stretch)
        head = portion(base, start, at)
        published = join(head, tail)
        before, after = state[0], published.sample(at).positions[0]
        mismatch = np.abs(state_at(target, at)[0] - before)[self._arm]
        self._plan = self._with_history(base, kind, start, published)
        self._starving = False
        relative = Trajectory(
            published.times - stamp, published.positions, published.velocities, published.accelerations
        )
        return Splice(
            chunk.with_trajectory(relative),
            kind,
            float(np.abs(after - before).max()),
            float(mismatch.max(initial=0.0)),
            blend,
            stretch,
            clipped,
            excess,
        )

    def stop(self, now_ns: int, reality: Reality) -> Trajectory | None:
        """A motion from the splice time on that comes to rest as soon as the bounds allow; times in s since the newest
        observation. None: nothing moves, or nothing is planned."""
        if self._plan is None or self._observed_ns < 0:
            return None
        now = self._seconds(now_ns)
        at = now + self.schedule.margin
        base, kind = self._base(now, at, reality)
        start, at = snap(base, max(now, base.start)), snap(base, max(at, base.start))
        state = state_at(base, at)
        if kind == "rest" or np.abs(state[1]).max() < 1e-4:
            return None
        for duration in np.arange(0.2, 2.0, 0.1):
            end = np.clip(state[0] + state[1] * duration / 2, self._low, self._high)
            if self._gripper is not None:
                end[self._gripper] = state[0][self._gripper]
            zero = np.zeros_like(end)
            ramp = Trajectory(
                [at, at + duration], *(np.stack(pair) for pair in zip(state, (end, zero, zero), strict=True))
            )
            times, *states = _knots(ramp, np.append(self._grid(at, at + duration - 1e-6), at + duration))
            states[1][-1] = states[2][-1] = 0.0  # not nearly at rest: at rest
            tail = Trajectory(times, *states)
            if self._excess(tail) <= 1.0:
                break
        published = join(portion(base, start, at), tail)
        self._plan = self._with_history(base, kind, start, published)
        since = self._seconds(self._observed_ns)
        return Trajectory(published.times - since, published.positions, published.velocities, published.accelerations)

    def _seconds(self, ns: int) -> float:
        return (ns - self._epoch_ns) * _NS

    def _target(
        self, chunk: ActionChunk, observed: Array, stamp: float
    ) -> tuple[Trajectory, Trajectory, tuple[str, ...]]:
        """The smooth curve that the chunk asks for, its raw points, and the joints that had to be clipped."""
        if chunk.joint_names != self._limits.names:
            raise ChunkError(f"chunk is for joints {list(chunk.joint_names)}, the robot has {list(self._limits.names)}")
        points, times = chunk.positions, chunk.trajectory.times
        if len(times) < 2 or times[0] <= 0:
            raise ChunkError(
                f"chunk has {len(times)} points from {times[0]:.3f} s on; expected >= 2 after its observation"
            )
        inside = np.clip(points, self._low, self._high)
        # A gripper is asked for its very ends; only an arm that asks for more than its range is worth a word.
        beyond = (
            np.abs(np.clip(points, self._limits.min_position, self._limits.max_position) - points).max(axis=0) > 1e-6
        )
        clipped = tuple(name for name, out in zip(self._limits.names, beyond, strict=True) if out)
        knots = np.concatenate([[stamp], stamp + times])
        wish = np.concatenate([observed[None], inside])
        bound = self.schedule.acceleration_share * self._limits.max_acceleration
        if self._gripper is not None:
            bound[self._gripper] = np.inf
        # The operators of the smoother are cached by the grid: give it the same one every time.
        curve = smooth(np.concatenate([[0.0], times]), wish, bound, self.schedule.stiffness)
        target = Trajectory(knots, curve.positions, curve.velocities, curve.accelerations)
        return target, Trajectory(knots, wish), clipped

    def _base(self, now: float, at: float, reality: Reality) -> tuple[Trajectory, Base]:
        """What is being executed, up to the splice at least."""
        plan = self._plan if self._plan is not None and self._plan.start <= now and self._plan.end >= at else None
        command = self._command(now, at, reality)
        if command is None:
            tracked = plan is not None and self._near(plan.sample(now).positions[0], reality.positions)
            if plan is not None and tracked and reality.command is None:
                return plan, "plan"
            still = np.clip(reality.positions, self._limits.min_position, self._limits.max_position)
            return rest_at(still, now, at), "rest"
        if plan is not None:
            meet = max(command.start, now)
            gap = np.abs(plan.sample(meet).positions - command.sample(meet).positions).max()
            if gap <= self.schedule.followed:
                return plan, "plan"
        return command, "command"

    def _command(self, now: float, at: float, reality: Reality) -> Trajectory | None:
        """The controller's trajectory up to `at`, if the robot really follows it."""
        played = reality.command
        if played is None:
            return None
        times = played.times + self._seconds(reality.command_stamp_ns)
        velocities = np.zeros_like(played.positions) if played.velocities is None else played.velocities
        accelerations = np.zeros_like(played.positions) if played.accelerations is None else played.accelerations
        curve = Trajectory(times, played.positions, velocities, accelerations)
        if not self._near(curve.sample(max(now, curve.start)).positions[0], reality.positions):
            return None
        if curve.start > now:
            # It begins in a moment; until then the robot is about where it begins.
            at = max(at, curve.start)
        if curve.end < at:
            end = rest_at(curve.positions[-1], max(curve.end, now), at)
            return end if curve.end <= now else join(curve, end)
        return curve

    def _near(self, one: Array, other: Array) -> bool:
        return bool((np.abs(one - other)[self._arm] <= self.schedule.tracking).all())

    def _fit(
        self, state: tuple[Array, Array, Array], target: Trajectory, at: float
    ) -> tuple[Trajectory, float, float, float]:
        """The mildest fade and slow-down whose curve keeps the bounds; else the one that breaks them least."""
        best: tuple[Trajectory, float, float, float] | None = None
        for stretch in _STRETCHES:
            times = self._grid(at, at + (target.end - at) * stretch)
            wanted = _stretched(target, times, at, stretch)
            for factor in _BLENDS:
                blend = min(factor * self.schedule.blend, times[-1] - times[0])
                curve = approach(state, wanted, times, blend)
                excess = self._excess(curve)
                if best is None or excess < best[3]:
                    best = curve, blend, stretch, excess
                if excess <= 1.0:
                    return curve, blend, stretch, excess
        assert best is not None
        return best

    def _excess(self, curve: Trajectory) -> float:
        arm = (
            values[:, self._arm]
            for values in (curve.positions, curve.velocities, curve.accelerations)
            if values is not None
        )
        return self._bounds.excess(Trajectory(curve.times, *arm))

    def _grid(self, start: float, end: float) -> Array:
        return np.asarray(start + self.schedule.step * np.arange(int((end - start) / self.schedule.step) + 1))

    def _move_gripper(
        self, tail: Trajectory, state: tuple[Array, Array, Array], goals: Trajectory, at: float, stretch: float
    ) -> None:
        """Replaces the gripper's column of `tail`: it goes to the set-point that is due next, no earlier."""
        column = self._gripper
        per_step = max(1, round(self.schedule.step / _FINE))
        fine = self.schedule.step / per_step
        instants = tail.start + fine * np.arange((len(tail) - 1) * per_step)
        due = np.searchsorted(goals.times, at + (instants - at) / stretch + 1e-9, side="left")
        wanted = goals.positions[np.minimum(due, len(goals) - 1), column]
        share = self.schedule.limit_share
        speed = float(share * self._limits.max_velocity[column])
        acceleration = float(share / 2 * self._limits.max_acceleration[column])
        tracks = follow_setpoint(float(state[0][column]), float(state[1][column]), wanted, fine, speed, acceleration)
        for values, track in zip((tail.positions, tail.velocities, tail.accelerations), tracks, strict=True):
            assert values is not None
            values[:, column] = track[::per_step]
        assert tail.accelerations is not None
        tail.accelerations[0, column] = state[2][column]

    def _with_history(self, base: Trajectory, kind: Base, start: float, published: Trajectory) -> Trajectory:
        """The plan: what is published, after what was executed before."""
        past = base.times[(base.times >= start - _HISTORY) & (base.times < start - 1e-9)]
        if kind != "plan" or not len(past):
            return published
        return join(portion(base, float(past[0]), start), published)


def _knots(curve: Trajectory, times: Array) -> tuple[Array, Array, Array, Array]:
    samples = curve.sample(times)
    return times, samples.positions, samples.velocities, samples.accelerations


def _stretched(curve: Trajectory, times: Array, origin: float, stretch: float) -> Samples:
    """`curve` played `stretch` times slower from `origin` on, at `times`."""
    samples = curve.sample(origin + (times - origin) / stretch)
    return Samples(
        samples.positions, samples.velocities / stretch, samples.accelerations / stretch**2, samples.jerks / stretch**3
    )
