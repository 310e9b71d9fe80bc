import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS
from scipy.interpolate import BPoly

from vla_safety.core.findings import Finding
from vla_safety.core.limits import Extent, check_envelope, extent_of, extents_of, speed_scale
from vla_safety.core.motion import Motion

N = len(HOME)


def random_motion(seed: int, knots: int = 4, size: float = 1.0) -> Motion:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(5_000_000, 200_000_000, knots))
    q = HOME + rng.normal(0, 0.1 * size, (knots, N))
    return Motion(times, q, rng.normal(0, size, (knots, N)), rng.normal(0, 3 * size, (knots, N)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_i02_bounds_contain_the_curve(seed):
    """The bounds hold for every sample of an independent interpolant, and are tight."""
    motion = random_motion(seed)
    bounds = extent_of(motion)
    t = (motion.times - motion.times[0]) * 1e-9
    knots = [[motion.positions[k], motion.velocities[k], motion.accelerations[k]] for k in range(len(motion))]
    curve = BPoly.from_derivatives(t, knots)
    for k in range(len(t) - 1):
        s = np.linspace(t[k], t[k + 1], 400)[:-1]
        q = curve(s)
        assert (q <= bounds.highest[k] + 1e-9).all() and (q >= bounds.lowest[k] - 1e-9).all()
        spread = np.ptp(q, axis=0) + 1e-9
        assert (bounds.highest[k] - q.max(axis=0) <= 0.1 * spread + 1e-6).all()
        for order, bound in ((1, bounds.speed), (2, bounds.acceleration), (3, bounds.jerk)):
            sampled = np.abs(curve.derivative(order)(s)).max(axis=0)
            assert (sampled <= bound[k] * (1 + 1e-6) + 1e-6).all()
            assert (bound[k] <= sampled * 1.25 + 1e-3).all()


def still(q, n=2):
    return Motion(np.arange(n) * 10**8, np.repeat(q[None], n, axis=0), np.zeros((n, N)), np.zeros((n, N)))


def test_rest_at_a_limit_is_kept():
    q = HOME.copy()
    q[0] = LIMITS.max_position[0]
    assert check_envelope(still(q), extent_of(still(q)), LIMITS)[1] is None
    assert check_envelope(still(q, 1), extent_of(still(q, 1)), LIMITS)[1] is None


def test_i21_position_finding_names_joint_value_and_limit():
    for n in (1, 2):
        for j in range(N):
            for sign, bound in ((1, LIMITS.max_position), (-1, LIMITS.min_position)):
                q = HOME.copy()
                q[j] = bound[j] + sign * 0.01
                kept, finding = check_envelope(still(q, n), extent_of(still(q, n)), LIMITS)
                assert kept == 0
                assert (finding.reason, finding.subject) == ("joint_position", LIMITS.names[j])
                assert np.isclose(finding.value, q[j]) and finding.limit == bound[j]


def test_i07_nan_is_never_within_limits():
    for field in ("positions", "velocities", "accelerations"):
        motion = still(HOME)
        getattr(motion, field)[1, 3] = np.nan
        kept, finding = check_envelope(motion, extent_of(motion), LIMITS)
        assert kept == 0 and finding is not None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 20))
def test_speed_scale_is_sufficient_and_not_wasteful(seed, size):
    motion = random_motion(seed, size=size)
    scale, finding = speed_scale(extent_of(motion), LIMITS)
    assert (scale == 1.0) == (finding is None)
    slow = Motion(
        np.round(motion.times / scale).astype(np.int64),
        motion.positions,
        motion.velocities * scale,
        motion.accelerations * scale**2,
    )
    ratio = max(
        (b / m).max()
        for b, m in zip(
            (extent_of(slow).speed, extent_of(slow).acceleration, extent_of(slow).jerk),
            (LIMITS.max_velocity, LIMITS.max_acceleration, LIMITS.max_jerk),
            strict=True,
        )
    )
    assert ratio <= 1 + 1e-6
    if scale < 1:
        assert ratio > 0.999


RATES = ("joint_velocity", "joint_acceleration", "joint_jerk")
MAXIMA = (LIMITS.max_velocity, LIMITS.max_acceleration, LIMITS.max_jerk)


def made(segments=3, **rates):
    """A motion at home, knots 0.25 s apart, with bounds of the test's own: `rates` maps order to (segments, n)."""
    motion = Motion(10**9 + np.arange(segments + 1) * 250_000_000, *np.zeros((3, segments + 1, N)))
    motion.positions[:] = HOME
    place = np.repeat(HOME[None], segments, axis=0)
    values = [rates.get(name, np.zeros((segments, N))) for name in ("speed", "acceleration", "jerk")]
    return motion, Extent(place, place.copy(), *values)


def at_share(share, order, segment, joint, segments=3):
    values = np.zeros((segments, N))
    values[segment, joint] = share * MAXIMA[order][joint]
    return {("speed", "acceleration", "jerk")[order]: values}


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("segment", range(3))
def test_i21_a_broken_rate_names_joint_value_limit_and_time(order, segment):
    for joint in range(N):
        motion, bounds = made(**at_share(1.5, order, segment, joint))
        kept, finding = check_envelope(motion, bounds, LIMITS)
        assert kept == segment
        assert finding == Finding(
            RATES[order], LIMITS.names[joint], 1.5 * MAXIMA[order][joint], MAXIMA[order][joint], 0.25 * segment
        )


