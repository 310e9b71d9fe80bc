"""I7: mutation testing of the filter's core. Each small change of the code must make a test fail.

Works on a copy of the package, so nothing in the checkout is touched. Tests run once with coverage by test; a mutant
is then given only to the tests that execute the changed line, the fastest first, until one fails. Each mutant has a
process of its own, forked from one that has imported everything but the filter.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vla_safety
from vla_bringup.files import share
from vla_safety.proof.tally import Tally
from vla_system_tests.campaign.mutation import Mutant, Source
from vla_system_tests.campaign.state import Keeper

TEXTS = ("reasons",)  # modules that hold nothing else
LEFT_OUT = ("test_node.py", "test_docs.py")  # need ROS, or judge documents
# s of tests that one mutant is given at most; what is not run then cannot kill, so the result is a lower bound.
BUDGET = 12.0
GRACE = 20.0  # s above ten times what the tests need, until a mutant counts as one that never ends
_BASE = "import sys, pytest; sys.path.insert(0, sys.argv[1]); sys.exit(pytest.main(sys.argv[2:]))"


@dataclass(frozen=True)
class Baseline:
    """What the tests do without a mutant: seconds of each, and the tests that execute each line of each module."""

    seconds: dict[str, float]
    tests: dict[str, dict[int, list[str]]]

    def chosen(self, module: str, line: int) -> list[str]:
        """Tests to run, fastest first, within the budget. A line that is executed on import concerns all tests."""
        by_line = self.tests.get(module, {})
        names = by_line.get(line) or sorted({name for tests in by_line.values() for name in tests})
        chosen, spent = [], 0.0
        for name in sorted(names, key=lambda n: self.seconds.get(n, 1.0)):
            spent += self.seconds.get(name, 1.0)
            if spent > BUDGET and chosen:
                break
            chosen.append(name)
        return chosen


def copy_package(folder: Path) -> Path:
    """A copy of the filter and its tests that is independent of the checkout; returns the package's folder."""
    source = Path(vla_safety.__file__).resolve().parents[1]
    target = folder / "vla_safety"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "vla_bringup").symlink_to(share())
    for name in LEFT_OUT:
        (target / "test" / name).unlink(missing_ok=True)
    return target


def measure(package: Path) -> Baseline:
    """Runs all tests with coverage by test.

    Raises:
        RuntimeError: when a test fails; then mutants would mean nothing.
    """
    from coverage import CoverageData

    data, report = package / "coverage.data", package / "durations.xml"
    (package / ".coveragerc").write_text(f"[run]\ndata_file = {data}\nsource = {package}/vla_safety/core\n")
    command = [
        sys.executable, "-c", _BASE, str(package), str(package / "test"), "-q", "-p", "no:cacheprovider",
        f"--rootdir={package}", f"--junit-xml={report}", f"--cov-config={package}/.coveragerc", "--cov",
        "--cov-context=test", "--cov-report=", "--hypothesis-seed=0",
    ]  # fmt: skip
    answer = subprocess.run(command, cwd=package, capture_output=True, text=True, env=_environment())
    if answer.returncode != 0:
        raise RuntimeError(f"the tests fail without a mutant:\n{answer.stdout[-3000:]}{answer.stderr[-2000:]}")
    kept = CoverageData(basename=str(data))
    kept.read()
    tests: dict[str, dict[int, list[str]]] = {}
    for file in kept.measured_files():
        lines = kept.contexts_by_lineno(file)
        tests[Path(file).stem] = {
            line: sorted({c.partition("|")[0] for c in contexts if c}) for line, contexts in lines.items()
        }
    return Baseline(_durations(report), tests)


def _durations(report: Path) -> dict[str, float]:
    import xml.etree.ElementTree as ElementTree

    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = str(case.get("classname")).replace(".", "/") + ".py"
        found[f"{file}::{case.get('name')}"] = float(case.get("time", "0"))
    return found


def run_mutants(keeper: Keeper, folder: Path, most: int, equivalents: dict[str, str]) -> None:
    """Judges mutants of every module of the core.

    Args:
        most: mutants that are drawn of each module; 0: all.
        equivalents: key -> why no test can notice it; they are not run and not counted.
    """
    progress = keeper.progress
    package = folder / "mutants" / "vla_safety"
    if "baseline" not in progress.memory or not package.is_dir():
        package = copy_package(folder / "mutants")
        baseline = measure(package)
        progress.memory["baseline"] = {"seconds": baseline.seconds, "tests": baseline.tests}
    stored = progress.memory["baseline"]
    tests = {m: {int(k): v for k, v in lines.items()} for m, lines in stored["tests"].items()}
    baseline = Baseline(stored["seconds"], tests)
    planned = _plan(package, progress.seed, most, progress.memory)
    progress.goal = len(planned)
    progress.memory["equivalents"] = equivalents
    keeper.save()
    server, sources = _Server(package), {}
    for module, k in planned[progress.done :]:
        if module not in sources:
            sources = {module: Source(package / "vla_safety" / "core" / f"{module}.py")}
        mutant = sources[module].mutant(k)
        keeper.advance(1, Tally() if mutant is None else _judge(mutant, baseline, server, equivalents))


def _plan(package: Path, seed: int, most: int, memory: dict[str, Any]) -> list[tuple[str, int]]:
    """Modules and numbers of mutants, drawn without repetition from each module; `most` 0: all."""
    chance, planned = random.Random(seed), []
    populations = memory.setdefault("populations", {})
    for path in sorted((package / "vla_safety" / "core").glob("*.py")):
        if path.stem in TEXTS:
            continue
        count = populations.setdefault(path.stem, 0) or len(Source(path))
        populations[path.stem] = count
        drawn = chance.sample(range(count), min(count, most or count))
        planned += [(path.stem, k) for k in sorted(drawn)]
    return planned


def _judge(mutant: Mutant, baseline: Baseline, server: "_Server", equivalents: dict[str, str]) -> Tally:
    tally, module = Tally(), mutant.module
    if mutant.key in equivalents:
        tally.counts[f"{module}: equivalent"] += 1
        tally.counts["equivalent"] += 1
        return tally
    names = baseline.chosen(module, mutant.line)
    tally.counts["mutants"] += 1
    tally.counts[f"{module}: mutants"] += 1
    outcome = "survived"
    if names:
        expected = sum(baseline.seconds.get(name, 1.0) for name in names)
        outcome = server.run(mutant, names, 10 * expected + GRACE)
    if outcome == "survived":
        tally.counts[f"{module}: survived"] += 1
        tally.violated(mutant.key, {"line": mutant.line, "tests": len(names)})
        tally.counts["violations"] -= 1  # a survivor is a gap of the tests, no violation by the filter
        tally.counts["survived"] += 1
    else:
        tally.counts[f"{module}: killed"] += 1
        tally.counts["mutants killed"] += 1
        tally.counts[f"killed by {outcome}"] += 1
    return tally


class _Server:
    """The process that forks one for each mutant (mutant_server.py), spoken to by lines of JSON."""

    def __init__(self, package: Path):
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "vla_system_tests.campaign.mutant_server", str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
            cwd=package,
        )

    def run(self, mutant: Mutant, tests: Sequence[str], timeout: float) -> str:
        """What became of a mutant: `test`, `error`, `time` (killed) or `survived`."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        request = {"module": mutant.module, "source": mutant.source, "tests": list(tests), "timeout": timeout}
        self._popen.stdin.write(json.dumps(request) + "\n")
        self._popen.stdin.flush()
        answer = self._popen.stdout.readline()
        if not answer:
            raise RuntimeError("the process that judges mutants has died")
        return str(json.loads(answer)["outcome"])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
