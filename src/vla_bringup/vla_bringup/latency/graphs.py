"""One system under test: its files, its processes, its phases, and what its processes cost."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vla_bringup.files import share
from vla_bringup.latency.figures import Seen, seen_from
from vla_bringup.runner import Runner
from vla_bringup.system import DDS_PROFILE_VARIABLES, System, robot_system
from vla_contract.errors import VlaError
from vla_contract.robot import load_robot, read_yaml
from vla_node_base.domains import free_domain

STACK = ("vla_safety", "vla_policy")
WORKER = "worker"
_WORLD_PATIENCE = 120.0  # s without a word of the stand-in, beyond what its phases take
_SAMPLE_PERIOD = 2.0  # s between two looks at memory
# A Fast DDS profile that changes nothing: what a user gets who sets no profile.
_DEFAULT_PROFILE = """<?xml version="1.0" encoding="UTF-8"?>
<dds xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
  <profiles><participant profile_name="default" is_default_profile="true"/></profiles>
</dds>
"""


class BenchError(VlaError):
    """A system under test did not work."""


@dataclass(frozen=True)
class Phase:
    """A task of `seconds`; `instruction` as `stub` takes it."""

    instruction: str
    seconds: float


@dataclass(frozen=True)
class Graph:
    """What is run.

    Attributes:
        name: of the folder for its files.
        shipped: with the suite's transport profile, or with Fast DDS's own settings.
        cameras: how many; the robot file's, and copies of its first one.
        schedule: of the policy file; what is missing has the default.
        phases: one after the other.
    """

    name: str
    shipped: bool
    cameras: int
    schedule: Mapping[str, float]
    phases: Sequence[Phase]


@dataclass
class Usage:
    """What a process cost in one phase: share of one core, and resident memory [MB] against time [s]."""

    cpu_share: float = float("nan")
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def rss_mb(self) -> float:
        """Largest."""
        return max((size for _, size in self.memory), default=float("nan"))


@dataclass(frozen=True)
class PhaseResult:
    """What was seen, and what it cost: process -> usage; `stops`: how often the filter stopped the robot meanwhile."""

    phase: Phase
    seen: Seen
    usage: Mapping[str, Usage]
    delays: Mapping[str, str]
    stops: int


@dataclass(frozen=True)
class GraphResult:
    """Of one run of a graph.

    Attributes:
        delivered: share of the images that reached the policy node, by camera.
        clock_drift_ms: by which the wall clock was moved against the steady one meanwhile.
    """

    graph: Graph
    phases: Sequence[PhaseResult]
    delivered: Mapping[str, float]
    clock_drift_ms: float


def write_files(graph: Graph, robot: Path, pace: float, folder: Path) -> tuple[Path, Path]:
    """Robot file and policy file of a graph."""
    source = load_robot(robot)
    content = read_yaml(robot, "robot file")
    content["description"] = {k: str(source.resolve(v)) for k, v in content["description"].items()}
    content["safety"] = str(source.resolve(source.safety))
    names = list(source.cameras)[: graph.cameras]
    content["cameras"] = {name: content["cameras"][name] for name in names}
    for number in range(len(names), graph.cameras):
        first = content["cameras"][names[0]]
        content["cameras"][f"extra{number}"] = first | {"topic": f"/camera/extra{number}/image_raw"}
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{source.name}.yaml", folder / "stub.yaml"
    paths[0].write_text(yaml.safe_dump(content, sort_keys=False))
    policy = {
        "backend": "vla_bringup.latency.stub:load",
        "options": {"cameras": list(content["cameras"]), "pace": pace},
        "schedule": dict(graph.schedule),
    }
    paths[1].write_text(yaml.safe_dump(policy, sort_keys=False))
    return paths


def run_graph(
    graph: Graph, robot: Path, pace: float, folder: Path, tick: Callable[[float], None] = lambda seconds: None
) -> GraphResult:
    """Starts everything, lets the phases pass, ends everything.

    Args:
        tick: called with the seconds of every phase that is over.

    Raises:
        BenchError, NodeDied: when the system does not work.
        ConfigError: when a file is wrong.
    """
    files = write_files(graph, robot, pace, folder)
    with ExitStack() as stack:
        environment = stack.enter_context(surroundings(graph, folder))
        runner = stack.enter_context(Runner(_system(files, folder), folder / "log", environment))
        out = folder / "seen.json"
        world = stack.enter_context(_world(files[0], out, graph.phases, folder, environment))
        try:
            usage = _follow(world, runner, graph, tick)
        finally:
            world.kill()
    found = json.loads(out.read_text())
    phases = [
        PhaseResult(phase, seen_from(seen), used, seen["delays"], seen["stops"])
        for phase, seen, used in zip(graph.phases, found["phases"], usage, strict=True)
    ]
    return GraphResult(graph, phases, found["delivered"], found["clock_drift_ms"])


@contextmanager
def surroundings(graph: Graph, folder: Path) -> Iterator[dict[str, str]]:
    """Variables for the processes of a graph: its transport, and a domain of its own."""
    profile = share() / "config" / "fastdds.xml"
    if not graph.shipped:
        profile = folder / "default_transport.xml"
        profile.write_text(_DEFAULT_PROFILE)
    with free_domain() as domain:
        settings = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
        yield {variable: str(profile) for variable in DDS_PROFILE_VARIABLES} | settings


def _system(files: tuple[Path, Path], folder: Path) -> System:
    """As on a robot; its memory and its records lie in the benchmark's folder."""
    kept = {"state_dir": str(folder / "state"), "audit_dir": str(folder / "audit")}
    return tuple(
        replace(spec, environment={}, parameters={k: kept.get(k, v) for k, v in spec.parameters.items()})
        for spec in robot_system(str(files[0]), str(files[1]))
    )


