"""From a state on the old plan to the new target, inside the robot's limits as far as that can be done."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.interpolation import Samples, Trajectory
from vla_contract.limits import JointLimits
from vla_policy_node.core.smoothing import Pace, follow_setpoint
from vla_policy_node.core.splicing import Bounds, approach
from vla_policy_node.core.targets import EDGE, Target

Array = NDArray[np.float64]
State = tuple[Array, Array, Array]

_BLENDS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # times the shortest
_STRETCHES = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
_FINE = 0.01  # s, step of a gripper's motion
_BRAKES = np.arange(0.2, 2.0, 0.1)  # s


@dataclass(frozen=True)
class Shape:
    """A curve from the splice on, where the target wants the joints at the splice (n,), and what it took: fade [s],
    factor on time, largest ratio of a derivative to its bound (> 1: nothing that was tried keeps it, or the position
    limits)."""

    curve: Trajectory
    wanted: Array
    blend: float
    stretch: float
    excess: float


class Shaper:
    """For one robot.

    Args:
        gripper: index of the joint that follows set-points; None: none.
        share: of the velocity, acceleration and jerk limits, that a curve may use; position limits it may use whole.
        blend: s, shortest fade.
        step: s between knots.
    """

    def __init__(self, limits: JointLimits, gripper: int | None, share: float, blend: float, step: float):
        self._blend, self._step, self._gripper = blend, step, gripper
        self._arm = np.array([k for k in range(len(limits)) if k != gripper], dtype=np.intp)
        self._bounds = Bounds(
            share * limits.max_velocity[self._arm],
            share * limits.max_acceleration[self._arm],
            share * limits.max_jerk[self._arm],
        )
        self._low, self._high = limits.min_position[self._arm], limits.max_position[self._arm]
        self._room = EDGE * (self._high - self._low)
        self._pace: Pace | None = None
        if gripper is not None:
            # Half the acceleration and a quarter of the jerk: knots are coarser than the motion between them.
            self._pace = Pace(
                float(share * limits.max_velocity[gripper]),
                float(share / 2 * limits.max_acceleration[gripper]),
                float(share / 4 * limits.max_jerk[gripper]),
            )

    def shape(self, state: State, target: Target, at: float) -> Shape:
        """From `state` at `at` s onto `target`: the mildest fade and slow-down that keep the bounds, else the one that
        breaks them least."""
        best = self._try(state, target.curve, at)
        if self._pace is not None:
            self._move_gripper(self._pace, best, state, target.goals, at)
        return best

    def _try(self, state: State, target: Trajectory, at: float) -> Shape:
        best: Shape | None = None
        for stretch in _STRETCHES:
            times = self._grid(at, at + (target.end - at) * stretch)
            wanted = _stretched(target, times, at, stretch)
            for factor in _BLENDS:
                blend = min(factor * self._blend, float(times[-1] - times[0]))
                curve = approach(state, wanted, times, blend)
                excess = max(self._excess(curve), self._swing(curve))
                if best is None or excess < best.excess:
                    best = Shape(curve, wanted.positions[0], blend, stretch, excess)
                if excess <= 1.0:
                    return best
        assert best is not None
        return best

    def brake(self, state: State, at: float, low: Array, high: Array) -> Trajectory:
        """From `state` to rest, as soon as the bounds allow, inside `low` and `high` (n,)."""
        for duration in _BRAKES:
            end = np.clip(state[0] + state[1] * duration / 2, low, high)
            zero = np.zeros_like(end)
            ends = (np.stack(pair) for pair in zip(state, (end, zero, zero), strict=True))
            times = self._grid(at, at + duration)
            samples = Trajectory([at, at + duration], *ends).sample(times)
            for values in (samples.velocities, samples.accelerations):
                values[-1] = 0.0  # not nearly at rest: at rest
            curve = Trajectory(times, samples.positions, samples.velocities, samples.accelerations)
            if self._excess(curve) <= 1.0:
                break
        return curve

    def _excess(self, curve: Trajectory) -> float:
        return self._bounds.excess(curve, self._arm)

    def _swing(self, curve: Trajectory) -> float:
        """0 for knots inside the position limits; beyond them 1, and as much more as the targets' distance from a limit
        goes into what is too far."""
        arm = curve.positions[:, self._arm]
        beyond = float((np.maximum(self._low - arm, arm - self._high) / self._room).max(initial=-1.0))
        return 1.0 + beyond if beyond > 0 else 0.0

    def _grid(self, start: float, end: float) -> Array:
        """Even, with both ends."""
        return np.linspace(start, end, max(1, int((end - start) / self._step + 1e-6)) + 1)

    def _move_gripper(self, pace: Pace, shape: Shape, state: State, goals: Trajectory, at: float) -> None:
        """Replaces the gripper's column: it goes to the set-point that is due next, no earlier."""
        curve, column = shape.curve, self._gripper
        per_step = max(1, round(self._step / _FINE))
        fine = (curve.end - curve.start) / (len(curve) - 1) / per_step
        instants = curve.start + fine * np.arange((len(curve) - 1) * per_step)
        due = np.searchsorted(goals.times, at + (instants - at) / shape.stretch + 1e-9, side="left")
        wanted = goals.positions[np.minimum(due, len(goals) - 1), column]
        start = (float(state[0][column]), float(state[1][column]), float(state[2][column]))
        tracks = follow_setpoint(start, wanted, fine, pace)
        for values, track in zip((curve.positions, curve.velocities, curve.accelerations), tracks, strict=True):
            assert values is not None
            values[:, column] = track[::per_step]


def _stretched(curve: Trajectory, times: Array, origin: float, stretch: float) -> Samples:
    """`curve` played `stretch` times slower from `origin` on, at `times`."""
    samples = curve.sample(origin + (times - origin) / stretch)
    return Samples(
        samples.positions, samples.velocities / stretch, samples.accelerations / stretch**2, samples.jerks / stretch**3
    )
