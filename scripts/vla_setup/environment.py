"""The environment of every ``vla`` command, as values for setup's own children and as ``env.sh`` for the shell.

It is complete before Python starts. That matters twice: the loader reads LD_LIBRARY_PATH only at start, and the ROS
wheels (``ros_wheels_bootstrapper.pth``) re-execute an interpreter that lacks ``_ROS_WHEELS_BOOTSTRAP_COMPLETE`` with a
library path of their own.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from .state import Layout, packages

# glibc caps the mmap threshold at 32 MiB; images stay below it, so that
# their buffers are reused instead of mapped anew.
_MMAP_THRESHOLD = 32 * 1024 * 1024
_TRIM_THRESHOLD = 256 * 1024 * 1024


def workspace_prefixes(layout: Layout) -> list[Path]:
    """Install prefixes of the packages that are built and still exist in the source tree."""
    return [layout.install / name for name in packages(layout.source) if (layout.install / name / "share").is_dir()]


def _python_path(layout: Layout) -> list[Path]:
    found: list[Path] = []
    for prefix in workspace_prefixes(layout):
        develop = layout.build / prefix.name
        if any(develop.glob("*.egg-info")):  # symlink install of a Python package: links and metadata lie here
            found.append(develop)
        found.extend(sorted(prefix.glob("lib/python3.*/site-packages")))
        found.extend(sorted(prefix.glob("local/lib/python3.*/dist-packages")))  # Debian's and Ubuntu's install scheme
    return found


def _library_path(layout: Layout) -> list[Path]:
    found = [prefix / "lib" for prefix in workspace_prefixes(layout) if any((prefix / "lib").glob("*.so"))]
    if not layout.system:
        found.append(layout.venv / "lib")
        found.extend(sorted(layout.site_packages().glob("ros_*.libs")))
    return found


def _join(paths: list[Path]) -> str:
    return os.pathsep.join(str(path) for path in paths)


def fixed(layout: Layout) -> dict[str, str]:
    """Variables that ``env.sh`` sets whatever they were before."""
    values = {
        "VLA_ROOT": str(layout.root),
        "VLA_DISTRO": layout.distro,
        "VLA_STATE_DIR": str(layout.state),
        "VLA_ENV_FILE": str(layout.env_file),
        "VIRTUAL_ENV": str(layout.venv),
        "ROS_DISTRO": layout.distro,
    }
    if not layout.system:
        # Set, not extended: another ROS installation on these paths would be mixed with the wheels.
        prefixes = _join([*workspace_prefixes(layout), layout.venv])
        values |= {
            "AMENT_PREFIX_PATH": prefixes,
            "CMAKE_PREFIX_PATH": prefixes,
            "COLCON_PREFIX_PATH": str(layout.install),
            "PYTHONPATH": _join(_python_path(layout)),
            "ROS_VERSION": "2",
            "ROS_PYTHON_VERSION": "3",
            "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1",
        }
    return values


def prepended(layout: Layout) -> dict[str, str]:
    """Variables that ``env.sh`` extends at the front, once."""
    values = {"PATH": str(layout.venv / "bin"), "LD_LIBRARY_PATH": _join(_library_path(layout))}
    if layout.system:
        prefixes = _join(workspace_prefixes(layout))
        values |= {
            "AMENT_PREFIX_PATH": prefixes,
            "CMAKE_PREFIX_PATH": prefixes,
            "PYTHONPATH": _join(_python_path(layout)),
        }
    return {name: value for name, value in values.items() if value}


def defaults(layout: Layout, renderer: str | None) -> dict[str, str]:
    """Variables that ``env.sh`` sets only where the user has not."""
    profile = str(layout.source / "vla_bringup" / "config" / "fastdds.xml")
    values = {
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",  # nothing leaves this machine unless the user says so
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,  # Fast DDS 2 (Jazzy)
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,  # Fast DDS 3 (Kilted)
        "ROS_LOG_DIR": str(layout.log / "ros"),
        "MALLOC_MMAP_THRESHOLD_": str(_MMAP_THRESHOLD),
        "MALLOC_TRIM_THRESHOLD_": str(_TRIM_THRESHOLD),
        "OMP_NUM_THREADS": str(min(4, os.cpu_count() or 1)),
        "OMP_WAIT_POLICY": "PASSIVE",  # idle worker threads must not spin on the cores that the control loop needs
        "OPENBLAS_NUM_THREADS": "1",  # 7 x 7 matrices gain nothing from threads
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
    }
    if renderer:
        values |= {"MUJOCO_GL": renderer, "PYOPENGL_PLATFORM": renderer}
    return values


def child_environment(layout: Layout, renderer: str | None = None) -> dict[str, str]:
    """The environment for setup's own children (colcon, probes): what ``env.sh`` would give, computed here."""
    env = dict(os.environ)
    env.pop("PYTHONHOME", None)
    for name, value in defaults(layout, renderer).items():
        env.setdefault(name, value)
    for name, value in prepended(layout).items():
        env[name] = value + (os.pathsep + env[name] if env.get(name) else "")
    return env | fixed(layout)


def shell_text(layout: Layout, renderer: str | None) -> str:
    """Contents of ``env.sh`` (bash)."""
    lines = [
        "# Written by scripts/bootstrap.py; sourced by ./vla. Edits are lost at the next setup.",
        "unset PYTHONHOME",
    ]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in fixed(layout).items()]
    for name, value in prepended(layout).items():
        quoted = shlex.quote(value)
        lines += [
            f'case ":${{{name}:-}}:" in',
            f"  *:{quoted}:*) ;;",
            f'  *) export {name}={quoted}"${{{name}:+:${name}}}" ;;',
            "esac",
        ]
    lines += [f'export {name}="${{{name}:-{value}}}"' for name, value in defaults(layout, renderer).items()]
    return "\n".join(lines) + "\n"
