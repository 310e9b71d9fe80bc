"""The report of a campaign: JSON for machines, Markdown for people, both from the parts' files."""

import json
import platform
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from vla_safety.proof.tally import Tally
from vla_system_tests.campaign.state import Progress

# Modules that hold the named checks of I7.
NAMED = (
    "validation",
    "limits",
    "zones",
    "shapes",
    "separation",
    "selfcollision",
    "stopping",
    "watchdogs",
    "contact",
    "modes",
)
_TITLES = {
    "cases": "Property cases: any proposal, any joint state, sources that contend (I1, I2, I8, I11)",
    "adversary": "An adversary that learns, and a filter that dies (I3)",
    "kills": "Processes killed and frozen (I4, R8)",
    "soak": "Hours of operation",
    "mutants": "Mutation of the filter's core (I7)",
}


def figures(parts: dict[str, Progress]) -> dict[str, Any]:
    """What `--json` prints: counts over all parts; 0 for what was not run."""

    def count(part: str, name: str) -> int:
        return parts[part].tally.counts[name] if part in parts else 0

    return {
        "cases": count("cases", "cases"),
        "switches": count("cases", "switches"),
        "leaks": count("cases", "leaks"),
        "violations": sum(p.tally.counts["violations"] for p in parts.values()),
        "cycles": count("adversary", "cycles"),
        "fence_exits": sum(p.tally.counts["fence exits"] for p in parts.values()),
        "kills": count("kills", "kills"),
        "kills_at_rest": count("kills", "at rest in time and in the fence"),
        "soak_s": parts["soak"].done if "soak" in parts else 0,
        "mutants": count("mutants", "mutants"),
        "mutants_killed": count("mutants", "mutants killed"),
        "complete": {name: progress.complete for name, progress in parts.items()},
        "seeds": {name: progress.seed for name, progress in parts.items()},
    }


