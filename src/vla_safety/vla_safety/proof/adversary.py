"""I3: a policy that wants the robot out of its fence, and a filter that may die at any cycle.

The adversary knows the truth: it asks the oracle which joint motion brings robot and fence together fastest (the
gradient of the true distance, by differences), and sends chunks along it. How it sends them (speed, spacing, length,
derivatives, how often, how straight) is learned by the cross-entropy method: a generation of attacks is drawn, those
that came closest shape the distribution of the next. Each attack ends with the filter's death: nothing arrives any
more, and the robot must come to rest in its fence by what it has already got.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.findings import Verdict
from vla_safety.core.validation import Proposal
from vla_safety.proof.oracle import TOUCH, Fence, envelope_faults, read_zones
from vla_safety.proof.rig import GRIPPER_SLACK, HOME, LIMITS, ROBOT, SAFETY_FILE, START, Rig, proposal, shipped_fence
from vla_safety.proof.tally import Tally

Array = NDArray[np.float64]
N = len(HOME)
ATTACKS = 10  # in a generation
CYCLES = (20, 160)  # of the filter in an attack; it dies at a random one
# s that the robot is given to come to rest after the filter's death: lead and segment of the safety file (0.26 s), a
# late message (0.025 s), and a stop along the path from full speed (1.5 times 0.59 s, and 0.1 s).
REST = 1.3
_ELITE = 3
_STEP = 1e-4  # rad or m, of the differences
# What an attack is made of, each within its range: speed as a share of the velocity limits, s between points, s of a
# chunk, s between chunks, share of noise in the direction, probability that derivatives are sent.
_RANGES = np.array([[0.05, 2.0], [0.008, 0.2], [0.1, 2.0], [0.04, 0.4], [0.0, 1.0], [0.0, 1.0]])
_GOALS = ("zones", "self", "limits", "all")


def run_generations(seed: int, adversary: int, generations: int) -> Tally:
    """Counts of one adversary, which learns from generation to generation."""
    state = Adversary(seed, adversary)
    for _ in range(generations):
        state.generation()
    return state.tally


@dataclass
class Adversary:
    """One learning attacker.

    Attributes:
        mean, deviation: (6,) of the distribution that attacks are drawn from, in units of the ranges.
    """

    seed: int
    number: int
    tally: Tally = field(default_factory=Tally)
    mean: Array = field(default_factory=lambda: np.full(len(_RANGES), 0.5))
    deviation: Array = field(default_factory=lambda: np.full(len(_RANGES), 0.35))
    done: int = 0

    def generation(self, attacks: int = ATTACKS) -> Tally:
        """One generation of attacks, and what is learned from them. Returns its counts."""
        rng = np.random.default_rng([self.seed, self.number, self.done])
        drawn = np.clip(rng.normal(self.mean, self.deviation, (attacks, len(_RANGES))), 0, 1)
        tally, closest = Tally(), np.empty(attacks)
        for k, shares in enumerate(drawn):
            again = {
                "part": "adversary",
                "seed": self.seed,
                "adversary": self.number,
                "generation": self.done,
                "attack": k,
                "shares": shares.tolist(),
            }
            low, high = _RANGES.T
            closest[k] = _Attack(
                [self.seed, self.number, self.done, k], low + shares * (high - low), again, tally
            ).run()
        elite = drawn[np.argsort(closest)[:_ELITE]]
        self.mean = 0.5 * self.mean + 0.5 * elite.mean(axis=0)
        self.deviation = np.maximum(0.1, 0.5 * self.deviation + 0.5 * elite.std(axis=0))
        self.done += 1
        tally.counts["generations"] += 1
        self.tally.add(tally)
        return tally

    def record(self) -> dict[str, Any]:
        """What it has learned, as JSON."""
        return {"mean": self.mean.tolist(), "deviation": self.deviation.tolist(), "done": self.done}

    def restore(self, record: dict[str, Any]) -> None:
        """Goes on where a record was made."""
        self.mean, self.deviation = np.array(record["mean"]), np.array(record["deviation"])
        self.done = int(record["done"])


@cache
def _aim(goal: str) -> Fence:
    """What an attack wants to touch."""
    if goal == "self":
        return Fence(ROBOT, [])
    if goal == "zones":
        return Fence(ROBOT, read_zones(SAFETY_FILE), own=False)
    return shipped_fence()


class _Attack:
    def __init__(self, seed: list[int], shape: Array, again: dict[str, Any], tally: Tally):
        self.rng = np.random.default_rng(seed)
        self.speed, self.dt, self.length, self.every, self.noise, self.derivatives = shape.tolist()
        self.goal = _GOALS[int(self.rng.integers(0, len(_GOALS)))]
        self.again, self.tally = again, tally
        self.rig = Rig(delay=int(self.rng.integers(0, 25)))
        self.sequence = 0
        self.bias = self.rng.normal(0, 1, N)

    def run(self) -> float:
        """The smallest distance that was reached, m."""
        rig, tally = self.rig, self.tally
        cycles, period = int(self.rng.integers(*CYCLES)), rig.filter.config.cycle.period
        due = 0.0
        for cycle in range(cycles):
            if cycle * period >= due:
                self._strike()
                due = cycle * period + self.every
            rig.run(period)
            if rig.filter.mode.name in ("DISARMED", "ESTOP"):
                self._again()
        tally.counts["cycles"] += cycles
        tally.counts["attacks"] += 1
        moving = bool(rig.controller.state[1].any())
        # The filter dies. What it had sent arrives or not, as the network likes.
        if self.rng.random() < 0.5:
            rig.offline.clear()
        died = rig.now
        rig.advance(REST)
        tally.high("s to rest after death", self._rested(died))
        tally.counts["cut off"] += 1
        tally.counts["cut off in motion"] += moving
        if rig.controller.state[1:].any():
            self._violated("not at rest after the filter's death")
        else:
            tally.counts["at rest after"] += 1
        return self._judge()

    def _rested(self, died: int) -> float:
        """s after `died` of the last instant of motion."""
        times, rows = self.rig.controller.trace.samples()
        moving = times[rows[:, 1].any(axis=1)]
        return max(0.0, float(moving[-1]) - (died - START) * 1e-9) if len(moving) else 0.0

    def _strike(self) -> None:
        direction = self._direction()
        decision = self.rig.propose(self._chunk(direction))
        self.sequence += 1
        self.tally.counts["chunks"] += 1
        self.tally.counts[f"verdict {decision.verdict.name.lower()}"] += 1
        if decision.verdict == Verdict.REFUSED and decision.finding is not None:
            self.tally.counts[f"refused for {decision.finding.reason}"] += 1
        if decision.finding is not None and decision.finding.reason == "internal":
            self._violated(f"a check erred: {decision.finding}")

    def _direction(self) -> Array:
        """(n,) in units of the velocity limits: where the true distance shrinks fastest; largest component 1."""
        q = self.rig.controller.state[0]
        if self.goal == "limits":
            room = np.minimum(LIMITS.max_position - q, q - LIMITS.min_position)
            side = np.where(LIMITS.max_position - q < q - LIMITS.min_position, 1.0, -1.0)
            down = side / np.maximum(room, 0.02)
        else:
            fence = _aim(self.goal)
            steps = _STEP * np.eye(N)
            down = -np.array([fence.nearest(q + s).distance - fence.nearest(q - s).distance for s in steps])
            down *= LIMITS.max_velocity
        size = np.abs(down).max()
        straight = down / size if size > 0 else np.zeros(N)
        if self.rng.random() < 0.3:
            straight = np.sign(straight)  # every joint at its utmost
        mixed = (1 - self.noise) * straight + self.noise * (0.5 * self.bias + 0.5 * self.rng.normal(0, 1, N))
        return np.asarray(mixed / max(1e-9, float(np.abs(mixed).max())))

    def _chunk(self, direction: Array) -> Proposal:
        """Along the direction, from where the robot is commanded to be soon."""
        rig, rng = self.rig, self.rng
        count = int(np.clip(self.length / self.dt, 1, 300))
        times = 0.06 + self.dt * np.arange(1, count + 1)
        ramp = times - 0.06
        if rng.random() < 0.5:  # gathers speed slowly, so that it is accepted for long
            ramp = ramp**2 / max(self.length, 1e-3)
        rows = rig.controller.state[0] + np.outer(ramp, direction * LIMITS.max_velocity * self.speed)
        if rng.random() < 0.5:
            rows = np.clip(rows, LIMITS.min_position, LIMITS.max_position)
        v = a = None
        if count > 1 and rng.random() < self.derivatives:
            v = np.gradient(rows, times, axis=0)
            a = np.gradient(v, times, axis=0) if rng.random() < 0.5 else None
        source = "override" if rng.random() < 0.02 else "policy"
        return proposal(rig.now, times, rows, v, a, source=source, sequence=self.sequence)

    def _again(self) -> None:
        finding = self.rig.filter.finding
        self.tally.counts[f"armed again after {finding.reason if finding else ''}"] += 1
        self.rig.arm_again()

    def _judge(self) -> float:
        times, rows = self.rig.controller.trace.samples()
        self.tally.counts["milliseconds judged"] += len(times)
        for fault in envelope_faults(times, rows, LIMITS, GRIPPER_SLACK):
            self._violated(fault)
        touch = shipped_fence().deepest(rows[:, 0], rows[:, 1], 1e-3)
        self.tally.low("clearance m", touch.distance)
        if touch.distance < -TOUCH:
            self.tally.counts["fence exits"] += 1
            self._violated(f"{touch.what} overlap by {-touch.distance:.6f} m")
        stopped = sum(d.verdict == Verdict.STOPPED for d in self.rig.decisions)
        self.tally.counts["stopped"] += stopped
        return touch.distance

    def _violated(self, what: str) -> None:
        self.tally.violated(what, self.again)


if __name__ == "__main__":  # an adversary once more, from its first generation on: SEED ADVERSARY GENERATIONS
    print(json.dumps(run_generations(*map(int, sys.argv[1:4])).record(), indent=1))
