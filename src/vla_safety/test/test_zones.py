import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS, ROBOT
from volumes import KEEP_IN, Oracle, box, inside_room, moved, random_zone, wall

from vla_contract.errors import ConfigError
from vla_safety.core.config import load_safety
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.motion import Motion, State, rest
from vla_safety.core.shapes import CLOSE, GAP
from vla_safety.core.stopping import stop
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.verification import Verifier
from vla_safety.core.zones import SHAPES, ZoneSet, ZoneSpec

MODEL = RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints)
N = len(HOME)
ORACLE = Oracle()
WIDE = replace(LIMITS, min_position=LIMITS.min_position - 9, max_position=LIMITS.max_position + 9)  # zones only


def random_configuration(rng):
    return rng.uniform(LIMITS.min_position, LIMITS.max_position)


def by_link(zones: ZoneSet, q):
    """Smallest clearance of each link."""
    values, labels = zones.clearances(MODEL.place(np.asarray(q)[None]))
    result: dict[str, float] = {}
    for column, value in enumerate(values[0]):
        link = zones.describe(column, int(labels[0, column]))[1]
        result[link] = min(result.get(link, np.inf), value)
    return result


def check_bounds(ours, truth):
    for link, distance in truth.items():
        if distance <= 0:
            assert ours[link] <= 1e-6, link
            continue
        assert ours[link] <= distance + 1e-6, link
        if ours[link] < CLOSE:
            assert distance - ours[link] <= GAP + 1e-6, link


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SHAPES), st.sampled_from(("", "fr3_link4")))
def test_i14_clearance_is_never_more_than_the_true_distance_and_tight_close_by(seed, shape, frame):
    rng = np.random.default_rng(seed)
    zone = random_zone(rng, shape, frame=frame)
    q = random_configuration(rng)
    truth = ORACLE.distances(q, zone)
    check_bounds(by_link(ZoneSet([zone], MODEL, 0.004), q), truth)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SHAPES))
def test_i14_clearance_of_a_link_that_almost_touches(seed, shape):
    """Wherever on the zone it is: at faces, edges and corners."""
    rng = np.random.default_rng(seed)
    zone = random_zone(rng, shape)
    q = random_configuration(rng)
    nearest = ORACLE.nearest(q, zone)
    link = str(rng.choice([name for name, (distance, _) in nearest.items() if distance > 0] or ["none"]))
    if link == "none":
        return
    distance, away = nearest[link]
    zone = moved(zone, away * (distance - rng.uniform(0.0, CLOSE)))
    check_bounds(by_link(ZoneSet([zone], MODEL, 0.004), q), ORACLE.distances(q, zone))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KEEP_IN))
def test_i14_room_inside_a_keep_in_zone_is_that_of_the_surface(seed, shape):
    """Against a thousand points on the surface of each body."""
    rng = np.random.default_rng(seed)
    zone = random_zone(rng, shape, "keep_in", grow=4.0)
    q = random_configuration(rng)
    values, _ = ZoneSet([zone], MODEL, 0.004).clearances(MODEL.place(q[None]))
    points = MODEL.place(q[None]).points[0]
    for body, (start, size) in enumerate(zip(MODEL.starts, MODEL.body_sizes, strict=True)):
        weights = rng.dirichlet(np.full(size, 0.3), 1000)
        directions = rng.normal(0, 1, (1000, 3))
        directions *= MODEL.body_radii[body] / np.linalg.norm(directions, axis=1, keepdims=True)
        surface = np.concatenate([weights @ points[start : start + size] + directions, points[start : start + size]])
        assert values[0, body] <= inside_room(zone, surface).min() + 1e-6
        corner_room = inside_room(zone, points[start : start + size]).min() - MODEL.body_radii[body]
        if corner_room < 0.1:  # beyond, it may be the bound of the box around the body
            assert values[0, body] == pytest.approx(corner_room, abs=1e-6)


def test_clearance_towards_a_face_is_exact():
    """Over a table (or before a wall) nothing is given away."""
    table = box("table", "keep_out", (0.5, 0, -0.25), (2, 2, 0.5))
    for seed in range(20):
        q = HOME + np.random.default_rng(seed).normal(0, 0.1, N) * np.array([1] * 7 + [0])
        ours, truth = by_link(ZoneSet([table], MODEL, 0.004), q), ORACLE.distances(q, table)
        for link in ("fr3_leftfinger", "fr3_hand", "fr3_link4"):
            assert ours[link] == pytest.approx(truth[link], abs=1e-5)


