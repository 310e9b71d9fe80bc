"""Tools and payloads: bodies and masses of the robot that are switched while it runs."""

from dataclasses import replace

import numpy as np
import pinocchio
import pytest
import yaml
from rig import BRINGUP, HOME, ROBOT, Rig, smooth_chunk

from vla_contract.errors import ConfigError
from vla_safety.building import Setup, assemble, carrying_as_before, describe, make_verifier, read_parts
from vla_safety.core.audit import AuditLog
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.latch import CarriedFile
from vla_safety.core.modes import Mode
from vla_safety.core.motion import Motion, rest
from vla_safety.core.tools import ToolShape, ToolSpec, bodies, contacts, loads, mounted, with_links
from vla_safety.core.urdf import Description, parse_urdf
from vla_safety.recording import RecordedFilter, replay

CELL = yaml.safe_load((BRINGUP / "config/safety/cell.yaml").read_text())
ROD = {  # 20 cm beyond the fingers
    "parent": "fr3_hand_tcp",
    "shapes": [{"capsule": {"center": [0, 0, 0.1], "radius": 0.01, "length": 0.18}}],
    "mass": 0.4,
    "center_of_mass": [0, 0, 0.1],
    "allowed_contacts": ["fr3_leftfinger", "fr3_rightfinger"],
}
BALL = {"parent": "rod", "xyz": [0, 0, 0.2], "shapes": [{"sphere": {"center": [0, 0, 0], "radius": 0.04}}], "mass": 0.2}
LOW = np.array([0.0, 0.5, 0.0, -2.2, 0.0, 2.7, 0.7854, 0.04])  # the hand above the table, looking down
HIGH = np.array([0.0, -0.9, 0.0, -2.2, 0.0, 1.6, 0.7854, 0.04])


def cell(tmp_path, **keys):
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump({**CELL, "tools": {"rod": ROD}, "payloads": {"ball": BALL}, **keys}))
    return path


def height(q, link="fr3_hand_tcp"):
    """Of a link's origin above the table, by Pinocchio."""
    model = pinocchio.buildModelFromXML(ROBOT.urdf())
    data = model.createData()
    at = np.zeros(model.nq)
    for name, value in zip(ROBOT.joints, q, strict=True):
        at[model.joints[model.getJointId(name)].idx_q] = value
    pinocchio.framesForwardKinematics(model, data, at)
    return data.oMf[model.getFrameId(link)].translation[2]


def finding_at(verifier, q):
    return verifier.verify(Motion.at(0, rest(np.asarray(q)))).finding


def take(rig, path, **setup):
    """What the node does on `~/set_tool`."""
    parts = read_parts(ROBOT, path)
    chosen = Setup(**setup)
    answer = rig.filter.reconfigure(
        make_verifier(parts, chosen), rig.instant, finding=Finding("tool", chosen.tool), setup=chosen
    )
    rig.collect()
    return answer


def test_r11_tool_changed_without_its_fence(tmp_path):
    """At rest with the rod in the table: refused, the robot is held. With room for it: taken, and it is kept out."""
    path = cell(tmp_path)
    assert 0.02 < height(LOW) < 0.18, "the posture must have room without the rod, and none with it"
    rig = Rig(path, q=LOW)
    answer = take(rig, path, tool="rod")
    assert not answer.success and "zone:table" not in answer.message and "rod" in answer.message
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "tool"

    rig = Rig(path, q=HIGH)
    assert take(rig, path, tool="rod").success
    assert rig.filter.mode == Mode.ARMED
    decision = rig.propose(smooth_chunk(rig, LOW, duration=3.0))
    assert decision.verdict in (Verdict.TRIMMED, Verdict.REFUSED)
    assert decision.finding.reason == "zone:table" and decision.finding.subject == "rod"
    for _ in range(3):
        rig.run(1.0)
        rig.propose(smooth_chunk(rig, LOW, duration=3.0))
    rig.run(2.0)
    q = rig.controller.trace.arrays()[1]
    tip = np.array([0, 0, 0.2])
    model = RobotModel(describe(read_parts(ROBOT, path), Setup()), ROBOT.joints)
    rotation, origin = model.link_pose("fr3_hand_tcp", model.place(q[::10]))
    assert (origin + rotation @ tip)[:, 2].min() > 0.0, "the rod's tip went into the table"
    assert height(q[-1]) < height(HIGH) - 0.02, "it must have moved at all"


