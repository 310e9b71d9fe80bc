#!/usr/bin/env python3
"""Set up the workspace: venv, pinned packages, ROS 2, rendering, colcon build. Idempotent, resumable, locked.

Needs Python 3.11 or 3.12 and nothing else. The last line of stdout is the path of the environment file that ``vla``
sources; everything for the eye goes to stderr. Exit code 0: ready; 1: a step failed; 2: wrong use.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vla_setup.process import say, succeeds
from vla_setup.state import DISTROS, Layout, SetupError, Stamps, WrongUse, locked
from vla_setup.steps import OPTIONAL, Setup, Step, optional_parts

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 12))


def choose_layout(distro: str | None, python: Path, env: dict[str, str]) -> Layout:
    """The sourced ROS 2 where there is a usable one, else the wheels of ``distro`` (default: VLA_DISTRO, jazzy).

    Raises WrongUse for an unknown distribution and for one that contradicts the sourced one.
    """
    nested = env.get("VLA_ROOT")  # inside an environment of our own, ROS_DISTRO says nothing about the user's shell
    if nested == str(ROOT) and distro in (None, env.get("VLA_DISTRO")) and env.get("VLA_STATE_DIR"):
        return Layout(ROOT, env["VLA_DISTRO"], system=env["VLA_STATE_DIR"].endswith("-system"))
    sourced = env.get("ROS_DISTRO") if env.get("AMENT_PREFIX_PATH") and not nested else None
    wanted = distro or env.get("VLA_DISTRO")
    if sourced:
        if wanted and wanted != sourced:
            raise WrongUse(
                f"set up ROS 2 {wanted}", f"ROS 2 {sourced} is sourced in this shell", "use a shell without it"
            )
        system = Layout(ROOT, sourced, system=True)
        if system.env_file.is_file() or succeeds([python, "-c", "import rclpy"]):
            return system
        say(f"ROS 2 {sourced} is sourced, but {python} cannot import its rclpy; using wheels instead")
    wanted = wanted or DISTROS[0]
    if wanted not in DISTROS:
        raise WrongUse(f"set up ROS 2 {wanted!r}", "no wheels are pinned for it", f"use {' or '.join(DISTROS)}")
    return Layout(ROOT, wanted)


def pending(steps: list[Step], stamps: Stamps) -> list[Step]:
    """Steps whose fingerprint differs from their stamp."""
    return [step for step in steps if not stamps.matches(step.name, step.seen())]


def run_steps(setup: Setup, stamps: Stamps) -> None:
    steps = setup.steps()
    started = time.monotonic()
    say(f"setting up ROS 2 {setup.layout.distro} in {setup.layout.state} (log: {setup.log})")
    for number, step in enumerate(steps, start=1):
        if stamps.matches(step.name, step.seen()):
            continue
        say(f"[{number}/{len(steps)}] {step.title}")
        begin = time.monotonic()
        stamps.set(step.name, step.act() or step.seen())  # what the step left behind, not what it found
        say(f"[{number}/{len(steps)}] {step.title}: done in {time.monotonic() - begin:.1f} s")
    say(f"ready after {time.monotonic() - started:.1f} s")


def base_python() -> Path:
    """The interpreter behind a venv, or this one: a venv must not be made from a venv that may be deleted."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vla setup", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--distro", help=f"ROS 2 wheels: {' or '.join(DISTROS)} (default: $VLA_DISTRO, else {DISTROS[0]})"
    )
    parser.add_argument("--force", action="store_true", help="run every step again, as after a first checkout")
    parser.add_argument(
        "--with",
        dest="parts",
        action="append",
        default=[],
        choices=OPTIONAL,
        help="also install what an optional part needs, now and whenever it changes; serve: ./vla serve --ray",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing when nothing is to be done")
    options = parser.parse_args(arguments)
    try:
        if sys.version_info[:2] not in SUPPORTED:
            found = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise WrongUse("start", f"this is Python {found}", "install Python 3.11 or 3.12 (or set VLA_PYTHON)")
        layout = choose_layout(options.distro, base_python(), dict(os.environ))
        path = layout.state / "stamps.json"
        stamps = Stamps.load(path)
        if (
            options.force
            or set(options.parts) - set(optional_parts(stamps))
            or pending(Setup(layout, base_python(), stamps).steps(), stamps)
        ):
            with locked(layout.state / "lock"):
                stamps = Stamps.load(path)  # another run may have finished meanwhile
                parts = sorted({*optional_parts(stamps), *options.parts})
                if options.force:
                    stamps.values.clear()
                if parts:
                    stamps.set("with", " ".join(parts))
                setup = Setup(layout, base_python(), stamps)
                if pending(setup.steps(), stamps):
                    run_steps(setup, stamps)
        elif not options.quiet:
            say(f"ROS 2 {layout.distro} in {layout.state}: nothing to do")
    except SetupError as error:
        say(error.report())
        return 2 if isinstance(error, WrongUse) else 1
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        return 130
    print(layout.env_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
