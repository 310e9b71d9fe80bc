"""Pairs camera images and joint states by their stamps. What is missing, late, skewed or frozen is refused by name and
never filled in.

Two clocks: stamps are compared with the clock that stamps are made with; receipt is judged by a clock that nobody sets
(the steady clock on a robot; the simulator's under simulated time).
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import VlaError, unknown
from vla_contract.policy import History

Array = NDArray[np.float64]
T = TypeVar("T")

JOINTS = "joint_states"
_NS = 1e-9
_IMAGES_KEPT = 4  # per camera, however old
_STATES_KEPT = 512
_STATES_PER_SECOND = 2000  # most that come while a policy looks back
_FINEST = 0.125  # spacings of a history, that its images are kept apart: more of them would only take memory
# So far a joint state's velocities tell where the joints will be: at 15 rad/s² (more than arms are given) 0.75 mrad
# are missing at the end of it. Waiting for the next state instead costs half a period of the broadcaster.
_AHEAD_NS = 10_000_000
_BACKWARDS_NS = 1_000_000_000  # a stamp that falls back further belongs to a driver that started again


class StreamError(VlaError):
    """Input streams do not make an observation. `problems` holds one line for each, beginning with its name."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True)
class Tolerances:
    """What still counts as one instant.

    Attributes:
        image_age, joint_age: s, oldest that an image or a joint state may be.
        skew: s, most between the images of one observation, and between them and the joint state.
        future: s, most that a stamp may lie ahead of the clock.
        frozen_motion: rad or m; a camera whose picture stays the same while a joint moves this far is frozen.
        frozen_time: s; joints whose positions stay the same for this long while they claim a velocity are frozen.
    """

    image_age: float = 0.35
    joint_age: float = 0.2
    skew: float = 0.05
    future: float = 0.05
    frozen_motion: float = 0.2
    frozen_time: float = 0.3


@dataclass(frozen=True)
class Paired(Generic[T]):
    """One instant: `stamp_ns` is that of its newest image; joint state interpolated there, (n,) rad or m."""

    stamp_ns: int
    images: Mapping[str, T]
    positions: Array
    velocities: Array


@dataclass(frozen=True)
class _Image(Generic[T]):
    stamp_ns: int
    received_ns: int
    image: T


@dataclass(frozen=True)
class _State:
    stamp_ns: int
    received_ns: int
    positions: Array
    velocities: Array


@dataclass
class _Still:
    """Since when a camera shows the same picture, and where the joints were then; None: not known yet."""

    fingerprint: int
    since_ns: int
    positions: Array | None


