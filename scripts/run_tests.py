#!/usr/bin/env python3
"""All tests of the workspace: lint, format, types, import contracts, then pytest of every package through colcon.

Run inside the environment of ``./vla`` (``./vla test`` does). Progress goes to stderr; stdout ends with the plain line
``N passed, N failed, N skipped``, or with one JSON object (``--json``). Exit code 0 only if something ran and nothing
failed. A static check counts as one test; a package whose tests end without results counts as one failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vla_setup.process import say, tail
from vla_setup.state import packages

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
SCRIPT_TESTS = "scripts"  # the pseudo package of the setup scripts' own tests
SYSTEM_TESTS = "vla_system_tests"
PACKAGE_TIMEOUT_S = 900.0
_LEFTOVER_GRACE_S = 3.0
_HEARTBEAT_S = 20.0


@dataclass
class Outcome:
    """What one check or one package gave."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def skipped(self) -> int:
        return len(self.skips)

    def line(self) -> str:
        mark = "FAILED" if self.failures else "ok    "
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{mark} {self.name:<24} {counts} in {self.duration_s:.1f} s"


def read_junit(files: list[Path], outcome: Outcome) -> None:
    """Add the test cases of JUnit files to ``outcome``; an unreadable file is a failure (a crash tears it)."""
    for path in files:
        try:
            tree = ElementTree.parse(path)
        except (OSError, ElementTree.ParseError) as error:
            outcome.failures.append(f"{path}: unreadable results ({error})")
            continue
        for case in tree.iter("testcase"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
            skip = case.find("skipped")
            if wrong is not None:
                outcome.failures.append(f"{name}: {(wrong.get('message') or wrong.text or 'failed').strip()}")
            elif skip is not None:
                outcome.skips.append(f"{name}: {(skip.get('message') or skip.text or 'no reason given').strip()}")
            else:
                outcome.passed += 1


def leftovers(mark: str) -> dict[int, str]:
    """Live processes that carry ``mark`` in their environment, with their command lines."""
    found = {}
    needle = f"VLA_TEST_RUN={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if needle not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if not command or (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                continue  # ended already, only its parent has not asked yet
        except (OSError, IndexError):
            continue  # gone meanwhile, or another user's
        found[int(entry.name)] = command
    return found


def end_leftovers(mark: str) -> list[str]:
    """Wait a moment for a run's processes to go, end those that stay, and name them."""
    until = time.monotonic() + _LEFTOVER_GRACE_S
    while (found := leftovers(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return [f"process {pid} was left over: {command[:200]}" for pid, command in found.items()]


def run_logged(command: list[str], log: Path, env: dict[str, str], timeout_s: float, verbose: bool) -> int | None:
    """Exit code of a command, or None when it ran past its time and was ended with all its children."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = shown = time.monotonic()
    with log.open("wb") as output:
        target = None if verbose else output
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if verbose else target,
            stderr=None if verbose else subprocess.STDOUT,
            env=env,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    return child.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                    if now - started > timeout_s:
                        return None
                    if now - shown > _HEARTBEAT_S and not verbose:
                        shown = now
                        say(f"       … {now - started:.0f} s  {tail(log, 1).strip()[-110:]}")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
                try:
                    child.wait(timeout=5.0)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()


class Runner:
    """One test run. ``results`` is the folder for logs and JUnit files, emptied first."""

    def __init__(self, options: argparse.Namespace, results: Path, build: Path, install: Path) -> None:
        self.options, self.results, self.build, self.install = options, results, build, install
        self.outcomes: list[Outcome] = []
        shutil.rmtree(results, ignore_errors=True)
        self.env = dict(os.environ) | {
            "VLA_SKIP_SETUP": "1",  # a test that calls ./vla must not rebuild what is under test
            "PYTHONFAULTHANDLER": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(results.parent / "hypothesis"),
        }

    def add(self, outcome: Outcome, started: float) -> None:
        outcome.duration_s = time.monotonic() - started
        self.outcomes.append(outcome)
        say(outcome.line())

    def static(self) -> None:
        imports = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        checks = {
            "lint (ruff)": ["-m", "ruff", "check", "."],
            "format (ruff)": ["-m", "ruff", "format", "--check", "."],
            "types (mypy)": ["-m", "mypy"],
            "imports (import-linter)": ["-c", imports, "--cache-dir", str(self.results.parent / "import-linter")],
        }
        for name, arguments in checks.items():
            started = time.monotonic()
            log = self.results / f"{name.split()[0]}.log"
            command = [sys.executable, *arguments]
            code = run_logged(command, log, self.env, PACKAGE_TIMEOUT_S, self.options.verbose)
            outcome = Outcome(name)
            if code == 0:
                outcome.passed = 1
            else:
                outcome.failures.append(f"{name}: exit code {code}\n{tail(log, 40)}")
            self.add(outcome, started)

    def package(self, name: str, domain: int) -> None:
        """One package's tests, in a ROS domain of their own, with a check that no process outlives them."""
        started, outcome, mark = time.monotonic(), Outcome(name), uuid.uuid4().hex
        env = self.env | {"VLA_TEST_RUN": mark, "ROS_DOMAIN_ID": str(domain)}
        log = self.results / f"{name}.log"
        base = self.results / "junit"
        cmake_results = self.build / name / "test_results"  # where ament_cmake puts them, whatever colcon is told
        shutil.rmtree(cmake_results, ignore_errors=True)
        arguments = ["-v"] + (["-m", "not slow"] if self.options.fast else [])
        if self.options.filter:
            arguments += ["-k", self.options.filter]
        if name == SCRIPT_TESTS:
            command = [
                sys.executable,
                "-m",
                "pytest",
                "scripts",
                f"--junit-xml={base / name / 'pytest.xml'}",
                *arguments,
            ]
        else:
            command = [sys.executable, "-m", "colcon", "--log-base", str(self.results / "colcon"), "test"]
            command += ["--base-paths", str(SOURCE), "--build-base", str(self.build), "--install-base"]
            command += [str(self.install), "--test-result-base", str(base), "--packages-select", name]
            command += [
                "--python-testing",
                "pytest",
                "--event-handlers",
                "console_direct+",
                "--return-code-on-test-failure",
            ]
            command += ["--pytest-args", *(f" {word}" if word.startswith("-") else word for word in arguments)]
        code = run_logged(command, log, env, self.options.timeout, self.options.verbose)
        read_junit(sorted([*(base / name).rglob("pytest.xml"), *cmake_results.rglob("*.xml")]), outcome)
        if code is None:
            outcome.failures.append(f"{name}: no end after {self.options.timeout:.0f} s\n{tail(log)}")
        elif code != 0 and not outcome.failures and not (code == 5 and self.options.filter):
            outcome.failures.append(f"{name}: exit code {code}, but no failed test in the results\n{tail(log)}")
        elif not outcome.passed and not outcome.skips and not outcome.failures and not self.options.filter:
            outcome.failures.append(f"{name}: has a test folder, but no test ran\n{tail(log)}")
        outcome.failures += end_leftovers(mark)
        self.add(outcome, started)

    def run(self) -> None:
        chosen = self.options.package
        names = [name for name, path in packages(SOURCE).items() if (path / "test").is_dir()] + [SCRIPT_TESTS]
        names.sort(key=lambda name: name == SYSTEM_TESTS)  # real processes come last, when the parts are known to work
        if unknown := sorted(set(chosen) - set(names)):
            raise SystemExit(f"no tests in {', '.join(unknown)}; there are tests in {', '.join(names)}")
        if chosen:
            names = [name for name in names if name in chosen]
        else:
            self.static()
            if self.options.fast and SYSTEM_TESTS in names:
                names.remove(SYSTEM_TESTS)
                say(f"left out by --fast: {SYSTEM_TESTS}, tests marked slow")
        first = 10 + os.getpid() % 50  # two checkouts on one machine should not hear each other
        for number, name in enumerate(names):
            say(f"       {name} …")
            self.package(name, first + number)


def summary(outcomes: list[Outcome]) -> dict[str, object]:
    """Totals and details of a run, ready for JSON."""
    return {
        "passed": sum(outcome.passed for outcome in outcomes),
        "failed": sum(outcome.failed for outcome in outcomes),
        "skipped": sum(outcome.skipped for outcome in outcomes),
        "duration_s": round(sum(outcome.duration_s for outcome in outcomes), 2),
        "parts": [asdict(outcome) for outcome in outcomes],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vla test", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument("--package", action="append", default=[], metavar="NAME", help="only this package (repeatable)")
    parser.add_argument("--fast", action="store_true", help="without system tests and tests marked slow")
    parser.add_argument("--filter", "-k", metavar="EXPRESSION", help="only tests that match (as pytest -k)")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the output of every check")
    parser.add_argument("--timeout", type=float, default=PACKAGE_TIMEOUT_S, metavar="S", help="limit per package (s)")
    options = parser.parse_args(arguments)
    # Started in the background, a shell makes its children deaf to Ctrl-C; tests of Ctrl-C need it heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    state = os.environ.get("VLA_STATE_DIR")
    if not state:
        say("not inside the suite's environment. Remedy: run `./vla test`")
        return 2
    runner = Runner(options, Path(state) / "test", Path(state) / "build", Path(state) / "install")
    runner.run()
    for outcome in runner.outcomes:
        for text in outcome.failures:
            say(f"FAILED {text}")
    for outcome in runner.outcomes:
        for text in outcome.skips:
            say(f"skipped {text}")
    totals = summary(runner.outcomes)
    say(f"logs and results: {runner.results}")
    line = f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped"
    if options.json:
        say(line)
        print(json.dumps(totals))
    else:
        print(line)
    sys.stdout.flush()
    return 0 if totals["passed"] and not totals["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
