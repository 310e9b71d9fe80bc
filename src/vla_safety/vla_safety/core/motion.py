"""What the controller plays: knots on its clock, and the curve between them."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vla_contract.interpolation import Trajectory

Array = NDArray[np.float64]

NS = 1_000_000_000


def seconds(ns: int) -> float:
    """Nanoseconds as seconds."""
    return ns / NS


def nanoseconds(s: float) -> int:
    """Seconds as nanoseconds, rounded."""
    return round(s * NS)


@dataclass(frozen=True)
class State:
    """A commanded state; each (n,): rad or m, and derivatives by seconds."""

    position: Array
    velocity: Array
    acceleration: Array

    @property
    def at_rest(self) -> bool:
        """Exactly at rest."""
        return not (self.velocity.any() or self.acceleration.any())


def rest(position: Array) -> State:
    """At rest at `position` (n,)."""
    return State(position, np.zeros_like(position), np.zeros_like(position))


@dataclass(frozen=True)
class Motion:
    """Knots of a motion: the controller plays the quintic through them, and rests at the last one.

    Attributes:
        times: (K,) int64, ns on the controller's clock, strictly increasing.
        positions, velocities, accelerations: (K, n).
    """

    times: NDArray[np.int64]
    positions: Array
    velocities: Array
    accelerations: Array

    @staticmethod
    def at(time_ns: int, state: State) -> "Motion":
        """One knot."""
        return Motion(
            np.array([time_ns], dtype=np.int64),
            state.position[None].copy(),
            state.velocity[None].copy(),
            state.acceleration[None].copy(),
        )

    def __len__(self) -> int:
        return len(self.times)

    @property
    def start(self) -> int:
        """ns"""
        return int(self.times[0])

    @property
    def end(self) -> int:
        """ns"""
        return int(self.times[-1])

    @property
    def duration(self) -> float:
        """s"""
        return seconds(self.end - self.start)

    @cached_property
    def curve(self) -> Trajectory:
        """The interpolant; its times are s since `start`."""
        return Trajectory((self.times - self.times[0]) * 1e-9, self.positions, self.velocities, self.accelerations)

    def knot(self, k: int) -> State:
        """State at knot `k`."""
        return State(self.positions[k], self.velocities[k], self.accelerations[k])

    def state(self, time_ns: int) -> State:
        """State at a time. Before the first knot that knot's position at rest, after the last one likewise.

        At a knot this is the knot itself, bit by bit.
        """
        k = int(np.searchsorted(self.times, time_ns))
        if k < len(self) and self.times[k] == time_ns:
            return self.knot(k)
        if k == 0 or k == len(self):
            return rest(self.positions[min(k, len(self) - 1)])
        sample = self.curve.sample((time_ns - self.start) * 1e-9)
        return State(sample.positions[0], sample.velocities[0], sample.accelerations[0])

    def knots(self, first: int, last: int) -> "Motion":
        """Knots `first` to `last`, both included."""
        part = slice(first, last + 1)
        return Motion(self.times[part], self.positions[part], self.velocities[part], self.accelerations[part])

    def until(self, time_ns: int) -> "Motion":
        """The part up to `time_ns`, which becomes the last knot. `time_ns` must not be before the first knot."""
        k = int(np.searchsorted(self.times, time_ns))
        if k < len(self) and self.times[k] == time_ns:
            return self.knots(0, k)
        return self.knots(0, k - 1).then(Motion.at(time_ns, self.state(time_ns)))

    def since(self, time_ns: int) -> "Motion":
        """The part from the last knot at or before `time_ns` on; a motion that has ended rests at `time_ns`.

        Starting at a knot of the past keeps every knot bit by bit and makes the time of arrival at the controller
        irrelevant: it finds itself in the middle of the curve that it already plays.
        """
        if time_ns >= self.end:
            return Motion.at(time_ns, rest(self.positions[-1]))
        return self.knots(max(0, int(np.searchsorted(self.times, time_ns, side="right")) - 1), len(self) - 1)

    def then(self, other: "Motion") -> "Motion":
        """This motion, then `other`. Where the last knot and the first coincide, it is kept once."""
        skip = 1 if len(other) and other.start == self.end else 0
        return Motion(
            np.concatenate([self.times, other.times[skip:]]),
            np.concatenate([self.positions, other.positions[skip:]]),
            np.concatenate([self.velocities, other.velocities[skip:]]),
            np.concatenate([self.accelerations, other.accelerations[skip:]]),
        )


class Timeline:
    """The commanded motion over time: what is committed now, and what was (to judge delayed measurements)."""

    def __init__(self, keep_ns: int = NS):
        self._keep_ns = keep_ns
        self._pieces: list[tuple[int, Motion]] = []

    def clear(self) -> None:
        """Forgets everything."""
        self._pieces.clear()

    @property
    def current(self) -> Motion | None:
        """The motion committed last."""
        return self._pieces[-1][1] if self._pieces else None

    def commit(self, since_ns: int, motion: Motion) -> None:
        """From `since_ns` on the controller plays `motion`."""
        pieces = [*self._pieces, (since_ns, motion)]
        kept = [
            piece
            for piece, following in pairwise(pieces)
            if following[0] > since_ns - self._keep_ns and piece[0] <= since_ns
        ]
        self._pieces = [*kept, pieces[-1]]

    def retract(self) -> bool:
        """Takes the last commitment back; False when there is none before it, and it stays."""
        if len(self._pieces) < 2:
            return False
        self._pieces.pop()
        return True

    def shift(self, ns: int) -> None:
        """The clock jumped by `ns`: the same motions, on the new clock."""
        self._pieces = [(since + ns, replace(motion, times=motion.times + ns)) for since, motion in self._pieces]

    def state(self, time_ns: int) -> State | None:
        """The commanded state at a time; None before the first commitment that is remembered."""
        for since, motion in reversed(self._pieces):
            if since <= time_ns:
                return motion.state(time_ns)
        return None
