"""Are the inputs there, fresh and believable? Staleness is judged twice: by receive time and by stamp."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_safety.core.config import Watchdogs
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Array, State, seconds


@dataclass(frozen=True)
class Instant:
    """Now, twice.

    Attributes:
        clock_ns: the clock of stamps and of the controller.
        watch_ns: the clock that silence is measured with: steady on a robot, the simulated one in a simulation.
    """

    clock_ns: int
    watch_ns: int


@dataclass(frozen=True)
class Measured:
    """A usable joint state; arrays (n,) in the order of the robot file."""

    stamp_ns: int
    watch_ns: int
    position: Array
    velocity: Array


class StateMonitor:
    """Takes joint states in and says whether there is a usable one. An unusable one never replaces a usable one.

    Args:
        speeds: (n,) rad/s or m/s that no joint exceeds: a state that is further from the last one than that, by more
            than the tracking tolerance, is believed when the next one agrees with it, not before.
    """

    def __init__(self, joints: Sequence[str], settings: Watchdogs, speeds: Array):
        self._joints = tuple(joints)
        self._settings = settings
        self._speeds = speeds
        self._newest: Measured | None = None
        self._doubted: Measured | None = None
        self._complaint: Finding | None = None
        self._tolerance = np.array(
            [settings.joint_tracking_tolerance.get(name, settings.tracking_tolerance) for name in joints]
        )

    def receive(
        self,
        stamp_ns: int,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        now: Instant,
    ) -> Finding | None:
        """Takes a joint state; what is wrong with it (it is dropped then, and the watchdog goes on counting)."""
        self._complaint = self._judge(stamp_ns, names, positions, velocities, now)
        return self._complaint

    def _judge(
        self,
        stamp_ns: int,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        now: Instant,
    ) -> Finding | None:
        age = seconds(now.clock_ns - stamp_ns)
        if not -self._settings.joint_state_lead <= age <= self._settings.joint_state_age:
            return Finding("state_stamp", "joint_states", age, self._settings.joint_state_age)
        newest = self._newest
        if newest is not None and stamp_ns <= newest.stamp_ns:
            return Finding("state_stamp", "joint_states", age, seconds(now.clock_ns - newest.stamp_ns))
        index = {name: k for k, name in enumerate(names)}
        for name in self._joints:
            if name not in index or index[name] >= len(positions):
                return Finding("state_invalid", name)
        if len(index) != len(names):
            return Finding("state_invalid", next(n for n in names if list(names).count(n) > 1))
        order = [index[name] for name in self._joints]
        position = np.array([positions[k] for k in order], dtype=np.float64)
        if len(velocities) == len(names):
            velocity = np.array([velocities[k] for k in order], dtype=np.float64)
        elif newest is not None:
            velocity = (position - newest.position) / seconds(stamp_ns - newest.stamp_ns)
        else:
            velocity = np.full(len(order), np.inf)  # unknown: not at rest
        for values in (position, velocity):
            if np.isnan(values).any() or np.isinf(position).any():
                return Finding("state_invalid", self._joints[int(np.argmin(np.isfinite(values)))], float("nan"))
        state, doubted = Measured(stamp_ns, now.watch_ns, position, velocity), self._doubted
        jump = self._jump(newest, state)
        agrees = doubted is not None and stamp_ns > doubted.stamp_ns and self._jump(doubted, state) is None
        if jump is not None and not agrees:
            self._doubted = state
            return jump
        self._newest, self._doubted = state, None
        return None

    def _jump(self, before: Measured | None, state: Measured) -> Finding | None:
        """Whether a joint is further from where it was than it can have come."""
        if before is None:
            return None
        gap = np.abs(state.position - before.position)
        allowed = self._speeds * seconds(state.stamp_ns - before.stamp_ns) + self._tolerance
        within = gap <= allowed
        if within.all():
            return None
        j = int(np.argmax(np.where(within, -1.0, gap)))
        return Finding("state_jump", self._joints[j], float(gap[j]), float(allowed[j]))

    def forget(self) -> None:
        """Drops the newest state, e.g. after the clock jumped."""
        self._newest = self._doubted = None

    @property
    def newest(self) -> Measured | None:
        """The newest usable joint state, however old."""
        return self._newest

    def check(self, now: Instant) -> Finding | None:
        """Whether there is a fresh joint state; if not, what the newest unusable one lacked, or how old it is."""
        limit = self._settings.joint_state_timeout
        age = np.inf if self._newest is None else seconds(now.watch_ns - self._newest.watch_ns)
        # A negative age means that the watch itself went back: not believable either.
        if -limit <= age <= limit:
            return None
        return self._complaint or Finding("stale_state", "joint_states", float(age), limit)

    def tracking(self, commanded: State) -> tuple[Array, Finding | None]:
        """|measured - commanded| (n,), where `commanded` belongs to the newest state's stamp."""
        assert self._newest is not None
        error = np.abs(self._newest.position - commanded.position)
        within = error <= self._tolerance
        if within.all():
            return error, None
        j = int(np.argmax(np.where(within, -1.0, np.nan_to_num(error / self._tolerance, nan=np.inf))))
        return error, Finding("tracking_error", self._joints[j], float(error[j]), float(self._tolerance[j]))

    def at_rest(self) -> Finding | None:
        """Whether the newest state is at rest."""
        assert self._newest is not None
        speed = np.abs(self._newest.velocity)
        if (speed <= self._settings.rest_velocity).all():
            return None
        j = int(np.argmax(speed))
        return Finding("not_at_rest", self._joints[j], float(speed[j]), self._settings.rest_velocity)
