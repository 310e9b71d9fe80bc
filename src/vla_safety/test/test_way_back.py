"""I20: the path that is remembered, the motion back along it, and rules that only get stricter; by themselves."""

from dataclasses import dataclass

import numpy as np
import pytest
from rig import HOME, LIMITS, MS, START, make_filter

from vla_safety.core.config import RetreatSettings
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Motion, State, rest
from vla_safety.core.retreat import Ratchet, Trail, left, way_back

N = len(HOME)
SHIPPED = make_filter().verifier
MOVED = np.arange(N) < 7
SETTINGS = RetreatSettings()
ONE = np.arange(N) == 0


@dataclass
class Rules:
    """Those of the shipped cell, but for a cap that asks for a slower path."""

    scale: float = 1.0
    limits = LIMITS
    model = SHIPPED.model

    def pace(self, _):
        return self.scale, None


def path(seconds=2.0, by=0.8, wiggle=0.0, turns=1.7):
    """Joint 1 from home to one side within `seconds`, joint 6 to and fro."""
    t = np.linspace(0, seconds, round(seconds * 25) + 1)
    u = 2 * np.pi / seconds * t
    q, v, a = np.repeat(HOME[None], len(t), 0), np.zeros((len(t), N)), np.zeros((len(t), N))
    q[:, 0] += by * t / seconds
    v[:, 0] = by / seconds
    rate = 2 * np.pi * turns / seconds
    q[:, 5] += wiggle * (1 - np.cos(turns * u)).round(12)
    v[:, 5] = wiggle * rate * np.sin(turns * u)
    a[:, 5] = wiggle * rate**2 * np.cos(turns * u)
    return Motion(np.round(t * 1e9).astype(np.int64), q, v, a)


def back(way, position=None, scale=1.0):
    position = way.positions[-1] if position is None else position
    return way_back(way, position, START, Rules(scale), SETTINGS, MOVED)


def consistent(motion, tolerance=3e-5):
    """Positions, velocities and accelerations of knots belong together: the corrected trapezoid between two."""
    h = np.diff(motion.times)[:, None] * 1e-9
    q, v, a = motion.positions, motion.velocities, motion.accelerations
    np.testing.assert_allclose(
        np.diff(q, axis=0), h / 2 * (v[1:] + v[:-1]) + h**2 / 12 * (a[:-1] - a[1:]), atol=tolerance
    )
    np.testing.assert_allclose(np.diff(v, axis=0), h / 2 * (a[1:] + a[:-1]), atol=130 * tolerance)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("offset", [0.0, 0.04, -0.04])
def test_i20_the_way_back_is_slow_even_and_from_rest_to_rest(scale, offset):
    way = path()
    position = way.positions[-1] + offset * ONE
    motion = back(way, position, scale)
    consistent(motion)
    assert motion.start == START and np.array_equal(motion.positions[0], position)
    assert np.array_equal(motion.positions[1], position) and motion.knot(0).at_rest and motion.knot(1).at_rest
    np.testing.assert_allclose(motion.positions[-1], HOME, atol=1e-12)
    assert motion.knot(len(motion) - 1).at_rest
    assert motion.times[1] - START >= 300 * MS, "the controller comes from where it is"
    joint = LIMITS.max_velocity[0] * SETTINGS.pace
    link = SETTINGS.link_speed * 0.9 / SHIPPED.model.reach[:, 0].max()
    fastest = np.abs(motion.velocities[:, 0]).max() / scale
    assert fastest == pytest.approx(min(joint, link), rel=0.2) and fastest <= min(joint, link) * (1 + 1e-9)
    assert offset < 0 or (np.diff(motion.positions[:, 0]) <= 1e-12).all()
    if offset == 0.0:
        middle = motion.velocities[12:-12, 0]
        np.testing.assert_allclose(middle, -min(joint, link) * scale, rtol=1e-3)
        assert np.diff(motion.times)[1:-1] == pytest.approx(1e8 / scale, rel=0.02), "a knot each tenth of a second"
        length = 0.8 / min(joint, link)
        assert (motion.times[-1] - motion.times[1]) * 1e-9 * scale == pytest.approx(length + 0.5, abs=0.02)
        assert len(motion) == 2 + int(np.ceil((length + 0.5) / 0.1 - 1e-9))
        assert motion.times[1] - START == 300 * MS
        u = (motion.times[1:6] - motion.times[1]) * 2e-9 * scale  # it speeds up within half a second
        speed = -min(joint, link) * scale
        np.testing.assert_allclose(motion.velocities[1:6, 0], speed * (3 * u**2 - 2 * u**3), atol=1e-5)
        np.testing.assert_allclose(motion.accelerations[1:6, 0], speed * scale * 12 * u * (1 - u), atol=1e-3)


