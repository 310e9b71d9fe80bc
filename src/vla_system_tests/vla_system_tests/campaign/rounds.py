"""One running system for many rounds: started once, prepared for each, mended after each."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from vla_bringup.files import find
from vla_bringup.session import Session
from vla_bringup.system import demo_system
from vla_contract.robot import load_robot
from vla_system_tests.motion import Fence

DEAD = 2.0  # s of wall time after which the simulator's clock goes on without a node that was killed


def workspace() -> Fence:
    """The table, and the workspace box of the shipped safety file, judged by MuJoCo's geometry."""
    path = find("robots", "fr3_sim")
    robot = load_robot(path)
    zones = yaml.safe_load(robot.resolve(robot.safety).read_text())["zones"]
    (box,) = [zone["box"] for zone in zones if zone["kind"] == "keep_in"]
    centre, half = np.array(box["center"]), np.array(box["size"]) / 2
    low, high = (centre - half).tolist(), (centre + half).tolist()
    return Fence(str(path), (low[0], low[1], low[2]), (high[0], high[1], high[2]))


@contextmanager
def system(folder: Path, policy: str, *, lockstep: bool = True, patience: float = DEAD) -> Iterator[Session]:
    """The whole demo with a policy file; in lockstep a busy machine makes it slow, not wrong.

    Args:
        patience: s of wall time after which lockstep goes on without a silent node.
    """
    specs = [
        replace(spec, parameters={**spec.parameters, "lockstep_timeout": patience}) if spec.name == "vla_sim" else spec
        for spec in demo_system(policy=policy, lockstep=lockstep)
    ]
    assert threading.current_thread() is threading.main_thread(), "nodes die with the thread that started them"
    with Session(tuple(specs), folder) as session:
        yield session
