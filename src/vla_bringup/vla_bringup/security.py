"""Who may say what: an SROS 2 access control policy for the system of a robot file.

`python -m vla_bringup.security --robot fr3` prints it; `docs/security.md` says how to enable it. One rule matters more
than all others: only the safety filter may publish on the controller's topic.
"""

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass

from vla_bringup.files import find
from vla_contract.robot import Robot, load_robot

VERSION = "0.2.0"
ROOT = "/vla"  # of the enclaves' names

# What every node of rclpy has beside its own interfaces; a lifecycle node has the second kind as well.
_PARAMETER_SERVICES = (
    "describe_parameters", "get_parameter_types", "get_parameters", "get_type_description", "list_parameters",
    "set_parameters", "set_parameters_atomically",
)  # fmt: skip
_LIFECYCLE_SERVICES = (
    "change_state", "get_available_states", "get_available_transitions", "get_state", "get_transition_graph",
)  # fmt: skip
_FILTER_SERVICES = ("arm", "disarm", "estop", "reset", "reload", "retreat", "set_tool", "reduced_speed")


@dataclass(frozen=True)
class Enclave:
    """One process and its rights; names of topics, services and actions are absolute.

    Attributes:
        name: of the enclave below `ROOT`; node: of the node in it.
        publishes, subscribes: topics; serves, calls: services; executes, asks: actions.
        lifecycle: it is a managed node.
    """

    name: str
    node: str
    publishes: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    executes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    lifecycle: bool = False

    @property
    def all_published(self) -> tuple[str, ...]:
        """Own topics, and those that every node has."""
        own = (f"/{self.node}/transition_event",) if self.lifecycle else ()
        return tuple(sorted({*self.publishes, *own, "/rosout", "/parameter_events"}))

    @property
    def all_subscribed(self) -> tuple[str, ...]:
        """Own topics, and those that every node may hear."""
        return tuple(sorted({*self.subscribes, "/clock", "/parameter_events"}))

    @property
    def all_served(self) -> tuple[str, ...]:
        """Own services, and those that every node has."""
        kinds = (*_PARAMETER_SERVICES, *(_LIFECYCLE_SERVICES if self.lifecycle else ()))
        return tuple(sorted({*self.serves, *(f"/{self.node}/{kind}" for kind in kinds)}))


