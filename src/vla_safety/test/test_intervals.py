"""I14: pieces of a motion leave nothing out, whether they are looked at alone or with those of other motions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME
from test_limits import random_motion

from vla_safety.core.intervals import first_intervals, grouped, joined, sampled
from vla_safety.core.limits import extent_of
from vla_safety.core.motion import Motion, rest

N = len(HOME)
REACH = np.random.default_rng(0).uniform(0, 0.5, (5, N))


def times_of(motion):
    return (motion.times - motion.times[0]) * 1e-9


def covers(intervals, motion):
    """From the first knot to the last, without a gap, bit by bit."""
    assert intervals.start[0] == 0.0 and intervals.end[-1] == times_of(motion)[-1]
    assert np.array_equal(intervals.start[1:], intervals.end[:-1]) and (intervals.end > intervals.start).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8), st.floats(0.001, 3.0))
def test_i14_no_moment_of_a_motion_is_left_out(seed, knots, size):
    motion = random_motion(seed, knots, size)
    times, bounds = times_of(motion), extent_of(motion)
    groups = grouped(motion, bounds, REACH)
    covers(groups.intervals, motion)
    assert groups.sizes.sum() == knots - 1 and set(groups.intervals.end) <= set(times)
    assert groups.intervals.segment.tolist() == list(range(len(groups.intervals)))
    intervals = first_intervals(motion)
    for _ in range(2):
        covers(intervals, motion)
        assert (times[intervals.segment] <= intervals.start).all()
        assert (intervals.end <= times[intervals.segment + 1]).all()
        assert (intervals.end - intervals.start).max() <= 0.025 * (1 + 1e-9)
        intervals = intervals.divided()
    assert len(intervals) == 16 * len(first_intervals(motion))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8), st.floats(0.001, 3.0))
def test_i14_bounds_of_an_interval_hold_within_it(seed, knots, size):
    motion = random_motion(seed, knots, size)
    bounds = extent_of(motion)
    groups = grouped(motion, bounds, REACH)
    intervals = first_intervals(motion)
    for part, samples in ((groups.intervals, groups.samples), (intervals, sampled(motion, bounds, intervals))):
        for k, (start, end) in enumerate(zip(part.start, part.end, strict=True)):
            inside = motion.curve.sample(np.linspace(start, end, 20)[:-1])
            assert (np.abs(inside.velocities) <= samples.speed[k] * (1 + 1e-9) + 1e-12).all()
            assert (np.abs(inside.accelerations) <= samples.acceleration[k] * (1 + 1e-9) + 1e-9).all()
            assert samples.spans[k, 0] == end - start
            for place, row in ((start, samples.first[k]), (end, samples.second[k])):
                state = motion.state(motion.start + round(place * 1e9))
                np.testing.assert_allclose(samples.positions[row], state.position, atol=1e-6)
                np.testing.assert_allclose(samples.velocities[row], state.velocity, atol=1e-4)


def test_i14_within_a_group_no_body_goes_much_further_than_four_centimetres():
    motion = random_motion(3, 60, 0.2)
    bounds = extent_of(motion)
    way = np.diff(times_of(motion)) * (bounds.speed @ REACH.T).max(axis=1)
    groups = grouped(motion, bounds, REACH)
    ends = np.cumsum(groups.sizes)
    for end, size in zip(ends, groups.sizes, strict=True):
        assert size == 1 or way[end - size : end].sum() <= 0.04 + way[end - size]
    slow = Motion(motion.times, motion.positions * 1e-4, motion.velocities * 1e-4, motion.accelerations * 1e-4)
    assert grouped(slow, extent_of(slow), REACH).sizes.tolist() == [59], "what hardly moves is one"


def test_where_nothing_is_near_a_whole_motion_is_one_group():
    motion = random_motion(1, 5)
    assert grouped(motion, extent_of(motion), np.zeros((0, N))).sizes.tolist() == [4]


def test_a_robot_at_rest_is_one_interval_without_length():
    motion = Motion.at(10**18, rest(HOME))
    intervals = first_intervals(motion)
    samples = sampled(motion, extent_of(motion), intervals)
    assert (intervals.start.tolist(), intervals.end.tolist(), len(samples.positions)) == ([0.0], [0.0], 1)
    assert not samples.speed.any() and not samples.acceleration.any()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_several_motions_together_are_what_each_is_alone(count):
    motions = [random_motion(seed, 2 + 3 * seed, 0.5) for seed in range(count)]
    alone = [grouped(motion, extent_of(motion), REACH) for motion in motions]
    together = joined(alone)
    assert np.array_equal(together.sizes, np.concatenate([g.sizes for g in alone]))
    assert together.intervals.segment.tolist() == list(range(len(together.intervals)))
    k = 0
    for groups in alone:
        part = slice(k, k + len(groups.intervals))
        k = part.stop
        for name in ("start", "end"):
            assert np.array_equal(getattr(together.intervals, name)[part], getattr(groups.intervals, name))
        for name in ("spans", "speed", "acceleration"):
            assert np.array_equal(getattr(together.samples, name)[part], getattr(groups.samples, name))
        for rows, own in (
            (together.samples.first[part], groups.samples.first),
            (together.samples.second[part], groups.samples.second),
        ):
            assert np.array_equal(together.samples.positions[rows], groups.samples.positions[own])
            assert np.array_equal(together.samples.velocities[rows], groups.samples.velocities[own])
    assert k == len(together.intervals)


def test_i14_the_pieces_of_a_motion_do_not_depend_on_the_date():
    motion = random_motion(5, 20)
    later = Motion(motion.times + 17 * 10**17, motion.positions, motion.velocities, motion.accelerations)
    found, expected = (grouped(m, extent_of(m), REACH) for m in (later, motion))
    covers(found.intervals, later)
    assert np.array_equal(found.intervals.start, expected.intervals.start)
    assert np.array_equal(found.samples.spans, expected.samples.spans)
