"""No link moves faster than it may: reduced speed, slow zones, zones shared with people.

Proof obligation. The speed of a material point of body b changes no faster than the point accelerates. With r_f the
reach of moving frame f on b, u_f the rate of the joint behind it, and w_f the angular speed that it adds, none does so
harder than

    a_b = sum_f r_f |du_f/dt| + sum_f r_f u_f (w_f + 2 sum over ancestors e of f of w_e):

the second derivative of a point by two joints is a cross product with both axes, no longer than its lever about the
outer one. So between two samples, T apart, at which b moves at v1 and v2, it is never faster than
(v1 + v2 + a_b T) / 2. v1 and v2 are no estimates either: speed is convex over a rigid body, hence largest at one of the
points whose hull it is, plus its radius times its angular speed. A cap of a volume counts for an interval as soon as
the body may touch the volume in it, by the same sweep as for zones. Intervals in doubt are divided; what is in doubt
after the last division counts as too fast.

Stops. A message is verified with its stop, so a stop that is too fast is never sent. It rarely is: along the path no
point becomes faster than it was there; joint by joint a stop gains speed only in its first milliseconds, until the
acceleration has turned. `RESERVE` of the cap is kept for that when a chunk is slowed down.

Playing the same path at scale s multiplies v by s, and a_b T as well: the bound of an interval is proportional to s, so
the scale that a path needs follows from one look at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ConfigError
from vla_safety.core.findings import Finding
from vla_safety.core.intervals import Sampled, first_intervals, sampled
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.limits import extent_of
from vla_safety.core.motion import Array, Motion
from vla_safety.core.zones import ZoneSet, ZoneSpec

CONSERVATIVE_SPEED = 0.25  # m/s: reduced speed of ISO 10218-1
REASONS = ("link_speed", "slow_zone", "shared_zone")
RESERVE = 0.97  # of a cap, that a chunk is slowed down to
_ROUNDING = 1e-9  # relative
_TIGHT = 1.01  # between the bound and the truth, when a path's scale is looked for
_LEVELS = 4
_MOST = 400  # intervals that are divided at once, when a path's scale is looked for; more: the bound must do


def is_speed(finding: Finding) -> bool:
    """Whether a finding is about the speed of a link: slower, or at rest, it would not be there."""
    return finding.reason.partition(":")[0] in REASONS


def contact_speed(energy: float, human_mass: float, moving_mass: float, load: float) -> float:
    """The speed [m/s] at which a transient contact has a given energy.

    Two-body model of ISO/TS 15066:2016, annex A: E = mu v^2 / 2 with the reduced mass mu of the body region and the
    robot, whose effective mass is M / 2 + m: half of its moving parts, and what it carries.

    Args:
        energy: J.
        human_mass: kg, effective mass of the body region.
        moving_mass: kg, all moving parts of the robot. load: kg, tool and payload.
    """
    reduced = 1.0 / (1.0 / human_mass + 1.0 / (moving_mass / 2 + load))
    return float(np.sqrt(2.0 * energy / reduced))


class LinkSpeeds:
    """How fast bodies move, and how hard they accelerate at most."""

    def __init__(self, model: RobotModel):
        frames = model.frames
        count = len(frames)
        self._model = model
        self._columns = np.array([f.column for f in frames], dtype=np.int64)
        self._gears = np.array([f.multiplier for f in frames])
        self._turns = np.array([not f.prismatic for f in frames])
        self._axes: Array = np.array([f.axis for f in frames]).reshape(count, 1, 3, 1)
        # (F + 1, F): which frames move frame k, itself included.
        self._movers = np.zeros((count + 1, count))
        for k, f in enumerate(frames, start=1):
            self._movers[k] = self._movers[f.parent]
            self._movers[k, k - 1] = 1.0
        self._of_point = np.repeat(model.body_frames, model.body_sizes)

    def speeds(self, placement: Placement, velocities: Array) -> Array:
        """(N, B) m/s, of the fastest point of each body; `velocities` (N, n) of the joints."""
        rates = (velocities[:, self._columns] * self._gears).T[..., None]
        ways = (placement.rotations[1:] @ self._axes)[..., 0] * rates
        turns = ways * self._turns[:, None, None]
        # The velocity of the point of the moving frame's space that is at the base's origin: its twist.
        slides = np.where(self._turns[:, None, None], np.cross(placement.translations[1:], ways), ways)
        angular = np.tensordot(self._movers, turns, 1)
        linear = np.tensordot(self._movers, slides, 1)[self._of_point]
        w, p = angular[self._of_point], placement.points.transpose(1, 0, 2)
        x = linear[..., 0] + w[..., 1] * p[..., 2] - w[..., 2] * p[..., 1]
        y = linear[..., 1] + w[..., 2] * p[..., 0] - w[..., 0] * p[..., 2]
        z = linear[..., 2] + w[..., 0] * p[..., 1] - w[..., 1] * p[..., 0]
        fastest = np.maximum.reduceat(np.sqrt(x * x + y * y + z * z), self._model.starts, axis=0)
        around = np.sqrt((angular * angular).sum(axis=2))[self._model.body_frames]
        result: Array = (fastest + around * self._model.body_radii[:, None]).T
        return result

    def accelerations(self, speed: Array, acceleration: Array) -> Array:
        """(M, B) m/s^2, bounds; of joints with at most `speed` and `acceleration`, each (M, n)."""
        rate = speed[:, self._columns]
        turning = rate * np.abs(self._gears) * self._turns
        before = turning @ (self._movers[1:].T - np.eye(len(self._columns)))
        along = acceleration[:, self._columns] + rate * (turning + 2 * before)
        return np.asarray(along @ self._model.frame_reach.T)


@dataclass(frozen=True)
class Volume:
    """A cap inside a zone: m/s; `reason` of its findings."""

    zone: ZoneSpec
    speed: float
    reason: str


@dataclass(frozen=True)
class Ratios:
    """Speeds in intervals, as parts of their caps, each (M, K): `low` is reached at one of the ends, `high` is never
    exceeded. `labels` (M, K) tell which volume a column is near to."""

    low: Array
    high: Array
    labels: NDArray[np.int64]


class SpeedCaps:
    """What every body's speed is held against. A column is a body with a cap.

    Args:
        everywhere: m/s for every body, wherever it is; None: there is no such cap.
        volumes: where further caps count.
        margin: m around them.
    """

    def __init__(self, model: RobotModel, everywhere: float | None, volumes: Sequence[Volume], margin: float):
        self._speeds = LinkSpeeds(model)
        self._model = model
        self._margin = margin
        bodies = np.arange(len(model.body_links))
        self._sets: list[tuple[ZoneSet, list[Volume]]] = []
        owners, caps, reach = [], [], []
        self._global = 0
        if everywhere is not None:
            owners.append(bodies)
            caps.append(np.full(len(bodies), everywhere))
            reach.append(np.zeros_like(model.reach))
            self._global = len(bodies)
        for speed in sorted({volume.speed for volume in volumes}):
            members = [volume for volume in volumes if volume.speed == speed]
            zones = ZoneSet([v.zone.model_copy(update={"kind": "keep_out"}) for v in members], model, margin)
            self._sets.append((zones, members))
            owners.append(zones.bodies)
            caps.append(np.full(len(zones.bodies), speed))
            reach.append(zones.reach)
        if not owners:
            raise ConfigError("there is no cap on speed; leave SpeedCaps away")
        self._bodies: NDArray[np.int64] = np.concatenate(owners)
        self.caps: Array = np.concatenate(caps)
        self._reach: Array = np.concatenate(reach)
        self._lever: Array = model.reach[self._bodies]

    @property
    def everywhere(self) -> float:
        """m/s, that no body exceeds wherever it is; inf: there is no such cap."""
        return float(self.caps[0]) if self._global else float("inf")

    def ratios(self, samples: Sampled, placement: Placement) -> Ratios:
        """Judges intervals, with bodies placed at their ends."""
        speeds = self._speeds.speeds(placement, samples.velocities)
        gaps, labels = self._gaps(placement)
        first, second = samples.first, samples.second
        # Written so that NaN counts as inside and as too fast.
        inside = np.where(gaps > 0, 0.0, speeds[:, self._bodies] / self.caps)
        low = np.maximum(inside[first], inside[second])
        growth = samples.spans / 2 * self._speeds.accelerations(samples.speed, samples.acceleration)
        fastest = ((speeds[first] + speeds[second]) / 2 + growth)[:, self._bodies]
        fastest = np.minimum(fastest, samples.speed @ self._lever.T)
        sweep = samples.spans / 2 * (samples.speed @ self._reach.T)
        apart = np.minimum(gaps[first], gaps[second]) > sweep
        near = np.where(gaps[first] <= gaps[second], labels[first], labels[second])
        return Ratios(low, np.where(apart, 0.0, fastest / self.caps), near)

    def _gaps(self, placement: Placement) -> tuple[Array, NDArray[np.int64]]:
        """(N, K) m, less than which a column's body is from where its cap counts, and which volume that is."""
        count = len(placement.points)
        gaps = [np.full((count, self._global), -np.inf)]
        labels: list[NDArray[np.int64]] = [np.full((count, self._global), -1, dtype=np.int64)]
        for zones, _ in self._sets:
            values, own = zones.clearances(placement)
            gaps.append(values - self._margin)
            labels.append(own)
        return np.concatenate(gaps, axis=1), np.concatenate(labels, axis=1)

    def finding(self, ratios: Ratios, k: int, at: float, *, surely: bool) -> Finding:
        """What is wrong in interval `k`, which begins at `at` s; `surely`: at its ends, else by the bound between."""
        values = np.nan_to_num((ratios.low if surely else ratios.high)[k], nan=np.inf)
        column = int(np.argmax(values))
        cap = float(self.caps[column])
        reason = "link_speed"
        if column >= self._global:
            volumes = next(volumes for _, volumes in self._sets if volumes[0].speed == cap)
            volume = volumes[ratios.labels[k, column]]
            reason = f"{volume.reason}:{volume.zone.name}"
        link = self._model.body_links[self._bodies[column]]
        return Finding(reason, link, float(values[column]) * cap, cap, at)


