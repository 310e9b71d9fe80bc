"""From the commanded motion onto a chunk: where, how fast, by which bridge, and why not."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, LIMITS, MS

from vla_safety.core.config import Proposals
from vla_safety.core.findings import Finding
from vla_safety.core.limits import check_envelope, extent_of
from vla_safety.core.motion import Motion, rest
from vla_safety.core.splicing import complete, splice, splice_time
from vla_safety.core.validation import Chunk

N = len(HOME)
T0 = 10**15
SETTINGS = Proposals()
ONE = np.arange(N) == 0
TWO = np.arange(N) == 1
STILL = Motion.at(T0, rest(HOME))


def line(since, speed=0.0, start=0.0, count=11, step=100, joint=ONE):
    """A joint at an even speed; `since` ms, a knot every `step` ms."""
    t = step * np.arange(count)
    q = HOME + np.outer(start + speed * t * 1e-3, joint)
    return Motion(T0 + (since + t) * MS, q, np.tile(speed * joint, (count, 1)), np.zeros((count, N)))


def lead(chunk, committed=STILL, earliest=100, now=0, **options):
    settings, limits = options.pop("settings", SETTINGS), options.pop("limits", LIMITS)
    return splice(committed, chunk, T0 + now * MS, T0 + earliest * MS, limits, settings, **options)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Motion.__dataclass_fields__)


# ------------------------------------------------------------------ derivatives


def test_derivatives_that_are_not_given_are_central_differences():
    times = np.array([0, 100, 300]) * MS + T0
    t, q = (times - T0) * 1e-9, np.outer([0.0, 0.02, 0.1], np.ones(N))
    found = complete(Chunk("policy", 1, times, q))
    np.testing.assert_array_equal(found.velocities, np.gradient(q, t, axis=0))
    np.testing.assert_array_equal(found.accelerations, np.gradient(found.velocities, t, axis=0))
    v, a = q * 3, q * 5
    found = complete(Chunk("policy", 1, times, q, v))
    assert np.array_equal(found.velocities, v) and np.array_equal(found.accelerations, np.gradient(v, t, axis=0))
    found = complete(Chunk("policy", 1, times, q, v, a))
    for part, given in ((found.times, times), (found.positions, q), (found.velocities, v), (found.accelerations, a)):
        assert np.array_equal(part, given)


@pytest.mark.parametrize(("v", "a"), [(None, None), (2.0, None), (None, 3.0), (2.0, 3.0)])
def test_a_single_point_without_derivatives_is_at_rest(v, a):
    given = [None if x is None else np.full((1, N), x) for x in (v, a)]
    found = complete(Chunk("policy", 1, np.array([T0]), HOME[None], *given))
    assert np.array_equal(found.positions, HOME[None]) and found.start == T0
    assert (found.velocities == (v or 0.0)).all() and (found.accelerations == (a or 0.0)).all()
    assert found.velocities.shape == found.accelerations.shape == (1, N)


# ------------------------------------------------------------------ where


@pytest.mark.parametrize(
    ("earliest", "at"),
    [
        (-50, 0), (50, 50), (100, 100), (101, 105), (104, 105), (105, 105), (123, 123), (124, 128),
        (128, 128), (127, 128), (130, 130), (201, 205), (220, 220), (224, 228), (96, 96), (99, 99), (1023, 1023),
    ],
)  # fmt: skip
def test_a_splice_keeps_five_milliseconds_from_the_knots_before_and_after_it(earliest, at):
    """Knots of what is committed at 0, 100, 200, ... ms, of the chunk at 128, 228, ... ms."""
    found = splice_time(line(0, count=21), line(128), T0 + earliest * MS)
    assert (found - T0) // MS == at


def test_where_there_is_no_room_the_splice_is_at_once():
    dense = line(0, count=200, step=4)
    assert splice_time(dense, line(2, count=200, step=4), T0 + 101 * MS) == T0 + 101 * MS


# ------------------------------------------------------------------ what continues


def test_i09_a_chunk_that_continues_what_is_commanded_is_taken_bit_by_bit():
    committed, chunk = line(0, 0.5), line(50, 0.5, start=0.025)
    found = lead(chunk, committed, earliest=300, now=120)
    assert (found.scale, found.finding, found.splice_ns) == (1.0, None, T0 + 300 * MS)
    assert same(found.motion.knots(0, 2), committed.knots(1, 3))
    assert same(found.motion.knots(3, len(found.motion) - 1), chunk.knots(3, 10))
    assert (found.first, found.count) == (3, 8)


@pytest.mark.parametrize(
    ("q", "v", "a", "continues"),
    [
        (0.9e-7, 0.9e-5, 0.9e-3, True),
        (-0.9e-7, -0.9e-5, -0.9e-3, True),
        (1.1e-7, 0.0, 0.0, False),
        (0.0, -1.1e-5, 0.0, False),
        (0.0, 0.0, 1.1e-3, False),
    ],
)
def test_what_differs_by_rounding_only_continues(q, v, a, continues):
    committed, chunk = line(0, 0.5), line(0, 0.5)
    chunk = Motion(chunk.times, chunk.positions + q * TWO, chunk.velocities + v * TWO, chunk.accelerations + a * TWO)
    found = lead(chunk, committed, earliest=300)
    assert (found.finding is None) == continues
    assert continues or found.finding.reason == "bridge"


def test_a_chunk_that_begins_ahead_on_the_commanded_motion_is_met_at_its_beginning():
    committed, chunk = line(0, 0.5), line(400, 0.5, start=0.2)
    found = lead(chunk, committed, earliest=300)
    assert (found.splice_ns, found.finding) == (T0 + 400 * MS, None)
    assert same(found.motion, committed.until(T0 + 400 * MS).then(chunk.knots(1, 10)))
    beside = lead(line(400, 0.5, start=0.21), committed, earliest=300)
    assert beside.splice_ns == T0 + 300 * MS and beside.finding.reason == "bridge"


# ------------------------------------------------------------------ why not


def test_i21_what_cannot_be_met_is_refused_with_its_numbers():
    chunk = line(0, 0.1)
    broken = replace(chunk, velocities=np.where(np.arange(11)[:, None] == 4, np.inf, chunk.velocities))
    assert repr(lead(broken)) == repr(Finding("not_finite", "derivatives"))
    broken = replace(chunk, accelerations=chunk.accelerations + np.nan)
    assert repr(lead(broken)) == repr(Finding("not_finite", "derivatives"))
    assert lead(chunk, earliest=1100) == Finding("expired", "trajectory", 0.1, 0.0)
    assert lead(chunk, earliest=996) == Finding("expired", "trajectory", 0.0, 0.0), "of its last 5 ms nothing is left"
    assert lead(line(0), earliest=995).count == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_i21_a_chunk_that_is_too_far_away_is_refused_with_joint_and_gap(sign):
    for joint, name in ((ONE, "fr3_joint1"), (TWO, "fr3_joint2")):
        for gap in (0.199, 0.21, 0.5):
            found = lead(line(0, start=sign * gap, joint=joint))
            expected = Finding("start_jump", name, pytest.approx(gap), SETTINGS.start_tolerance)
            assert (found == expected) if gap > 0.2 else (found.finding.reason == "bridge")
    both = line(0, start=0.25)
    both.positions[:] += 0.3 * TWO
    assert lead(both).subject == "fr3_joint2", "the furthest"


def test_a_chunk_that_begins_later_may_be_as_far_away_as_the_joint_can_come_until_then():
    allowed = SETTINGS.start_tolerance + LIMITS.max_velocity[0] * 0.05
    assert lead(line(150, start=allowed + 1e-6)) == Finding(
        "start_jump", "fr3_joint1", pytest.approx(allowed + 1e-6), pytest.approx(allowed)
    )
    near = lead(line(150, start=allowed - 1e-6))
    assert getattr(near, "reason", "") != "start_jump"


# ------------------------------------------------------------------ how fast


def test_a_chunk_that_is_too_fast_is_led_along_its_path_at_the_speed_that_its_joints_allow():
    fast = 2.0 * LIMITS.max_velocity[1]
    found = lead(line(100, fast, joint=TWO), line(0, fast / 2, start=-0.1 * fast / 2, joint=TWO))
    assert found.scale == pytest.approx(0.5, rel=1e-5)
    assert found.finding == Finding("joint_velocity", "fr3_joint2", pytest.approx(fast), LIMITS.max_velocity[1])
    rest_of_it = found.motion.knots(len(found.motion) - 3, len(found.motion) - 1)
    np.testing.assert_allclose(np.diff(rest_of_it.times), 1e8 / found.scale, atol=2)
    np.testing.assert_allclose(rest_of_it.velocities[:, 1], fast * found.scale)


def paced(scale, finding=None):
    return lambda _: (scale, finding)


TOO_FAST = Finding("link_speed", "hand", 1.0, 0.25)


@pytest.mark.parametrize(
    ("cap", "links", "scale", "finding"),
    [
        (1.0, 1.0, 1.0, None),
        (0.5, 1.0, 0.5, Finding("reduced_speed", "speed_scale", 0.5, 1.0)),
        (0.1, 1.0, 0.1, Finding("reduced_speed", "speed_scale", 0.1, 1.0)),
        (1.0, 0.5, 0.5, TOO_FAST),
        (1.0, 0.2, 0.2, TOO_FAST),
        (1.0, 0.051, 0.051, TOO_FAST),
        (1.0, 0.049, None, TOO_FAST),
        (0.6, 0.5, 0.5, TOO_FAST),
        (0.4, 0.5, 0.4, Finding("reduced_speed", "speed_scale", 0.4, 1.0)),
    ],
)
def test_caps_slow_a_chunk_down_and_are_named(cap, links, scale, finding):
    """Links may ask for a quarter of the slowest scale of 0.2, an adviser for any."""
    looked = []

    def pace(motion):
        looked.append(motion)
        return (links, TOO_FAST if links < 1.0 else None) if len(looked) == 1 else (1.0, None)

    committed, chunk = line(0, 0.1), line(0, 0.1)
    found = lead(chunk, committed, earliest=300, cap=cap, pace=pace)
    if scale is None:
        assert found == finding
        return
    assert (found.scale, found.finding) == (scale, finding)
    assert same(looked[0], chunk.knots(3, 10)), "it is the rest of the path that is looked at"
    assert check_envelope(found.motion, extent_of(found.motion), LIMITS)[1] is None


def test_i21_what_is_too_fast_even_at_the_slowest_is_refused_with_its_cause():
    fast = 6.0 * LIMITS.max_velocity[1]
    found = lead(line(100, fast, joint=TWO, step=10), line(0, joint=TWO))
    assert found == Finding("joint_velocity", "fr3_joint2", pytest.approx(fast), LIMITS.max_velocity[1])


# ------------------------------------------------------------------ bridges


def bridged(gap, **options):
    found = lead(line(0, start=gap, step=50), settings=SETTINGS.model_copy(update=options))
    motion = found.motion
    return found, (int(motion.times[2]) - int(motion.times[1])) / MS


def test_a_bridge_is_as_long_as_it_should_be_and_gentle():
    found, took = bridged(0.02)
    assert found.finding == Finding("bridge", "fr3_joint1", pytest.approx(0.02), 0.0) and took == 200
    assert bridged(0.02, bridge=0.26)[1] == 300
    assert bridged(0.002, bridge=0.05)[1] == 50
    found, took = bridged(0.1)
    assert took > 200, "gentle: at half of the acceleration that the joint may have"
    piece = found.motion.knots(1, 2)
    assert (extent_of(piece).acceleration <= 0.5 * LIMITS.max_acceleration).all()
    shorter = Motion(np.array([0, round((took - 50) * MS)]), piece.positions, piece.velocities, piece.accelerations)
    assert not (extent_of(shorter).acceleration <= 0.5 * LIMITS.max_acceleration).all(), "and no longer than needed"


def test_exactly_half_of_the_acceleration_is_gentle():
    chunk = line(0, start=0.02, step=50)
    used = extent_of(lead(chunk).motion.knots(1, 2)).acceleration[0, 0]
    for share, took in ((2.0, 200), (1.999, 250)):
        limits = replace(LIMITS, max_acceleration=np.where(ONE, share * used, LIMITS.max_acceleration))
        motion = lead(chunk, limits=limits).motion
        assert (motion.times[2] - motion.times[1]) // MS == took


def test_where_no_gentle_bridge_is_short_enough_the_gentlest_is_taken():
    found, took = bridged(0.06, longest_bridge=0.25, bridge=0.05)
    assert (took, found.first, found.count) == (250, 7, 4)
    assert check_envelope(found.motion, extent_of(found.motion), LIMITS)[1] is None


def test_a_bridge_that_would_be_too_fast_for_the_links_is_slowed_down():
    asked = []

    def pace(motion):
        asked.append(motion)
        return (0.9, TOO_FAST) if len(asked) == 2 else (1.0, None)

    found = lead(line(0, start=0.1, step=50), pace=pace)
    assert found.scale == pytest.approx(0.7) and found.finding == TOO_FAST
    assert len(asked[1]) == 2 and asked[1].start == T0 + 100 * MS, "of a bridge its own way is looked at"
    reserve = lead(line(0, start=0.1, step=50), pace=lambda m: (0.97, TOO_FAST) if len(m) == 2 else (1.0, None))
    assert reserve.scale == 1.0, "within the reserve"


def test_i21_a_bridge_that_breaks_a_limit_is_refused_with_it():
    limit = LIMITS.max_position[0]
    edge = Motion.at(T0, rest(np.where(ONE, limit - 0.001, HOME)))
    out = line(0, 0.0, joint=ONE)
    out.positions[:, 0] = limit + 0.05
    assert lead(out, edge) == Finding("joint_position", "fr3_joint1", pytest.approx(limit + 0.05), limit)
    low = LIMITS.min_position[1]
    edge = Motion.at(T0, rest(np.where(TWO, low + 0.001, HOME)))
    out.positions[:] = np.where(TWO, low - 0.04, HOME)
    assert lead(out, edge) == Finding("joint_position", "fr3_joint2", pytest.approx(low - 0.04), low)


def test_exactly_at_a_limit_a_bridge_is_possible():
    limit = LIMITS.max_position[0]
    edge = Motion.at(T0, rest(np.where(ONE, limit, HOME)))
    chunk = line(0, 0.0)
    chunk.positions[:, 0] = limit
    chunk.positions[:, 1] += 0.01
    assert lead(chunk, edge).finding == Finding("bridge", "fr3_joint2", pytest.approx(0.01), 0.0)


def test_i21_a_bridge_that_is_too_sudden_is_refused_with_what_is_broken_worst():
    committed = line(0, 1.5)
    chunk = line(0, -1.5, start=0.15 + 1.5 * 0.1, step=20, count=8)
    found = lead(chunk, committed)
    assert isinstance(found, Finding) and found.reason in ("joint_acceleration", "joint_jerk")
    assert found.subject == "fr3_joint1" and found.value > found.limit
