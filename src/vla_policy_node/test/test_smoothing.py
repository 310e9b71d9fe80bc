"""Curves: smoothing, set-points, portions, bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_contract.interpolation import Trajectory
from vla_policy_node.core.smoothing import Pace, follow_setpoint, smooth
from vla_policy_node.core.splicing import Bounds, approach, columns, portion, state_at


@given(st.integers(2, 30), st.integers(0, 10_000), st.floats(0.0, 0.05))
def test_smoothing_keeps_what_is_smooth(points, seed, noise):
    """A straight line passes unchanged, constants stay constants, and noise does not make acceleration."""
    times = 0.1 * np.arange(points)
    line = np.stack([0.5 * times, np.full(points, 0.3)], axis=1)
    curve = smooth(times, line, np.array([5.0, 5.0]))
    np.testing.assert_allclose(curve.positions, line, atol=1e-9)
    np.testing.assert_allclose(curve.velocities, np.broadcast_to([0.5, 0.0], line.shape), atol=1e-7)
    noisy = line + np.random.default_rng(seed).normal(0, noise, line.shape)
    rough = smooth(times, noisy, np.array([np.inf, np.inf]), stiffness=0.0)
    calm = smooth(times, noisy, np.array([5.0, 5.0]))
    assert np.abs(calm.accelerations).max() <= np.abs(rough.accelerations).max() + 1e-9


def test_smoothed_curve_is_a_cubic_spline():
    times = np.array([0.0, 0.07, 0.2, 0.31, 0.5])
    points = np.random.default_rng(1).normal(0, 0.1, (5, 2))
    from scipy.interpolate import CubicSpline

    expected = CubicSpline(times, points, bc_type="natural")
    curve = smooth(times, points, np.full(2, np.inf), stiffness=0.0)
    grid = np.linspace(0, 0.5, 100)
    np.testing.assert_allclose(curve.sample(grid).positions, expected(grid), atol=1e-10)
    np.testing.assert_allclose(curve.sample(grid).accelerations, expected(grid, 2), atol=1e-8)


PACE = Pace(velocity=0.12, acceleration=0.8, jerk=40.0)


@given(st.lists(st.floats(0.0004, 0.0396), min_size=1, max_size=6), st.integers(1, 60), st.floats(0.0004, 0.0396))
def test_a_gripper_never_overshoots_nor_looks_ahead(goals, hold, position):
    steps = np.repeat(goals, hold)
    p, v, a = follow_setpoint((position, 0.0, 0.0), steps, 0.01, PACE)
    assert np.abs(v).max() <= 0.121 and np.abs(a).max() <= 0.8 + 1e-9 and np.abs(np.diff(a)).max() <= 0.4 + 1e-9
    same, _, _ = follow_setpoint((position, 0.0, 0.0), np.append(steps, 0.0), 0.01, PACE)
    np.testing.assert_array_equal(same[: len(p)], p)
    assert p.min() >= 0.0 and p.max() <= 0.04
    if len(goals) == 1:
        assert p.max() <= max(goals[0], position) + 2e-4 and p.min() >= min(goals[0], position) - 2e-4


def test_a_gripper_arrives():
    p, v, _ = follow_setpoint((0.0396, 0.0, 0.0), np.full(100, 0.0004), 0.01, PACE)
    assert np.argmax(p < 0.02) * 0.01 < 0.3 and p[-1] == pytest.approx(0.0004, abs=2e-4) and abs(v[-1]) < 1e-3


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_portion_is_the_same_curve(a, b):
    start, end = sorted((a, b))
    rng = np.random.default_rng(3)
    curve = Trajectory(np.linspace(0, 1, 6), *(rng.normal(size=(6, 2)) for _ in range(3)))
    part = portion(curve, start, end)
    grid = np.linspace(start, end, 20)
    if len(part) > 1:
        np.testing.assert_allclose(part.sample(grid).positions, curve.sample(grid).positions, atol=1e-7)


@given(st.integers(2, 6), st.floats(-0.2, 1.2), st.integers(0, 2**32))
def test_a_state_is_a_sample(count, time, seed):
    rng = np.random.default_rng(seed)
    times = np.append(0.0, np.cumsum(rng.uniform(2e-3, 0.3, count - 1)))
    curve = Trajectory(times, *(rng.normal(size=(count, 2)) for _ in range(3)))
    at = float(rng.choice([time * curve.end, rng.choice(times)]))
    expected = curve.sample(at)
    names = ("positions", "velocities", "accelerations")
    for name, found in zip(names, state_at(curve, at), strict=True):
        np.testing.assert_allclose(found, getattr(expected, name)[0], rtol=1e-7, atol=1e-7)


@given(st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_an_approach_begins_in_the_state_and_ends_on_the_target(blend, seed):
    rng = np.random.default_rng(seed)
    target = Trajectory(np.linspace(0, 1, 6), *(rng.normal(size=(6, 2)) for _ in range(3)))
    times = np.linspace(0.0, 1.0, 21)
    state = tuple(rng.normal(size=2) for _ in range(3))
    wanted = target.sample(times)
    curve = approach(state, wanted, times, blend)
    # The gap fades along the quintic that the controller would play to nothing in the same time.
    ends = (np.stack([have - want[0], np.zeros(2)]) for have, want in zip(state, columns(target), strict=True))
    gap = Trajectory([0.0, blend], *ends).sample(times)
    np.testing.assert_allclose(curve.positions, wanted.positions + gap.positions, atol=1e-9)
    np.testing.assert_allclose(curve.velocities, wanted.velocities + gap.velocities, atol=1e-8)
    np.testing.assert_allclose(curve.accelerations, wanted.accelerations + gap.accelerations, atol=1e-6)


@given(st.integers(2, 6), st.integers(0, 2**32))
def test_bounds_are_looked_at_where_they_always_were(count, seed):
    """At four points of each segment and at the end, of the chosen joints, with the samples of the curve itself."""
    rng = np.random.default_rng(seed)
    times = np.append(0.0, np.cumsum(rng.uniform(2e-3, 0.3, count - 1)))
    curve = Trajectory(times, *(rng.normal(size=(count, 3)) for _ in range(3)))
    bounds = Bounds(*rng.uniform(0.1, 10.0, (3, 2)))
    looks = (times[:-1, None] + np.diff(times)[:, None] * [0.0, 0.25, 0.5, 0.75]).ravel()
    inside, end = curve.sample(looks), curve.sample(np.nextafter(curve.end, 0))
    worst = max(
        (np.abs(getattr(samples, name)[:, [0, 2]]) / bound).max()
        for samples in (inside, end)
        for name, bound in (
            ("velocities", bounds.velocity),
            ("accelerations", bounds.acceleration),
            ("jerks", bounds.jerk),
        )
    )
    assert bounds.excess(curve, np.array([0, 2])) == pytest.approx(worst, rel=1e-6)


def test_bounds_are_checked_between_the_knots():
    bounds = Bounds(np.array([1.0]), np.array([100.0]), np.array([1e6]))
    zero = np.zeros((2, 1))
    # At rest at both ends; in the middle it moves at 15/8 of the mean speed.
    curve = Trajectory([0.0, 1.0], [[0.0], [0.8]], zero, zero)
    assert bounds.excess(curve) == pytest.approx(1.5, rel=1e-6)