def pace(motion: Motion, caps: SpeedCaps, model: RobotModel) -> tuple[float, Finding | None]:
    """The largest uniform slow-down in (0, 1] with which a path keeps `RESERVE` of the caps.

    The fastest place is looked for by branch and bound: only intervals that may hold it are divided.

    Returns:
        The scale (0.0: none, e.g. not finite) and what made it less than one.
    """
    bounds, intervals = extent_of(motion), first_intervals(motion)
    reached, bound, blame = 0.0, 0.0, None
    for level in range(_LEVELS):
        samples = sampled(motion, bounds, intervals)
        ratios = caps.ratios(samples, model.place(samples.positions))
        high, low = _largest(ratios.high), _largest(ratios.low)
        k = int(np.argmax(low))
        if low[k] > reached:
            reached = float(low[k])
            blame = caps.finding(ratios, k, float(intervals.start[k]), surely=True)
        open_ = ~(high <= max(reached * _TIGHT, RESERVE))
        if level == _LEVELS - 1 or not 0 < np.count_nonzero(open_) <= _MOST:
            k = int(np.argmax(high))
            bound = max(bound, float(high[k]))
            if blame is None and bound > RESERVE:
                blame = caps.finding(ratios, k, float(intervals.start[k]), surely=False)
            break
        bound = max(bound, float(np.max(high[~open_], initial=0.0)))
        intervals = intervals.select(open_).divided()
    worst = max(bound, reached)
    if worst <= RESERVE * (1 + _ROUNDING):
        return 1.0, None
    return (RESERVE / worst if np.isfinite(worst) else 0.0), blame


def _largest(values: Array) -> Array:
    """(M,), NaN as infinity."""
    return np.asarray(np.nan_to_num(values, nan=np.inf, posinf=np.inf).max(axis=1))


def cap_everywhere(caps: SpeedCaps | None) -> float:
    """m/s, that no body exceeds wherever it is; inf: there is no such cap."""
    return float("inf") if caps is None else caps.everywhere


def too_fast(ratios: Array) -> NDArray[np.bool_]:
    """(M,): whether any cap is exceeded; NaN exceeds."""
    return np.asarray((~(ratios <= 1 + _ROUNDING)).any(axis=1))
