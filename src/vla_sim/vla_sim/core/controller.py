"""What ros2_control's joint_trajectory_controller does with a trajectory, without ROS.

Semantics, checked against ros2_controllers (Jazzy) with `interpolate_from_desired_state: true` and partial goals off:

* A stamp of zero means "now", i.e. the first control cycle after the message came.
* A new trajectory replaces the old one at once. Until its first point is due, the controller interpolates from the
  state that it commanded last to that first point. Points in the past are skipped.
* Between two points: quintic if both give velocities and accelerations, cubic with velocities, else linear.
* After the last point: that point is held.
* Malformed trajectories are refused and the trajectory that plays goes on.

Stricter than the real one on purpose: duplicate joints and numbers that are not finite or beyond 1e6 are refused,
because physics would not survive what the real controller hands on to the hardware.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.errors import VlaError, unknown
from vla_contract.interpolation import Samples, Trajectory

Array = NDArray[np.float64]
_REST = np.finfo(np.float32).eps  # the real controller's bound on end velocities

_LARGEST = 1e6  # rad or m and their derivatives; a typing error, not a motion


class TrajectoryRejected(VlaError):
    """A trajectory is malformed. The message names the point, the joint, the value and what was expected."""


@dataclass(frozen=True)
class TrajectoryPoint:
    """One point as it came: `time_ns` after the trajectory's stamp; a field is empty or has one value per joint."""

    time_ns: int
    positions: Sequence[float]
    velocities: Sequence[float] = ()
    accelerations: Sequence[float] = ()
    effort: Sequence[float] = ()


@dataclass(frozen=True)
class JointTrajectoryCommand:
    """A trajectory as it came, unchecked. `stamp_ns` 0: now."""

    joint_names: Sequence[str]
    points: Sequence[TrajectoryPoint]
    stamp_ns: int = 0

    @classmethod
    def from_arrays(
        cls,
        joint_names: Sequence[str],
        times: ArrayLike,
        positions: ArrayLike,
        velocities: ArrayLike | None = None,
        accelerations: ArrayLike | None = None,
        stamp_ns: int = 0,
    ) -> "JointTrajectoryCommand":
        """From times (K,) s and positions, velocities, accelerations (K, n), rad or m and their derivatives."""
        points = [np.atleast_1d(np.rint(np.asarray(times, dtype=np.float64) * 1e9)).astype(np.int64).tolist()]
        for values in (positions, velocities, accelerations):
            rows = [()] * len(points[0]) if values is None else np.asarray(values, dtype=np.float64).tolist()
            points.append(rows)
        return cls(tuple(joint_names), tuple(TrajectoryPoint(*row) for row in zip(*points, strict=True)), stamp_ns)


class TrajectoryController:
    """Turns commands into desired states. It starts holding `positions` (n,) rad or m."""

    def __init__(self, joint_names: Sequence[str], positions: ArrayLike):
        self.joint_names = tuple(joint_names)
        self.hold(positions)

    def hold(self, positions: ArrayLike) -> None:
        """Forgets every trajectory and stays at `positions` (n,)."""
        held = np.array(positions, dtype=np.float64)
        self._desired = (held, np.zeros_like(held), np.zeros_like(held))
        self._desired_ns = 0
        self._waiting: _Accepted | None = None
        self._pieces: list[tuple[int, Trajectory]] = [(0, Trajectory([0.0], held[None]))]

    @property
    def desired(self) -> tuple[Array, Array, Array]:
        """Positions, velocities, accelerations (n,) commanded last."""
        return self._desired

    def accept(self, command: JointTrajectoryCommand, now_ns: int) -> None:
        """Takes a trajectory; it plays from the next `sample` on.

        Raises:
            TrajectoryRejected: when it is malformed; what plays now goes on.
        """
        self._waiting = _check(command, self.joint_names, now_ns)

    def sample(self, times_ns: Sequence[int]) -> Samples:
        """Desired states at increasing times [ns], (m, n) each. Times must not run backwards between calls."""
        if self._waiting is not None:
            self._start(self._waiting, int(times_ns[0]))
            self._waiting = None
        times = np.asarray(times_ns, dtype=np.int64)
        index = np.searchsorted([start for start, _ in self._pieces], times, side="right") - 1
        parts = []
        for k in np.unique(np.maximum(index, 0)):
            start, piece = self._pieces[k]
            parts.append(piece.sample((times[np.maximum(index, 0) == k] - start) * 1e-9 + piece.start))
        if len(parts) == 1:
            samples = parts[0]
        else:
            samples = Samples(*(np.concatenate([getattr(p, f) for p in parts]) for f in Samples.__dataclass_fields__))
        self._desired = (samples.positions[-1], samples.velocities[-1], samples.accelerations[-1])
        self._desired_ns = int(times[-1])
        return samples

    def _start(self, accepted: "_Accepted", now_ns: int) -> None:
        """Cuts the trajectory into pieces of one kind of interpolation, with a bridge from the state commanded now."""
        stamp = accepted.stamp_ns or now_ns
        times = [stamp + t for t in accepted.times_ns]
        rows = [accepted.rows(k) for k in range(len(times))]
        if now_ns < times[0]:
            times.insert(0, now_ns)
            rows.insert(0, self._desired)
        kinds = [min(_kind(a), _kind(b)) for a, b in zip(rows, rows[1:], strict=False)]
        pieces: list[tuple[int, Trajectory]] = []
        first = 0
        for k in range(1, len(kinds) + 1):
            if k == len(kinds) or kinds[k] != kinds[first]:
                pieces.append((times[first], _piece(times, rows, first, k, kinds[first])))
                first = k
        last = Trajectory([0.0], np.asarray(rows[-1][0])[None])
        self._pieces = [*pieces, (times[-1], last)]


