"""The steps of setup. Each is a name, a fingerprint of what it depends on, and an action that may raise SetupError."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import environment
from .process import run, say, succeeds, tail
from .state import Layout, SetupError, Stamps, fingerprint, package_fingerprint, packages

_RERUN = "fix the cause shown above and run the same command again; finished steps are not repeated"
# Beside a sourced ROS 2 these stay as they came with it: launch_testing's pytest plugin does not load in every pytest.
# All else is pinned in the venv, colcon too, so that the workspace's scripts start with the venv's Python, and NumPy:
# ROS message types do not use its C API, and load with another NumPy than they were compiled against.
_HELD = re.compile(r"pytest|pytest-.*|pluggy|iniconfig")
_RENDERERS = {"egl": ("libegl1", "libgl1-mesa-dri"), "osmesa": ("libosmesa6",)}
_GL_LIBRARIES = ("libEGL.so.1", "libEGL_mesa.so.0", "libEGL_nvidia.so.0", "libOSMesa.so.8", "libOSMesa.so.6")
_GL_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
_RENDER_PROBE = (
    "import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size=\"1\"/></worldbody></mujoco>');"
    "d = mujoco.MjData(m); r = mujoco.Renderer(m, 32, 32); mujoco.mj_forward(m, d); r.update_scene(d);"
    "assert r.render().shape == (32, 32, 3)"
)


OPTIONAL = ("serve",)  # requirements/NAME.txt, for `./vla setup --with NAME`


def optional_parts(stamps: Stamps) -> list[str]:
    """Names that setup was ever run with."""
    return stamps.values.get("with", "").split()


@dataclass(frozen=True)
class Step:
    """``name`` keys the stamp, ``title`` is shown, ``seen`` is the fingerprint that a finished step leaves.

    ``act`` may return the fingerprint of what it worked on, where that can change under its hands.
    """

    name: str
    title: str
    seen: Callable[[], str]
    act: Callable[[], str | None]


class Setup:
    """The steps for one layout. ``base_python`` is the interpreter that the venv is made from."""

    def __init__(self, layout: Layout, base_python: Path, stamps: Stamps) -> None:
        self.layout, self.base_python, self.stamps = layout, base_python, stamps
        self.log = layout.log / "setup.log"

    def steps(self) -> list[Step]:
        return [
            Step("tools", "compiler, headers and venv support", lambda: "3", self.tools),
            Step("venv", "virtual environment", self._venv_seen, self.venv),
            Step("python", "Python packages (the long step: about 2 GB)", self._python_seen, self.python),
            *self._optional_step(),
            Step("cmake", "CMake path repairs in the ROS wheels", self._cmake_seen, self.cmake),
            Step("rendering", "rendering without a display", self._rendering_seen, self.rendering),
            Step("workspace", "colcon build", self._workspace_seen, self.workspace),
            Step("environment", "environment file and import check", self._environment_seen, self.environment),
        ]

    # -- system packages -------------------------------------------------------------------------------------------

    def tools(self) -> None:
        """C++ compiler, CMake, Python headers and ensurepip: what a wheel cannot bring."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        missing = [
            package
            for tool, package in (("g++", "g++"), ("make", "make"), ("cmake", "cmake"))
            if not shutil.which(tool)
        ]
        if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
            missing.append(f"python{version}-dev")
        if not self.layout.python.exists() and not succeeds([self.base_python, "-m", "ensurepip", "--version"]):
            missing.append(f"python{version}-venv")
        if missing and not self._apt(missing):
            raise SetupError(
                "system packages",
                f"missing on this machine: {', '.join(missing)} (needed to compile the message types)",
                f"{_apt_command(missing)}   and run the same command again",
            )

    def _apt(self, names: list[str]) -> bool:
        """Install Debian packages when this process may; False when it may not or cannot."""
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            return False
        say(f"  installing Debian packages: {' '.join(names)}")
        env = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", *names]
        for command in (install, ["apt-get", "update"], install):  # the package lists may be absent or old
            try:
                run("system packages", command, self.log, env=env, remedy=_RERUN)
            except SetupError:
                continue
            if command is install:
                return True
        return False

    # -- Python ----------------------------------------------------------------------------------------------------

    def _venv_seen(self) -> str:
        return fingerprint(str(self.layout.venv), str(self.layout.system)) if self.layout.python.exists() else "absent"

    def venv(self) -> None:
        if not succeeds([self.layout.python, "-I", "-c", "import pip"]):
            flags = ["--system-site-packages"] if self.layout.system else []
            command: list[str | Path] = [self.base_python, "-m", "venv", "--clear", *flags, self.layout.venv]
            run("virtual environment", command, self.log, remedy=_RERUN)
            self.stamps.clear("python")
            self.stamps.clear("optional")

    def requirement_files(self) -> list[Path]:
        folder = self.layout.root / "requirements"
        names = ["base.txt", "dev.txt"] + ([] if self.layout.system else [f"ros-{self.layout.distro}.txt"])
        return [folder / name for name in names]

    def _python_seen(self) -> str:
        return fingerprint(*self.requirement_files(), self.layout.root / "requirements" / "no-deps.txt")

    def python(self) -> None:
        if not self.layout.system and platform.machine() != "x86_64":
            raise SetupError(
                "Python packages",
                f"the ROS 2 wheels exist for x86_64, this machine is {platform.machine()}",
                f"install ROS 2 {self.layout.distro}, source its setup.bash, and run the same command again",
            )
        self._install(self.requirement_files())
        self._pip(["--no-deps", "-r", self.layout.root / "requirements" / "no-deps.txt"])

    def _install(self, files: list[Path]) -> None:
        wanted: list[str | Path] = []
        for path in files:
            wanted += ["-r", path]
        if self.layout.system:
            wanted = list(self._missing_requirements(files))
        if wanted:
            self._pip(wanted)

    def _pip(self, wanted: list[str | Path]) -> None:
        command: list[str | Path] = [self.layout.python, "-m", "pip", "install", "--disable-pip-version-check"]
        remedy = "check the network connection and the free space on the disk, then run the same command again"
        env = dict(os.environ) | {"PYTHONNOUSERSITE": "1", "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}
        env.pop("PYTHONPATH", None)  # pip would take what lies there for installed
        run("Python packages", [*command, "--prefer-binary", *wanted], self.log, env=env, remedy=remedy)

    def _optional_step(self) -> list[Step]:
        """The parts that this environment was asked for, once and for good."""
        names = optional_parts(self.stamps)
        files = [self.layout.root / "requirements" / f"{name}.txt" for name in names]
        if not names:
            return []
        title = f"optional Python packages: {', '.join(names)}"
        return [Step("optional", title, lambda: fingerprint(*files), lambda: self._install(files))]

    def _missing_requirements(self, files: list[Path]) -> list[str]:
        """Requirements beside a sourced ROS 2, whose own packages are visible from the venv."""
        script = (
            "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        )
        env = dict(os.environ) | {"_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"}
        listed = subprocess.run([self.layout.python, "-c", script], env=env, capture_output=True, text=True, check=True)
        present = {_normal(name): version for name, version in _json_object(listed.stdout).items()}
        return missing_requirements([line for path in files for line in path.read_text().splitlines()], present)

    # -- ROS wheels ------------------------------------------------------------------------------------------------

    def _cmake_seen(self) -> str:
        return fingerprint(self._python_seen())

    def cmake(self) -> None:
        """Two paths of the machine that built the wheels are left in their CMake exports: point them at this venv."""
        if self.layout.system:
            return
        script = "import sysconfig, numpy; print(sysconfig.get_paths()['include']); print(numpy.get_include())"
        env = environment.child_environment(self.layout)
        found = subprocess.run([self.layout.python, "-c", script], env=env, capture_output=True, text=True, check=False)
        if found.returncode != 0:
            raise SetupError("CMake path repairs", found.stderr.strip(), f"remove {self.layout.venv} and run again")
        python_include, numpy_include = found.stdout.split("\n")[:2]
        for path in self.layout.venv.glob("share/*/cmake/*.cmake"):
            text = path.read_text()
            repaired = repair_cmake(text, python_include, numpy_include)
            if repaired != text:
                path.write_text(repaired)

    # -- rendering -------------------------------------------------------------------------------------------------

    def _rendering_seen(self) -> str:
        present = [
            f"{folder}/{name}" for folder in _GL_FOLDERS for name in _GL_LIBRARIES if os.path.exists(f"{folder}/{name}")
        ]
        return fingerprint(present, self.stamps.values.get("python", ""))

    def rendering(self) -> None:
        """Find a way to render; install Mesa when there is none. Not fatal: only the simulator needs it."""
        self.stamps.set("renderer", self._find_renderer() or self._install_renderer() or "")
        if not self.renderer:
            packages_needed = list(_RENDERERS["egl"])
            say(
                "  warning: MuJoCo can render neither with EGL nor with OSMesa; demo, eval and train need camera\n"
                f"  images and will refuse to start, everything else works. Remedy: {_apt_command(packages_needed)}"
            )

    @property
    def renderer(self) -> str | None:
        return self.stamps.values.get("renderer") or None

    def _find_renderer(self) -> str | None:
        for name in _RENDERERS:
            env = environment.child_environment(self.layout) | {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
            if succeeds([self.layout.python, "-c", _RENDER_PROBE], env=env):
                return name
        return None

    def _install_renderer(self) -> str | None:
        for names in _RENDERERS.values():
            if self._apt(list(names)) and (found := self._find_renderer()):
                return found
        return None

    # -- workspace -------------------------------------------------------------------------------------------------

    def _package_stamps(self) -> dict[str, str]:
        tools = self.stamps.values.get("python", "")
        return {
            name: fingerprint(package_fingerprint(path), tools) for name, path in packages(self.layout.source).items()
        }

    def _workspace_seen(self) -> str:
        return _workspace_fingerprint(self._package_stamps())

    def workspace(self) -> str:
        """Build what changed; forget packages that are gone."""
        layout, current = self.layout, self._package_stamps()
        for folder in layout.install.iterdir() if layout.install.is_dir() else ():
            if folder.is_dir() and (folder / "share").is_dir() and folder.name not in current:
                shutil.rmtree(folder)
                shutil.rmtree(layout.build / folder.name, ignore_errors=True)
        changed = [name for name, seen in current.items() if not self.stamps.matches(f"package:{name}", seen)]
        if not changed:
            return _workspace_fingerprint(current)
        say(f"  building {', '.join(changed)}")
        for name in changed:
            _remove_dangling_links(layout.install / name)
            self._return_code(name).unlink(missing_ok=True)  # an old success must not pass for a new one
        command: list[str | Path] = [layout.python, "-m", "colcon", "--log-base", layout.log, "build"]
        command += ["--base-paths", layout.source, "--build-base", layout.build, "--install-base", layout.install]
        command += ["--symlink-install", "--continue-on-error", "--packages-select", *changed, "--event-handlers"]
        command += ["console_direct+", "console_cohesion-", "--cmake-args", "-DCMAKE_BUILD_TYPE=Release", "-Wno-dev"]
        env = environment.child_environment(layout)
        try:
            run("colcon build", command, self.log, env=env, remedy=_RERUN, cwd=layout.root)
        except SetupError as error:
            failed = [name for name in changed if not self._built(name)]
            logs = [layout.log / "latest_build" / name / "stderr.log" for name in failed]
            why = "\n".join(f"{log} ends with\n{tail(log, 12)}" for log in logs if log.is_file())
            raise SetupError(
                f"colcon build of {', '.join(failed) or 'the workspace'}", why or error.why, _RERUN
            ) from error
        finally:  # also after a failure: what did build need not build again
            for name in changed:
                if self._built(name):
                    self.stamps.set(f"package:{name}", current[name])
                else:
                    self.stamps.clear(f"package:{name}")
            self._write_environment()
        return _workspace_fingerprint(current)

    def _return_code(self, name: str) -> Path:
        return self.layout.build / name / "colcon_build.rc"

    def _built(self, name: str) -> bool:
        code = self._return_code(name)
        return code.is_file() and code.read_text().strip() == "0" and (self.layout.install / name / "share").is_dir()

    # -- environment -----------------------------------------------------------------------------------------------

    def _environment_seen(self) -> str:
        if not self.layout.env_file.is_file():
            return "absent"
        parts = [self.stamps.values.get(name, "") for name in ("python", "workspace", "renderer")]
        return fingerprint(Path(environment.__file__), self.layout.env_file, *parts)

    def _write_environment(self) -> None:
        temporary = self.layout.env_file.with_suffix(".tmp")
        temporary.write_text(environment.shell_text(self.layout, self.renderer))
        temporary.replace(self.layout.env_file)  # whole or not at all: another shell may be sourcing it

    def environment(self) -> None:
        self._write_environment()
        modules = (
            "import rclpy.serialization as r, sensor_msgs.msg as s; m = s.Imu(); m.orientation_covariance[8] = 2.0;"
            "assert r.deserialize_message(r.serialize_message(m), s.Imu).orientation_covariance[8] == 2.0"
        )
        if "vla_msgs" in packages(self.layout.source):
            modules += "; import vla_msgs.msg"
        env = environment.child_environment(self.layout)
        remedy = f"remove {self.layout.state} and run the same command again"
        if self.layout.system:
            remedy = "check that the sourced ROS 2 and its NumPy belong together, " + remedy
        run("import check", [self.layout.python, "-c", modules], self.log, env=env, remedy=remedy)


def repair_cmake(text: str, python_include: str, numpy_include: str) -> str:
    """Replace the build machine's Python and NumPy include folders; idempotent."""
    text = re.sub(r'/opt/python/[^;"\s]*/numpy/_core/include', lambda _: numpy_include, text)
    return re.sub(r'/opt/python/[^;"\s/]+/include/python3\.\d+', lambda _: python_include, text)


def missing_requirements(lines: list[str], present: dict[str, str]) -> list[str]:
    """The pins to install beside a sourced ROS 2, where ``present`` maps normalised names to versions.

    All pins, except packages that ROS itself is tested with: those stay at the version that came with it.
    """
    pins = [line.split("#")[0].strip() for line in lines]
    named = [(pin, _normal(pin.split("==")[0])) for pin in pins if pin]
    return [pin for pin, name in named if name not in present or not _HELD.fullmatch(name)]


def _workspace_fingerprint(stamps: dict[str, str]) -> str:
    return fingerprint([f"{name}={value}" for name, value in stamps.items()])


def _json_object(text: str) -> dict[str, str]:
    return dict(json.loads(text))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _apt_command(names: list[str]) -> str:
    return f"sudo apt-get update && sudo apt-get install -y {' '.join(names)}"


def _remove_dangling_links(folder: Path) -> None:
    """A symlink install leaves links to data files that were deleted or renamed since."""
    for where, _, files in os.walk(folder):
        for name in files:
            path = Path(where, name)
            if path.is_symlink() and not path.exists():
                path.unlink()
