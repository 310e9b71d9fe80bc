"""Is a proposal a trajectory at all? Reads as a list of checks; ANY input gives a value, never an exception (I1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.findings import Finding
from vla_safety.core.motion import NS, Array

POLICY, PLANNER, OVERRIDE = "policy", "planner", "override"
RETREAT = "retreat"  # not a source of proposals: the filter's own way back


@dataclass(frozen=True)
class Proposal:
    """A trajectory as it came, nothing checked yet.

    Attributes:
        source: POLICY, PLANNER or OVERRIDE.
        stamp_ns: of its header; times count from it.
        times_ns: (K,) time_from_start.
        positions, velocities, accelerations: (K, n) sequences, possibly ragged, possibly empty.
        points: K; may be larger than the sequences when the node did not convert an oversized message.
        received_ns: when it arrived, on the clock of the stamps; received_steady_ns: on the steady clock.
        digest: sha256 of the checkpoint that it comes from, hex, for the record; empty: it comes from none.
    """

    source: str
    sequence: int
    stamp_ns: int
    frame: str
    joint_names: Sequence[str]
    times_ns: Sequence[int]
    positions: Sequence[Sequence[float]]
    velocities: Sequence[Sequence[float]] = ()
    accelerations: Sequence[Sequence[float]] = ()
    points: int = 0
    received_ns: int = 0
    received_steady_ns: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Form:
    """What a proposal must look like. Times in s."""

    joints: tuple[str, ...]
    base_frame: str
    max_points: int
    max_horizon: float
    max_stamp_age: float
    max_stamp_lead: float


@dataclass(frozen=True)
class Chunk:
    """A well-formed proposal, in the robot's joint order. Derivatives that were not given are None.

    Attributes:
        times: (K,) int64 ns, absolute.
        positions, velocities, accelerations: (K, n).
    """

    source: str
    sequence: int
    times: NDArray[np.int64]
    positions: Array
    velocities: Array | None = None
    accelerations: Array | None = None
    requested: int = field(default=0)


def validate(proposal: Proposal, form: Form) -> Chunk | Finding:
    """A chunk, or the first thing that is wrong with the proposal."""
    checks: tuple[Callable[[Proposal, Form], Finding | None], ...] = (
        _check_points,
        _check_joints,
        _check_frame,
        _check_stamp,
        _check_times,
    )
    for check in checks:
        finding = check(proposal, form)
        if finding is not None:
            return finding
    arrays: list[Array | None] = []
    order = [list(proposal.joint_names).index(name) for name in form.joints]
    for kind in ("positions", "velocities", "accelerations"):
        values = _array(getattr(proposal, kind), kind, proposal, optional=kind != "positions")
        if isinstance(values, Finding):
            return values
        arrays.append(None if values is None else values[:, order])
    if arrays[2] is not None and arrays[1] is None:
        return Finding("shape", "velocities", 0, len(form.joints))
    positions = arrays[0]
    assert positions is not None  # not optional
    stamp = proposal.stamp_ns if proposal.stamp_ns else proposal.received_ns
    times = np.array([stamp + int(t) for t in proposal.times_ns], dtype=np.int64)
    return Chunk(proposal.source, proposal.sequence, times, positions, arrays[1], arrays[2], len(times))


def _check_points(proposal: Proposal, form: Form) -> Finding | None:
    count = max(proposal.points, len(proposal.times_ns), len(proposal.positions))
    if not 1 <= count <= form.max_points:
        return Finding("points", "trajectory", count, form.max_points)
    if len(proposal.times_ns) != count or len(proposal.positions) != count:
        return Finding("shape", "times", len(proposal.times_ns), count)
    return None


def _check_joints(proposal: Proposal, form: Form) -> Finding | None:
    if len(proposal.joint_names) > 10 * len(form.joints):
        return Finding("joint_names", str(proposal.joint_names[0])[:80], len(proposal.joint_names), len(form.joints))
    names = [str(name) for name in proposal.joint_names]
    wrong = [n for n in names if n not in form.joints or names.count(n) > 1]
    wrong += [n for n in form.joints if n not in names]
    if wrong:
        return Finding("joint_names", wrong[0][:80], len(names), len(form.joints))
    return None


def _check_frame(proposal: Proposal, form: Form) -> Finding | None:
    # Joint motion has no frame of its own; an empty one is what teleoperation tools send.
    return None if proposal.frame in ("", form.base_frame) else Finding("frame", str(proposal.frame)[:80])


def _check_stamp(proposal: Proposal, form: Form) -> Finding | None:
    if proposal.stamp_ns == 0 and proposal.source in (PLANNER, OVERRIDE):
        return None  # as for the controller: zero means now
    age = _clamped(proposal.received_ns - proposal.stamp_ns)
    if age > form.max_stamp_age:
        return Finding("stale_stamp", proposal.source, age, form.max_stamp_age)
    if -age > form.max_stamp_lead:
        return Finding("future_stamp", proposal.source, -age, form.max_stamp_lead)
    return None


def _check_times(proposal: Proposal, form: Form) -> Finding | None:
    previous = -1
    for k, time in enumerate(proposal.times_ns):
        if not isinstance(time, int | np.integer) or isinstance(time, bool):
            return Finding("times", f"times[{k}]", math.nan, 0.0)
        if time <= previous:
            return Finding("times", f"times[{k}]", _clamped(time), _clamped(max(previous, 0)))
        previous = int(time)
    if previous > form.max_horizon * NS:
        return Finding("horizon", "trajectory", _clamped(previous), form.max_horizon)
    return None


def _clamped(ns: int) -> float:
    """ns as s, for integers of any size."""
    return float(max(-(10**30), min(10**30, int(ns)))) / NS


def _array(rows: Any, kind: str, proposal: Proposal, *, optional: bool) -> Array | None | Finding:
    """(K, n) numbers in the proposal's joint order; None when an optional kind is absent throughout."""
    count, width = len(proposal.times_ns), len(proposal.joint_names)
    lengths = [_length(row) for row in rows]
    if optional and not any(lengths):
        return None
    if len(lengths) != count:
        return Finding("shape", kind, len(lengths), count)
    for k, length in enumerate(lengths):
        if length != width:
            return Finding("shape", f"{kind}[{k}]", length, width)
    try:
        values = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return Finding("not_finite", kind)
    if values.shape != (count, width):
        return Finding("shape", kind, values.ndim, 2)
    finite = np.isfinite(values)
    if not finite.all():
        k, j = (int(i) for i in np.argwhere(~finite)[0])
        return Finding("not_finite", f"{kind}[{k}] of {proposal.joint_names[j]}", float(values[k, j]))
    return values


def _length(row: Any) -> int:
    try:
        return len(row)
    except TypeError:
        return -1
