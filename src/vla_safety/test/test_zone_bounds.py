"""Distances of a ball, a rod and a block from zones, body by body, against what follows from their measures."""

import numpy as np
import pytest
from volumes import box, inside_room

from vla_contract.errors import ConfigError
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.zones import ZoneSet, ZoneSpec

LINKS = {
    "ball": '<sphere radius="0.05"/>',
    "rod": '<cylinder radius="0.03" length="0.4"/>',
    "block": '<box size="0.2 0.1 0.3"/>',
}


def urdf():
    parts = ['<robot name="r"><link name="base"/>']
    for y, (name, shape) in enumerate(LINKS.items()):
        parts.append(f'<link name="{name}"><collision><geometry>{shape}</geometry></collision></link>')
        for axis, parent, child in (("1 0 0", "base", f"{name}_cart"), ("0 0 1", f"{name}_cart", name)):
            origin = f'<origin xyz="0 {y} 0"/>' if parent == "base" else ""
            parts.append(
                f'<joint name="{child}_j" type="prismatic">{origin}<parent link="{parent}"/><child link="{child}"/>'
                f'<axis xyz="{axis}"/><limit lower="-5" upper="5"/></joint>'
            )
        parts.append(f'<link name="{name}_cart"/>')
    return "".join([*parts, "</robot>"])


JOINTS = [f"{name}{part}_j" for name in LINKS for part in ("_cart", "")]
MODEL = RobotModel(parse_urdf(urdf()), JOINTS)


def at(**places):
    """A configuration with links at (x, z); y is 0, 1 and 2."""
    return np.array([value for name in LINKS for value in places.get(name, (0.0, 0.0))], dtype=float)


def distances(zones, *qs):
    """By configuration and link: distance and zone."""
    zones = ZoneSet(zones, MODEL, 0.004)
    values, labels = zones.clearances(MODEL.place(np.array(qs)))
    found = []
    for row, which in zip(values, labels, strict=True):
        by_link = {}
        for column, (value, label) in enumerate(zip(row, which, strict=True)):
            reason, link = zones.describe(column, int(label))
            if value < by_link.get(link, (np.inf, ""))[0]:
                by_link[link] = float(value), reason
        found.append(by_link)
    return found


ROOM = box("room", "keep_in", (0, 1, 0), (4, 3, 4))
TURNED = box("room", "keep_in", (0, 1, 0), (4, 3, 4), rpy=(0, 0.6, 0))
TUBE = ZoneSpec(name="room", kind="keep_in", cylinder={"center": (0, 1, 0), "radius": 2.0, "length": 4.0})
CORNERS = [(x, y, z) for x in (-2, 2) for y in (-1, 3) for z in (-2, 2)]
MESH = ZoneSpec(name="room", kind="keep_in", mesh={"points": CORNERS})


@pytest.mark.parametrize("zone", [ROOM, TURNED, TUBE, MESH], ids=["box", "turned", "cylinder", "mesh"])
def test_i14_the_room_of_a_body_is_its_own(zone):
    rng = np.random.default_rng(0)
    for _ in range(30):
        q = at(**{name: rng.uniform(-2.1, 2.1, 2) for name in LINKS})
        points = MODEL.place(q[None]).points[0]
        found = distances([zone], q)[0]
        for body, link in enumerate(MODEL.body_links):
            own = points[MODEL.starts[body] :][: MODEL.body_sizes[body]]
            room = inside_room(zone, own).min() - MODEL.body_radii[body]
            assert found[link][0] <= room + 1e-9
            if room < 0.1:
                assert found[link] == (pytest.approx(room, abs=1e-9), "zone:room")


def pillar(name, x, y, **options):
    """0.2 m thick and 2 m high, with its middle at x."""
    return box(name, "keep_out", (x, y, 0), (0.2, 0.2, 2.0), **options)


NEAREST = {"ball": 0.05, "rod": 0.03, "block": 0.1}  # m along x, from the link's middle to its surface


@pytest.mark.parametrize("ball", [0.2, 0.25, 1.0])
def test_i21_every_body_is_told_its_own_nearest_zone(ball):
    """Whether one of the zones is so close to some body that it is looked at closely, or none is."""
    zones = [pillar("a", 0.0, 0.0), pillar("b", 0.0, 1.0), pillar("c", 0.0, 2.0), pillar("far", 4.0, 2.0)]
    found = distances(zones, at(ball=(ball, 0), rod=(0.5, 0), block=(0.8, 0)))[0]
    assert found == {
        "ball": (pytest.approx(ball - 0.1 - NEAREST["ball"]), "zone:a"),
        "rod": (pytest.approx(0.5 - 0.1 - NEAREST["rod"]), "zone:b"),
        "block": (pytest.approx(0.8 - 0.1 - NEAREST["block"]), "zone:c"),
    }
    found = distances(zones, at(ball=(ball, 0), rod=(0.5, 0), block=(3.5, 0)))[0]
    assert found["block"] == (pytest.approx(4.0 - 3.5 - 0.1 - NEAREST["block"]), "zone:far")


