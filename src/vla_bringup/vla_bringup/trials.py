"""The plan of an evaluation, and what its outcomes say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from vla_bringup.episode import VERDICTS
from vla_bringup.judge import COLOUR_WORDS, cube, named_cube
from vla_contract.errors import ConfigError

Wording = Literal["usual", "unseen"]
TEMPLATES = (
    "put the {red} cube in the tray",
    "place the {red} cube into the tray",
    "pick up the {red} cube and put it in the tray",
    "move the {red} block to the tray",
    "drop the {red} block into the bin",
)
# The synonym that each colour is called by in every fifth sentence.
_SYNONYM = {"red": "crimson", "green": "emerald", "blue": "azure"}


@dataclass(frozen=True)
class Trial:
    """One scene and one sentence.

    Attributes:
        index: 0, 1, … within the evaluation.
        seed: of the scene.
        instruction: the sentence that the policy gets.
        target: the cube that is judged.
        label: the row of the per-instruction table.
    """

    index: int
    seed: int
    instruction: str
    target: str
    label: str


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. `outcome` and `message` are the policy's, the rest is ground truth; times in s."""

    trial: Trial
    success: bool
    wrong_object: bool
    placed: str | None
    outcome: str
    message: str
    duration_s: float


def plan(
    trials: int,
    seed: int,
    instruction: str | None = None,
    target: str | None = None,
    blank: bool = False,
    wording: Wording = "usual",
) -> list[Trial]:
    """`trials` scenes; the same arguments give the same plan.

    Without `instruction` the three colours come in equal parts (to one), each with all templates in turn. With `blank`
    the policy gets an empty sentence and the colours are judged as if it had been told.

    Args:
        wording: "usual" takes the templates of this module, "unseen" sentences that training has left out.

    Raises:
        ConfigError: when `trials` is not positive, or a fixed instruction does not say which cube is meant.
    """
    if trials < 1:
        raise ConfigError(f"--trials is {trials}, expected at least 1")
    generator = np.random.default_rng(seed)
    seeds = generator.integers(2**31, 2**32, size=trials)  # above the seeds that training uses
    sentences = _unseen(seed) if wording == "unseen" else _usual
    colours = list(COLOUR_WORDS)
    planned = []
    for index in range(trials):
        colour, number = colours[index % len(colours)], index // len(colours)
        if instruction is not None:
            sentence, aim = instruction, cube(target) if target else named_cube(instruction)
        else:
            if target is not None:
                colour, number = cube(target).removesuffix("_cube"), index
            sentence, aim = sentences(number, colour), f"{colour}_cube"
        label = f"(blank, {aim} judged)" if blank else sentence
        planned.append(Trial(index, int(seeds[index]), "" if blank else sentence, aim, label))
    return planned


def _usual(number: int, colour: str) -> str:
    template = TEMPLATES[number % len(TEMPLATES)]
    word = _SYNONYM[colour] if number % len(TEMPLATES) == len(TEMPLATES) - 1 else colour
    return template.format(red=word)


def _unseen(seed: int) -> Callable[[int, str], str]:
    """Draws from the sentences that training has left out, without repetition as long as there are any."""
    from vla_learning.instructions import held_out  # only this wording needs the package

    order = {c: np.random.default_rng([seed, k]).permutation(held_out(c)) for k, c in enumerate(COLOUR_WORDS)}
    return lambda number, colour: str(order[colour][number % len(order[colour])])


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Clopper–Pearson 95 % confidence interval of a success rate."""
    found = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="exact")
    return float(found.low), float(found.high)


def touched(decisions: Mapping[str, int]) -> float | None:
    """Share of decisions by which the safety filter changed, shortened, refused or stopped a chunk; None: it made none.

    A chunk that is taken whole and only led on to (`bridged`) is not touched: each of its points is played as it is.
    """
    total = sum(decisions.get(name, 0) for name in VERDICTS)
    return None if total == 0 else 1.0 - decisions.get("accepted", 0) / total


def summary(outcomes: Sequence[Outcome], seed: int, policy_digest: str) -> dict[str, Any]:
    """The numbers of an evaluation, as `eval --json` prints them."""
    successes = sum(o.success for o in outcomes)
    low, high = interval(successes, len(outcomes)) if outcomes else (0.0, 1.0)
    return {
        "trials": len(outcomes),
        "successes": successes,
        "success_rate": successes / len(outcomes) if outcomes else 0.0,
        "ci95": [low, high],
        "wrong_object": sum(o.wrong_object for o in outcomes),
        "per_instruction": _grouped(outcomes, lambda o: o.trial.label),
        "per_target": _grouped(outcomes, lambda o: o.trial.target),
        "seed": seed,
        "policy_digest": policy_digest,
        "duration_s": {"mean": float(np.mean([o.duration_s for o in outcomes])) if outcomes else 0.0},
        "outcomes": [{**asdict(o.trial), **{k: v for k, v in asdict(o).items() if k != "trial"}} for o in outcomes],
    }


def _grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return {
        name: {
            "trials": len(group),
            "successes": sum(o.success for o in group),
            "wrong_object": sum(o.wrong_object for o in group),
            "ci95": list(interval(sum(o.success for o in group), len(group))),
        }
        for name, group in groups.items()
    }
