"""The rules stay what they were when the robot was armed (I12, R18).

The filter judges by what it has read; a file that changes later changes nothing before `~/reload`, which is refused
while the robot is armed, and the node's parameters are read-only. So nothing can be loosened by either. But whoever
tries it believes that it works: the robot is stopped, and the attempt is named; nor is it armed before file and filter
agree again.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_contract.errors import VlaError
from vla_contract.robot import Robot
from vla_safety.adapters import Adapter, Host
from vla_safety.building import Parts
from vla_safety.core.findings import Finding
from vla_safety.core.modes import ENABLED
from vla_safety.core.watchdogs import Instant

_CAUSE = "rules_changed"


class Integrity(Adapter):
    """Watches the files that the filter was made of, and attempts to set parameters.

    Args:
        host: the filter's node; files: name for people -> path.
    """

    def __init__(self, host: Host, files: Mapping[str, Path]):
        super().__init__(host)
        self._fixed = dict(files)
        self._files: dict[str, Path] = {}
        self._read: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._marks: dict[str, tuple[int, ...]] = {}
        self._asked = lambda given: host.guarded(self._on_parameters)(given) or given
        if isinstance(host, Node):
            host.add_pre_set_parameters_callback(self._asked)

    def close(self) -> None:
        if isinstance(self.host, Node):
            self.host.remove_pre_set_parameters_callback(self._asked)

    def rebuilt(self, parts: Parts) -> None:
        self._files = self._fixed | {f"mesh {path}": path for path in parts.config.mesh_files}
        self._marks = {name: _mark(path) for name, path in self._files.items()}
        self._read = {name: _digest(path) for name, path in self._files.items()}
        self._told = dict(self._read)

    def arming(self) -> Finding | None:
        for name, path in self._files.items():
            if _digest(path) != self._read[name]:
                return Finding("rules_differ", f"{name} ({path.name})")
        return None

    def look(self, now: Instant) -> None:
        # A file is read only when its marks say that somebody wrote: reading takes longer than a cycle may.
        marks = {name: _mark(path) for name, path in self._files.items()}
        touched = [name for name, mark in marks.items() if mark != self._marks[name]]
        if not touched or not self._armed:
            return
        self._marks = marks
        found = {name: _digest(self._files[name]) for name in touched}
        changed = [name for name, digest in found.items() if digest not in (self._read[name], self._told[name])]
        self._told.update(found)
        if changed:
            self._stop(f"{changed[0]} ({self._files[changed[0]].name})", now)

    def _on_parameters(self, parameters: list[Parameter]) -> list[Parameter]:
        if parameters and self._armed:
            self._stop(f"parameter {parameters[0].name}", self.host.instant())
        return parameters  # they are read-only: rclpy refuses them

    @property
    def _armed(self) -> bool:
        return self.host.safety is not None and self.host.safety.mode in ENABLED

    def _stop(self, what: str, now: Instant) -> None:
        # An event, not a condition: the rules are the old ones, so nothing has to be ended before a reset.
        self.host.tell(_CAUSE, Finding(_CAUSE, what), now)
        self.host.tell(_CAUSE, None, now)


def rule_files(robot: Robot, safety: str) -> dict[str, Path]:
    """What the filter judges by: name for people -> path. `safety`: path of the safety file; empty: the robot's."""
    description = robot.description
    wanted = {
        "robot file": str(robot.path),
        "safety file": safety or robot.safety,
        "joint limits": description.joint_limits,
        "URDF": description.urdf,
        "SRDF": description.srdf,
    }
    found = {}
    for name, value in wanted.items():
        try:
            found[name] = Path(value) if name == "robot file" or value == safety else robot.resolve(value)
        except VlaError:
            continue  # e.g. a URDF that comes by topic; what cannot be resolved is refused elsewhere
    return found


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty when there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _digest(path: Path) -> str:
    """sha256 of a file, hex; empty when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
