"""A filter from files. What is missing or wrong is refused; nothing is defaulted."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vla_contract.errors import ConfigError
from vla_contract.limits import JointLimits
from vla_contract.robot import Robot
from vla_safety.core.config import SafetyConfig, load_safety
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.latch import Memory
from vla_safety.core.motion import Motion, rest
from vla_safety.core.selfcollision import SelfCollision, allowed_contacts
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.verification import Verifier
from vla_safety.core.zones import ZoneSet


@dataclass(frozen=True)
class Parts:
    """Everything that a filter is made of; `urdf` and `srdf` are texts. `shadow`: it commands nothing."""

    robot: Robot
    limits: JointLimits
    urdf: str
    srdf: str
    config: SafetyConfig
    shadow: bool = False


def read_parts(robot: Robot, safety: str | Path = "", urdf: str = "", shadow: bool = False) -> Parts:
    """Reads the files of a robot.

    Args:
        safety: path of the safety file; empty: the one that the robot file names.
        urdf: text of the URDF; empty: the file that the robot file names.

    Raises:
        ConfigError: when something is missing or wrong.
    """
    path = Path(safety) if safety else robot.resolve(robot.safety)
    srdf = robot.resolve(robot.description.srdf).read_text()
    return Parts(robot, robot.limits(), urdf or robot.urdf(), srdf, load_safety(path, robot), shadow)


def assemble(parts: Parts, memory: Memory | None = None) -> SafetyFilter:
    """A filter, tested on itself.

    Raises:
        ConfigError: when the parts do not fit each other, or the self-test fails.
    """
    robot, config = parts.robot, parts.config
    model = RobotModel(parse_urdf(parts.urdf), robot.joints)
    checks = (
        ZoneSet(config.zones, model, config.margin),
        SelfCollision(model, allowed_contacts(parts.srdf), config.self_margin),
    )
    arm = np.array([name in robot.arm_joints for name in robot.joints])
    groups = [columns for columns in (np.flatnonzero(arm), np.flatnonzero(~arm)) if len(columns)]
    verifier = Verifier(_widened(parts.limits, config.position_tolerance), model, checks, groups)
    _self_test(verifier, robot)
    gripper = robot.gripper.joint if robot.gripper else None
    return SafetyFilter(config, verifier, robot.base_frame, gripper, memory, parts.shadow)


def build_filter(robot: Robot, safety: str | Path = "", config: SafetyConfig | None = None) -> SafetyFilter:
    """A filter from the files of a robot, or with a configuration of the caller's.

    Raises:
        ConfigError: when something is missing or wrong.
    """
    parts = read_parts(robot, safety)
    return assemble(parts if config is None else replace(parts, config=config))


def _widened(limits: JointLimits, tolerance: dict[str, float]) -> JointLimits:
    """Position limits further out, for joints that are driven against their stops by design."""
    extra = np.array([tolerance.get(name, 0.0) for name in limits.names])
    return replace(limits, min_position=limits.min_position - extra, max_position=limits.max_position + extra)


def _self_test(verifier: Verifier, robot: Robot) -> None:
    """Home must be safe, and a motion beyond a limit must not be; else the configuration cannot be what was meant."""
    home = np.array(robot.home)
    finding = verifier.verify(Motion.at(0, rest(home))).finding
    if finding is not None:
        raise ConfigError(f"self-test: home of '{robot.name}' is not safe: {finding.sentence}; {finding.remedy}")
    beyond = home.copy()
    beyond[0] = verifier.limits.max_position[0] + 0.1
    if verifier.verify(Motion.at(0, rest(beyond))).safe:
        raise ConfigError(f"self-test: {robot.joints[0]} beyond its limit was not refused; report this as a bug")
