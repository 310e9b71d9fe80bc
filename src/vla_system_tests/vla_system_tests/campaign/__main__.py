"""`./vla campaign safety`: see `--help`."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from vla_bringup.cli.console import FAILED, INTERRUPTED, OK, interruptible
from vla_bringup.cli.tools import checkout
from vla_bringup.files import state_folder
from vla_system_tests.campaign import report
from vla_system_tests.campaign.state import Keeper, Progress, begin, load

PARTS = ("cases", "adversary", "kills", "mutants", "soak")
FULL = {"cases": 1_000_000, "adversary": 100_000, "kills": 100, "soak": 3600, "mutants": 0}
UNITS = {"cases": "cases", "adversary": "cycles", "kills": "kills", "soak": "s", "mutants": "mutants"}


def options(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="vla campaign",
        description="The long proofs of the safety filter: 1e6 property cases, 1e5 cycles with an adversary, 100 kills "
        "of real processes, mutation of the core, an hour of operation. Goes on where it was (--fresh: from the "
        "beginning) and writes a report with all counts and seeds.",
    )
    parser.add_argument("what", choices=["safety"])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas: {','.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=FULL["cases"], help="property cases (default: 1e6)")
    parser.add_argument("--cycles", type=int, default=FULL["adversary"], help="of the filter, with an adversary (1e5)")
    parser.add_argument("--kills", type=int, default=FULL["kills"], help="of real processes (100)")
    parser.add_argument(
        "--soak", type=int, default=FULL["soak"], metavar="SECONDS", help="of wall time in operation (3600)"
    )
    parser.add_argument("--realtime", action="store_true", help="soak: the simulator does not wait for the nodes")
    parser.add_argument("--policy", default="flow", help="soak: the policy file (flow)")
    parser.add_argument("--mutants", type=int, default=0, metavar="N", help="drawn of each module (default 0: all)")
    parser.add_argument("--modules", default="", help="mutants: of these modules of the core only, separated by commas")
    parser.add_argument("--survivors", action="store_true", help="mutants: judge those again that survived before")
    parser.add_argument("--jobs", type=int, default=2, help="processes for cases, adversaries, mutants (2)")
    parser.add_argument("--fresh", action="store_true", help="forget what the chosen parts have done so far")
    parser.add_argument("--resume", action="store_true", help="go on where the parts were (this is the default)")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of state and logs (default: .vla/campaign/safety)"
    )
    parser.add_argument("--report", type=Path, default=None, help="Markdown file (default: report.md in the folder)")
    parser.add_argument("--publish", action="store_true", help="write the report to docs/campaign_safety.md")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    chosen = parser.parse_args(words)
    unknown = sorted(set(chosen.only.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"unknown part '{unknown[0]}'; known: {', '.join(PARTS)}")
    return chosen


def run(chosen: argparse.Namespace) -> int:
    """Runs the chosen parts, writes the report of all parts there are; the exit code."""
    folder = chosen.out or state_folder() / "campaign" / "safety"
    goals = {
        "cases": chosen.cases,
        "adversary": chosen.cycles,
        "kills": chosen.kills,
        "soak": chosen.soak,
        "mutants": 1,
    }
    wanted = [part for part in PARTS if part in chosen.only.split(",")]
    interrupted = False
    try:
        for part in wanted:
            if chosen.fresh:
                (folder / f"{part}.json").unlink(missing_ok=True)
                shutil.rmtree(folder / part, ignore_errors=True)
            fresh = Progress(part, UNITS[part], chosen.seed, goals[part])
            progress = begin(folder, fresh, resume=not chosen.fresh)
            if progress.complete and part != "mutants":
                _say(f"{part}: done already ({progress.done} {progress.unit}, seed {progress.seed})")
                continue
            known = f"{progress.done} of {progress.goal} {progress.unit} done"
            _say(f"{part}: seed {progress.seed}, {known}; state: {folder}")
            keeper = Keeper(folder, progress, _line)
            try:
                _run(part, keeper, folder, chosen)
            finally:
                keeper.save()
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted; the same command goes on where it was")
    parts = {part: kept for part in PARTS if (kept := load(folder, part)) is not None}
    target = checkout() / "docs" / "campaign_safety.md" if chosen.publish else chosen.report or folder / "report.md"
    report.write(target, parts)
    result = report.figures(parts)
    _say(f"report: {target}")
    if chosen.json:
        print(json.dumps(result), flush=True)
    else:
        print("\n".join(f"{key:16s} {value}" for key, value in result.items()))
    if interrupted:
        return INTERRUPTED
    good = result["violations"] == 0 and result["fence_exits"] == 0 and result["kills"] == result["kills_at_rest"]
    return OK if good else FAILED


def _run(part: str, keeper: Keeper, folder: Path, chosen: argparse.Namespace) -> None:
    from vla_system_tests.campaign import kills, mutants, parallel, soak

    actions: dict[str, Callable[[], None]] = {
        "cases": lambda: parallel.run_cases(keeper, chosen.jobs),
        "adversary": lambda: parallel.run_adversaries(keeper, chosen.jobs),
        "kills": lambda: kills.run_kills(keeper, folder),
        "soak": lambda: soak.run_soak(keeper, folder, chosen.policy, not chosen.realtime),
        "mutants": lambda: mutants.run_mutants(
            keeper,
            folder,
            chosen.mutants,
            _equivalents(),
            [name for name in chosen.modules.split(",") if name],
            again=chosen.survivors,
            jobs=chosen.jobs,
        ),
    }
    actions[part]()


def _equivalents() -> dict[str, str]:
    """Mutants that no test can notice: key -> reason, kept beside the campaign's code."""
    path = Path(__file__).with_name("equivalent_mutants.yaml")
    return dict(yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def _line(progress: Progress) -> None:
    """One line of progress, with a bar."""
    share = min(1.0, progress.done / max(1, progress.goal))
    left = progress.wall_s * (1 - share) / share if share > 0 else 0.0
    counts = progress.tally.counts
    bad = f"{counts['survived']} survived" if progress.part == "mutants" else f"{counts['violations']} violations"
    bar = "#" * round(30 * share)
    text = (
        f"{progress.part:9s} [{bar:30s}] {progress.done}/{progress.goal} {progress.unit} · {bad} · "
        f"{progress.wall_s / 60:.1f} min, {left / 60:.0f} min left"
    )
    if sys.stderr.isatty():
        print(f"\r{text}", end="" if not progress.complete else "\n", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point."""
    chosen = options(sys.argv[1:])
    code = OK

    def action() -> None:
        nonlocal code
        code = run(chosen)

    interruptible(action)
    sys.stdout.flush()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
