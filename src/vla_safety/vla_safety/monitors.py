"""Monitors of contact from files, for what is mounted and carried."""

from vla_safety.building import Parts, Setup, describe
from vla_safety.core.contact import ContactMonitor, Weight
from vla_safety.core.dynamics import Dynamics
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.observer import TorqueMonitor
from vla_safety.core.urdf import parse_urdf


def weight_of(parts: Parts, setup: Setup) -> Weight | None:
    """What the force sensor's readings contain of the weight behind it; None: nothing, or there are no limits.

    Raises:
        ConfigError: when the sensor's frame is unknown, or setup and parts do not fit each other.
    """
    limits = parts.config.contact
    if limits is None or limits.weighs == "nothing":
        return None
    description = describe(parts, setup)
    model = RobotModel(description, parts.robot.joints)
    only = None if limits.weighs == "all" else {*parts.config.tools, *parts.config.payloads}
    return Weight(description, model, limits.frame, parts.config.gravity, only)


def dynamics_of(parts: Parts, setup: Setup) -> Dynamics | None:
    """What the torques of the joints are compared with; None: there are no limits.

    Raises:
        ConfigError: when the URDF has no masses, or setup and parts do not fit each other.
    """
    limits = parts.config.external_torque
    if limits is None:
        return None
    description = describe(parts, setup)
    own = parse_urdf(parts.urdf)
    carried = description.loads[len(own.loads) :]
    return Dynamics(
        parts.urdf,
        description,
        parts.robot.joints,
        tuple(limits.limits),
        carried,
        limits.armature,
        parts.config.gravity,
    )


def make_monitors(parts: Parts) -> tuple[ContactMonitor | None, TorqueMonitor | None]:
    """Of the force sensor and of external torque, as far as the safety file has limits for them.

    Raises:
        ConfigError: when limits and robot do not fit each other.
    """
    contact, torque = parts.config.contact, parts.config.external_torque
    dynamics = dynamics_of(parts, parts.setup)
    return (
        None if contact is None else ContactMonitor(contact, weight_of(parts, parts.setup)),
        None
        if torque is None or dynamics is None
        else TorqueMonitor(torque, dynamics, parts.robot.joints, parts.config.watchdogs),
    )
