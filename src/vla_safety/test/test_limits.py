import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, LIMITS
from scipy.interpolate import BPoly

from vla_safety.core.limits import check_envelope, extent_of, speed_scale
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