def _world(
    robot: Path, out: Path, phases: Sequence[Phase], folder: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[str]":
    plan = json.dumps([{"instruction": phase.instruction, "seconds": phase.seconds} for phase in phases])
    with (folder / "log" / "world.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vla_bringup.latency.world", str(robot), str(out), plan],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **environment},
        )


def _follow(
    world: "subprocess.Popen[str]", runner: Runner, graph: Graph, tick: Callable[[float], None]
) -> list[dict[str, Usage]]:
    """Until the stand-in is done; what every phase cost."""
    usages: list[dict[str, Usage]] = []
    watch: _Watch | None = None
    assert world.stdout is not None
    heard = time.monotonic()
    longest = max(phase.seconds for phase in graph.phases) + _WORLD_PATIENCE
    while True:
        runner.check()
        if not select.select([world.stdout], [], [], _SAMPLE_PERIOD)[0]:
            if watch is not None:
                watch.look()
            if time.monotonic() - heard > longest:
                raise BenchError(f"the stand-in for the robot is silent for {longest:g} s in '{graph.name}'")
            continue
        line = world.stdout.readline()
        heard = time.monotonic()
        if not line:
            raise BenchError(f"the stand-in for the robot ended in '{graph.name}'; see its log world.log")
        fact: dict[str, Any] = json.loads(line)
        if fact["event"] == "error":
            raise BenchError(f"'{graph.name}': {fact['reason']}\n{_tails(runner)}")
        if fact["event"] == "begin":
            watch = _Watch(_processes(runner))
        elif fact["event"] == "end" and watch is not None:
            usages.append(watch.end())
            watch = None
            tick(graph.phases[fact["phase"]].seconds)
        elif fact["event"] == "done":
            return usages


def _tails(runner: Runner) -> str:
    return "\n".join(runner.log_tail(name, 4) for name in STACK)


def _processes(runner: Runner) -> dict[str, int]:
    pids = {name: pid for name, pid in runner.pids().items() if name in STACK}
    children = Path(f"/proc/{pids['vla_policy']}/task/{pids['vla_policy']}/children").read_text().split()
    for task in Path(f"/proc/{pids['vla_policy']}/task").iterdir():
        children += (task / "children").read_text().split()
    return pids | ({WORKER: int(children[0])} if children else {})


class _Watch:
    """Processor time and memory of processes, from /proc, from now on."""

    def __init__(self, pids: Mapping[str, int]):
        self._pids = pids
        self._began = time.monotonic()
        self._cpu = {name: _cpu_seconds(name, pid) for name, pid in pids.items()}
        self._usage = {name: Usage() for name in pids}
        self.look()

    def look(self) -> None:
        now = time.monotonic() - self._began
        for name, pid in self._pids.items():
            self._usage[name].memory.append((now, _rss_mb(name, pid)))

    def end(self) -> dict[str, Usage]:
        self.look()
        wall = time.monotonic() - self._began
        for name, pid in self._pids.items():
            self._usage[name].cpu_share = (_cpu_seconds(name, pid) - self._cpu[name]) / wall
        return self._usage


def _proc(name: str, pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise BenchError(f"{name} (process {pid}) ended while it was measured; see its log") from error


def _cpu_seconds(name: str, pid: int) -> float:
    """User and system time, of all threads."""
    fields = _proc(name, pid, "stat").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(name: str, pid: int) -> float:
    """Resident memory, shared segments included."""
    pages = int(_proc(name, pid, "statm").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
