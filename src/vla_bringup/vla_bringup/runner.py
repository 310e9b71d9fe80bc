"""The list of nodes as processes, for machines without launch_ros.

Every node leads a process group of its own and writes to a log file of its own. Nothing is left behind: `stop` asks,
insists, and kills; and when the runner itself is killed, the kernel kills the nodes.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml

from vla_bringup.files import prefixes
from vla_bringup.system import NodeSpec, System
from vla_contract.errors import ConfigError, VlaError
from vla_node_base.abandoned import free_abandoned

INTERRUPT_TIMEOUT = 5.0  # s until SIGTERM
TERMINATE_TIMEOUT = 2.0  # s until SIGKILL
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class NodeDied(VlaError):
    """A required node ended although nobody asked it to."""


@dataclass
class _Process:
    spec: NodeSpec
    popen: "subprocess.Popen[bytes]"
    log: Path


class Runner:
    """The processes of one system. Use it as a context manager; start it from a thread that outlives it.

    Args:
        system: what to start, in order.
        log_folder: gets `<node>.log` and `<node>.yaml` (its parameters).
        environment: set for every node, on top of the caller's own.
    """

    def __init__(self, system: System, log_folder: Path, environment: Mapping[str, str] | None = None):
        self.system = system
        self.log_folder = log_folder
        self._environment = dict(environment or {})
        self._processes: dict[str, _Process] = {}

    def __enter__(self) -> "Runner":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts every node; waits at gates.

        Raises:
            ConfigError: when an executable is not installed; nothing is started then.
            NodeDied: when a gate refuses, or a required node ends while a gate is waited for.
        """
        commands = [command(spec, self.log_folder) for spec in self.system]
        self.log_folder.mkdir(parents=True, exist_ok=True)
        free_abandoned()  # of systems that were killed: they would fill the machine's memory, one after the other
        try:
            for spec, line in zip(self.system, commands, strict=True):
                self._start(spec, line)
                if spec.gate:
                    self._pass(spec.name)
        except BaseException:
            self.stop()
            raise

    def _start(self, spec: NodeSpec, line: Sequence[str]) -> None:
        log = self.log_folder / f"{spec.name}.log"
        parameters = {f"/{spec.name}": {"ros__parameters": {k: _plain(v) for k, v in spec.parameters.items()}}}
        (self.log_folder / f"{spec.name}.yaml").write_text(yaml.safe_dump(parameters))
        with log.open("wb") as output:
            popen = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment, **spec.environment},
                process_group=0,
                preexec_fn=_die_with(os.getpid()),
            )
        self._processes[spec.name] = _Process(spec, popen, log)

    def _pass(self, gate: str) -> None:
        process = self._processes[gate]
        while process.popen.poll() is None:
            self.check()
            _wait(process.popen, 0.1)
        if process.popen.returncode != 0:
            raise NodeDied(
                f"{gate} {_ending(process.popen.returncode)}: the rest does not start\n{self.log_tail(gate)}"
            )

    def restart(self, name: str) -> None:
        """Starts a node again; ends it first if it still runs. Its log begins anew."""
        process = self._processes[name]
        _signal_group(process, signal.SIGKILL)
        process.popen.wait()
        self._start(process.spec, command(process.spec, self.log_folder))

    def check(self) -> None:
        """Raises:
        NodeDied: when a required node has ended; names it and shows the end of its log.
        """
        for name, process in self._processes.items():
            code = process.popen.poll()
            if process.spec.required and code is not None:
                raise NodeDied(f"required node {name} {_ending(code)}; see {process.log}\n{self.log_tail(name)}")

    def wait(self, tick: Callable[[], None] = lambda: None) -> None:
        """Blocks until a required node ends.

        Args:
            tick: called a few times a second meanwhile.

        Raises:
            NodeDied: then.
        """
        while True:
            self.check()
            tick()
            time.sleep(0.2)

    def pid(self, name: str) -> int:
        """Process id of a node, which is also its process group."""
        return self._processes[name].popen.pid

    def pids(self) -> dict[str, int]:
        """Process ids of all nodes that were started."""
        return {name: process.popen.pid for name, process in self._processes.items()}

    def log_tail(self, name: str, lines: int = 12) -> str:
        """The last lines that a node wrote."""
        process = self._processes.get(name)
        if process is None or not process.log.is_file():
            return f"  {name} wrote nothing"
        tail = process.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"  {name} | {line}" for line in tail) or f"  {name} wrote nothing"

    def stop(self) -> None:
        """Ends everything: SIGINT, SIGTERM after 5 s, SIGKILL after 2 s more. Safe to call twice, and from Ctrl-C."""
        if threading.current_thread() is threading.main_thread():
            # A second Ctrl-C must not leave processes behind; it is late by seconds at most.
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                self._stop()
            finally:
                signal.signal(signal.SIGINT, previous)
        else:
            self._stop()

    def _stop(self) -> None:
        alive = [p for p in self._processes.values() if p.popen.poll() is None]
        for number, patience in ((signal.SIGINT, INTERRUPT_TIMEOUT), (signal.SIGTERM, TERMINATE_TIMEOUT)):
            for process in alive:
                _signal_group(process, number)
                _signal_group(process, signal.SIGCONT)  # a stopped process takes no other signal
            deadline = time.monotonic() + patience
            for process in alive:
                _wait(process.popen, deadline - time.monotonic())
            alive = [p for p in alive if p.popen.poll() is None]
        for process in self._processes.values():
            # Also what a node that ended has left in its group, e.g. a worker process.
            _signal_group(process, signal.SIGKILL)
            process.popen.wait()


def command(spec: NodeSpec, log_folder: Path) -> list[str]:
    """The command line of a node, as `ros2 run` would make it.

    Raises:
        ConfigError: when the executable is not installed.
    """
    candidates = [prefix / "lib" / spec.package / spec.executable for prefix in prefixes()]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            break
    else:
        looked = ", ".join(map(str, candidates)) or "nowhere: AMENT_PREFIX_PATH is empty"
        raise ConfigError(
            f"executable '{spec.executable}' of package '{spec.package}' is not installed (looked at {looked}); "
            "run ./vla setup"
        )
    line = [str(candidate), *spec.arguments, "--ros-args", "-r", f"__node:={spec.name}"]
    for source, target in spec.remappings:
        line += ["-r", f"{source}:={target}"]
    return [*line, "--params-file", str(log_folder / f"{spec.name}.yaml")]


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec: it asks the kernel to be killed when the runner's thread ends."""

    def preexec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the runner died before the line above
            os._exit(1)

    return preexec


def _wait(popen: "subprocess.Popen[bytes]", timeout: float) -> None:
    try:
        popen.wait(max(0.0, timeout))
    except subprocess.TimeoutExpired:
        pass


def _signal_group(process: _Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.popen.pid, number)
    except ProcessLookupError:
        pass


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