class ObservationBuffer(Generic[T]):
    """The newest of every stream. Images are opaque: nothing is decoded before it is used.

    Args:
        cameras: names that an observation needs.
        joints: (n,) names, the order of the joint vectors.
        history: that `earlier` gives; None: the present only.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        joints: Sequence[str],
        tolerances: Tolerances = Tolerances(),
        history: History | None = None,
    ):
        self.tolerances = tolerances
        self._joints = tuple(joints)
        self._history = history
        # The present lies as far behind the newest image as the slowest camera may; alone, a camera is the slowest.
        reach = 0.0 if history is None else history.span
        if history is not None or len(cameras) > 1:
            reach += tolerances.image_age + tolerances.future
        self._reach_ns, self._apart_ns = round(reach / _NS), round((history.dt if history else 0.0) * _FINEST / _NS)
        self._images: dict[str, deque[_Image[T]]] = {name: deque() for name in cameras}
        self._still: dict[str, _Still] = {}
        self._states: deque[_State] = deque(maxlen=_STATES_KEPT + math.ceil(reach * _STATES_PER_SECOND))
        self._unmoved_since = 0
        self._image_faults: dict[str, str] = {}
        self._joint_fault = ""
        self._order: tuple[tuple[str, ...], NDArray[np.intp]] | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """Names, as in error messages."""
        return (*(f"camera {name}" for name in self._images), JOINTS)

    def add_image(self, camera: str, stamp_ns: int, received_ns: int, image: T, fingerprint: int) -> None:
        """Takes an image. `fingerprint` is equal for equal pictures."""
        kept = self._images[camera]
        if kept and stamp_ns <= kept[-1].stamp_ns:
            if kept[-1].stamp_ns - stamp_ns < _BACKWARDS_NS:
                return  # out of order, or a repetition that must not pass as fresh
            kept.clear()
        kept.append(_Image(stamp_ns, received_ns, image))
        self._forget(kept)
        still = self._still.get(camera)
        if still is None or still.fingerprint != fingerprint:
            # Not the newest joint state: it may be older than the picture, from before the robot moved.
            reached = bool(self._states) and self._states[-1].stamp_ns >= stamp_ns
            self._still[camera] = _Still(fingerprint, stamp_ns, self._states[-1].positions if reached else None)

    def _forget(self, kept: deque[_Image[T]]) -> None:
        """Drops what is not worth its memory: images closer together than a history needs, and older than it."""
        if len(kept) > _IMAGES_KEPT + 1:
            k = len(kept) - _IMAGES_KEPT - 1  # the newest that is not among the newest few
            if kept[k].stamp_ns - kept[k - 1].stamp_ns < self._apart_ns:
                del kept[k]
        while len(kept) > _IMAGES_KEPT and kept[1].stamp_ns <= kept[-1].stamp_ns - self._reach_ns:
            kept.popleft()

    def refuse_images(self, camera: str, problem: str) -> None:
        """The images that arrive are not what they should be; empty: they are again."""
        self._image_faults[camera] = problem

    def add_joints(
        self,
        stamp_ns: int,
        received_ns: int,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
    ) -> None:
        """Takes a joint state; its names may come in any order and hold more joints than ours."""
        if self._states and stamp_ns <= self._states[-1].stamp_ns:
            if self._states[-1].stamp_ns - stamp_ns < _BACKWARDS_NS:
                return
            self._states.clear()
        try:
            columns = self._columns(tuple(names))
            state = _State(
                stamp_ns,
                received_ns,
                self._pick(columns, names, "positions", positions),
                self._pick(columns, names, "velocities", velocities),
            )
        except StreamError as error:
            self._joint_fault = str(error)
            return
        self._joint_fault = ""
        if not self._states or np.any(self._states[-1].positions != state.positions):
            self._unmoved_since = stamp_ns
        self._states.append(state)
        for still in self._still.values():
            if still.positions is None and stamp_ns >= still.since_ns:
                still.positions = state.positions

    def _columns(self, names: tuple[str, ...]) -> NDArray[np.intp]:
        if self._order is None or self._order[0] != names:
            missing = [j for j in self._joints if j not in names]
            if missing:
                raise StreamError([f"{JOINTS}: {unknown('joint', missing[0], names)}"])
            if len(set(names)) != len(names):
                raise StreamError([f"{JOINTS}: names {list(names)} hold duplicates; name each joint once"])
            self._order = (names, np.array([names.index(j) for j in self._joints], dtype=np.intp))
        return self._order[1]

    def _pick(self, columns: NDArray[np.intp], names: Sequence[str], what: str, values: Sequence[float]) -> Array:
        if len(values) != len(names):
            raise StreamError(
                [f"{JOINTS}: {len(values)} {what} for {len(names)} names; the broadcaster must publish them"]
            )
        picked = np.asarray(values, dtype=np.float64)[columns]
        if not np.isfinite(picked).all():
            k = int(np.argmax(~np.isfinite(picked)))
            raise StreamError([f"{JOINTS}: {what} of '{self._joints[k]}' are {picked[k]}, expected a finite number"])
        return picked

    def ages(self, now_ns: int) -> dict[str, float]:
        """Stream -> s since the stamp of its newest message; inf: none yet."""
        newest = {f"camera {name}": kept[-1].stamp_ns if kept else None for name, kept in self._images.items()}
        newest[JOINTS] = self._states[-1].stamp_ns if self._states else None
        return {name: float("inf") if stamp is None else (now_ns - stamp) * _NS for name, stamp in newest.items()}

    def newest_stamp(self) -> int:
        """Stamp of the newest image that every camera has reached [ns]; -1: a camera has none."""
        return min((kept[-1].stamp_ns if kept else -1 for kept in self._images.values()), default=self._joint_stamp())

    def _joint_stamp(self) -> int:
        return self._states[-1].stamp_ns if self._states else -1

    def joints_reach(self, stamp_ns: int, now_ns: int, ahead: bool = False) -> bool:
        """Whether the joint states have come as far as `stamp_ns`, or are so late that nobody should wait for them.

        Args:
            ahead: do not wait for the next one where the newest leads there by its velocities (see `_AHEAD_NS`).
        """
        missing = stamp_ns - self._joint_stamp()
        return missing <= (_AHEAD_NS if ahead else 0) or (now_ns - stamp_ns) * _NS > self.tolerances.skew

    def joints_now(self, now_ns: int, watch_ns: int) -> tuple[Array, Array]:
        """The newest joint positions and velocities, each (n,).

        Raises:
            StreamError: when they are missing, stale or frozen.
        """
        problems = self._joint_problems(now_ns, watch_ns)
        if problems:
            raise StreamError(problems)
        return self._states[-1].positions, self._states[-1].velocities

    def pair(self, now_ns: int, watch_ns: int) -> Paired[T]:
        """The newest instant that all streams share.

        Args:
            now_ns: time of the clock that stamps are made with.
            watch_ns: time of the clock that receipt was noted with.

        Raises:
            StreamError: one line for every stream that is missing, stale, ahead of the clock, skewed or frozen.
        """
        problems = [p for name in self._images for p in self._image_problems(name, now_ns, watch_ns)]
        problems += self._joint_problems(now_ns, watch_ns)
        if problems:
            raise StreamError(problems)
        common = self.newest_stamp()
        chosen = {name: _closest(kept, common) for name, kept in self._images.items()}
        stamps = {name: image.stamp_ns for name, image in chosen.items()} or {JOINTS: common}
        newest, oldest = max(stamps, key=stamps.__getitem__), min(stamps, key=stamps.__getitem__)
        skew = (stamps[newest] - stamps[oldest]) * _NS
        if skew > self.tolerances.skew:
            raise StreamError(
                [f"camera {oldest}: {skew:.3f} s behind camera {newest} (> {self.tolerances.skew} s); sync them"]
            )
        positions, velocities = self._state_at(stamps[newest])
        images = {name: image.image for name, image in chosen.items()}
        return Paired(stamps[newest], images, positions, velocities)

    def earlier(self, stamp_ns: int, since_ns: int = 0) -> tuple[Paired[T], ...]:
        """The history of the instant `stamp_ns`, oldest first: `steps` instants, as near as images come to their times.

        Where the streams or the episode have not lasted so long, their first instant is in the place of what was before
        it, as in training. Empty without a history. Ask after `pair` has made the present.

        Args:
            since_ns: when the episode began; nothing of before it is shown.

        Raises:
            StreamError: when a stream has a gap there.
        """
        if self._history is None:
            return ()
        episode = {
            name: [image for image in kept if image.stamp_ns >= since_ns] or [kept[-1]]
            for name, kept in self._images.items()
        }
        firsts = [since_ns, self._states[0].stamp_ns, *(images[0].stamp_ns for images in episode.values())]
        begin = min(max(firsts), stamp_ns)
        back = [round(k * self._history.dt / _NS) for k in range(self._history.steps, 0, -1)]
        return tuple(self._instant(episode, max(begin, stamp_ns - ago), stamp_ns) for ago in back)

    def _instant(self, episode: Mapping[str, Sequence[_Image[T]]], wanted_ns: int, present_ns: int) -> Paired[T]:
        assert self._history is not None
        chosen = {name: _closest(images, wanted_ns) for name, images in episode.items()}
        most = max(self.tolerances.skew, self._history.dt)
        for name, image in chosen.items():
            missed = abs(image.stamp_ns - wanted_ns) * _NS
            if missed > most:
                raise StreamError(
                    [
                        f"camera {name}: a gap {(present_ns - wanted_ns) * _NS:.2f} s ago, where the policy looks back "
                        f"to; the nearest image is {missed:.3f} s off (> {most:g} s)"
                    ]
                )
        stamp_ns = max((image.stamp_ns for image in chosen.values()), default=wanted_ns)
        positions, velocities = self._state_at(stamp_ns)
        return Paired(stamp_ns, {name: image.image for name, image in chosen.items()}, positions, velocities)

    def _image_problems(self, name: str, now_ns: int, watch_ns: int) -> list[str]:
        kept = self._images[name]
        if self._image_faults.get(name):
            return [self._image_faults[name]]
        if not kept:
            return [f"camera {name}: no image yet"]
        newest = kept[-1]
        problems = self._time_problems(f"camera {name}", newest, now_ns, watch_ns, self.tolerances.image_age)
        still = self._still[name]
        if still.positions is not None and self._states:
            moved = np.abs(self._states[-1].positions - still.positions)
            if moved.max() > self.tolerances.frozen_motion and newest.stamp_ns > still.since_ns:
                joint = self._joints[int(moved.argmax())]
                since = (now_ns - still.since_ns) * _NS
                problems.append(
                    f"camera {name}: frozen, the same picture for {since:.2f} s while '{joint}' moved {moved.max():.2f}"
                )
        return problems

    def _joint_problems(self, now_ns: int, watch_ns: int) -> list[str]:
        if self._joint_fault:
            return [self._joint_fault]
        if not self._states:
            return [f"{JOINTS}: none yet"]
        newest = self._states[-1]
        problems = self._time_problems(JOINTS, newest, now_ns, watch_ns, self.tolerances.joint_age)
        unmoved = (newest.stamp_ns - self._unmoved_since) * _NS
        fastest = int(np.abs(newest.velocities).argmax())
        if unmoved > self.tolerances.frozen_time and abs(newest.velocities[fastest]) * unmoved > 0.1:
            problems.append(
                f"{JOINTS}: frozen, positions the same for {unmoved:.2f} s while '{self._joints[fastest]}' claims "
                f"{newest.velocities[fastest]:.3f} rad/s"
            )
        return problems

    def _time_problems(
        self, name: str, newest: "_Image[T] | _State", now_ns: int, watch_ns: int, longest: float
    ) -> list[str]:
        age, silence = (now_ns - newest.stamp_ns) * _NS, (watch_ns - newest.received_ns) * _NS
        if age < -self.tolerances.future:
            return [
                f"{name}: stamp {-age:.3f} s ahead of the clock (> {self.tolerances.future} s); synchronise the clocks"
            ]
        if silence > longest:
            return [f"{name}: silent for {silence:.2f} s (> {longest} s)"]
        if age > longest:
            return [f"{name}: stale, stamped {age:.2f} s ago (> {longest} s)"]
        return []

    def _state_at(self, stamp_ns: int) -> tuple[Array, Array]:
        k = bisect_left(self._states, stamp_ns, key=attrgetter("stamp_ns"))
        if 0 < k < len(self._states):
            before, after = self._states[k - 1], self._states[k]
            share = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
            return (
                before.positions + share * (after.positions - before.positions),
                before.velocities + share * (after.velocities - before.velocities),
            )
        nearest = self._states[min(k, len(self._states) - 1)]
        gap = abs(nearest.stamp_ns - stamp_ns) * _NS
        if gap > self.tolerances.skew:
            side = "behind" if nearest.stamp_ns < stamp_ns else "ahead of"
            raise StreamError([f"{JOINTS}: {gap:.3f} s {side} the images (> {self.tolerances.skew} s)"])
        lead = stamp_ns - nearest.stamp_ns
        if 0 < lead <= _AHEAD_NS:
            return nearest.positions + lead * _NS * nearest.velocities, nearest.velocities
        return nearest.positions, nearest.velocities


def _closest(images: Iterable[_Image[T]], stamp_ns: int) -> _Image[T]:
    return min(images, key=lambda image: abs(image.stamp_ns - stamp_ns))
