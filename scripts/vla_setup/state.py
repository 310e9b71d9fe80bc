"""Where the state lies, what is already done, and who may change it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DISTROS = ("jazzy", "kilted")


class SetupError(Exception):
    """A step that could not be done: what failed, why, and what the user can do about it."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why, self.remedy = what, why, remedy

    def report(self) -> str:
        return f"failed: {self.what}\nwhy:    {self.why}\nremedy: {self.remedy}"


class WrongUse(SetupError):
    """What was asked for cannot be: an option or an environment variable is to be corrected."""


@dataclass(frozen=True)
class Layout:
    """Paths of one checkout and one ROS distribution. ``system`` is True where a sourced ROS 2 is used."""

    root: Path
    distro: str
    system: bool = False

    @property
    def state(self) -> Path:
        return self.root / ".vla" / (f"{self.distro}-system" if self.system else self.distro)

    @property
    def venv(self) -> Path:
        return self.state / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def build(self) -> Path:
        return self.state / "build"

    @property
    def install(self) -> Path:
        return self.state / "install"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def env_file(self) -> Path:
        return self.state / "env.sh"

    @property
    def source(self) -> Path:
        return self.root / "src"

    def site_packages(self) -> Path:
        """The venv's site-packages folder; raises SetupError when there is no venv."""
        found = sorted(self.venv.glob("lib/python3.*/site-packages"))
        if not found:
            raise SetupError("find the venv", f"{self.venv} has no site-packages", f"remove {self.venv}, run again")
        return found[0]


@dataclass
class Stamps:
    """What each finished step saw: step name to fingerprint, kept in ``stamps.json``. Written after every step."""

    path: Path
    values: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Stamps:
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError):
            values = {}  # lost or torn: the steps run again, and find most of their work done
        return cls(path, values if isinstance(values, dict) else {})

    def matches(self, step: str, fingerprint: str) -> bool:
        return self.values.get(step) == fingerprint

    def set(self, step: str, fingerprint: str) -> None:
        self.values[step] = fingerprint
        self._write()

    def clear(self, step: str) -> None:
        if self.values.pop(step, None) is not None:
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=1, sort_keys=True))
        temporary.replace(self.path)


def fingerprint(*parts: str | bytes | Path | Iterable[str]) -> str:
    """SHA-256 over strings and file contents (a missing file counts as empty); order matters."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            data = part.read_bytes() if part.is_file() else b""
        elif isinstance(part, bytes):
            data = part
        elif isinstance(part, str):
            data = part.encode()
        else:
            data = "\0".join(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


# Read by the build itself: a change of content needs a rebuild.
_BUILD_FILES = {"package.xml", "setup.py", "setup.cfg", "CMakeLists.txt"}
_BUILD_SUFFIXES = {".msg", ".srv", ".action", ".idl", ".cpp", ".hpp", ".cmake"}
_SKIPPED_FOLDERS = {"__pycache__", "test", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache"}


def packages(source: Path) -> dict[str, Path]:
    """Package folders directly below ``source`` (those with a package.xml), by folder name."""
    if not source.is_dir():
        return {}
    return {path.name: path for path in sorted(source.iterdir()) if (path / "package.xml").is_file()}


def package_fingerprint(folder: Path) -> str:
    """What a symlink-installed package must be rebuilt for.

    Content counts for build files and interfaces; for all other files only the name does (a new data file needs its
    link). Python modules below the package's own module folder count not at all: the link shows them already.
    """
    parts: list[str | Path] = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.endswith(".egg-info"))
        place = Path(where)
        relative = place.relative_to(folder)
        in_module = bool(relative.parts) and relative.parts[0] == folder.name
        for name in sorted(files):
            suffix = os.path.splitext(name)[1]
            if suffix == ".pyc" or (suffix == ".py" and in_module):
                continue
            parts.append(str(relative / name))
            if name in _BUILD_FILES or suffix in _BUILD_SUFFIXES:
                parts.append(place / name)
    parts.append("test" if (folder / "test").is_dir() else "no test")  # ament_cmake registers the folder
    return fingerprint(*parts)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the setup lock of one state folder; says so when another run holds it. The kernel drops it at exit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another setup of {path.parent} is running; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
