#!/usr/bin/env python3
"""Checks against counterparts that are too large for every environment: LeRobot's policies and server, Ray Serve.

    ./vla interop [--check] [pytest options]

Makes `.vla/interop/venv` for LeRobot from `requirements/interop.txt` (about 8 GB, once), installs Ray as `./vla setup
--with serve` does (0.4 GB), then runs the checks. `--check` only says whether all is there (exit status 0) or not (1).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vla_setup.process import say
from vla_setup.state import fingerprint

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".vla" / "interop"
PYTHON = FOLDER / "venv" / "bin" / "python"
REQUIREMENTS = ROOT / "requirements" / "interop.txt"
STAMP = FOLDER / "stamp"
SOURCE = ROOT / "src" / "vla_policy_node" / "interop"
CHECKS = sorted([*SOURCE.glob("lerobot_*.py"), *SOURCE.glob("ray_*.py")])


def ready() -> bool:
    """Ray is there, and LeRobot's environment is complete and made from the requirements as they are now."""
    return importlib.util.find_spec("ray") is not None and lerobot_ready()


def lerobot_ready() -> bool:
    """The environment is complete and made from the requirements as they are now."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == fingerprint(REQUIREMENTS)


def prepare() -> None:
    """Installs what is missing. Raises CalledProcessError when a step fails; its output is on the terminal."""
    setup = [sys.executable, ROOT / "scripts" / "bootstrap.py", "--with", "serve"]
    subprocess.run(setup, check=True, stdout=sys.stderr)
    if not lerobot_ready():
        prepare_lerobot()


def prepare_lerobot() -> None:
    """Makes the environment. Raises CalledProcessError when a step fails; its output is on the terminal."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    base = Path(os.path.realpath(sys.executable))
    say(f"making {FOLDER.relative_to(ROOT)}/venv: LeRobot and what it needs, about 8 GB, once")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    environment["_ROS_WHEELS_BOOTSTRAP_COMPLETE"] = "1"
    if not PYTHON.exists():
        subprocess.run([base, "-m", "venv", FOLDER / "venv"], check=True, env=environment, stdout=sys.stderr)
    install = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--prefer-binary"]
    subprocess.run([*install, "-r", REQUIREMENTS], check=True, env=environment, stdout=sys.stderr)
    STAMP.write_text(fingerprint(REQUIREMENTS))


def main() -> int:
    """The command line."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if "--check" in arguments:
        return 0 if ready() else 1
    if not ready():
        try:
            prepare()
        except subprocess.CalledProcessError as error:
            say(f"interop: '{error.cmd[0]}' ended with {error.returncode}; mend what is said above, and try again")
            return 1
    environment = {**os.environ, "VLA_INTEROP_PYTHON": str(PYTHON)}
    return subprocess.call([sys.executable, "-m", "pytest", "-q", *map(str, CHECKS), *arguments], env=environment)


if __name__ == "__main__":
    sys.exit(main())
