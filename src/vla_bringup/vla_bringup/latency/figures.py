"""From what was seen on the topics to figures. No ROS, no processes. Times in ns of one clock unless a name says ms."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_policy_node.core.pacing import Pacer

_TAKEN = 2  # SafetyDecision: ACCEPTED, SLOWED, TRIMMED: something of the chunk is commanded


@dataclass(frozen=True)
class Sample:
    """One chunk on its way from the cameras to the controller; all in ms.

    Attributes:
        total: from the images' stamp to the arrival of the command that the filter made of the chunk.
        inference: the model alone.
        policy: from the images' stamp to the publication of the chunk, without `inference`.
        filter: from the chunk's receipt to the command's publication, as the filter measured it.
        lost: between the images that were used and the first ones that the policy node could have used, had they come.
    """

    total: float
    inference: float
    policy: float
    filter: float
    lost: float = 0.0

    @property
    def arrived(self) -> float:
        """What the stack adds to the model, for images that arrive."""
        return self.total - self.inference

    @property
    def overhead(self) -> float:
        """The same, from the first images that the policy node was ready for: a transport that loses them is slow."""
        return self.arrived + self.lost


@dataclass(frozen=True)
class Seen:
    """What the stand-in for the robot saw in one phase.

    Attributes:
        stamps: of the images, in the header -> when they were taken, by the clock of all other times.
        chunks: sequence -> (stamp in the header, published, inference in ns).
        commands: (published, arrived).
        decisions: (published, sequence, verdict, latency in ns).
    """

    stamps: Mapping[int, int]
    chunks: Mapping[int, tuple[int, int, int]]
    commands: Sequence[tuple[int, int]]
    decisions: Sequence[tuple[int, int, int, int]]


def seen_from(values: Mapping[str, Any]) -> Seen:
    """From JSON, whose keys are texts."""
    return Seen(
        {int(k): v for k, v in values["stamps"].items()},
        {int(k): (v[0], v[1], v[2]) for k, v in values["chunks"].items()},
        [(a, b) for a, b in values["commands"]],
        [(a, b, c, d) for a, b, c, d in values["decisions"]],
    )


def samples(seen: Seen, horizon: float) -> list[Sample]:
    """One for each chunk that the filter passed on; `horizon`: s between two observations, as scheduled.

    The filter publishes the command that a chunk leads to and then, in the same breath, its decision: the command is
    the newest that was published before the decision.
    """
    commands = sorted(seen.commands)
    published = [command[0] for command in commands]
    taken_at = sorted(seen.stamps.values())
    horizons = _horizons(seen, horizon)
    found = []
    for decided, sequence, verdict, latency in seen.decisions:
        chunk, k = seen.chunks.get(sequence), bisect_right(published, decided) - 1
        if verdict > _TAKEN or chunk is None or k < 0 or commands[k][0] < chunk[1] or chunk[0] not in seen.stamps:
            continue
        taken, inference = seen.stamps[chunk[0]], chunk[2] * 1e-6
        found.append(
            Sample(
                (commands[k][1] - taken) * 1e-6,
                inference,
                (chunk[1] - taken) * 1e-6 - inference,
                latency * 1e-6,
                _lost(seen, taken_at, sequence, taken, horizons) * 1e-6,
            )
        )
    return found


def _horizons(seen: Seen, horizon: float) -> dict[int, int]:
    """By sequence, ns from a chunk's observation to the next one that is wanted: the schedule asks a slow model less
    often, and that wait is no one's latency."""
    pacer, found = Pacer(horizon, 0.0, 0.0), {}
    for sequence, (stamp, published, _) in sorted(seen.chunks.items()):
        if stamp in seen.stamps:
            pacer.measured((published - seen.stamps[stamp]) * 1e-9)
        found[sequence] = round(max(horizon, pacer.expected) * 1e9)
    return found


def _lost(seen: Seen, taken_at: Sequence[int], sequence: int, taken: int, horizons: Mapping[int, int]) -> int:
    """ns from the first images that were due after the chunk before this one to those of `taken`."""
    before = seen.chunks.get(sequence - 1)
    if before is None or before[0] not in seen.stamps:
        return 0
    ready = max(seen.stamps[before[0]] + horizons[sequence - 1], before[1])
    first = bisect_left(taken_at, ready)
    return max(0, taken - taken_at[first]) if first < len(taken_at) else 0


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and how many; NaN: none."""
    if not len(values):
        return {"p50_ms": float("nan"), "p90_ms": float("nan"), "p99_ms": float("nan"), "count": 0}
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "count": len(values)}


def overheads(found: Sequence[Sample]) -> list[float]:
    """ms, of each."""
    return [sample.overhead for sample in found]


def growth(series: Sequence[tuple[float, float]]) -> float:
    """By how much the second half of (s, MB) lies above its middle, by a robust line (Theil-Sen) [MB]: 0 when flat.

    The first half is left out: allocators and caches fill up.
    """
    half = (
        [point for point in series if point[0] >= series[0][0] + (series[-1][0] - series[0][0]) / 2] if series else []
    )
    if len(half) < 3:
        return float("nan")
    times, sizes = np.array(half).T
    pairs = np.triu_indices(len(times), 1)
    slopes = (sizes[pairs[1]] - sizes[pairs[0]]) / (times[pairs[1]] - times[pairs[0]])
    return float(np.median(slopes) * (times[-1] - times[0]))
