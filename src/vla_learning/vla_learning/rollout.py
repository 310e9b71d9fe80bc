"""A checkpoint on the stage: closed-loop episodes and their verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_contract.errors import InferenceError
from vla_learning.stage import COLOURS, Pace, Stage
from vla_policy_node.backends.flow import FlowBackend, load

DONE = 0.9  # progress from which the policy calls its task finished
_DONE_IN_A_ROW = 2


@dataclass(frozen=True)
class Outcome:
    """How an episode ended. `placed`: colours in the tray; `ended`: the policy said so itself, in time."""

    seed: int
    colour: str
    instruction: str
    placed: tuple[str, ...]
    ended: bool
    duration: float

    @property
    def success(self) -> bool:
        """The named cube and no other lies in the tray."""
        return self.placed == (self.colour,)

    @property
    def wrong(self) -> bool:
        """A cube that was not named lies in the tray."""
        return any(colour != self.colour for colour in self.placed)


def load_policy(folder: Path, stage: Stage, threads: int = 2) -> FlowBackend:
    """A checkpoint for the stage's robot."""
    return load(folder, stage.robot, {"threads": threads})


def play(
    stage: Stage,
    policy: FlowBackend,
    seed: int,
    colour: str,
    instruction: str,
    pace: Pace | None = None,
    limit: float = 25.0,
) -> Outcome:
    """One episode from home in the scene of `seed`, up to `limit` s."""
    pace = pace or Pace()
    stage.start(seed)
    policy.reset()
    finished = 0
    while stage.cell.time_ns < limit * 1e9 and finished < _DONE_IN_A_ROW:
        try:
            chunk = policy.infer(stage.observe(instruction))
        except InferenceError:  # as in the running system: what plays goes on, the next observation decides
            stage.cell.run(pace.period)
            continue
        finished = finished + 1 if chunk.progress >= DONE else 0
        stage.advance(chunk.positions, pace)
    duration = stage.cell.time_ns * 1e-9
    stage.cell.run(0.5)  # a cube that still falls comes to rest
    short = {name: colour for colour, name in COLOURS.items()}
    placed = tuple(short[name] for name in stage.placed())
    return Outcome(seed, colour, instruction, placed, finished >= _DONE_IN_A_ROW, duration)


def play_all(
    stage: Stage,
    policy: FlowBackend,
    seeds: Sequence[int],
    sentence: Callable[[str, int], str],
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """One episode per seed, the colours in turn; `sentence(colour, index)` gives the instruction."""
    outcomes = []
    for i, seed in enumerate(seeds):
        colour = list(COLOURS)[i % len(COLOURS)]
        outcomes.append(play(stage, policy, int(seed), colour, sentence(colour, i)))
        report(outcomes[-1])
    return outcomes


def success_rate(outcomes: Sequence[Outcome]) -> float:
    """Share of successes."""
    return float(np.mean([outcome.success for outcome in outcomes])) if outcomes else 0.0
