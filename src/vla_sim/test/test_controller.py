"""The controller does with a trajectory what joint_trajectory_controller does with it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BPoly

from vla_sim.core import JointTrajectoryCommand, TrajectoryController, TrajectoryRejected
from vla_sim.core.controller import TrajectoryPoint

JOINTS = ("a", "b")
NS = 1_000_000_000
NOW = 5 * NS

values = st.floats(-3, 3)
vectors = st.lists(values, min_size=2, max_size=2)


def make(positions=(0.0, 0.0)):
    controller = TrajectoryController(JOINTS, positions)
    controller.sample([NOW])
    return controller


def command(times, positions, velocities=None, accelerations=None, stamp_ns=0, names=JOINTS):
    return JointTrajectoryCommand.from_arrays(names, times, positions, velocities, accelerations, stamp_ns)


def at(controller, *seconds):
    return controller.sample([round(s * NS) for s in seconds])


def test_holds_where_it_starts():
    samples = at(make((0.3, -0.4)), 5.0, 6.0, 1000.0)
    np.testing.assert_array_equal(samples.positions, [[0.3, -0.4]] * 3)
    assert not samples.velocities.any() and not samples.accelerations.any()


@st.composite
def trajectories(draw, kind):
    """times (K,), and per point and joint: position, [velocity, [acceleration]]; at rest at the end."""
    count = draw(st.integers(1, 6))
    steps = draw(st.lists(st.floats(0.05, 1.0), min_size=count, max_size=count))
    fields = [np.array(draw(st.lists(vectors, min_size=count, max_size=count))) for _ in range(kind)]
    for field in fields[1:]:
        field[-1] = 0.0
    return np.round(np.cumsum(steps), 3), fields


@pytest.mark.parametrize("kind", [1, 2, 3])
@given(data=st.data())
def test_interpolates_like_scipy(kind, data):
    times, fields = data.draw(trajectories(kind))
    controller = make((0.1, 0.2))
    controller.accept(command(times, *fields), NOW)
    grid = 5.0 + np.linspace(0, times[-1], 40)[:-1]
    samples = at(controller, *grid)
    before = np.zeros((kind, 2))
    before[0] = (0.1, 0.2)  # where it was commanded to be, at rest
    knots = np.r_[0.0, times]
    for joint in range(2):
        conditions = np.array([before[:, joint], *([field[k, joint] for field in fields] for k in range(len(times)))])
        curve = BPoly.from_derivatives(knots, conditions.tolist())
        offsets = np.array([round(s * NS) - NOW for s in grid]) * 1e-9
        np.testing.assert_allclose(samples.positions[:, joint], curve(offsets), atol=1e-6)
        if kind > 1:
            np.testing.assert_allclose(samples.velocities[:, joint], curve.derivative()(offsets), atol=1e-5)
    np.testing.assert_array_equal(at(controller, 5.0 + times[-1] + 0.5).positions[0], fields[0][-1])


@given(st.data())
def test_sampling_at_once_or_one_by_one_is_the_same(data):
    times, fields = data.draw(trajectories(3))
    grid = [round((5.0 + s) * NS) for s in np.linspace(0, times[-1] + 0.5, 23)]
    together, alone = make(), make()
    for controller in (together, alone):
        controller.accept(command(times, *fields), NOW)
    whole = together.sample(grid)
    for k, instant in enumerate(grid):
        np.testing.assert_array_equal(alone.sample([instant]).positions[0], whole.positions[k])


@given(st.data())
def test_order_of_names_does_not_matter(data):
    times, fields = data.draw(trajectories(2))
    straight, swapped = make(), make()
    straight.accept(command(times, *fields), NOW)
    swapped.accept(command(times, *(field[:, ::-1] for field in fields), names=JOINTS[::-1]), NOW)
    grid = 5.0 + np.linspace(0, times[-1], 9)
    np.testing.assert_array_equal(at(straight, *grid).positions, at(swapped, *grid).positions)


def test_stamp_of_zero_means_the_next_cycle():
    controller = make()
    controller.accept(command([1.0], [[1.0, 2.0]]), NOW)
    np.testing.assert_allclose(at(controller, 5.25, 5.75, 6.25).positions, [[0, 0], [0.5, 1], [1, 2]])


def test_future_stamp_bridges_from_the_commanded_state_at_once():
    controller = make()
    controller.accept(command([0.0, 1.0], [[1, 1], [1, 1]], np.zeros((2, 2)), stamp_ns=6 * NS), NOW)
    samples = at(controller, 5.0, 5.5, 6.0, 6.5)
    np.testing.assert_allclose(samples.positions[:, 0], [0, 0.5, 1, 1])  # cubic, at rest at both ends
    assert samples.velocities[1, 0] == pytest.approx(1.5)


def test_points_in_the_past_are_skipped():
    controller = make()
    controller.accept(command([0.0, 1.0, 2.0], [[0, 0], [1, 1], [2, 2]], stamp_ns=4 * NS), NOW)
    np.testing.assert_allclose(at(controller, 5.25).positions, [[1.25, 1.25]])


def test_replacement_takes_over_position_velocity_and_acceleration():
    controller = make()
    controller.accept(command([1.0], [[1.0, -1.0]], [[0, 0]], [[0, 0]]), NOW)
    before = at(controller, 5.4)
    controller.accept(command([0.5], [[2.0, 2.0]], [[0, 0]], [[0, 0]]), round(5.4 * NS))
    after = at(controller, 5.4)
    for field in ("positions", "velocities", "accelerations"):
        np.testing.assert_allclose(getattr(after, field), getattr(before, field), atol=1e-9)


def test_replacement_on_the_same_curve_changes_nothing():
    """A splice: the new message begins with the state that the old one commands at that time."""
    plan = (np.array([0.5, 1.0]), np.array([[0.4, 0.1], [0.6, 0.2]]), np.array([[0.5, 0.2], [0, 0]]), np.zeros((2, 2)))
    alone, spliced = make(), make()
    for controller in (alone, spliced):
        controller.accept(command(*plan, stamp_ns=NOW), NOW)
    reference = at(alone, *np.arange(5.0, 6.2, 0.01))
    at(spliced, 5.0, 5.1)
    times, *fields = plan
    spliced.accept(command(times, *fields, stamp_ns=NOW), round(5.1 * NS))
    continued = at(spliced, *np.arange(5.5, 6.2, 0.01))
    np.testing.assert_allclose(continued.positions, reference.positions[50:], atol=1e-9)


def test_mixed_points_use_what_both_neighbours_give():
    controller = make()
    points = (
        TrajectoryPoint(NS, (1.0, 1.0), (0.0, 0.0)),
        TrajectoryPoint(2 * NS, (2.0, 2.0)),  # positions only: linear on both sides
        TrajectoryPoint(3 * NS, (3.0, 3.0), (0.0, 0.0)),
    )
    controller.accept(JointTrajectoryCommand(JOINTS, points), NOW)
    samples = at(controller, 5.0, 5.25, 6.5, 7.5)
    assert samples.positions[1, 0] == pytest.approx(3 * 0.25**2 - 2 * 0.25**3)
    np.testing.assert_allclose(samples.velocities[2:, 0], [1.0, 1.0])


def point(time=1.0, **fields):
    return TrajectoryPoint(round(time * NS), **{"positions": (0.0, 0.0), **fields})


REFUSED = {
    "no points": (JOINTS, ()),
    "1 joints": (("a",), (TrajectoryPoint(NS, (0.0,)),)),
    "0 joints": ((), (point(),)),
    "unknown joint 'c'": (("a", "c"), (point(),)),
    "duplicate joints": (("a", "a"), (point(),)),
    "times[1] = 1.000000 s does not come after": (JOINTS, (point(1.0), point(1.0))),
    "times[1] = 0.500000 s": (JOINTS, (point(1.0), point(0.5))),
    "positions of point 0 have 1": (JOINTS, (point(positions=(0.0,)),)),
    "positions of point 0 have 0": (JOINTS, (point(positions=()),)),
    "velocities of point 0 have 3": (JOINTS, (point(velocities=(0.0, 0.0, 0.0)),)),
    "accelerations of point 0 have 1": (JOINTS, (point(accelerations=(0.0,)),)),
    "effort of point 0 have 1": (JOINTS, (point(effort=(0.0,)),)),
    "velocity of 'b' at the last point is 0.1": (JOINTS, (point(velocities=(0.0, 0.1)),)),
    "positions[0] of 'b' is nan": (JOINTS, (point(positions=(0.0, math.nan)),)),
    "velocities[0] of 'a' is inf": (JOINTS, (point(0.5, velocities=(math.inf, 0.0)), point(1.0))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refuses_and_plays_on(reason):
    controller = make()
    controller.accept(command([1.0], [[1.0, 1.0]]), NOW)
    at(controller, 5.0)
    with pytest.raises(TrajectoryRejected) as error:
        controller.accept(JointTrajectoryCommand(*REFUSED[reason]), NOW)
    assert reason in str(error.value)
    np.testing.assert_allclose(at(controller, 5.5).positions, [[0.5, 0.5]])


def test_refuses_what_ended_in_the_past():
    with pytest.raises(TrajectoryRejected, match=r"ends 0\.500 s in the past"):
        make().accept(command([0.5], [[1, 1]], stamp_ns=4 * NS), NOW)
    make().accept(command([0.5], [[1, 1]], stamp_ns=4 * NS), 4 * NS)


numbers = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, 1e308, -1e308, 5e-324]))
rows = st.lists(numbers, max_size=3)
anything = st.builds(
    JointTrajectoryCommand,
    st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=3),
    st.lists(st.builds(TrajectoryPoint, st.integers(-(2**61), 2**61), rows, rows, rows, rows), max_size=4),
    st.integers(-(2**61), 2**61),
)


@given(anything)
def test_any_message_is_taken_or_refused(message):
    controller = make()
    try:
        controller.accept(message, NOW)
    except TrajectoryRejected as error:
        assert str(error)
        np.testing.assert_array_equal(at(controller, 5.0).positions, [[0, 0]])
    assert at(controller, 5.0, 5.5, 1e6).positions.shape == (3, 2)
