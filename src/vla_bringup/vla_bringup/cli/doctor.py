"""`doctor`: prints what `vla_bringup.doctor` finds."""

from dataclasses import asdict

from vla_bringup.cli.console import OK, USAGE, Console, reported
from vla_bringup.cli.operate import parse_words

_DEFAULTS = {"robot": "fr3_sim", "policy": "flow", "safety": ""}
_MARKS = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}


def run_doctor(words: list[str], console: Console) -> None:
    """Examines and ends the process: 0 if nothing failed, 2 if something did."""
    with reported(console, {"fits": False, "checks": []}):
        from vla_bringup.doctor import examine

        checks = examine(**{**_DEFAULTS, **parse_words(words, ())})
    for check in checks:
        console.say(f"{_MARKS[check.level]}  {check.name:18} {check.found}")
        if check.remedy and check.level != "ok":
            console.say(f"{'':29}→ {check.remedy}")
    failed = sum(check.level == "failed" for check in checks)
    warnings = sum(check.level == "warning" for check in checks)
    console.say(f"{len(checks)} checks, {failed} failed, {warnings} warnings")
    result = {"fits": failed == 0, "failed": failed, "warnings": warnings, "checks": [asdict(c) for c in checks]}
    console.finish(result, USAGE if failed else OK)
