"""A way out: slowly back along the path just travelled, while a human confirms (I20).

Proof obligation. A retreat is a plan like any other: every message of it is verified with its stop. Where the robot
already rests inside a margin or beyond a limit, a Ratchet takes the place of that one bound: the best value reached so
far, less `_ROUNDING`. So what is violated may only get better, and everything else is kept as ever. No message is made
without a fresh confirmation, and what is committed always ends at rest: letting go stops within a cycle.
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vla_contract.interpolation import Trajectory
from vla_safety.core.config import RetreatSettings
from vla_safety.core.findings import Finding
from vla_safety.core.motion import NS, Array, Motion, State, nanoseconds, seconds
from vla_safety.core.verification import Verifier

_ROUNDING = 1e-3  # m or rad; what "not deeper" means: the arcs between samples need room
_STILL = 1e-9  # rad or m from one cycle to the next: at rest
_GAP = 0.25  # s between two records, above which the path is not known
_STEP = 0.1  # s between knots
_RAMP = 0.5  # s to speed up and to slow down
_FADE, _FADE_SPEED = 1.0, 0.05  # s, rad/s in which an offset between robot and path goes
_PAUSE = 0.3  # s at rest before it moves: the controller comes from where it is
_RESERVE = 0.9  # of the speed limit, at the knots: between them it may be a little faster


@dataclass(frozen=True)
class _Record:
    """One state of the path; `time` ns, of motion only: rest takes none."""

    time: int
    state: State


class Trail:
    """The path that was commanded, as far back as `memory` s of motion."""

    def __init__(self, memory: float):
        self._memory = nanoseconds(memory)
        self._records: deque[_Record] = deque()
        self._seen_ns = 0

    def __len__(self) -> int:
        return len(self._records)

    def clear(self) -> None:
        """Forgets the path."""
        self._records.clear()

    def record(self, now_ns: int, state: State | None) -> None:
        """What is commanded now. To be called in each cycle."""
        if state is None:
            return
        passed, self._seen_ns = now_ns - self._seen_ns, now_ns
        if not self._records:
            self._records.append(_Record(0, state))
            return
        last = self._records[-1]
        if (np.abs(state.position - last.state.position) <= _STILL).all():
            self._records[-1] = replace(last, state=state)
            return
        if not 0 < passed <= _GAP * NS:
            self.clear()
        time = last.time + passed if self._records else 0
        self._records.append(_Record(time, state))
        while self._records[0].time < time - self._memory:
            self._records.popleft()

    def rebase(self, state: State, tolerance: float, moved: NDArray[np.bool_]) -> None:
        """The robot was taken over at rest in `state`: on the path, within `tolerance`, or the path is of no use."""
        if self.cut(state.position, tolerance, moved) is not None:
            self.clear()
        time = self._records[-1].time + nanoseconds(_RAMP) if self._records else 0
        self._records.append(_Record(time, state))

    def cut(self, position: Array, tolerance: float, moved: NDArray[np.bool_]) -> Finding | None:
        """Forgets what comes after the place next to `position` (n,). If there is none: the finding, and nothing is
        forgotten.

        Args:
            tolerance: rad, that the place may be away.
            moved: (n,) joints that count.
        """
        gaps = [float(np.abs((r.state.position - position)[moved]).max()) for r in self._records]
        if not min(gaps, default=np.inf) <= tolerance:
            return Finding("no_trail", "path", min(gaps, default=np.inf), tolerance)
        # Of the places that are equally near the newest one: no detour is skipped.
        nearest = len(gaps) - 1 - int(np.argmin(gaps[::-1]))
        while len(self._records) > nearest + 1:
            self._records.pop()
        return None

    def path(self) -> Motion | None:
        """What is remembered, oldest first; None: no motion."""
        if len(self._records) < 2:
            return None
        states = [r.state for r in self._records]
        return Motion(
            np.array([r.time for r in self._records], dtype=np.int64),
            np.array([s.position for s in states]),
            np.array([s.velocity for s in states]),
            np.array([s.acceleration for s in states]),
        )


class Ratchet:
    """Rules for a robot that rests where it may not be, at `position` (n,): what is violated may only get better, each
    zone by itself."""

    def __init__(self, verifier: Verifier, position: Array):
        self._verifier = verifier = verifier.split(position)
        self._best = np.full(len(verifier.margins), -np.inf)
        self._above = np.full(len(verifier.limits), np.inf)
        self._below = np.full(len(verifier.limits), np.inf)

    def at(self, position: Array) -> Verifier:
        """The rules for what goes on from `position` (n,)."""
        verifier, limits = self._verifier, self._verifier.limits
        self._best = np.maximum(self._best, verifier.distances(position))
        self._above = np.minimum(self._above, position - limits.max_position)
        self._below = np.minimum(self._below, limits.min_position - position)
        margins = np.minimum(verifier.margins, self._best - _ROUNDING)
        if (margins >= verifier.margins).all() and (self._above <= 0).all() and (self._below <= 0).all():
            return verifier
        over = np.where(self._above > 0, self._above + _ROUNDING, 0.0)
        under = np.where(self._below > 0, self._below + _ROUNDING, 0.0)
        wider = replace(limits, max_position=limits.max_position + over, min_position=limits.min_position - under)
        return verifier.loosened(margins, wider)


def way_back(
    path: Motion,
    position: Array,
    start_ns: int,
    verifier: Verifier,
    settings: RetreatSettings,
    moved: NDArray[np.bool_],
) -> Motion:
    """Back along `path` from its end to its start, at a slow and even speed; from rest at `position` (n,) to rest.

    The path's own times are forgotten: with P(s) the path backwards, s in seconds at full retreat speed, and s(t) that
    rises and falls smoothly at its ends, q(t) = P(s(t)) + offset * fade(t).

    Args:
        moved: (n,) joints that go back; the others (a gripper) stay.

    Returns:
        The motion, with a pause at its start.
    """
    positions = np.where(moved, path.positions, position)
    backwards = _evenly(replace(path, positions=positions), verifier, settings)
    length = float(backwards.times[-1])
    ramp = min(_RAMP, length)
    t = np.linspace(0.0, length + ramp, max(4, int(np.ceil((length + ramp) / _STEP)) + 1))
    s, ds, dds = _warp(t, ramp, length - ramp)
    sample = backwards.sample(np.clip(s, 0.0, length))
    offset = position - positions[-1]
    w, dw, ddw = _fade(t, min(length + ramp, max(_FADE, float(np.abs(offset).max()) / _FADE_SPEED)))
    q = sample.positions + w[:, None] * offset
    v = sample.velocities * ds[:, None] + dw[:, None] * offset
    a = sample.accelerations * ds[:, None] ** 2 + sample.velocities * dds[:, None] + ddw[:, None] * offset
    v[[0, -1]] = 0.0
    a[[0, -1]] = 0.0
    q[0] = position
    slower = min(1.0, 1.0 / _share(v, verifier, settings).max(initial=1.0))

    def at(scale: float) -> Motion:
        times = start_ns + nanoseconds(_PAUSE) + np.round(t / scale * NS).astype(np.int64)
        return Motion(
            np.concatenate([np.array([start_ns], dtype=np.int64), times]),
            np.concatenate([q[:1], q]),
            np.concatenate([v[:1], v * scale]),
            np.concatenate([a[:1], a * scale**2]),
        )

    motion = at(slower)
    capped = verifier.pace(motion)[0]  # slow zones and the like
    return at(slower * capped) if 0.0 < capped < 1.0 else motion


def _share(speeds: Array, verifier: Verifier, settings: RetreatSettings) -> Array:
    """(K,): by how much joint speeds (K, n) exceed what a retreat may use: of the links and of the joints."""
    links = (np.abs(speeds) @ verifier.model.reach.T).max(axis=1) / (settings.link_speed * _RESERVE)
    joints = (np.abs(speeds) / (verifier.limits.max_velocity * settings.pace)).max(axis=1)
    return np.maximum(links, joints)


def _evenly(path: Motion, verifier: Verifier, settings: RetreatSettings) -> Trajectory:
    """The path backwards, in seconds at the speed of a retreat, through places `_STEP` s apart."""
    steps = _share(np.diff(path.positions[::-1], axis=0), verifier, settings)  # s that each piece takes
    since = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 1e-9))])
    length = max(float(since[-1]), 2 * _STEP)
    since *= length / since[-1]
    even = np.linspace(0.0, length, int(np.ceil(length / _STEP)) + 1)
    own = (path.times[-1] - path.times[::-1]) * 1e-9
    places = path.curve.sample(path.duration - np.interp(even, since, own)).positions
    places = np.where((path.positions == path.positions[0]).all(axis=0), path.positions[0], places)
    places[0], places[-1] = path.positions[-1], path.positions[0]
    velocities = np.gradient(places, even, axis=0)
    return Trajectory(even, places, velocities, np.gradient(velocities, even, axis=0))


def _warp(t: Array, ramp: float, cruise: float) -> tuple[Array, Array, Array]:
    """Way, pace and its change at `t` (K,) s: up to one in `ramp`, `cruise` s at one, down in `ramp`; smoothly."""
    up, down = np.clip(t / ramp, 0, 1), np.clip((t - ramp - cruise) / ramp, 0, 1)

    def way(u: Array) -> Array:
        return np.asarray(u**3 - u**4 / 2)

    def rate(u: Array) -> Array:
        return np.asarray(3 * u**2 - 2 * u**3)

    s = ramp * (way(up) + down - way(down)) + np.clip(t - ramp, 0, cruise)
    return s, rate(up) - rate(down), 6 / ramp * (up * (1 - up) - down * (1 - down))


def _fade(t: Array, duration: float) -> tuple[Array, Array, Array]:
    """From one to zero in `duration` s, with its derivatives; at rest at both ends."""
    u = np.clip(t / duration, 0, 1)
    w = 1 - (10 * u**3 - 15 * u**4 + 6 * u**5)
    dw = -(30 * u**2 - 60 * u**3 + 30 * u**4) / duration
    ddw = -(60 * u - 180 * u**2 + 120 * u**3) / duration**2
    return w, dw, ddw


def left(motion: Motion, now_ns: int) -> float:
    """[0, 1]: how much of a motion is still ahead."""
    return min(1.0, max(0.0, seconds(motion.end - now_ns) / motion.duration)) if motion.duration > 0 else 0.0