def test_keep_in_is_measured_from_within():
    values, which = ZoneSet([box("cell", "keep_in", (0, 0, 0), (4, 4, 4))], MODEL, 0.004).clearances(
        MODEL.place(HOME[None])
    )
    assert (values > 0.5).all() and (values < 2).all() and (which == 0).all()
    values, _ = ZoneSet([box("cell", "keep_in", (0, 0, 0), (4, 4, 0.5))], MODEL, 0.004).clearances(
        MODEL.place(HOME[None])
    )
    assert values.min() < 0


def test_zones_on_a_link_move_with_it():
    """A box around the tool, fixed to the hand, touches the hand wherever it goes, and not the base."""
    zone = box(
        "tool", "keep_out", (0, 0, 0.2), (0.1, 0.1, 0.1), frame="fr3_hand", links=("fr3_link0", "fr3_leftfinger")
    )
    zones = ZoneSet([zone], MODEL, 0.004)
    for seed in range(5):
        q = random_configuration(np.random.default_rng(seed))
        q[-1] = 0.02
        found = by_link(zones, q)
        assert 0.03 < found["fr3_leftfinger"] < 0.12 and found["fr3_link3"] == np.inf


def test_i14_a_zone_on_a_moving_link_does_not_jump_over_a_resting_body():
    """The base rests while a thin disc on the hand sweeps past it: what counts is how fast they approach each other."""
    zone = ZoneSpec(
        name="disc",
        kind="keep_out",
        cylinder={"center": (0, 0, 0.45), "radius": 0.3, "length": 0.01},
        frame="fr3_hand",
        links=("fr3_link0",),
    )
    zones = ZoneSet([zone], MODEL, 0.004)
    body = MODEL.body_links.index("fr3_link0")
    column = len(MODEL.body_links)  # behind those of the base frame
    assert zones.describe(column, 0) == ("zone:disc", "fr3_link0")
    assert MODEL.reach[body].max() == 0 and zones.reach[column].max() > 0.5
    for seed in range(30):
        rng = np.random.default_rng(seed)
        q, step = random_configuration(rng), rng.normal(0, 0.01, N)
        a, b = ORACLE.distances(q, zone)["fr3_link0"], ORACLE.distances(q + step, zone)["fr3_link0"]
        if min(a, b) > 0:
            assert abs(a - b) <= zones.reach[column] @ np.abs(step) + 1e-6


def test_links_can_be_chosen_and_excepted():
    low = box("low", "keep_out", (0, 0, 0), (0.5, 0.5, 0.2))
    for options, touched in (
        ({}, True),
        ({"except_links": ("fr3_link0", "fr3_link1")}, False),
        ({"links": ("fr3_link7",)}, False),
    ):
        values, _ = ZoneSet([low.model_copy(update=options)], MODEL, 0.004).clearances(MODEL.place(HOME[None]))
        assert (values.min() < 0) == touched


