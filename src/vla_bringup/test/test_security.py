"""The SROS 2 policy: well-formed, least privilege, and of one mind with the robot files."""

import xml.etree.ElementTree as ElementTree

import pytest

from vla_bringup.files import find, share
from vla_bringup.security import enclaves, policy_xml
from vla_bringup.system import robot_system
from vla_contract.robot import load_robot

SHIPPED = (("fr3", False), ("fr3_sim", True))
# The grammar of policy version 0.2.0: element -> (attributes that it must have, attributes that it may have, children).
GRAMMAR = {
    "policy": ({"version"}, set(), {"enclaves"}),
    "enclaves": (set(), set(), {"enclave"}),
    "enclave": ({"path"}, set(), {"profiles"}),
    "profiles": (set(), {"type"}, {"profile", "metadata"}),
    "profile": ({"ns", "node"}, set(), {"topics", "services", "actions"}),
    "topics": (set(), {"publish", "subscribe"}, {"topic"}),
    "services": (set(), {"reply", "request"}, {"service"}),
    "actions": (set(), {"call", "execute"}, {"action"}),
    "topic": (set(), set(), set()),
    "service": (set(), set(), set()),
    "action": (set(), set(), set()),
}


def conforms(element):
    must, may, children = GRAMMAR[element.tag]
    assert must <= set(element.keys()) <= must | may, element.tag
    if may and element.tag != "profiles":
        assert element.keys() and set(element.attrib.values()) <= {"ALLOW", "DENY"}
    if children:
        assert len(element) > 0, f"<{element.tag}> is empty"
    else:
        assert element.text and element.text.startswith("/") and "//" not in element.text
    for child in element:
        assert child.tag in children, f"<{child.tag}> in <{element.tag}>"
        conforms(child)


@pytest.mark.parametrize(("name", "simulator"), SHIPPED)
def test_the_shipped_policy_is_that_of_the_robot_file_and_follows_the_grammar(name, simulator):
    text = policy_xml(load_robot(find("robots", name)), simulator=simulator)
    shipped = share() / "config" / "security" / f"{name}.policy.xml"
    assert shipped.read_text() == text, f"write it again: python -m vla_bringup.security --robot {name} > {shipped}"
    root = ElementTree.fromstring(text)
    assert root.get("version") == "0.2.0"
    conforms(root)
    paths = [enclave.get("path") for enclave in root.iter("enclave")]
    assert len(paths) == len(set(paths)) and all(path.startswith("/vla/") for path in paths)


@pytest.mark.parametrize(("name", "simulator"), SHIPPED)
def test_only_the_filter_may_write_the_controllers_topic(name, simulator):
    robot = load_robot(find("robots", name))
    root = ElementTree.fromstring(policy_xml(robot, simulator=simulator))
    writers = [
        enclave.get("path")
        for enclave in root.iter("enclave")
        for rules in enclave.iter("topics")
        if rules.get("publish") == "ALLOW" and any(topic.text == robot.controller.topic for topic in rules)
    ]
    assert writers == ["/vla/safety"]


@pytest.mark.parametrize(
    ("topic", "writer"),
    [
        ("/vla_policy/chunk", "policy"),
        ("/vla_safety/override", "teleoperation"),
        ("/vla_safety/deadman", "teleoperation"),
        ("/vla_safety/planner", "planner"),
        ("/vla_safety/estop_input", "estop"),
        ("/vla_safety/hardware_stop", "safety"),
        ("/joint_states", "simulator"),
    ],
)
def test_every_source_has_one_writer(topic, writer):
    robot = load_robot(find("robots", "fr3_sim"))
    assert [e.name for e in enclaves(robot, simulator=True) if topic in e.all_published] == [writer]


def test_no_rule_has_a_wildcard():
    for name, simulator in SHIPPED:
        assert "*" not in policy_xml(load_robot(find("robots", name)), simulator=simulator)


def test_every_node_of_the_system_has_an_enclave():
    nodes = {enclave.node for enclave in enclaves(load_robot(find("robots", "fr3")))}
    assert {spec.name for spec in robot_system("fr3", "flow")} <= nodes