def test_r11_the_committed_stop_is_verified_with_the_new_tool_first(tmp_path):
    """Moving down with the rod asked for: what is committed would bring it into the table, so the robot stops first."""
    path = cell(tmp_path)
    verifier = make_verifier(read_parts(ROBOT, path), Setup(tool="rod"))
    outcomes = set()
    for moved in np.arange(0.3, 1.6, 0.1):
        rig = Rig(path, q=HIGH)
        rig.propose(smooth_chunk(rig, LOW, duration=1.5))
        rig.run(moved)
        answer = take(rig, path, tool="rod")
        outcomes.add((answer.success, rig.filter.mode))
        rig.run(1.5)
        rest_at = rig.controller.state[0]
        assert not rig.controller.state[1].any() or answer.success
        if answer.success:
            assert finding_at(verifier, rest_at) is None, f"taken after {moved:.1f} s, and the rod came into the table"
        else:
            assert rig.filter.mode == Mode.HOLD and finding_at(rig.filter.verifier, rest_at) is None
    assert {success for success, _ in outcomes} == {True, False}
    assert (True, Mode.HOLD) in outcomes, "where only the soonest stop keeps the table, that stop must be taken"


def test_r11_disarmed_the_tool_is_taken_and_arming_waits_for_room(tmp_path):
    path = cell(tmp_path)
    rig = Rig(path, q=LOW, arm=False)
    rig.observe()
    assert take(rig, path, tool="rod").success
    answer = rig.filter.arm(rig.instant)
    assert not answer.success and "rod" in answer.message
    assert take(rig, path).success
    assert rig.filter.arm(rig.instant).success


def test_a_payload_is_a_body_of_its_own(tmp_path):
    parts = read_parts(ROBOT, cell(tmp_path))
    both = make_verifier(parts, Setup(tool="rod", payload="ball"))
    assert {"rod", "ball"} <= set(both.model.body_links)
    placement = both.model.place(HOME[None])
    _, rod = both.model.link_pose("rod", placement)
    rotation, ball = both.model.link_pose("ball", placement)
    np.testing.assert_allclose(ball[0], rod[0] + rotation[0] @ [0, 0, 0.2])
    assert describe(parts, Setup(tool="rod", payload="ball")).loads[-1].mass == 0.2
    assert not {"rod", "ball"} & set(make_verifier(parts, Setup()).model.body_links)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (Setup(tool="rud"), "tool 'rud'.*rod"),
        (Setup(tool="rod", payload="bell"), "payload 'bell'.*ball"),
        (Setup(payload="ball"), "hangs on tool 'rod'.*mount that tool"),
    ],
)
def test_r11_an_unknown_or_unfitting_one_is_refused_by_name(tmp_path, setup, message):
    with pytest.raises(ConfigError, match=message):
        make_verifier(read_parts(ROBOT, cell(tmp_path)), setup)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"parent": "hand"}, "tool 'rod': parent"),
        ({"allowed_contacts": ["finger"]}, "allowed_contacts"),
        ({"shapes": [{**ROD["shapes"][0], **BALL["shapes"][0]}]}, "give one of box"),
        ({"shapes": []}, "shapes"),
        ({"mass": -1}, "mass"),
        ({"mass": float("nan")}, "mass"),
    ],
)  # fmt: skip
def test_a_wrong_tool_refuses_the_whole_file(tmp_path, tool, message):
    path = cell(tmp_path, tools={"rod": {**ROD, **tool}})
    with pytest.raises(ConfigError, match=message):
        assemble(read_parts(ROBOT, path))


def test_what_is_mounted_at_the_start_is_in_the_file(tmp_path):
    parts = read_parts(ROBOT, cell(tmp_path, tool="rod"))
    assert parts.setup == Setup(tool="rod")
    assert "rod" in assemble(parts).verifier.model.body_links
    with pytest.raises(ConfigError, match="tool 'hook'"):
        assemble(read_parts(ROBOT, cell(tmp_path, tool="hook")))


def test_zones_name_tools_whether_they_are_mounted_or_not(tmp_path):
    table = next(zone for zone in CELL["zones"] if zone["name"] == "table")
    spared = {**table, "except_links": [*table["except_links"], "rod"]}
    zones = [zone for zone in CELL["zones"] if zone is not table] + [spared]
    parts = read_parts(ROBOT, cell(tmp_path, zones=zones))
    assert finding_at(make_verifier(parts, Setup(tool="rod")), LOW) is None
    unspared = read_parts(ROBOT, cell(tmp_path))
    assert finding_at(make_verifier(unspared, Setup(tool="rod")), LOW).subject == "rod"
    assert finding_at(make_verifier(unspared, Setup()), LOW) is None


