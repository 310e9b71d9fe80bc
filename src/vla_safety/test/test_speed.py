"""Speed of links: against Pinocchio's velocities of the URDF's collision shapes, a sample a millisecond."""

from dataclasses import replace

import numpy as np
import pinocchio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS, ROBOT, START, Rig, check_envelope, proposal, smooth_chunk

from vla_contract.errors import ConfigError
from vla_safety.building import Parts, Setup, assemble, make_verifier, read_parts
from vla_safety.core.config import SafetyConfig
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.intervals import first_intervals, sampled
from vla_safety.core.limits import extent_of
from vla_safety.core.modes import Mode
from vla_safety.core.motion import Motion, rest
from vla_safety.core.speed import LinkSpeeds, contact_speed, is_speed

N = len(HOME)
PARTS = read_parts(ROBOT)
SLOW = {
    "name": "bench",
    "kind": "slow",
    "max_speed": 0.15,
    "box": {"center": [0.45, 0.45, 0.4], "size": [0.7, 0.5, 1.2]},
}


class Oracle:
    """The speed of each link's fastest point on the surface of its collision shapes."""

    def __init__(self) -> None:
        urdf = ROBOT.urdf()
        self.model = pinocchio.buildModelFromXML(urdf)
        self.data = self.model.createData()
        geometry = pinocchio.buildGeomFromUrdfString(self.model, urdf, pinocchio.GeometryType.COLLISION)
        self.clouds = []
        for shape in geometry.geometryObjects:
            points = (
                shape.placement.act(np.zeros(3))[:, None] + shape.placement.rotation @ self._surface(shape.geometry).T
            )
            self.clouds.append((shape.parentJoint, self.model.frames[shape.parentFrame].name, points))

    @staticmethod
    def _surface(shape) -> np.ndarray:
        if hasattr(shape, "halfSide"):
            return np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * shape.halfSide
        around = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        if hasattr(shape, "halfLength"):
            ring = np.stack([np.cos(around), np.sin(around)], axis=1) * shape.radius
            return np.concatenate([np.c_[ring, np.full(12, h)] for h in (-shape.halfLength, shape.halfLength)])
        tall = np.linspace(-1, 1, 7)
        flat = np.sqrt(1 - tall**2)
        ball = [[f * np.cos(a), f * np.sin(a), h] for h, f in zip(tall, flat, strict=True) for a in around]
        return np.array(ball) * shape.radius

    def at(self, q, v, box=None) -> dict[str, float]:
        """m/s by link; with a `box` (center, size) only of links that have a point in it."""
        full, rate = pinocchio.neutral(self.model), np.zeros(self.model.nv)
        pairs = [*zip(ROBOT.joints, q, v, strict=True), ("fr3_finger_joint2", q[-1], v[-1])]
        for name, position, velocity in pairs:
            joint = self.model.joints[self.model.getJointId(name)]
            full[joint.idx_q], rate[joint.idx_v] = position, velocity
        pinocchio.forwardKinematics(self.model, self.data, full, rate)
        result: dict[str, float] = {}
        for joint, link, points in self.clouds:
            twist, place = self.data.v[joint], self.data.oMi[joint]
            if box is not None:
                world = place.rotation @ points + place.translation[:, None]
                inside = (np.abs(world - np.array(box[0])[:, None]) <= np.array(box[1])[:, None] / 2).all(axis=0)
                if not inside.any():
                    continue
            moving = twist.linear[:, None] + np.cross(twist.angular, points.T).T
            result[link] = max(result.get(link, 0.0), float(np.linalg.norm(moving, axis=0).max()))
        return result


ORACLE = Oracle()


def parts_with(*zones: dict, **options: object) -> Parts:
    """The shipped cell with further zones and options."""
    raw = PARTS.config.model_dump()
    raw["zones"] = [*raw["zones"], *zones]
    raw.update(options)
    return replace(PARTS, config=SafetyConfig.model_validate(raw))


class SpeedRig(Rig):
    """A rig with a filter of its own parts, in which reduced speed can be switched."""

    def __init__(self, parts: Parts = PARTS, **options: object):
        super().__init__(arm=False, **options)
        self.parts = parts
        self.filter = assemble(parts)
        self.observe()
        answer = self.filter.arm(self.instant)
        assert answer.success, answer.message
        self.collect()
        self.run(0.4)

    def switch(self, reduced: bool):
        setup = self.parts.setup.model_copy(update={"reduced": reduced})
        finding = Finding("reduced", "on" if reduced else "off")
        answer = self.filter.reconfigure(make_verifier(self.parts, setup), self.instant, finding=finding, setup=setup)
        self.collect()
        return answer

    def fastest(self, since: float = 0.0, box=None) -> tuple[float, str]:
        """m/s and link, of what the controller played from `since` s after the start on: every millisecond around the
        fastest moments, every ten elsewhere."""
        times, rows = self.controller.trace.samples()
        rows = rows[times >= since]

        def at(k: int) -> tuple[float, str]:
            speeds = ORACLE.at(rows[k][0], rows[k][1], box)
            return max([(0.0, ""), *((value, link) for link, value in speeds.items())])

        coarse = {k: at(k) for k in range(0, len(rows), 10)}
        worst = max(coarse.values(), default=(0.0, ""))
        near = sorted(coarse, key=lambda k: -coarse[k][0])[:15]
        return max([worst, *(at(j) for k in near for j in range(max(0, k - 9), min(len(rows), k + 10)))])

    @property
    def clock(self) -> float:
        return (self.now - START) * 1e-9


