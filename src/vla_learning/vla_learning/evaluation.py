"""How good a checkpoint is, in closed loop on scenes that it was not trained on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from scipy.stats import binomtest

from vla_contract.robot import load_robot
from vla_learning.instructions import PLAIN, held_out
from vla_learning.rollout import Outcome, load_policy, play_all
from vla_learning.stage import COLOURS, Stage

EVALUATION_SEEDS = 20_000  # first scene
Sentence = Callable[[str, int], str]

KINDS: Mapping[str, Sentence] = {
    "plain": lambda colour, _: PLAIN.format(c=colour),
    "held-out paraphrases": lambda colour, i: held_out(colour)[7 * i % len(held_out(colour))],
    "blank": lambda colour, _: "",
}


@dataclass(frozen=True)
class Report:
    """Outcomes by kind of instruction."""

    outcomes: Mapping[str, Sequence[Outcome]]

    def row(self, kind: str) -> dict[str, float | int | list[float]]:
        """Numbers of one kind; ci95 is the Clopper-Pearson interval."""
        outcomes = self.outcomes[kind]
        successes = sum(outcome.success for outcome in outcomes)
        interval = binomtest(successes, len(outcomes)).proportion_ci(0.95, "exact")
        return {
            "trials": len(outcomes),
            "successes": successes,
            "success_rate": round(successes / len(outcomes), 4),
            "ci95": [round(float(interval.low), 4), round(float(interval.high), 4)],
            "wrong_object": sum(outcome.wrong for outcome in outcomes),
            "first_seed": outcomes[0].seed,
            "mean_duration_s": round(sum(outcome.duration for outcome in outcomes) / len(outcomes), 2),
            **{f"successes_{colour}": sum(o.success for o in outcomes if o.colour == colour) for colour in COLOURS},
        }

    def summary(self) -> dict[str, object]:
        """For machines."""
        return {kind: self.row(kind) for kind in self.outcomes}

    def table(self) -> Table:
        """For people."""
        table = Table("instruction", "success", "95 % interval", "wrong cube", "mean s")
        for kind in self.outcomes:
            row = self.row(kind)
            low, high = row["ci95"]  # type: ignore[misc]
            table.add_row(
                kind,
                f"{row['successes']} of {row['trials']}",
                f"{low:.2f} to {high:.2f}",
                str(row["wrong_object"]),
                str(row["mean_duration_s"]),
            )
        return table


def evaluate(
    checkpoint: Path, robot: str, trials: int, report: Callable[[Outcome], None] = lambda outcome: None
) -> Report:
    """`trials` episodes of each kind of instruction, in the same scenes, colours in equal parts."""
    stage = Stage(load_robot(robot))
    try:
        policy = load_policy(checkpoint, stage)
        seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + trials)
        return Report({kind: play_all(stage, policy, seeds, sentence, report) for kind, sentence in KINDS.items()})
    finally:
        stage.close()