def test_i14_links_that_a_zone_is_not_for_are_not_held_against_it():
    q = at(ball=(0.2, 0), rod=(0.2, 0), block=(0.25, 0))
    only = distances([box("a", "keep_out", (0, 1, 0), (0.2, 3, 2), links=("rod",))], q)[0]
    assert only == {"rod": (pytest.approx(0.07), "zone:a")}
    others = distances([box("a", "keep_out", (0, 1, 0), (0.2, 3, 2), except_links=("rod",))], q)[0]
    assert others == {"ball": (pytest.approx(0.05), "zone:a"), "block": (pytest.approx(0.05), "zone:a")}


def test_i14_in_every_configuration_the_distance_is_the_one_there():
    qs = [at(ball=(x, 0), rod=(1.0, 0), block=(1.0, 0)) for x in (0.2, 0.16, 0.5, 0.1)]
    found = distances([pillar("a", 0.0, 0.0)], *qs)
    assert [by_link["ball"][0] for by_link in found[:3]] == pytest.approx([0.05, 0.01, 0.35])
    assert found[3]["ball"][0] <= 0.0


def test_i14_a_zone_on_a_link_is_measured_from_that_link():
    """The block carries a plate 0.5 m below it; the ball comes close to that."""
    plate = box("plate", "keep_out", (0, -2, -0.5), (0.4, 1, 0.02), frame="block", links=("ball",))
    for lift in (0.0, 0.3):
        q = at(ball=(1.0, lift - 0.39), rod=(3.0, 0), block=(1.0, lift))
        assert distances([plate], q)[0] == {"ball": (pytest.approx(0.05), "zone:plate")}
    zones = ZoneSet([plate], MODEL, 0.004)
    body = MODEL.body_links.index("ball")
    column = len(MODEL.body_links)
    assert zones.bodies.tolist() == [*range(len(MODEL.body_links)), body] and len(zones) == 1
    # Ball and plate: both slides of each.
    assert dict(zip(JOINTS, zones.reach[column].tolist(), strict=True)) == {
        name: 0.0 if name.startswith("rod") else 1.0 for name in JOINTS
    }


@pytest.mark.parametrize("kind", ["slow", "shared"])
def test_zones_of_speed_are_no_walls(kind):
    zone = pillar("a", 0.0, 0.0).model_copy(update={"kind": kind})
    assert distances([zone], at())[0] == {}


@pytest.mark.parametrize(
    ("zones", "message"),
    [
        ([pillar("a", 0, 0), pillar("b", 0, 0), pillar("a", 0, 0)],
         "zone 'a' is defined 2 times; give each zone a name of its own"),
        ([pillar("a", 0, 0, links=("x",))], "zone 'a': unknown link 'x'; known: {}"),
        ([pillar("a", 0, 0, except_links=("x",))], "zone 'a': unknown link 'x'; known: {}"),
        ([pillar("a", 0, 0, frame="x")], "zone 'a': unknown link 'x'; known: {}"),
    ],
)  # fmt: skip
def test_i07_a_wrong_zone_is_refused_by_name(zones, message):
    with pytest.raises(ConfigError) as error:
        ZoneSet(zones, MODEL, 0.004)
    assert str(error.value) == message.format(", ".join(sorted(MODEL.links)))


SOLID = {"sphere": {"center": (0, 0, 0), "radius": 1}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "zone 'z' has 0 shapes (none); give it one of box, sphere, cylinder, capsule, mesh"),
        ({**SOLID, "capsule": {"center": (0, 0, 0), "radius": 1, "length": 1}},
         "zone 'z' has 2 shapes (sphere, capsule); give it one of box, sphere, cylinder, capsule, mesh"),
        ({**SOLID, "kind": "keep_in"},
         "zone 'z' is keep_in with a sphere; a keep-in zone is one of box, cylinder, mesh"),
        ({**SOLID, "kind": "slow"}, "zone 'z' is slow; give max_speed to slow zones, and to no others"),
        ({**SOLID, "max_speed": 1.0}, "zone 'z' is keep_out; give max_speed to slow zones, and to no others"),
        ({**SOLID, "links": ("a",), "except_links": ("b",)}, "zone 'z' has links and except_links; give one of them"),
    ],
)  # fmt: skip
def test_i07_a_zone_that_says_too_little_or_too_much_is_refused(fields, message):
    with pytest.raises(ValueError, match="Value error, ") as error:
        ZoneSpec(**{"name": "z", "kind": "keep_out", **fields})
    assert f"Value error, {message} [" in str(error.value)


def test_i14_what_is_violated_has_distances_of_its_own():
    """The rod is inside of one zone: that hides neither how near it is to another, nor what is kept."""
    zones = [pillar("in", 0.0, 1.0), pillar("near", 0.25, 1.0), pillar("kept", 1.0, 0.0), pillar("also", 1.0, 2.0)]
    whole = ZoneSet(zones, MODEL, 0.004)
    q = at(rod=(0.08, 0), ball=(0.5, 0), block=(0.5, 0))
    parts = whole.parts(MODEL.place(q[None]))
    assert [[zone.name for zone in part.zones] for part in parts] == [["near", "kept", "also"], ["in"]]
    assert all(part.margin == 0.004 for part in parts)
    clear = at(rod=(3.0, 0), ball=(0.5, 0), block=(0.5, 0))
    assert whole.parts(MODEL.place(clear[None])) == [whole]