def swing(joint: int = 0, by: float = 1.2) -> np.ndarray:
    goal = HOME.copy()
    goal[joint] += by
    goal[-1] = 0.03
    return goal


def random_configuration(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(LIMITS.min_position, LIMITS.max_position)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_speeds_of_bodies_are_never_below_the_truth_and_close_to_it(seed):
    rng = np.random.default_rng(seed)
    model = make_verifier(PARTS, Setup()).model
    q, v = random_configuration(rng), rng.uniform(-1, 1, N) * LIMITS.max_velocity
    ours = LinkSpeeds(model).speeds(model.place(q[None]), v[None])[0]
    truth = ORACLE.at(q, v)
    for link, value in truth.items():
        own = max(ours[k] for k, name in enumerate(model.body_links) if name == link)
        assert own >= value - 1e-9, link
        assert own <= value * 1.35 + 1e-9, f"{link}: a cylinder counts as a capsule, but no more than that"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_point_accelerates_harder_than_the_bound(seed):
    rng = np.random.default_rng(seed)
    model = make_verifier(PARTS, Setup()).model
    q, v = random_configuration(rng), rng.uniform(-1, 1, N) * LIMITS.max_velocity
    a = rng.uniform(-1, 1, N) * LIMITS.max_acceleration
    bound = LinkSpeeds(model).accelerations(np.abs(v)[None], np.abs(a)[None])[0]
    h = 1e-4
    rows = np.array([q + s * v * h + (s * h) ** 2 * a / 2 for s in (-1, 0, 1)])
    points = model.place(rows).points
    real = np.linalg.norm(points[0] - 2 * points[1] + points[2], axis=1) / h**2
    for body, (start, size) in enumerate(zip(model.starts, model.body_sizes, strict=True)):
        assert real[start : start + size].max() <= bound[body] * 1.001 + 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_between_two_samples_no_body_exceeds_the_bound(seed):
    rng = np.random.default_rng(seed)
    verifier = make_verifier(PARTS, Setup(reduced=True))
    knots = 4
    q = HOME + np.cumsum(rng.normal(0, 0.05, (knots, N)), axis=0)
    v, a = rng.normal(0, 0.5, (knots, N)), rng.normal(0, 3, (knots, N))
    motion = Motion(np.cumsum(rng.integers(20, 90, knots)) * 1_000_000, q, v, a)
    intervals = first_intervals(motion)
    samples = sampled(motion, extent_of(motion), intervals)
    high = verifier.caps.ratios(samples, verifier.model.place(samples.positions)).high.max(axis=1) * 0.25
    for start, end, bound in zip(intervals.start, intervals.end, high, strict=True):
        states = motion.curve.sample(np.linspace(start, end, 7))
        for row, rate in zip(states.positions, states.velocities, strict=True):
            assert max(ORACLE.at(row, rate).values()) <= bound + 1e-9


@pytest.mark.parametrize("sign", [1, -1])
def test_reduced_speed_slows_a_chunk_along_its_path_both_ways(sign):
    rig = SpeedRig()
    assert rig.switch(True).success
    goal = swing(by=0.8 * sign)
    decision = rig.propose(smooth_chunk(rig, goal, duration=0.8))
    assert decision.verdict == Verdict.SLOWED, decision
    assert decision.finding.reason == "link_speed" and decision.finding.subject and decision.finding.limit == 0.25
    rig.run(6)
    assert np.allclose(rig.controller.state[0], goal, atol=1e-6)
    worst, link = rig.fastest()
    assert 0.2 <= worst <= 0.25, link
    check_envelope(rig.controller)


def test_reduced_speed_switched_on_in_motion_stops_first_and_then_holds():
    rig = SpeedRig()
    goal = swing(by=1.2)
    rig.propose(smooth_chunk(rig, goal, duration=1.5))
    rig.run(0.6)
    assert rig.fastest(rig.clock - 0.05)[0] > 0.4
    answer = rig.switch(True)
    assert answer.success, answer.message
    began = rig.clock
    for k in range(12):
        rig.propose(smooth_chunk(rig, goal, duration=1.5, sequence=k))
        rig.run(0.2)
    assert rig.fastest(began + 0.45)[0] <= 0.25
    assert rig.filter.mode == Mode.ARMED
    assert abs(rig.controller.state[0][0] - HOME[0]) > 0.5, "it goes on, slowly"
    check_envelope(rig.controller)
    answer = rig.switch(False)
    assert answer.success and "stopped and disarmed" in answer.message
    assert rig.filter.mode == Mode.DISARMED and rig.filter.finding.reason == "loosened"
    rig.run(1)
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.propose(smooth_chunk(rig, HOME - np.array([0] * 7 + [0.01]), duration=1.5, sequence=99))
    off = rig.clock
    rig.run(2)
    assert rig.fastest(off)[0] > 0.3


def test_a_slow_robot_goes_on_when_reduced_speed_is_switched():
    rig = SpeedRig()
    rig.propose(smooth_chunk(rig, swing(by=0.1), duration=1.5))
    rig.run(0.6)
    stops = sum(d.verdict == Verdict.STOPPED for d in rig.decisions)
    assert rig.switch(True).success and rig.switch(True).success
    rig.run(2)
    assert sum(d.verdict == Verdict.STOPPED for d in rig.decisions) == stops
    assert np.allclose(rig.controller.state[0], swing(by=0.1), atol=1e-6)


@pytest.mark.parametrize("moving", [True, False])
def test_i12_reduced_speed_switched_off_while_armed_stops_and_is_named(moving):
    rig = SpeedRig()
    assert rig.switch(True).success
    if moving:
        rig.propose(smooth_chunk(rig, swing(by=0.1), duration=1.5))
        rig.run(0.6)
    assert rig.switch(False).success
    assert rig.filter.mode == Mode.DISARMED
    last = rig.decisions[-1]
    assert (last.verdict, last.finding.reason) == (Verdict.STOPPED, "loosened")
    rig.run(1)
    assert not rig.controller.state[1:].any()
    assert rig.propose(smooth_chunk(rig, swing(by=0.1))).finding.reason == "mode", "nothing goes on by itself"
    rig.switch(True)
    assert rig.switch(False).message == "taken", "while disarmed it is nobody's danger"


def test_i12_reduced_speed_that_waits_for_the_stop_is_loosened_as_well():
    rig = SpeedRig()
    rig.propose(smooth_chunk(rig, swing(by=1.2), duration=1.5))
    rig.run(0.6)
    assert "from the end of the stop" in rig.switch(True).message
    rig.run(0.04)
    assert "stopped and disarmed" in rig.switch(False).message
    assert rig.filter.mode == Mode.DISARMED and rig.filter.finding.reason == "loosened"


@pytest.mark.parametrize("mirrored", [1, -1])
def test_a_fast_chunk_through_a_slow_zone_is_slow_inside(mirrored):
    box = {"center": [0.45, 0.45 * mirrored, 0.4], "size": [0.7, 0.5, 1.2]}
    rig = SpeedRig(parts_with(SLOW | {"box": box}))
    goal = swing(by=1.2 * mirrored)
    decision = rig.propose(smooth_chunk(rig, goal, duration=1.5))
    assert decision.verdict == Verdict.SLOWED, decision
    assert decision.finding.reason == "slow_zone:bench" and decision.finding.limit == 0.15
    rig.run(12)
    assert np.allclose(rig.controller.state[0], goal, atol=1e-6)
    assert rig.fastest(box=(box["center"], box["size"]))[0] <= 0.15
    check_envelope(rig.controller)


def test_outside_a_slow_zone_nothing_is_slowed():
    rig = SpeedRig(parts_with(SLOW))
    decision = rig.propose(smooth_chunk(rig, swing(by=-0.8), duration=1.2))
    assert decision.verdict == Verdict.ACCEPTED and decision.finding is None, decision


def hostile(rng: np.random.Generator, rig: Rig, sequence: int):
    if rng.random() < 0.3:
        goal = rig.controller.state[0] + rng.normal(0, 0.6, N)
        goal = np.clip(goal, LIMITS.min_position, LIMITS.max_position)
        return smooth_chunk(rig, goal, float(rng.uniform(0.2, 1.0)), sequence=sequence)
    points, dt = int(rng.integers(2, 20)), float(rng.choice([0.02, 0.05, 0.1]))
    times = rng.uniform(0, 0.1) + np.arange(1, points + 1) * dt
    way = rng.normal(0, 1, N) * LIMITS.max_velocity * rng.uniform(0.05, 1.0)
    rows = rig.controller.state[0] + np.outer(times, way) + rng.normal(0, 0.003, (points, N))
    return proposal(rig.now, times, rows, sequence=sequence)


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_policy_never_exceeds_a_cap(seed):
    rng = np.random.default_rng(seed)
    reduced = seed % 2 == 0
    rig = SpeedRig(PARTS if reduced else parts_with(SLOW))
    if reduced:
        assert rig.switch(True).success
    for k in range(25):
        rig.propose(hostile(rng, rig, k))
        rig.run(float(rng.choice([0.04, 0.08, 0.2, 0.4])))
    rig.run(1.0)
    box = None if reduced else (SLOW["box"]["center"], SLOW["box"]["size"])
    worst, link = rig.fastest(box=box)
    assert worst <= (0.25 if reduced else 0.15), link
    _, q, _, _, _ = rig.controller.trace.arrays()
    assert np.ptp(q, axis=0).max() > 0.1, "the policy must get somewhere"
    check_envelope(rig.controller)


def test_contact_energy_follows_the_two_body_model():
    """0.5 mu v^2 with 1/mu = 1/m_human + 1/(M/2 + m)."""
    speed = contact_speed(0.5, 4.4, 18.0, 1.0)
    mu = 1 / (1 / 4.4 + 1 / 10.0)
    assert 0.5 * mu * speed**2 == pytest.approx(0.5)
    assert contact_speed(0.5, 4.4, 18.0, 3.0) < speed, "who carries more must be slower"


SHARED = {"name": "people", "kind": "shared", "box": SLOW["box"]}


def test_in_a_shared_zone_without_figures_the_conservative_speed_holds():
    verifier = make_verifier(parts_with(SHARED), Setup())
    assert set(verifier.caps.caps) == {0.25}


def test_an_energy_that_allows_more_needs_a_source():
    energy = {"max_energy": 0.5, "human_mass": 4.4}
    with pytest.raises(ConfigError, match="source"):
        make_verifier(parts_with(SHARED, contact_energy=energy), Setup())
    verifier = make_verifier(parts_with(SHARED, contact_energy=energy | {"source": "measured, report 7"}), Setup())
    assert (verifier.caps.caps > 0.25).all()
    with pytest.raises(ConfigError, match="shared"):
        make_verifier(parts_with(contact_energy=energy), Setup())


def test_a_heavier_payload_makes_a_shared_zone_slower():
    brick = {"parent": "fr3_hand_tcp", "shapes": [{"sphere": {"center": [0, 0, 0], "radius": 0.01}}], "mass": 3.0}
    brick["allowed_contacts"] = ["fr3_hand", "fr3_leftfinger", "fr3_rightfinger"]
    energy = {"max_energy": 0.05, "human_mass": 4.4}
    parts = parts_with(SHARED, contact_energy=energy, payloads={"brick": brick})
    light, heavy = (make_verifier(parts, Setup(payload=name)).caps.caps[0] for name in ("", "brick"))
    assert heavy < light < 0.25
    urdf = pinocchio.buildModelFromXML(ROBOT.urdf())
    moving = sum(inertia.mass for inertia in urdf.inertias[1:])
    for load, speed in ((0.0, light), (3.0, heavy)):
        mu = 1 / (1 / 4.4 + 1 / (moving / 2 + load))
        assert 0.5 * mu * speed**2 == pytest.approx(0.05)


def test_the_energy_cap_is_kept_in_a_shared_zone():
    energy = {"max_energy": 0.02, "human_mass": 4.4}
    parts = parts_with(SHARED, contact_energy=energy)
    cap = float(make_verifier(parts, Setup()).caps.caps[0])
    rig = SpeedRig(parts)
    decision = rig.propose(smooth_chunk(rig, swing(by=1.0), duration=2.5))
    assert decision.verdict == Verdict.SLOWED and decision.finding.reason == "shared_zone:people", decision
    rig.run(6)
    assert 0 < rig.fastest(box=(SHARED["box"]["center"], SHARED["box"]["size"]))[0] <= cap


def test_without_a_cap_there_is_no_check():
    verifier = make_verifier(PARTS, Setup())
    assert verifier.caps is None
    assert verifier.pace(Motion.at(0, rest(HOME))) == (1.0, None)


@pytest.mark.parametrize("change", [{"max_speed": None}, {"max_speed": -1.0}, {"kind": "keep_out"}, {"max_speed": 0.0}])
def test_a_slow_zone_needs_its_speed_and_no_other_has_one(change):
    with pytest.raises(ValueError, match="max_speed"):
        parts_with(SLOW | change)


def test_findings_of_speed_are_told_apart():
    assert all(is_speed(Finding(reason)) for reason in ("link_speed", "slow_zone:a", "shared_zone:b"))
    assert not is_speed(Finding("zone:a"))
