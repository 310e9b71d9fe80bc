import coal
import numpy as np
import pinocchio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS, ROBOT

from vla_contract.errors import ConfigError
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.motion import Motion, State, rest
from vla_safety.core.stopping import stop
from vla_safety.core.urdf import parse_urdf
from vla_safety.core.verification import Verifier
from vla_safety.core.zones import Box, ZoneSet, ZoneSpec

MODEL = RobotModel(parse_urdf(ROBOT.urdf()), ROBOT.joints)
N = len(HOME)


def box(name, kind, center, size, **options):
    return ZoneSpec(
        name=name, kind=kind, box=Box(center=center, size=size, rpy=options.pop("rpy", (0, 0, 0))), **options
    )


class Oracle:
    """Distances by Pinocchio and coal, which share nothing with the filter. Cylinders count as capsules there too."""

    def __init__(self):
        self.model = pinocchio.buildModelFromXML(ROBOT.urdf())
        self.data = self.model.createData()
        self.bodies = []
        for shape in parse_urdf(ROBOT.urdf()).shapes:
            if len(shape.points) == 8:
                center = shape.points.mean(axis=0)
                edges = shape.points[[4, 2, 1]] - shape.points[0]
                size = np.linalg.norm(edges, axis=1)
                pose = coal.Transform3s((edges / size[:, None]).T, center)
                geometry = coal.Box(*size)
            elif len(shape.points) == 2:
                axis = shape.points[1] - shape.points[0]
                length = np.linalg.norm(axis)
                turn = pinocchio.Quaternion.FromTwoVectors(np.array([0, 0, 1.0]), axis / length).matrix()
                pose = coal.Transform3s(turn, shape.points.mean(axis=0))
                geometry = coal.Capsule(shape.radius, length)
            else:
                pose, geometry = coal.Transform3s(np.eye(3), shape.points[0]), coal.Sphere(shape.radius)
            self.bodies.append((shape.link, geometry, pose))

    def distances(self, q, zone: ZoneSpec):
        full = pinocchio.neutral(self.model)
        for name, value in [*zip(ROBOT.joints, q, strict=True), ("fr3_finger_joint2", q[-1])]:
            full[self.model.joints[self.model.getJointId(name)].idx_q] = value
        pinocchio.framesForwardKinematics(self.model, self.data, full)
        turn = pinocchio.rpy.rpyToMatrix(*zone.box.rpy)
        volume, place = coal.Box(*zone.box.size), coal.Transform3s(turn, np.array(zone.box.center))
        result = {}
        for link, geometry, pose in self.bodies:
            frame = self.data.oMf[self.model.getFrameId(link)]
            world = coal.Transform3s(frame.rotation, frame.translation) * pose
            answer = coal.DistanceResult()
            distance = coal.distance(geometry, world, volume, place, coal.DistanceRequest(), answer)
            result[link] = min(result.get(link, np.inf), distance)
        return result


ORACLE = Oracle()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_i14_clearance_is_never_more_than_the_true_distance(seed):
    rng = np.random.default_rng(seed)
    zone = box(
        "z",
        "keep_out",
        tuple(rng.uniform(-0.6, 0.8, 3)),
        tuple(rng.uniform(0.02, 0.5, 3)),
        rpy=tuple(rng.normal(0, 1, 3)),
    )
    q = rng.uniform(LIMITS.min_position, LIMITS.max_position)
    values, _ = ZoneSet([zone], MODEL, 0.004).clearances(MODEL.place(q[None]))
    truth = ORACLE.distances(q, zone)
    for link in MODEL.body_links:
        ours = min(values[0, k] for k in range(len(MODEL.body_links)) if MODEL.body_links[k] == link)
        if truth[link] > 0:
            assert ours <= truth[link] + 1e-6, link
        else:
            assert ours <= 1e-6, link


def test_clearance_towards_a_face_is_exact():
    """Over a table (or before a wall) nothing is given away."""
    table = box("table", "keep_out", (0.5, 0, -0.25), (2, 2, 0.5))
    for seed in range(20):
        q = HOME + np.random.default_rng(seed).normal(0, 0.1, N) * np.array([1] * 7 + [0])
        values, _ = ZoneSet([table], MODEL, 0.004).clearances(MODEL.place(q[None]))
        truth = ORACLE.distances(q, table)
        for link in ("fr3_leftfinger", "fr3_hand", "fr3_link4"):
            ours = min(v for v, name in zip(values[0], MODEL.body_links, strict=True) if name == link)
            assert ours == pytest.approx(truth[link], abs=1e-5)


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
        q = np.random.default_rng(seed).uniform(LIMITS.min_position, LIMITS.max_position)
        q[-1] = 0.02
        values, _ = zones.clearances(MODEL.place(q[None]))
        fingers = [v for v, link in zip(values[0], MODEL.body_links, strict=True) if link == "fr3_leftfinger"]
        others = [v for v, link in zip(values[0], MODEL.body_links, strict=True) if link == "fr3_link3"]
        assert 0.03 < min(fingers) < 0.12 and min(others) == np.inf


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


def make_verifier(*zones, margin=0.004):
    return Verifier(LIMITS, MODEL, [ZoneSet(zones, MODEL, margin)])


def test_i14_a_thin_wall_is_not_tunnelled_through_at_full_speed():
    """1 cm of wall, joint 1 at 2.62 rad/s: the tool crosses it within 10 ms, between two coarse samples."""
    for angle in np.linspace(0.05, 0.34, 30):
        wall = box(
            "wall", "keep_out", (0.45 * np.cos(angle), 0.45 * np.sin(angle), 0.5), (0.01, 0.01, 1.0), rpy=(0, 0, angle)
        )
        v = np.zeros(N)
        v[0] = 2.62
        motion = stop(State(HOME, v, np.zeros(N)), 0, LIMITS)
        report = make_verifier(wall).verify(motion)
        assert report.finding is not None and report.finding.reason == "zone:wall"
        assert motion.start <= report.safe_until < motion.end


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
