"""Commands that belong to other packages or to the checkout: setup, train, test, bench."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from vla_bringup.cli.console import OK, USAGE, Console, reported
from vla_bringup.files import find

BENCHMARKS = {
    "inference": "vla_learning.bench",
    "latency": "vla_bringup.latency",
    "policy": "vla_learning.strategies",
    "safety": "vla_safety.bench",
}


def run_module(module: str, arguments: list[str]) -> NoReturn:
    """Becomes `python -m module`."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        print(f"error: module '{module}' is not installed; run ./vla setup", file=sys.stderr)
        raise SystemExit(USAGE)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def run_bench(arguments: list[str]) -> NoReturn:
    """`bench NAME …`"""
    if not arguments or arguments[0] not in BENCHMARKS:
        asked = f"unknown benchmark '{arguments[0]}'; " if arguments and not arguments[0].startswith("-") else ""
        Console("--json" in arguments).say(f"usage: vla bench {{{','.join(BENCHMARKS)}}} [options]")
        if asked:
            print(f"error: {asked}known: {', '.join(BENCHMARKS)}", file=sys.stderr)
        if arguments and arguments[0] in ("-h", "--help"):
            raise SystemExit(OK)
        error = f"{asked or 'no benchmark is named; '}known: {', '.join(BENCHMARKS)}"
        Console("--json" in arguments).finish({"error": error, "exit_code": USAGE}, USAGE)
    run_module(BENCHMARKS[arguments[0]], arguments[1:])


def run_import(arguments: list[str]) -> NoReturn:
    """`import-policy …`; a robot may be named as everywhere else."""
    with reported(Console(False)):
        for index, word in enumerate(arguments):
            option, equals, value = word.partition("=")
            if option == "--robot" and equals and "/" not in value:
                arguments[index] = f"--robot={find('robots', value)}"
            elif index > 0 and arguments[index - 1] == "--robot" and "/" not in word:
                arguments[index] = str(find("robots", word))
    run_module("vla_policy_node.import_policy", arguments)


def run_audit(arguments: list[str]) -> NoReturn:
    """`audit …`; after an error its JSON has the exit code, as everybody's."""
    if "--json" not in arguments:
        run_module("vla_safety.audit", arguments)
    done = subprocess.run([sys.executable, "-m", "vla_safety.audit", *arguments], stdout=subprocess.PIPE, text=True)
    *before, last = done.stdout.splitlines() or [""]
    try:
        report = json.loads(last)
    except ValueError:
        if done.returncode == OK:  # --help
            print(done.stdout, end="")
            raise SystemExit(OK) from None
        before, report = done.stdout.splitlines(), {"error": "vla audit gave no answer; the reason stands above"}
    print(*before, sep="\n", end="\n" if before else "")
    if "error" in report:
        report["exit_code"] = done.returncode
    Console(True).finish(report, done.returncode)


def run_setup(arguments: list[str]) -> int:
    """The checkout's own setup, which needs nothing but Python."""
    return _script("bootstrap.py", arguments)


def run_tests(arguments: list[str]) -> NoReturn:
    """The checkout's test runner."""
    raise SystemExit(_script("run_tests.py", arguments))


def run_interop(arguments: list[str]) -> NoReturn:
    """The checkout's checks against counterparts that need an environment of their own."""
    raise SystemExit(_script("interop.py", arguments))


def _script(name: str, arguments: list[str]) -> int:
    script = checkout() / "scripts" / name
    if not script.is_file():
        print(f"error: '{script}' does not exist: this command needs a checkout of the suite", file=sys.stderr)
        return USAGE
    return subprocess.call([sys.executable, str(script), *arguments])


def checkout() -> Path:
    """The top of the source checkout: $VLA_ROOT, else where this file lies."""
    return Path(os.environ.get("VLA_ROOT") or Path(__file__).resolve().parents[4])