def interval(good: int, total: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % interval of a share."""
    if total == 0:
        return 0.0, 1.0
    found = binomtest(good, total).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def write(path: Path, parts: dict[str, Progress]) -> None:
    """Markdown at `path`, JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(parts))
    records = {name: _short(progress) for name, progress in parts.items()}
    whole = {**figures(parts), "parts": records}
    path.with_suffix(".json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


def _short(progress: Progress) -> dict[str, Any]:
    """A part's record without what only serves to go on."""
    record = progress.record()
    kept = {k: v for k, v in record.pop("memory").items() if k in ("modules", "equivalents", "lockstep", "troubles")}
    return {**record, **kept}


def markdown(parts: dict[str, Progress]) -> str:
    """The report."""
    lines = [
        "# Campaign: the safety filter",
        "",
        "Written by `./vla campaign safety`; the same figures are in the JSON file beside it. What the invariants and",
        "cases (I…, R…) are: `src/vla_safety/README.md`.",
        "",
        "| part | done of planned | violations | seed | code | wall time | last run (UTC) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, p in parts.items():
        bad = p.tally.counts["survived"] if name == "mutants" else p.tally.counts["violations"]
        bad_text = f"{bad} survived" if name == "mutants" else str(bad)
        done = f"{p.done} of {p.goal} {p.unit}"
        if name == "mutants":  # a sitting's goal is what was still to be judged
            done = f"{p.tally.counts['mutants']} judged"
        lines.append(f"| {name} | {done} | {bad_text} | {p.seed} | `{p.code[:12]}` | {_hours(p.wall_s)} | {p.ended} |")
    lines += [
        "",
        f"`code` is the beginning of a sha256 over the filter's sources. Machine: {platform.machine()}, Python "
        f"{platform.python_version()}. Run again: `./vla campaign safety --seed SEED [--only PART]`.",
        "",
    ]
    for name, p in parts.items():
        lines += [f"## {_TITLES[name]}", ""]
        lines += _mutants(p) if name == "mutants" else _plain(name, p)
    return "\n".join(lines).rstrip() + "\n"


_SAID = {
    "cases": (
        "{cases} cases in blocks of 1000, each block with a filter of its own whose robot moves ({cycles} cycles "
        "between the cases, {moving} of them in motion). The robot went from one source to another {switches} times, "
        "while a source that did not have it asked for it {asked} times: {leaks} leaks (messages of a source that does "
        "not have the robot, judged by a model beside the filter). A violation is: an exception, a check that erred, a "
        "message that is not finite, does not end at rest or has no bound, a refusal without a reason or with an "
        "effect, a leak, more than 0.25 s of CPU for a call, a limit or the fence broken in what the controller played "
        "(every millisecond, judged by Pinocchio and coal)."
    ),
    "adversary": (
        "{attacks} attacks over {cycles} cycles, by four adversaries that follow the gradient of the true distance and "
        "learn how to send (cross-entropy method). At the end of each the filter dies: {cut} deaths, {cutm} of them in "
        "motion, at rest afterwards {rest}. What the controller played was judged every millisecond."
    ),
    "kills": (
        "{kills} kills of real processes (SIGKILL or SIGSTOP of filter, policy or both) at random instants of a "
        "motion: {good} at rest within the predicted time and in the fence, judged by MuJoCo's geometry."
    ),
    "soak": (
        "{episodes} episodes one after the other through the whole running system, {mode}; {sim:.2f} h of simulated "
        "time. Joint states were held against the joints' ranges and speeds and against table and workspace by "
        "MuJoCo's geometry; the resident memory of every process was read after each episode."
    ),
}


def _plain(name: str, p: Progress) -> list[str]:
    c = p.tally.counts
    said = _SAID[name].format(
        cases=c["cases"],
        cycles=c["cycles"],
        moving=c["cycles in motion"],
        switches=c["switches"],
        leaks=c["leaks"],
        asked=c["proposals of a source without authority"],
        attacks=c["attacks"],
        cut=c["cut off"],
        cutm=c["cut off in motion"],
        rest=c["at rest after"],
        kills=c["kills"],
        good=c["at rest in time and in the fence"],
        episodes=c["episodes"],
        mode="in lockstep (the simulator's clock waits for the nodes)" if p.memory.get("lockstep") else "in real time",
        sim=c["simulated ms"] / 3.6e6,
    )
    lines = [said, ""]
    lines += ["| count | |", "|---|---:|", *(f"| {key} | {value} |" for key, value in sorted(c.items())), ""]
    extremes = [f"| smallest {k} | {v:.4g} |" for k, v in sorted(p.tally.least.items())]
    extremes += [f"| largest {k} | {v:.4g} |" for k, v in sorted(p.tally.most.items())]
    if extremes:
        lines += ["| extreme | |", "|---|---:|", *extremes, ""]
    lines += _violations(p.tally)
    for trouble in p.memory.get("troubles", []):
        lines += [f"* system started anew: {trouble.splitlines()[0]}"]
    return [*lines, ""]


def _violations(tally: Tally) -> list[str]:
    if not tally.violations:
        return ["No violation."]
    shown = [f"* {v['what']}: `{json.dumps(v['again'])[:400]}`" for v in tally.violations]
    return [f"{tally.counts['violations']} violations; the first {len(shown)}:", "", *shown]


def _mutants(p: Progress) -> list[str]:
    c, modules = p.tally.counts, p.memory.get("modules", {})
    rows, named_good, named_total = [], 0, 0
    for module, record in sorted(modules.items()):
        total, killed = c[f"{module}: mutants"], c[f"{module}: killed"]
        if not total:
            continue
        if module in NAMED:
            named_good, named_total = named_good + killed, named_total + total
        low, high = interval(killed, total)
        mark = " (named check)" if module in NAMED else ""
        rows.append(
            f"| {module}{mark} | {record['population']} | {total} | {killed} | {killed / total:.1%} | {low:.1%} to "
            f"{high:.1%} | {c[f'{module}: equivalent']} |"
        )
    good, total = c["mutants killed"], c["mutants"]
    low, high = interval(good, total)
    lines = [
        f"{good} of {total} mutants killed: {good / max(1, total):.1%}, 95 % interval {low:.1%} to {high:.1%}; in the "
        f"modules of the named checks {named_good} of {named_total}. The operators are mutmut's, applied as there to "
        "the bodies of functions (of `modes` and `ways` also to their tables); `reasons` is left out, it is a table of "
        "texts that the documentation test compares whole. Where fewer were run than there are, they were drawn at "
        "random with the seed, without repetition; "
        "intervals are Clopper-Pearson's for the share that would be killed. A mutant is given only to the tests that "
        "execute its line, within 12 s of tests, so the shares are lower bounds.",
        "",
        "| module | mutants there are | run | killed | share | 95 % interval | left out as equivalent |",
        "|---|---:|---:|---:|---:|---|---:|",
        *rows,
        "",
        f"Killed by a failed test: {c['killed by test']}, by an error on import or collection: "
        f"{c['killed by error']}, by never ending: {c['killed by time']}.",
        "",
    ]
    survivors = [s for _, record in sorted(modules.items()) for s in record["survivors"].values()]
    if survivors:
        lines += ["Survivors:", "", *(f"* `{s['what']}` ({s['tests']} tests ran)" for s in survivors), ""]
    equivalents = p.memory.get("equivalents") or {}
    if equivalents:
        lines += ["Equivalent (no test can notice them), with the reason:", ""]
        lines += [f"* `{key}`: {why}" for key, why in equivalents.items()]
        lines += [""]
    return lines


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