@dataclass(frozen=True)
class _Accepted:
    """A checked trajectory in the controller's joint order."""

    stamp_ns: int
    times_ns: list[int]
    fields: tuple[list[Array | None], list[Array | None], list[Array | None]]

    def rows(self, k: int) -> tuple[Array | None, ...]:
        """Positions, velocities, accelerations of point k."""
        return tuple(field[k] for field in self.fields)


def _kind(row: Sequence[Array | None]) -> int:
    """1: positions, 2: with velocities, 3: with accelerations."""
    return 1 if row[1] is None else 2 if row[2] is None else 3


def _piece(times: list[int], rows: Sequence[Sequence[Array | None]], first: int, last: int, kind: int) -> Trajectory:
    part = slice(first, last + 1)
    seconds = (np.array(times[part], dtype=np.int64) - times[first]) * 1e-9
    return Trajectory(seconds, *(np.array([row[field] for row in rows[part]]) for field in range(kind)))


def _check(command: JointTrajectoryCommand, known: tuple[str, ...], now_ns: int) -> _Accepted:
    """The real controller's list of checks, then the two of our own."""
    names, points = list(command.joint_names), command.points
    if len(names) != len(known):
        raise TrajectoryRejected(f"{len(names)} joints, the controller has {len(known)}: name {', '.join(known)}")
    for name in names:
        if name not in known:
            raise TrajectoryRejected(f"{unknown('joint', name, known)}; name the controller's joints")
    if len(set(names)) != len(names):
        raise TrajectoryRejected(f"duplicate joints in {', '.join(names)}; name each joint once")
    if not points:
        raise TrajectoryRejected("no points; a trajectory needs at least one")
    end = command.stamp_ns + points[-1].time_ns
    if command.stamp_ns != 0 and end < now_ns:
        raise TrajectoryRejected(
            f"ends {(now_ns - end) * 1e-9:.3f} s in the past (stamp {command.stamp_ns * 1e-9:.3f} s, now "
            f"{now_ns * 1e-9:.3f} s); send it earlier, or use the controller's clock"
        )
    for name, value in zip(names, points[-1].velocities, strict=False):
        if abs(value) > _REST:
            raise TrajectoryRejected(f"velocity of '{name}' at the last point is {value}, expected 0: end at rest")
    previous = None
    for k, point in enumerate(points):
        if previous is not None and point.time_ns <= previous:
            raise TrajectoryRejected(
                f"times[{k}] = {point.time_ns * 1e-9:.6f} s does not come after "
                f"times[{k - 1}] = {previous * 1e-9:.6f} s"
            )
        previous = point.time_ns
        for field in ("positions", "velocities", "accelerations", "effort"):
            values = getattr(point, field)
            if len(values) != len(names) and (len(values) or field == "positions"):
                raise TrajectoryRejected(f"{field} of point {k} have {len(values)} values for {len(names)} joints")
            sane = np.abs(values) <= _LARGEST  # false for NaN
            if not sane.all():
                j = int(np.argmin(sane))
                raise TrajectoryRejected(
                    f"{field}[{k}] of '{names[j]}' is {values[j]}, expected a number within ±{_LARGEST:g}"
                )
    order = [names.index(name) for name in known]

    def column(field: str) -> list[Array | None]:
        rows = [getattr(point, field) for point in points]
        return [np.asarray(row, dtype=np.float64)[order] if len(row) else None for row in rows]

    fields = (column("positions"), column("velocities"), column("accelerations"))
    return _Accepted(command.stamp_ns, [point.time_ns for point in points], fields)