@pytest.mark.parametrize("order", range(3))
def test_i02_exactly_at_a_limit_is_kept_and_the_last_bits_are_rounding(order):
    for share, good in ((1.0, True), (1 + 0.9e-9, True), (1 + 1.1e-9, False), (np.nan, False), (np.inf, False)):
        motion, bounds = made(**at_share(share, order, 1, 2))
        assert (check_envelope(motion, bounds, LIMITS)[1] is None) == good, share
        assert (speed_scale(bounds, LIMITS)[0] == 1.0) == good, share


def test_i21_the_worst_joint_is_the_one_furthest_beyond_its_own_limit():
    """Joint 1 may do 2.62 rad/s and the gripper 0.15 m/s: 0.4 m/s there is worse than 4 rad/s here."""
    slow, fast = int(np.argmin(LIMITS.max_velocity)), int(np.argmax(LIMITS.max_velocity))
    speeds = np.zeros((3, N))
    speeds[0, slow], speeds[0, fast] = 2.0 * LIMITS.max_velocity[slow], 1.2 * LIMITS.max_velocity[fast]
    assert speeds[0, slow] < speeds[0, fast]
    motion, bounds = made(speed=speeds)
    assert check_envelope(motion, bounds, LIMITS)[1].subject == LIMITS.names[slow]
    assert speed_scale(bounds, LIMITS)[1].subject == LIMITS.names[slow]


def test_i21_speed_is_named_before_acceleration_before_jerk_before_position():
    rates = [at_share(1.5, order, 1, order) for order in range(3)]
    motion, bounds = made(**rates[0], **rates[1], **rates[2])
    bounds.highest[1, 5] = LIMITS.max_position[5] + 0.1
    for order in range(3):
        assert check_envelope(motion, bounds, LIMITS)[1].reason == RATES[order]
        getattr(bounds, ("speed", "acceleration", "jerk")[order])[1, order] = 0.0
    kept, finding = check_envelope(motion, bounds, LIMITS)
    assert (kept, finding.reason, finding.at) == (1, "joint_position", 0.25)
    bounds.highest[1, 5] = HOME[5]
    assert check_envelope(motion, bounds, LIMITS) == (3, None)


def test_i02_a_position_beyond_by_rounding_only_is_kept():
    for low, good in ((0.9e-9, True), (1.1e-9, False)):
        motion, bounds = made()
        bounds.lowest[2, 3] = LIMITS.min_position[3] - low
        assert (check_envelope(motion, bounds, LIMITS)[1] is None) == good
        motion, bounds = made()
        bounds.highest[2, 3] = LIMITS.max_position[3] + low
        assert (check_envelope(motion, bounds, LIMITS)[1] is None) == good


def test_i21_the_joint_that_is_furthest_out_of_its_range_is_named_with_its_side():
    motion, bounds = made()
    bounds.highest[0, 2], bounds.lowest[0, 4] = LIMITS.max_position[2] + 0.1, LIMITS.min_position[4] - 0.2
    finding = check_envelope(motion, bounds, LIMITS)[1]
    assert (finding.subject, finding.value, finding.limit) == (
        LIMITS.names[4], LIMITS.min_position[4] - 0.2, LIMITS.min_position[4]
    )  # fmt: skip
    assert finding.at == 0.0
    single = still(HOME, 1)
    single.positions[0, 2] = LIMITS.max_position[2] + 0.1
    finding = check_envelope(single, extent_of(single), LIMITS)[1]
    assert (finding.subject, finding.limit, finding.at) == (LIMITS.names[2], LIMITS.max_position[2], 0.0)


@pytest.mark.parametrize("order", range(3))
def test_the_scale_is_the_root_that_the_derivative_asks_for(order):
    _, bounds = made(**at_share(8.0, order, 2, 6))
    scale, finding = speed_scale(bounds, LIMITS)
    assert np.isclose(scale, 8.0 ** (-1 / (order + 1)), rtol=2e-6) and scale < 8.0 ** (-1 / (order + 1))
    assert finding == Finding(RATES[order], LIMITS.names[6], 8.0 * MAXIMA[order][6], MAXIMA[order][6])


def test_the_smallest_scale_wins_and_is_named():
    rates = at_share(1.5, 0, 0, 0) | at_share(1.9, 1, 1, 1) | at_share(1.9, 2, 2, 2)
    scale, finding = speed_scale(made(**rates)[1], LIMITS)
    assert finding.reason == "joint_velocity" and np.isclose(scale, 1 / 1.5, rtol=1e-5)
    scale, finding = speed_scale(made(**(rates | at_share(4.0, 1, 1, 1)))[1], LIMITS)
    assert finding.reason == "joint_acceleration" and np.isclose(scale, 0.5, rtol=1e-5)
    assert speed_scale(made(**at_share(np.inf, 0, 0, 0))[1], LIMITS)[0] < 1e-100, "none"
    assert speed_scale(made(**at_share(np.nan, 2, 0, 0))[1], LIMITS)[0] < 1e-100, "none"


def test_bounds_of_several_motions_are_those_of_each():
    motions = [random_motion(seed, knots) for seed, knots in ((1, 4), (2, 1), (3, 2), (4, 5))]
    for together, motion in zip(extents_of(motions), motions, strict=True):
        alone = extent_of(motion)
        for name in ("lowest", "highest", "speed", "acceleration", "jerk"):
            assert np.array_equal(getattr(together, name), getattr(alone, name))


def test_i21_a_position_that_is_not_a_number_is_the_worst_of_all():
    single = still(HOME, 1)
    single.positions[0, 2], single.positions[0, 5] = LIMITS.max_position[2] + 0.1, np.nan
    finding = check_envelope(single, extent_of(single), LIMITS)[1]
    assert finding.subject == LIMITS.names[5] and np.isnan(finding.value)