def test_a_tool_may_not_touch_the_arm_but_what_it_lists(tmp_path):
    """A boom that reaches back from the hand to the forearm."""
    parts = read_parts(ROBOT, cell(tmp_path))
    model = make_verifier(parts, Setup()).model
    placement = model.place(HOME[None])
    rotation, hand = model.link_pose("fr3_hand_tcp", placement)
    _, elbow = model.link_pose("fr3_link4", placement)
    back = (rotation[0].T @ (elbow[0] - hand[0])).tolist()
    boom = {**ROD, "shapes": [{"sphere": {"center": back, "radius": 0.02}}]}
    finding = finding_at(make_verifier(read_parts(ROBOT, cell(tmp_path, tools={"rod": boom})), Setup(tool="rod")), HOME)
    assert finding.reason == "self_collision" and "rod" in finding.subject
    links = [link for link in model.body_links if link not in ("fr3_hand_tcp",)]
    spared = {**boom, "allowed_contacts": sorted(set(links))}
    verifier = make_verifier(read_parts(ROBOT, cell(tmp_path, tools={"rod": spared})), Setup(tool="rod"))
    assert finding_at(verifier, HOME) is None


def test_r11_a_filter_that_starts_again_has_not_forgotten_the_tool(tmp_path):
    parts, memory = read_parts(ROBOT, cell(tmp_path)), CarriedFile(tmp_path / "state" / "fr3.tool.json")
    assert carrying_as_before(parts, memory) is parts
    assert memory.keep("rod", "ball", True) == ""
    again = carrying_as_before(parts, memory)
    assert again.setup == Setup(tool="rod", payload="ball", reduced=True)
    assert "rod" in assemble(replace(again, setup=Setup(tool="rod"))).verifier.model.body_links
    assert memory.keep("", "", False) == "" and carrying_as_before(again, memory).setup == Setup()
    memory.keep("hook", "", False)
    with pytest.raises(ConfigError, match="tool 'hook'.*when the filter ran last.*fr3.tool.json.*delete"):
        carrying_as_before(parts, memory)
    memory.path.write_text("{")
    with pytest.raises(ConfigError, match="fr3.tool.json.*delete it"):
        carrying_as_before(parts, memory)
    (tmp_path / "file").write_text("")
    assert "file" in CarriedFile(tmp_path / "file" / "fr3.tool.json").keep("rod", "", False)


def test_i19_a_change_of_tool_replays_bit_for_bit(tmp_path):
    path = cell(tmp_path)
    parts = read_parts(ROBOT, path)
    rig = Rig(path, q=HIGH, arm=False)
    log = AuditLog(tmp_path / "run.jsonl")
    rig.filter = RecordedFilter(assemble(parts), log, parts)
    rig.filter.config, rig.filter.committed = parts.config, None
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.5)
    setup = Setup(tool="rod", payload="ball")
    answer = rig.filter.reconfigure(
        make_verifier(parts, setup), rig.instant, finding=Finding("tool", "rod"), setup=setup
    )
    assert answer.success
    rig.collect()
    decision = rig.propose(smooth_chunk(rig, LOW, duration=3.0))
    assert decision.finding.subject in ("rod", "ball")
    rig.run(1.0)
    log.close()
    found = replay(tmp_path / "run.jsonl")
    assert found.different is None and found.decisions >= 1
    # The record begins with what was mounted, so a filter that starts with the tool replays as well.
    assert replace(parts, setup=setup).setup.tool == "rod"


# ------------------------------------------------------------------ by themselves

TURN = (0.0, 0.0, np.pi / 2)  # of the x axis onto the y axis
SHAPES = {
    "box": {"center": (1, 0, 0), "size": (2, 4, 6), "rpy": TURN},
    "sphere": {"center": (1, 2, 3), "radius": 0.5},
    "cylinder": {"center": (1, 0, 0), "radius": 0.5, "length": 4.0, "rpy": (np.pi / 2, 0, 0)},
    "capsule": {"center": (1, 0, 0), "radius": 0.25, "length": 2.0},
}


@pytest.mark.parametrize(
    ("kind", "points", "radius"),
    [
        ("box", [(x, y, z) for x in (-1, 3) for y in (-1, 1) for z in (-3, 3)], 0.0),
        ("sphere", [(1, 2, 3)], 0.5),
        ("cylinder", [(1, -2, 0), (1, 2, 0)], 0.5),
        ("capsule", [(1, 0, -1), (1, 0, 1)], 0.25),
    ],
)
def test_a_tools_bodies_are_where_the_file_says(kind, points, radius):
    spec = ToolSpec(parent="hand", shapes=(ToolShape(**{kind: SHAPES[kind]}),), mass=0.5, center_of_mass=(1, 2, 3))
    (body,) = bodies({"rod": spec})
    assert (body.link, body.radius) == ("rod", radius)
    assert sorted(map(tuple, body.points.round(12).tolist())) == sorted(points)
    (load,) = loads({"rod": spec})
    assert (load.link, load.mass, load.center.tolist()) == ("rod", 0.5, [1, 2, 3])