@pytest.mark.parametrize("turns", [1.7, 1.0], ids=["elsewhere", "a joint that came back to where it began"])
def test_i20_the_way_back_is_the_way_there(turns):
    """With every bend, however long it takes; a gripper stays."""
    way = path(8.0, by=1.2, wiggle=0.2, turns=turns)
    way.positions[:, 7] = np.linspace(0.04, 0.0, len(way))
    motion = back(way)
    consistent(motion, 4e-4)
    assert (motion.positions[:, 7] == 0.0).all() and not motion.velocities[:, 7].any()
    places = way.curve.sample(np.linspace(0, way.duration, 4000)).positions[:, :7]
    gaps = [np.abs(places - q[:7]).max(axis=1).min() for q in motion.positions]
    assert max(gaps) < 5e-4
    links = np.abs(motion.velocities) @ SHIPPED.model.reach.T
    assert links.max() <= SETTINGS.link_speed * (1 + 1e-9)
    assert (np.abs(motion.velocities) <= LIMITS.max_velocity * SETTINGS.pace * (1 + 1e-9)).all()


def test_i20_a_short_way_back_is_short():
    motion = back(path(0.2, by=1e-3))
    consistent(motion)
    np.testing.assert_allclose(motion.positions[-1], HOME, atol=1e-12)
    assert motion.duration < 1.5


@pytest.mark.parametrize(("at", "share"), [(-1, 1.0), (0, 1.0), (5, 0.75), (20, 0.0), (30, 0.0)])
def test_how_much_is_left_is_a_share_of_the_time(at, share):
    motion = Motion(START + np.array([0, 20]), *np.zeros((3, 2, N)))
    assert left(motion, START + at) == pytest.approx(share)
    assert left(Motion.at(START, rest(HOME)), START) == 0.0


# ------------------------------------------------------------------ the path


def at(x):
    return State(HOME + x * ONE, 0.5 * ONE, 0.25 * ONE)


def trail(*records, memory=10.0):
    found = Trail(memory)
    for ms, x in records:
        found.record(START + ms * MS, at(x))
    return found


