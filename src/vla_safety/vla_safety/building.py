"""A filter from files."""

from pathlib import Path

import numpy as np

from vla_contract.errors import ConfigError
from vla_contract.robot import Robot
from vla_safety.core.config import SafetyConfig, load_safety
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.motion import Motion, rest
from vla_safety.core.selfcollision import SelfCollision, allowed_contacts
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.verification import Verifier
from vla_safety.core.zones import ZoneSet


def build_filter(
    robot: Robot, safety: str | Path = "", urdf: str = "", config: SafetyConfig | None = None
) -> SafetyFilter:
    """A filter for `robot`, tested on itself.

    Args:
        safety: path of the safety file; empty: the one that the robot file names.
        config: used instead of a safety file.
        urdf: text of the URDF; empty: the file that the robot file names.

    Raises:
        ConfigError: when something is missing or wrong; nothing is defaulted.
    """
    if config is None:
        config = load_safety(Path(safety) if safety else robot.resolve(robot.safety), robot)
    limits = robot.limits()
    model = RobotModel(parse_urdf(urdf or robot.urdf()), robot.joints)
    pairs = allowed_contacts(robot.resolve(robot.description.srdf).read_text())
    checks = (ZoneSet(config.zones, model, config.margin), SelfCollision(model, pairs, config.self_margin))
    verifier = Verifier(limits, model, checks)
    gripper = robot.gripper.joint if robot.gripper else None
    _self_test(verifier, robot)
    return SafetyFilter(config, verifier, robot.base_frame, gripper)


def _self_test(verifier: Verifier, robot: Robot) -> None:
    """Home must be safe, and a motion beyond a limit must not be; else the configuration cannot be what was meant."""
    home = np.array(robot.home)
    report = verifier.verify(Motion.at(0, rest(home)))
    if report.finding is not None:
        raise ConfigError(
            f"self-test: home of robot '{robot.name}' is not safe: {report.finding.sentence}; {report.finding.remedy}"
        )
    beyond = home.copy()
    beyond[0] = verifier.limits.max_position[0] + 0.1
    if verifier.verify(Motion.at(0, rest(beyond))).safe:
        raise ConfigError(f"self-test: {robot.joints[0]} beyond its limit was not refused; report this as a bug")