def test_a_wrong_zone_is_refused_whole():
    with pytest.raises(ConfigError, match="'a' is defined 2 times"):
        ZoneSet([box("a", "keep_out", (0, 0, 0), (1, 1, 1))] * 2, MODEL, 0.004)
    with pytest.raises(ConfigError, match="unknown link 'nope'"):
        ZoneSet([box("a", "keep_out", (0, 0, 0), (1, 1, 1), links=("nope",))], MODEL, 0.004)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has 0 shapes"),
        ({shape: {"center": (0, 0, 0), "radius": 1, "length": 1} for shape in ("cylinder", "capsule")}, "has 2 shapes"),
        ({"kind": "keep_in", "sphere": {"center": (0, 0, 0), "radius": 1}}, "keep_in with a sphere"),
        ({"sphere": {"center": (0, 0, 0), "radius": -1}}, "greater than 0"),
        ({"capsule": {"center": (0, 0, float("nan")), "radius": 1, "length": 1}}, "finite"),
        ({"mesh": {}}, "a file or points"),
        ({"mesh": {"points": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]}}, "hold no volume"),
        ({"mesh": {"points": [(np.cos(k), np.sin(k), k % 7) for k in range(400)]}}, "facets, allowed are 256"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        ZoneSpec(**{"name": "z", "kind": "keep_out", **fields})


def cell_with(tmp_path, zone: str):
    path = tmp_path / "cell.yaml"
    path.write_text(f"margin: 0.004\nself_margin: 0.01\nzones:\n{zone}")
    return path


CUBE = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
_EDGES = [(0, 1), (1, 3), (3, 2), (2, 0)]  # of the first square
_SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def obj(vertices, faces):
    lines = [f"v {x} {y} {z}" for x, y, z in vertices]
    return "\n".join([*lines, *("f " + " ".join(str(i + 1) for i in face) for face in faces)])


def stl(vertices, faces):
    triangles = [(vertices[f[0]], vertices[f[k]], vertices[f[k + 1]]) for f in faces for k in (1, 2)]
    rows = b"".join(struct.pack("<12fH", 0, 0, 0, *np.ravel(triangle), 0) for triangle in triangles)
    return b"\0" * 80 + struct.pack("<I", len(triangles)) + rows


@pytest.mark.parametrize("ending", ["obj", "stl"])
def test_a_mesh_is_read_from_a_file_beside_the_safety_file(tmp_path, ending):
    content = obj(CUBE, _SQUARES).encode() if ending == "obj" else stl(CUBE, _SQUARES)
    (tmp_path / f"cube.{ending}").write_bytes(content)
    path = cell_with(
        tmp_path,
        f"  - {{name: c, kind: keep_out, mesh: {{file: cube.{ending}, scale: 0.2, center: [0.4, 0.3, 0.4]}}}}\n",
    )
    zone = load_safety(path, ROBOT).zones[0]
    truth = ORACLE.distances(HOME, box("c", "keep_out", (0.5, 0.4, 0.5), (0.2, 0.2, 0.2)))
    assert min(truth.values()) < 0.3
    ours = by_link(ZoneSet([zone], MODEL, 0.004), HOME)
    check_bounds(ours, truth)
    assert min(ours.values()) == pytest.approx(min(truth.values()), rel=0.3)
    # What is recorded holds the points, not the file.
    recorded = zone.model_dump(mode="json")
    assert ZoneSpec.model_validate(recorded).model_dump(mode="json") == recorded and not recorded["mesh"]["file"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "'part.obj' does not exist"),
        ("v 0 0 0", "malformed: it has no faces"),
        ("v 0 0 nope\nf 1 1 1", "malformed"),
        (obj([(x, y, 0) for x, y, _ in CUBE], _SQUARES), "hold no volume"),
        (obj([*CUBE, (0.5, 0.5, 0.5)], [*_SQUARES[1:], *((a, b, 8) for a, b in _EDGES)]), "not convex.*split"),
    ],
)
def test_a_wrong_mesh_is_refused_with_file_line_and_reason(tmp_path, content, message):
    if content is not None:
        (tmp_path / "part.obj").write_text(content)
    zone = "  - {name: ok, kind: keep_out, sphere: {center: [2, 2, 2], radius: 0.1}}\n"
    path = cell_with(tmp_path, zone + "  - name: bad\n    kind: keep_out\n    mesh: {file: part.obj}\n")
    with pytest.raises(ConfigError, match=r"(?s)cell.yaml: line 7: zones\.1\.mesh.*" + message):
        load_safety(path, ROBOT)


def test_a_wrong_zone_is_refused_with_its_line(tmp_path):
    zone = "  - name: low\n    kind: keep_out\n    sphere:\n      center: [0, 0, 0]\n      radius: -1\n"
    path = cell_with(tmp_path, zone)
    with pytest.raises(ConfigError, match=r"line 8: zones\.0\.sphere\.radius \(is -1\)"):
        load_safety(path, ROBOT)
    zone = "  - name: far\n    kind: keep_out\n    sphere: {center: [0, 0, 9], radius: 1}\n    links: [nope]\n"
    path = cell_with(tmp_path, zone)
    with pytest.raises(ConfigError, match=r"zone 'far' \(.*cell.yaml, line 4\): unknown link 'nope'"):
        ZoneSet(load_safety(path, ROBOT).zones, MODEL, 0.004)


def make_verifier(*zones, margin=0.004):
    return Verifier(LIMITS, MODEL, [ZoneSet(zones, MODEL, margin)])


@pytest.mark.parametrize("shape", SHAPES)
def test_i14_a_thin_wall_is_not_tunnelled_through_at_full_speed(shape):
    """1 cm of wall, joint 1 at 2.62 rad/s: the tool crosses it within 10 ms, between two coarse samples."""
    v = np.zeros(N)
    v[0] = 2.62
    motion = stop(State(HOME, v, np.zeros(N)), 0, LIMITS)
    for angle in np.linspace(0.05, 0.34, 30):
        touched = np.array([0.45 * np.cos(angle), 0.45 * np.sin(angle), 0.5])
        report = make_verifier(wall(shape, touched, angle)).verify(motion)
        assert report.finding is not None and report.finding.reason == "zone:wall"
        assert motion.start <= report.safe_until < motion.end


