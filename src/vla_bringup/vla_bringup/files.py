"""Where the configuration lies, and what a bare name such as `fr3_sim` means."""

import os
from datetime import datetime
from pathlib import Path
from typing import Literal

from vla_contract.errors import ConfigError, unknown

PACKAGE = "vla_bringup"

Kind = Literal["robots", "policies", "safety"]
_WORDS: dict[Kind, str] = {"robots": "robot", "policies": "policy", "safety": "safety"}


def prefixes() -> list[Path]:
    """The install prefixes of the sourced workspaces, nearest first."""
    return [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]


def share() -> Path:
    """The folder that holds `config/`, `urdf/`, `rviz/` and `launch/`: this source tree, or what was installed.

    Raises:
        ConfigError: when neither is there.
    """
    source = Path(__file__).resolve().parents[1]
    candidates = [source, *(prefix / "share" / PACKAGE for prefix in prefixes())]
    for candidate in candidates:
        if (candidate / "config").is_dir():
            return candidate
    raise ConfigError(
        f"no configuration of {PACKAGE} found in {', '.join(map(str, candidates))}: "
        "build and source the workspace (./vla setup)"
    )


def find(kind: Kind, name: str) -> Path:
    """The file that `name` means: a path to a YAML file, or the bare name of a shipped one.

    Raises:
        ConfigError: when there is no such file, with the names that exist.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).absolute()
        if not path.is_file():
            raise ConfigError(f"'{path}' is no file; give an existing YAML file, or one of {', '.join(names(kind))}")
        return path
    path = share() / "config" / kind / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{unknown(f'{_WORDS[kind]} file', name, names(kind))}; or give the path of a YAML file")
    return path


def names(kind: Kind) -> list[str]:
    """The bare names that ship."""
    return sorted(path.stem for path in (share() / "config" / kind).glob("*.yaml"))


def state_folder() -> Path:
    """Where logs and results go by default: `.vla` of the checkout, else of the working directory."""
    return Path(os.environ.get("VLA_ROOT", Path.cwd())) / ".vla"


def run_folder(command: str) -> Path:
    """A new folder for the results of one run of `command`."""
    folder = state_folder() / "runs" / f"{command}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    folder.mkdir(parents=True)
    return folder
