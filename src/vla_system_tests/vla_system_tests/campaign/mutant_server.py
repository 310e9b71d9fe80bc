"""Forks a process for each mutant. Everything that all of them need is imported here, once, but not the filter.

A process of its own, because the campaign itself has imported the filter. Requests come as lines of JSON on stdin,
answers go to stdout in the same way.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves one module from a text."""

    def __init__(self, name: str, source: str, path: str):
        self._name, self._source, self._path = name, source, path

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, self._path, "exec"), module.__dict__)


def _serve(package: Path) -> None:
    """The server's loop."""
    sys.path.insert(0, str(package))
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    for name in (
        "coal", "hypothesis", "numpy", "pinocchio", "pydantic", "pytest", "scipy.interpolate", "vla_contract.robot",
        "vla_contract.interpolation", "vla_contract.chunk", "yaml", "_pytest.assertion.rewrite",
    ):  # fmt: skip
        importlib.import_module(name)
    taken = [name for name in sys.modules if name.startswith("vla_safety")]
    assert not taken, f"{taken} are imported already: mutants would not be seen"
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_test(package, request, nothing))
        answers.write(json.dumps({"outcome": _outcome(child, float(request["timeout"]))}) + "\n")
        answers.flush()


def _test(package: Path, request: dict[str, Any], nothing: int) -> int:
    """In the child: runs the tests against the mutant."""
    import pytest
    from hypothesis import settings

    try:
        os.setpgid(0, 0)
        os.dup2(nothing, 2)
        os.chdir(package)
        path = package / "vla_safety" / "core" / f"{request['module']}.py"
        sys.meta_path.insert(0, _Changed(f"vla_safety.core.{request['module']}", request["source"], str(path)))
        settings.register_profile("mutants", derandomize=True, database=None)
        settings.load_profile("mutants")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", f"--rootdir={package}", "--no-header"]
        return int(pytest.main([*options, *request["tests"]]))
    except BaseException:
        traceback.print_exc()
        return 9


def _outcome(child: int, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", 1: "test"}.get(code, "error")
        time.sleep(0.005)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "time"


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
