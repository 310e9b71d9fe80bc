"""External torque, estimated from measured effort by the generalised-momentum observer.

    r = K (p(t) - p(0) - integral of (tau + C^T v - g - f + r) ds)

so that dr/dt = K (tau_ext - r): the residual r follows the external torque as a first-order filter of gain K, without
accelerations and without inverting M (De Luca and Mattone, "Actuator failure detection and isolation using generalized
momenta", ICRA 2003; "Sensorless robot collision detection and hybrid force/motion control", ICRA 2005).

In samples the integral is a trapezoid and r is taken at the end of the step, which is stable for every gain:
r_k = K (p_k - p_0 - S_k) / (1 + K dt), with S_k the integral up to k without the last r.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.config import TorqueLimits, Watchdogs
from vla_safety.core.dynamics import Dynamics, Momentum
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Array, seconds
from vla_safety.core.watchdogs import Instant

_LARGEST = 1e6  # rad, rad/s, Nm and the like: beyond it is no measurement


class MomentumObserver:
    """The recursion, for m joints.

    Args:
        gain: K, 1/s.

    Attributes:
        residual: (m,) Nm (N for a slide), the estimated external torque.
    """

    def __init__(self, count: int, gain: float):
        self._gain = gain
        self.residual: Array = np.zeros(count)
        self._start: Array | None = None
        self._sum: Array = np.zeros(count)
        self._rate: Array = np.zeros(count)

    def restart(self) -> None:
        """Forgets the past: the next sample is the first, and the residual begins at zero."""
        self._start = None
        self.residual = np.zeros_like(self.residual)

    def update(self, momentum: Momentum, effort: Array, dt: float) -> Array:
        """Takes a sample `dt` s after the one before; `effort` (m,) measured with it. The new residual."""
        rate = effort + momentum.rate
        if self._start is None:
            self._start, self._sum, self._rate = momentum.value, np.zeros_like(rate), rate
            return self.residual
        self._sum = self._sum + dt * (rate + self._rate) / 2
        self._rate = rate
        self.residual = self._gain * (momentum.value - self._start - self._sum) / (1 + self._gain * dt)
        self._sum = self._sum + dt * self.residual
        return self.residual


class TorqueMonitor:
    """Judges the estimated external torque as joint states come.

    Args:
        joints: (n,) names in the order of q; those of `limits.limits` are observed.
        settings: the window around now that a stamp must lie in, as the StateMonitor's.
    """

    def __init__(
        self, limits: TorqueLimits, dynamics: Dynamics, joints: Sequence[str], settings: Watchdogs | None = None
    ):
        self._limits = limits
        window = settings or Watchdogs()
        self._lead, self._oldest = window.joint_state_lead, window.joint_state_age
        self._dynamics = dynamics
        self._joints = tuple(joints)
        self._observed = tuple(limits.limits)
        self._most: Array = np.array(list(limits.limits.values()))
        self._observer = MomentumObserver(len(self._observed), limits.gain)
        self._bias: Array = np.zeros(len(self._observed))
        self._stamp_ns: int | None = None
        self._heard: int | None = None
        self._above: NDArray[np.int64] = np.zeros(len(self._observed), dtype=np.int64)

    @property
    def external(self) -> Array:
        """(m,) Nm or N, estimated now, in the order of the limits."""
        return np.asarray(self._observer.residual - self._bias)

    @property
    def load(self) -> float:
        """The largest share of its limit that a joint has now."""
        return float(np.max(np.abs(self.external) / self._most))

    def carry(self, dynamics: Dynamics) -> None:
        """Another tool or payload: the estimate begins anew."""
        self._dynamics = dynamics
        self._observer.restart()
        self._stamp_ns = None

    def zero(self) -> Finding | None:
        """What is estimated now is an error of the model, if it is small; else a finding, and nothing changes."""
        residual, most = self._observer.residual, self._limits.max_offset * self._most
        j = int(np.argmax(np.abs(residual) / most))
        if not abs(residual[j]) <= most[j]:
            return Finding("offset", self._observed[j], float(abs(residual[j])), float(most[j]))
        self._bias = residual.copy()
        return None

    def receive(
        self,
        stamp_ns: int,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        efforts: Sequence[float],
        now: Instant,
    ) -> Finding | None:
        """Takes a joint state; a finding when an estimate is too large, as many samples in a row as the limits say. A
        joint state without finite positions, velocities and efforts of every joint that counts, one that is not newer
        than the last, or one of another time than now is as good as silence."""
        self._forget_what_is_to_come(now)
        state = self._read(names, positions, velocities, efforts)
        known = self._stamp_ns is not None and stamp_ns <= self._stamp_ns
        if state is None or known or not -self._lead <= seconds(now.clock_ns - stamp_ns) <= self._oldest:
            return self._finding()
        q, v, effort = state
        before, self._stamp_ns, self._heard = self._stamp_ns, stamp_ns, now.watch_ns
        dt = 0.0 if before is None else seconds(stamp_ns - before)
        if dt > self._limits.timeout:
            self._observer.restart()
        self._observer.update(self._dynamics.momentum(q, v), effort, dt)
        above = ~(np.abs(self.external) <= self._most)  # NaN counts as above
        self._above = np.where(above, self._above + 1, 0)
        return self._finding()

    def _forget_what_is_to_come(self, now: Instant) -> None:
        """A last sample further ahead than any may be was there before the clock was set back: else all that follow
        would count as old until the clock is there again."""
        if self._stamp_ns is not None and seconds(self._stamp_ns - now.clock_ns) > self._lead:
            self._observer.restart()
            self._stamp_ns = None

    def _finding(self) -> Finding | None:
        if not (self._above >= self._limits.samples).any():
            return None
        j = int(np.argmax(np.where(self._above >= self._limits.samples, np.abs(self.external) / self._most, -1.0)))
        return Finding("external_torque", self._observed[j], float(abs(self.external[j])), float(self._most[j]))

    def _read(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        efforts: Sequence[float],
    ) -> tuple[Array, Array, Array] | None:
        """q, v (n,) and the effort of observed joints (m,); None: not usable."""
        if not len(names) == len(positions) == len(velocities) == len(efforts) or len(set(names)) != len(names):
            return None
        index = {name: k for k, name in enumerate(names)}
        if any(name not in index for name in self._joints):
            return None
        order = [index[name] for name in self._joints]
        q, v = (np.array([values[k] for k in order], dtype=np.float64) for values in (positions, velocities))
        effort = np.array([efforts[index[name]] for name in self._observed], dtype=np.float64)
        usable = all(bool((np.abs(values) <= _LARGEST).all()) for values in (q, v, effort))  # false for NaN
        return (q, v, effort) if usable else None

    def check(self, now: Instant) -> Finding | None:
        """Whether efforts come."""
        age = np.inf if self._heard is None else seconds(now.watch_ns - self._heard)
        if -self._limits.timeout <= age <= self._limits.timeout:
            return None
        return Finding("stale_effort", "joint_states", float(age), self._limits.timeout)