def enclaves(robot: Robot, *, simulator: bool = False) -> tuple[Enclave, ...]:
    """The processes of a system: those of the suite, and the drivers and people around it.

    Args:
        simulator: with vla_sim in place of controller, cameras and force sensor.
    """
    command = robot.controller.topic
    joints = robot.joint_states.topic
    images = tuple(camera.topic for camera in robot.cameras.values())
    infos = tuple(f"{topic.rpartition('/')[0]}/camera_info" for topic in images)
    wrench = () if robot.wrench_topic is None else (robot.wrench_topic,)
    filter_services = tuple(f"/vla_safety/{name}" for name in _FILTER_SERVICES)
    base = () if robot.base is None else (robot.base.topic,)
    ack = ("/vla_sim/lockstep_ack",) if simulator else ()
    found = [
        Enclave(
            "safety",
            "vla_safety",
            publishes=(
                command, "/vla_safety/state", "/vla_safety/decision", "/vla_safety/markers",
                "/vla_safety/hardware_stop", "/diagnostics", *ack,
            ),
            subscribes=(
                joints, *wrench, "/robot_description", "/vla_policy/chunk", "/vla_safety/override",
                "/vla_safety/planner", "/vla_safety/deadman", "/vla_safety/estop_input", "/monitored_planning_scene",
                f"{command.rpartition('/')[0]}/follow_joint_trajectory/_action/status",
            ),
            serves=filter_services,
            calls=("/controller_manager/switch_controller", "/get_planning_scene"),
            lifecycle=True,
        ),
        Enclave(
            "policy",
            "vla_policy",
            publishes=(
                "/vla_policy/chunk", "/vla_policy/status", "/vla_policy/reasoning", "/vla_policy/markers",
                "/diagnostics", *base, *ack,
            ),
            subscribes=(joints, *images, command, "/vla_safety/state", "/vla_policy/subtask"),
            executes=("/vla_policy/execute_task",),
            lifecycle=True,
        ),
        Enclave(
            "operator",
            "vla_operator",
            subscribes=(
                joints, "/vla_policy/chunk", "/vla_policy/status", "/vla_policy/reasoning", "/vla_policy/markers",
                "/vla_safety/state", "/vla_safety/decision", "/vla_safety/markers", "/diagnostics",
                *(("/vla_sim/ground_truth",) if simulator else ()),
            ),
            calls=(*filter_services, *(("/vla_sim/reset",) if simulator else ())),
            asks=("/vla_policy/execute_task",),
        ),
        Enclave("gate", "vla_wait_for_filter", subscribes=("/vla_safety/state",)),
        Enclave(
            "teleoperation", "teleop", publishes=("/vla_safety/override", "/vla_safety/deadman"), subscribes=(joints,)
        ),
        Enclave(
            "planner",
            "planner",
            publishes=("/vla_safety/planner", "/vla_policy/subtask"),
            subscribes=(joints, *images, "/robot_description", "/vla_policy/status", "/vla_policy/reasoning"),
            asks=("/vla_policy/execute_task",),
        ),
        Enclave("estop", "estop", publishes=("/vla_safety/estop_input",), subscribes=("/vla_safety/hardware_stop",)),
    ]  # fmt: skip
    if simulator:
        found.append(
            Enclave(
                "simulator",
                "vla_sim",
                publishes=(
                    joints, *wrench, *images, *infos, "/clock", "/robot_description", "/vla_sim/ground_truth",
                    "/diagnostics",
                ),
                subscribes=(command, *ack),
                serves=("/vla_sim/reset",),
                lifecycle=True,
            )
        )  # fmt: skip
    else:
        found += [
            Enclave(
                "controller",
                "controller_manager",
                publishes=(joints, *wrench),
                subscribes=(command, "/robot_description"),
                serves=("/controller_manager/switch_controller",),
                executes=(f"{command.rpartition('/')[0]}/follow_joint_trajectory",),
            ),
            Enclave("cameras", "cameras", publishes=(*images, *infos)),
            Enclave("description", "robot_state_publisher", publishes=("/robot_description",), subscribes=(joints,)),
        ]
    return tuple(found)


def policy_xml(robot: Robot, *, simulator: bool = False) -> str:
    """The policy as XML, for `ros2 security create_permission`."""
    policy = ElementTree.Element("policy", version=VERSION)
    outer = ElementTree.SubElement(policy, "enclaves")
    for enclave in enclaves(robot, simulator=simulator):
        element = ElementTree.SubElement(outer, "enclave", path=f"{ROOT}/{enclave.name}")
        profile = ElementTree.SubElement(
            ElementTree.SubElement(element, "profiles"), "profile", ns="/", node=enclave.node
        )
        _rules(profile, "topics", "publish", enclave.all_published)
        _rules(profile, "topics", "subscribe", enclave.all_subscribed)
        _rules(profile, "services", "reply", enclave.all_served)
        _rules(profile, "services", "request", enclave.calls)
        _rules(profile, "actions", "execute", enclave.executes)
        _rules(profile, "actions", "call", enclave.asks)
    ElementTree.indent(policy)
    head = (
        "<!-- Written by: python -m vla_bringup.security. What is not allowed here is denied. docs/security.md says\n"
        "     how to enable it. Only the enclave 'safety' may publish on the controller's topic. -->\n"
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{ElementTree.tostring(policy, encoding="unicode")}\n'


def _rules(profile: ElementTree.Element, kind: str, right: str, names: Iterable[str]) -> None:
    wanted = tuple(names)
    if not wanted:
        return
    rules = ElementTree.SubElement(profile, kind, {right: "ALLOW"})
    for name in wanted:
        ElementTree.SubElement(rules, kind[:-1]).text = name


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m vla_bringup.security", description=__doc__)
    parser.add_argument("--robot", default="fr3", help="name in config/robots, or path of a robot file")
    parser.add_argument("--simulator", action="store_true", help="with vla_sim in the robot's place")
    options = parser.parse_args()
    sys.stdout.write(policy_xml(load_robot(find("robots", options.robot)), simulator=options.simulator))


if __name__ == "__main__":
    main()
