"""I7: mutation testing of the filter's core. Each small change of the code must make a test fail.

Works on a copy of the package, so nothing in the checkout is touched. Tests run once with coverage by test; a mutant
is then given only to the tests that execute the changed line, the fastest first, until one fails. Each mutant has a
process of its own, forked from one that has imported everything but the filter.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import vla_safety
from vla_bringup.files import share
from vla_safety.proof.tally import Tally
from vla_system_tests.campaign import mutation
from vla_system_tests.campaign.mutation import Mutant, Source
from vla_system_tests.campaign.state import Keeper, Progress

TABLES = ("modes", "ways")  # modules whose table is what they do
TEXTS = ("reasons",)  # modules that hold nothing else
LEFT_OUT = ("test_node*.py", "test_docs.py", "test_invariants.py")  # need ROS, or judge documents and names
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
    for pattern in LEFT_OUT:
        for path in (target / "test").glob(pattern):
            path.unlink()
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


def _known_baseline(package: Path, kept: Path) -> Baseline:
    """The baseline, measured anew only when package or tests have changed."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known["digest"] == digest.hexdigest():
            tests = {m: {int(k): v for k, v in lines.items()} for m, lines in known["tests"].items()}
            return Baseline(known["seconds"], tests)
    baseline = measure(package)
    record = {"digest": digest.hexdigest(), "seconds": baseline.seconds, "tests": baseline.tests}
    kept.write_text(json.dumps(record))
    return baseline


def _durations(report: Path) -> dict[str, float]:
    import xml.etree.ElementTree as ElementTree

    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = str(case.get("classname")).replace(".", "/") + ".py"
        found[f"{file}::{case.get('name')}"] = float(case.get("time", "0"))
    return found


@dataclass
class Record:
    """What is known of a module's mutants.

    Attributes:
        source: sha256 of the module that was changed; population: mutants that there are.
        judged: how many were, in the order of the draw; killed: outcome -> count.
        survivors: number -> key, line and count of tests of those that survived; equivalent: how many were left out.
    """

    source: str
    population: int
    judged: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    survivors: dict[str, dict[str, Any]] = field(default_factory=dict)
    equivalent: int = 0

    @property
    def run(self) -> int:
        """Mutants that were given to tests."""
        return self.killed.total() + len(self.survivors)


def run_mutants(
    keeper: Keeper,
    folder: Path,
    most: int,
    equivalents: dict[str, str],
    only: Collection[str] = (),
    *,
    again: bool = False,
    jobs: int = 1,
) -> None:
    """Judges mutants of the modules of the core. What was judged before of a module that has not changed is kept.

    Args:
        most: mutants that are drawn of each module; 0: all.
        equivalents: key -> why no test can notice it; they are not run and not counted.
        only: modules; empty: all.
        again: the survivors are judged once more, e.g. after tests were added.
        jobs: processes.
    """
    progress = keeper.progress
    package = copy_package(folder / "mutants")
    baseline = _known_baseline(package, folder / "mutants-baseline.json")
    records = {name: _record(kept) for name, kept in progress.memory.get("modules", {}).items()}
    operators = Path(mutation.__file__).read_bytes()  # a record holds numbers of mutants, which depend on them
    sources: dict[str, Source] = {}
    work: list[tuple[str, int]] = []
    for path in sorted((package / "vla_safety" / "core").glob("*.py")):
        module = path.stem
        if module in TEXTS or (only and module not in only):
            continue
        source = sources[module] = Source(path, everywhere=module in TABLES)
        if not len(source):
            continue
        digest = hashlib.sha256(path.read_bytes() + operators).hexdigest()
        if module not in records or records[module].source != digest:
            records[module] = Record(digest, len(source))
        record = records[module]
        draw = random.Random(f"{progress.seed} {module}").sample(range(len(source)), len(source))
        if again:
            work += [(module, int(k)) for k in record.survivors]
        work += [(module, k) for k in draw[record.judged : most or len(draw)]]
    progress.memory["equivalents"] = equivalents
    progress.goal, progress.done = len(work), 0
    _count(progress, records)
    keeper.save()
    servers: Queue[_Server] = Queue()
    for _ in range(jobs):
        servers.put(_Server(package))

    def judge(module: str, k: int) -> tuple[Mutant | None, int, str]:
        with _MAKING:
            mutant = sources[module].mutant(k)
        if mutant is None:
            return None, 0, "none"
        if mutant.key in equivalents:
            return mutant, 0, "equivalent"
        names = baseline.chosen(module, mutant.line)
        if not names:
            return mutant, 0, "survived"
        server = servers.get()
        try:
            expected = sum(baseline.seconds.get(name, 1.0) for name in names)
            return mutant, len(names), server.run(mutant, names, 10 * expected + GRACE)
        finally:
            servers.put(server)

    with ThreadPoolExecutor(jobs) as pool:
        # In order, so that a record says how far the draw was followed.
        for (module, k), (mutant, tests, outcome) in zip(work, pool.map(lambda w: judge(*w), work), strict=True):
            record = records[module]
            repeated = record.survivors.pop(str(k), None) is not None
            record.judged += not repeated
            if outcome == "survived":
                assert mutant is not None
                record.survivors[str(k)] = {"what": mutant.key, "line": mutant.line, "tests": tests}
            elif outcome == "equivalent":
                record.equivalent += 1
            elif outcome != "none":
                record.killed[outcome] += 1
            _count(progress, records)
            keeper.advance(1)


_MAKING = threading.Lock()  # making a mutant is pure Python: two at once gain nothing


def _record(kept: dict[str, Any]) -> Record:
    return Record(**{**kept, "killed": Counter(kept["killed"])})


def _count(progress: Progress, records: dict[str, Record]) -> None:
    """Sums up what the report says."""
    tally = Tally()
    for module, record in records.items():
        tally.counts["mutants"] += record.run
        tally.counts["mutants killed"] += record.killed.total()
        tally.counts["survived"] += len(record.survivors)
        tally.counts["equivalent"] += record.equivalent
        tally.counts[f"{module}: mutants"] = record.run
        tally.counts[f"{module}: killed"] = record.killed.total()
        tally.counts[f"{module}: equivalent"] = record.equivalent
        for outcome, count in record.killed.items():
            tally.counts[f"killed by {outcome}"] += count
    progress.tally = tally
    progress.memory["modules"] = {n: {**vars(record), "killed": dict(record.killed)} for n, record in records.items()}


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