@pytest.mark.parametrize("shape", KEEP_IN)
def test_i14_a_keep_in_zone_is_not_left_at_full_speed(shape):
    """The tool leaves at 2.62 rad/s through a side that is 1 to 20 cm away."""
    pose = {"center": (0, 0, 0.5), "rpy": (0, 0, 0)}
    v = np.zeros(N)
    v[3] = 2.62  # stretches the arm
    start = HOME + np.array([0, 0, 0, 0.3, 0, 0, 0, 0])
    motion = stop(State(start, v, np.zeros(N)), 0, LIMITS)
    for reach in np.linspace(0.56, 0.9, 12):
        corners = [(x, y, z) for x in (-reach, reach) for y in (-reach, reach) for z in (-1, 1)]
        fields = {
            "box": {**pose, "size": (2 * reach, 2 * reach, 2)},
            "cylinder": {**pose, "radius": reach, "length": 2},
            "mesh": {**pose, "points": corners},
        }[shape]
        zone = ZoneSpec(**{"name": "cell", "kind": "keep_in", shape: fields})
        places = MODEL.place(motion.curve.sample(np.arange(0, motion.duration, 0.001)).positions).points
        rooms = [inside_room(zone, points) - MODEL.point_radii for points in places]
        report = make_verifier(zone).verify(motion)
        if np.min(rooms) < 0.004:
            assert report.finding is not None
            safe = rooms[: round((report.safe_until - motion.start) / 1e6)]
            assert np.min(safe, initial=1.0) > 0.0
        elif np.min(rooms) > 0.006:
            assert report.finding is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frame", ["", "fr3_link3"])
def test_i14_what_is_verified_keeps_the_margin_between_samples(shape, frame):
    """Moves in many knots, slow and fast, past zones that they come close to or run into."""
    verified = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        q = HOME + rng.normal(0, 0.3, N) * (np.arange(N) < 7)
        amplitude = rng.uniform(0.02, 0.4) * rng.normal(0, 1, N) * (np.arange(N) < 7)
        t = np.arange(0, 1.01, 0.05)
        phase = 2 * t[:, None]
        knots = (
            q + amplitude * (1 - np.cos(phase)),
            2 * amplitude * np.sin(phase),
            4 * amplitude * np.cos(phase),
        )
        motion = Motion(np.round(t * 1e9).astype(np.int64), *knots)
        zone = random_zone(rng, shape, frame=frame, except_links=("fr3_link2", "fr3_link3", "fr3_link4"))
        report = Verifier(WIDE, MODEL, [ZoneSet([zone], MODEL, 0.004)]).verify(motion)
        end = (report.safe_until - motion.start) * 1e-9
        path = motion.curve.sample(np.arange(0, end, 0.004)).positions if end else []
        for p in path:
            for link, distance in ORACLE.distances(p, zone).items():
                assert distance >= 0.004 - 1e-6 or not zone.applies_to(link), (seed, link)
        verified += report.safe
    assert 0 < verified < 12


def test_i14_safe_until_is_before_the_touch():
    wall = box("wall", "keep_out", (0.5, 0.6, 0.5), (1.0, 0.4, 1.0))
    v = np.zeros(N)
    v[0] = 2.0
    start = State(HOME, v, np.zeros(N))
    # full speed for a second, not a stop
    t = np.arange(0, 1.01, 0.05)
    motion = Motion(
        np.round(t * 1e9).astype(np.int64), HOME + np.outer(t, v), np.repeat(v[None], len(t), 0), np.zeros((len(t), N))
    )
    report = make_verifier(wall).verify(motion)
    q = motion.state(report.safe_until).position
    assert min(ORACLE.distances(q, wall).values()) > 0.004
    after = motion.state(report.safe_until + 60_000_000).position
    assert min(ORACLE.distances(after, wall).values()) < 0.03
    assert start.velocity[0] == 2.0


def test_r07_fast_towards_an_obstacle_one_centimetre_away_is_refused():
    wall_y = 0.12
    wall = box("wall", "keep_out", (0.45, wall_y + 0.05, 0.4), (0.3, 0.1, 0.8), links=("fr3_hand",))
    gap = ORACLE.distances(HOME, wall)["fr3_hand"]
    wall = box("wall", "keep_out", (0.45, wall_y + 0.05 - gap + 0.01, 0.4), (0.3, 0.1, 0.8), links=("fr3_hand",))
    assert ORACLE.distances(HOME, wall)["fr3_hand"] == pytest.approx(0.01, abs=1e-3)
    v = np.zeros(N)
    v[0] = 0.4 / 0.45
    report = make_verifier(wall).verify(stop(State(HOME, v, np.zeros(N)), 0, LIMITS))
    assert report.finding is not None and report.finding.subject == "fr3_hand"


def test_home_is_safe_in_the_shipped_cell():
    from vla_safety.building import build_filter

    verifier = build_filter(ROBOT).verifier
    report = verifier.verify(Motion.at(0, rest(HOME)))
    assert report.safe and report.clearance > 0.05