def remembered(found):
    motion = found.path()
    if motion is None:
        return None
    places = (motion.positions[:, 0] - HOME[0]).round(9).tolist()
    return list(zip(((motion.times - motion.times[0]) // MS).tolist(), places, strict=True))


def test_a_trail_is_what_was_commanded_and_rest_takes_no_time():
    assert trail().path() is None and trail((0, 0.1)).path() is None
    assert remembered(trail((0, 0.1), (40, 0.2))) == [(0, 0.1), (40, 0.2)]
    found = trail((0, 0.1), (40, 0.2), (80, 0.2), (9000, 0.2), (9040, 0.3))
    assert remembered(found) == [(0, 0.1), (40, 0.2), (80, 0.3)] and len(found) == 3
    found.record(START + 9080 * MS, None)
    assert len(found) == 3
    motion = found.path()
    assert motion.velocities.tolist() == [(0.5 * ONE).tolist()] * 3
    assert motion.accelerations.tolist() == [(0.25 * ONE).tolist()] * 3


@pytest.mark.parametrize(("gap", "kept"), [(250, True), (251, False), (0, False), (-1, False), (1, True)])
def test_what_was_not_seen_for_too_long_is_no_path(gap, kept):
    found = trail((0, 0.0), (40, 0.1), (40 + gap, 0.2))
    assert remembered(found) == ([(0, 0.0), (40, 0.1), (40 + gap, 0.2)] if kept else None)
    assert len(found) == (3 if kept else 1)


def test_a_trail_forgets_what_is_older_than_its_memory():
    found = trail(*((40 * k, 0.01 * k) for k in range(20)), memory=0.2)
    assert remembered(found) == [(40 * k, round(0.01 * (14 + k), 9)) for k in range(6)]


def test_a_trail_is_cut_at_the_newest_of_the_nearest_places():
    found = trail((0, 0.0), (40, 0.1), (80, 0.2), (120, 0.1), (160, 0.3))
    assert found.cut(HOME + 0.125 * ONE, 0.02, MOVED) == Finding("no_trail", "path", pytest.approx(0.025), 0.02)
    assert len(found) == 5, "nothing is forgotten"
    assert found.cut(HOME + 0.125 * ONE + 9.0 * ~MOVED, 0.03, MOVED) is None
    assert remembered(found) == [(0, 0.0), (40, 0.1), (80, 0.2), (120, 0.1)]
    exact = abs(HOME[0] + 0.2 - (HOME[0] + 0.25))
    assert found.cut(HOME + 0.25 * ONE, exact, MOVED) is None, "exactly as far as it may be"
    assert repr(trail().cut(HOME, 0.1, MOVED)) == repr(Finding("no_trail", "path", np.inf, 0.1))


def test_who_takes_over_on_the_path_goes_on_with_it_and_elsewhere_begins_anew():
    found = trail((0, 0.0), (40, 0.1), (80, 0.2))
    found.rebase(at(0.12), 0.05, MOVED)
    assert remembered(found) == [(0, 0.0), (40, 0.1), (540, 0.12)]
    found.rebase(at(0.5), 0.05, MOVED)
    assert len(found) == 1 and found.path() is None


# ------------------------------------------------------------------ the rules


@pytest.mark.parametrize("sign", [1, -1])
def test_i20_beyond_a_limit_only_less_is_allowed(sign):
    limits = SHIPPED.limits
    limit = limits.max_position[2] if sign > 0 else limits.min_position[2]

    def beyond(x):
        return np.where(np.arange(N) == 2, limit + sign * x, HOME)

    ratchet = Ratchet(SHIPPED, beyond(0.2))
    for x, most in ((0.2, 0.201), (0.25, 0.201), (0.1, 0.101), (0.15, 0.101)):
        rules, wider = ratchet.at(beyond(x)).limits, most * (np.arange(N) == 2)
        np.testing.assert_allclose(rules.max_position - limits.max_position, wider * (sign > 0), atol=1e-9)
        np.testing.assert_allclose(limits.min_position - rules.min_position, wider * (sign < 0), atol=1e-9)
    assert ratchet.at(HOME).limits is limits, "who is back within is held to all of them"


def test_i20_in_a_zone_only_further_out_is_allowed():
    def deep(x):
        return HOME + x * (np.arange(N) == 1)

    ratchet, whole, best = Ratchet(SHIPPED, deep(0.9)), SHIPPED.split(deep(0.9)).margins, -np.inf
    for x in (0.9, 0.95, 0.85, 0.88):
        rules = ratchet.at(deep(x))
        distances = rules.distances(deep(x))
        best = np.maximum(best, distances)
        np.testing.assert_allclose(rules.margins, np.minimum(whole, best - 1e-3))
    assert np.array_equal(ratchet.at(HOME).margins, whole)


def test_a_trail_remembers_motion_only_and_no_more_than_it_should():
    trail, q = Trail(1.0), np.zeros(2)
    now = START
    for _ in range(100):
        now += 40 * MS
        q = q + 0.01
        trail.record(now, State(q, np.full(2, 0.25), np.zeros(2)))
    for _ in range(1000):
        now += 40 * MS
        trail.record(now, rest(q))
    assert len(trail) in (26, 27)
    joints = np.ones(2, dtype=bool)
    assert trail.cut(q, 0.1, joints) is None
    path = trail.path()
    assert path.duration == pytest.approx(1.0, abs=0.05) and np.allclose(path.positions[-1], q)
    trail.record(now + 10**9, rest(q + 1))  # a gap: the way between is not known
    assert trail.cut(q, 0.1, joints).reason == "no_trail" and trail.path() is None
