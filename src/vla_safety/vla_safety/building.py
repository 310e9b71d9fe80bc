"""A filter from files. What is missing or wrong is refused; nothing is defaulted."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from vla_contract.errors import ConfigError
from vla_contract.limits import JointLimits
from vla_contract.robot import Robot
from vla_safety.core import tools
from vla_safety.core.config import SafetyConfig, load_safety
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.latch import CarriedFile, Memory
from vla_safety.core.motion import Motion, rest
from vla_safety.core.selfcollision import SelfCollision, allowed_contacts
from vla_safety.core.speed import CONSERVATIVE_SPEED, SpeedCaps, Volume, contact_speed
from vla_safety.core.urdf import Description, parse_urdf
from vla_safety.core.verification import Verifier
from vla_safety.core.zones import ZoneSet, ZoneSpec


class Setup(BaseModel):
    """What may change while the filter runs. `model_dump(mode="json")` and `model_validate` take it to and from JSON.

    Attributes:
        tool: name of the mounted tool in the safety file; empty: none.
        payload: name of the carried payload in the safety file; empty: none.
        reduced: whether speed is reduced.
        obstacles: keep-out volumes beside the safety file's zones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool: str = ""
    payload: str = ""
    reduced: bool = False
    obstacles: tuple[ZoneSpec, ...] = ()


@dataclass(frozen=True)
class Parts:
    """Everything that a filter is made of; `urdf` and `srdf` are texts. `shadow`: it commands nothing. `setup`: what it
    starts with."""

    robot: Robot
    limits: JointLimits
    urdf: str
    srdf: str
    config: SafetyConfig
    shadow: bool = False
    setup: Setup = Setup()


def read_parts(
    robot: Robot, safety: str | Path = "", urdf: str = "", shadow: bool = False, setup: Setup | None = None
) -> Parts:
    """Reads the files of a robot.

    Args:
        safety: path of the safety file; empty: the one that the robot file names.
        urdf: text of the URDF; empty: the file that the robot file names.
        setup: what the filter starts with; None: what the safety file says.

    Raises:
        ConfigError: when something is missing or wrong.
    """
    path = Path(safety) if safety else robot.resolve(robot.safety)
    srdf = robot.resolve(robot.description.srdf).read_text()
    config = load_safety(path, robot)
    return Parts(robot, robot.limits(), urdf or robot.urdf(), srdf, config, shadow, setup or first_setup(config))


def first_setup(config: SafetyConfig) -> Setup:
    """What the safety file says is mounted when the filter starts."""
    return Setup(tool=config.tool, payload=config.payload)


def carrying_as_before(parts: Parts, memory: CarriedFile) -> Parts:
    """With the tool, payload and reduced speed of the last run, if there was one: a filter that starts again must not
    forget them.

    Raises:
        ConfigError: when the memory cannot be read, or does not fit the safety file.
    """
    carried = memory.recall()
    if carried is None:
        return parts
    setup = parts.setup.model_copy(update={"tool": carried[0], "payload": carried[1], "reduced": carried[2]})
    try:
        describe(parts, setup)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; it was mounted when the filter ran last ('{memory.path}'): add it to the safety file, or delete "
            "that file and write what is mounted into `tool` and `payload`"
        ) from error
    return replace(parts, setup=setup)


def assemble(parts: Parts, memory: Memory | None = None) -> SafetyFilter:
    """A filter, tested on itself.

    Raises:
        ConfigError: when the parts do not fit each other, or the self-test fails.
    """
    robot = parts.robot
    verifier, first = make_verifier(parts, parts.setup), first_setup(parts.config)
    # The files are tested as they are; with what came to them since, the robot may be anywhere.
    _self_test(verifier if parts.setup == first else make_verifier(parts, first), robot)
    gripper = robot.gripper.joint if robot.gripper else None
    return SafetyFilter(parts.config, verifier, robot.base_frame, gripper, memory, parts.shadow)


def make_verifier(parts: Parts, setup: Setup) -> Verifier:
    """What motions are judged against, with another setup than the parts' own.

    Raises:
        ConfigError: when setup and parts do not fit each other; the message names what is unknown.
    """
    robot, config = parts.robot, parts.config
    description = describe(parts, setup)
    model = RobotModel(description, robot.joints)
    allowed = allowed_contacts(parts.srdf) | tools.contacts(config.tools, config.payloads, description.links)
    zones = (*config.zones, *setup.obstacles)
    checks = (
        ZoneSet(zones, model, config.margin),
        SelfCollision(model, allowed, config.self_margin),
    )
    arm = np.array([name in robot.arm_joints for name in robot.joints])
    groups = [columns for columns in (np.flatnonzero(arm), np.flatnonzero(~arm)) if len(columns)]
    caps = _speed_caps(config, setup, zones, description, model)
    return Verifier(_widened(parts.limits, config.position_tolerance), model, checks, groups, caps)


def _speed_caps(
    config: SafetyConfig, setup: Setup, zones: tuple[ZoneSpec, ...], description: Description, model: RobotModel
) -> SpeedCaps | None:
    volumes = [Volume(z, z.max_speed, "slow_zone") for z in zones if z.max_speed is not None]
    shared = [zone for zone in zones if zone.kind == "shared"]
    if shared:
        speed = _shared_speed(config, setup, description, model)
        volumes += [Volume(zone, speed, "shared_zone") for zone in shared]
    elif config.contact_energy is not None:
        raise ConfigError("contact_energy is given, but no zone has kind 'shared'; add one, or leave it out")
    if not (setup.reduced or volumes):
        return None
    return SpeedCaps(model, config.reduced_speed if setup.reduced else None, volumes, config.margin)


def _shared_speed(config: SafetyConfig, setup: Setup, description: Description, model: RobotModel) -> float:
    """m/s, in zones shared with people, with what is carried now."""
    energy = config.contact_energy
    if energy is None:
        return CONSERVATIVE_SPEED
    carried = {setup.tool, setup.payload}
    load = sum(part.mass for part in description.loads if part.link in carried)
    own = [part for part in description.loads if part.link not in carried and model.link_frames[part.link][0] > 0]
    moving = sum(part.mass for part in own)
    if not moving > 0:
        raise ConfigError(
            "contact_energy needs the robot's mass, but no moving link of the URDF has an <inertial>; add it"
        )
    speed = contact_speed(energy.max_energy, energy.human_mass, moving, load)
    if speed > CONSERVATIVE_SPEED and not energy.source:
        raise ConfigError(
            f"contact_energy allows {speed:.3f} m/s, more than {CONSERVATIVE_SPEED} m/s; "
            "name its source and edition in `source`"
        )
    return speed


def describe(parts: Parts, setup: Setup) -> Description:
    """The robot with what it carries: bodies and masses of the mounted tool and payload are links of their own.

    Raises:
        ConfigError: when a name in `setup` is unknown, or payload and tool do not fit each other.
    """
    table, payloads = parts.config.tools, parts.config.payloads
    plain = tools.with_links(parse_urdf(parts.urdf), table, payloads)
    carried = tools.mounted(table, payloads, setup.tool, setup.payload)
    return replace(plain, shapes=plain.shapes + tools.bodies(carried), loads=plain.loads + tools.loads(carried))


def build_filter(robot: Robot, safety: str | Path = "", config: SafetyConfig | None = None) -> SafetyFilter:
    """A filter from the files of a robot, or with a configuration of the caller's.

    Raises:
        ConfigError: when something is missing or wrong.
    """
    parts = read_parts(robot, safety)
    return assemble(parts if config is None else replace(parts, config=config, setup=first_setup(config)))


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