def test_a_tool_is_a_link_that_is_fixed_to_its_parent():
    tool = ToolSpec(**{**ROD, "parent": "fr3_hand", "xyz": (1, 2, 3), "rpy": TURN})
    urdf = parse_urdf(ROBOT.urdf())
    found = with_links(urdf, {"rod": tool}, {"ball": ToolSpec(**BALL)})
    assert found.links == (*urdf.links, "rod", "ball") and found.joints[:-2] == urdf.joints
    rod, ball = found.joints[-2:]
    assert (rod.name, rod.kind, rod.parent, rod.child) == ("rod_mount", "fixed", "fr3_hand", "rod")
    assert (ball.name, ball.kind, ball.parent, ball.child) == ("ball_mount", "fixed", "rod", "ball")
    np.testing.assert_allclose(rod.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)
    assert (rod.translation.tolist(), rod.axis.tolist(), rod.mimic, rod.travel) == ([1, 2, 3], [1, 0, 0], None, 0.0)


def test_what_a_tool_may_touch_is_its_parent_and_what_it_lists():
    tools, payloads = {"rod": ToolSpec(**ROD)}, {"ball": ToolSpec(**{**BALL, "allowed_contacts": ("ball",)})}
    links = with_links(parse_urdf(ROBOT.urdf()), tools, payloads).links
    assert {tuple(sorted(pair)) for pair in contacts(tools, payloads, links)} == {
        ("fr3_hand_tcp", "rod"), ("fr3_leftfinger", "rod"), ("fr3_rightfinger", "rod"), ("ball", "rod")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToolShape(sphere=SHAPES["sphere"], box=SHAPES["box"]),
         "Value error, give one of box, sphere, cylinder, capsule ["),
        (lambda: ToolShape(), "Value error, give one of box, sphere, cylinder, capsule ["),
        (lambda: with_links(SMALL, {"a": SPEC}, {}), "tool 'a' has the name of a link or of a tool; give it another"),
        (lambda: with_links(SMALL, {"t": SPEC}, {"t": SPEC}),
         "payload 't' has the name of a link or of a tool; give it another"),
        (lambda: with_links(SMALL, {"t": ToolSpec(**{**ROD, "parent": "x"})}, {}),
         "tool 't': parent: unknown link 'x'; known: a, b"),
        (lambda: with_links(SMALL, {"t": SPEC}, {"p": ToolSpec(**{**ROD, "parent": "x"})}),
         "payload 'p': parent: unknown link 'x'; known: a, b, t"),
        (lambda: mounted({"t": SPEC}, {}, "x", ""), "unknown tool 'x'; known: t"),
        (lambda: mounted({"t": SPEC}, {"p": SPEC}, "", "x"), "unknown payload 'x'; known: p"),
        (lambda: mounted({"t": SPEC}, {"p": ToolSpec(**{**ROD, "parent": "t"})}, "", "p"),
         "payload 'p' hangs on tool 't', but no tool is mounted; mount that tool, or choose another payload"),
        (lambda: mounted({"t": SPEC, "u": SPEC}, {"p": ToolSpec(**{**ROD, "parent": "t"})}, "u", "p"),
         "payload 'p' hangs on tool 't', but tool 'u' is mounted; mount that tool, or choose another payload"),
        (lambda: contacts({"t": SPEC}, {}, ("a",)),
         "tool or payload 't': allowed_contacts: unknown link 'fr3_leftfinger'; known: a"),
    ],
)  # fmt: skip
def test_i07_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises((ConfigError, ValueError)) as error:
        call()
    assert message in str(error.value) if message.endswith("[") else str(error.value) == message


def test_what_is_carried_is_what_was_named():
    tools, payloads = {"t": SPEC, "u": SPEC}, {"p": SPEC, "q": ToolSpec(**{**ROD, "parent": "t"})}
    for tool, payload, names in (
        ("", "", []), ("t", "", ["t"]), ("", "p", ["p"]), ("u", "p", ["u", "p"]), ("t", "q", ["t", "q"]),
    ):  # fmt: skip
        assert list(mounted(tools, payloads, tool, payload)) == names


SMALL = Description("a", ("a", "b"), (), ())
SPEC = ToolSpec(**{**ROD, "parent": "a"})
