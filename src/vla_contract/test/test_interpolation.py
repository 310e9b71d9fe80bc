"""The interpolant against SciPy's Bernstein polynomials, and its laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import BPoly

from vla_contract.errors import ChunkError
from vla_contract.interpolation import Trajectory

VALUES = st.floats(-10, 10)


@st.composite
def trajectories(draw, degree=None):
    points, joints = draw(st.integers(2, 8)), draw(st.integers(1, 4))
    steps = draw(arrays(np.float64, points, elements=st.floats(0.01, 1.0)))
    degree = degree or draw(st.sampled_from([1, 3, 5]))
    columns = [draw(arrays(np.float64, (points, joints), elements=VALUES)) for _ in range((degree + 1) // 2)]
    return Trajectory(np.cumsum(steps), *columns)


@given(trajectories(), st.floats(0, 1))
def test_agrees_with_scipy(trajectory, where):
    columns = [c for c in (trajectory.positions, trajectory.velocities, trajectory.accelerations) if c is not None]
    t = trajectory.start + where * (trajectory.end - trajectory.start)
    for joint in range(trajectory.positions.shape[1]):
        reference = BPoly.from_derivatives(trajectory.times, np.stack([c[:, joint] for c in columns], axis=1))
        samples = trajectory.sample(t)
        for order, got in enumerate((samples.positions, samples.velocities, samples.accelerations)):
            if order == 2 and len(columns) == 1:
                continue
            expected = reference.derivative(order)(t) if order else reference(t)
            scale = 1e-9 * (1 + 1e3 * np.abs(np.concatenate(columns)).max() / np.diff(trajectory.times).min() ** order)
            # At a knot the derivatives of low degree are two-valued; compare the ones that are continuous.
            if order < len(columns) or np.abs(trajectory.times - t).min() > 1e-9:
                assert got[0, joint] == pytest.approx(expected, abs=scale)


@given(trajectories())
def test_meets_its_points(trajectory):
    samples = trajectory.sample(trajectory.times)
    np.testing.assert_allclose(samples.positions, trajectory.positions, atol=1e-9)
    if trajectory.velocities is not None:
        np.testing.assert_allclose(samples.velocities, trajectory.velocities, atol=1e-6)


@given(trajectories(degree=5))
def test_derivatives_are_derivatives(trajectory):
    middle = (trajectory.times[:-1] + trajectory.times[1:]) / 2
    h = 1e-6
    after, before, at = trajectory.sample(middle + h), trajectory.sample(middle - h), trajectory.sample(middle)
    for lower, upper in (("positions", "velocities"), ("velocities", "accelerations"), ("accelerations", "jerks")):
        slope = (getattr(after, lower) - getattr(before, lower)) / (2 * h)
        reference = getattr(at, upper)
        np.testing.assert_allclose(slope, reference, rtol=1e-3, atol=1e-3 * (1 + np.abs(reference).max()))


@given(trajectories())
def test_rests_outside(trajectory):
    samples = trajectory.sample([trajectory.start - 1, trajectory.end + 1])
    np.testing.assert_allclose(samples.positions, trajectory.positions[[0, -1]], atol=1e-9)
    assert not samples.velocities.any() and not samples.accelerations.any() and not samples.jerks.any()


def test_single_point_is_held():
    samples = Trajectory([1.0], [[2.0, 3.0]]).sample([0.0, 1.0, 9.0])
    assert (samples.positions == [2.0, 3.0]).all() and not samples.velocities.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], np.zeros((0, 1))), r"times have shape \(0,\)"),
        (([0.0, 1.0], [[0.0]]), r"positions have shape \(1, 1\), expected \(2, n\)"),
        (([0.0, 1.0], [[0.0], [1.0]], [[0.0]]), "velocities have shape"),
        (([0.0, 1.0], [[0.0], [1.0]], None, [[0.0], [0.0]]), "accelerations need velocities"),
        (([0.0, 0.0], [[0.0], [1.0]]), r"times\[1\] = 0.0 s does not come after"),
        (([0.0, 1.0], [[0.0], [np.nan]]), r"positions\[1, 0\] is nan"),
        (([0.0, np.inf], [[0.0], [0.0]]), r"times\[1\] is inf"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ChunkError, match=words):
        Trajectory(*arguments)
