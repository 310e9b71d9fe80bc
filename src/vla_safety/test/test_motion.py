"""Motions are cut and joined at knots and between them without a change; a timeline remembers what was commanded."""

import numpy as np
import pytest
from rig import HOME, MS
from test_limits import random_motion

from vla_safety.core.motion import NS, Motion, Timeline, rest

N = len(HOME)
MOTION = random_motion(5, knots=5)


def same(a: Motion, b: Motion) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Motion.__dataclass_fields__)


def knots(first, last):
    part = slice(first, last + 1)
    return Motion(*(getattr(MOTION, name)[part] for name in Motion.__dataclass_fields__))


@pytest.mark.parametrize("k", range(5))
def test_a_cut_at_a_knot_keeps_the_knots_bit_by_bit(k):
    at = int(MOTION.times[k])
    assert same(MOTION.until(at), knots(0, k))
    if k < 4:
        assert same(MOTION.since(at), knots(k, 4))
        assert same(MOTION.until(at).then(MOTION.since(at)), MOTION), "the shared knot is kept once"
    state = MOTION.state(at)
    assert np.array_equal(state.position, MOTION.positions[k]) and np.array_equal(state.velocity, MOTION.velocities[k])


@pytest.mark.parametrize("k", range(4))
def test_a_cut_between_two_knots_ends_in_the_state_there_and_begins_at_the_knot_before(k):
    at = int(MOTION.times[k] + MOTION.times[k + 1]) // 2
    sample = MOTION.curve.sample((at - MOTION.start) * 1e-9)
    first, last = MOTION.until(at), MOTION.since(at)
    assert same(first.knots(0, k), knots(0, k)) and len(first) == k + 2 and first.end == at
    assert np.array_equal(first.positions[-1], sample.positions[0])
    assert np.array_equal(first.velocities[-1], sample.velocities[0])
    assert np.array_equal(first.accelerations[-1], sample.accelerations[0])
    assert same(last, knots(k, 4))


def test_before_and_after_a_motion_the_robot_rests():
    for at, place in ((MOTION.start - 1, MOTION.positions[0]), (MOTION.end + 1, MOTION.positions[-1])):
        state = MOTION.state(at)
        assert state.at_rest and np.array_equal(state.position, place)
    for at in (MOTION.end, MOTION.end + 1):
        assert same(MOTION.since(at), Motion.at(at, rest(MOTION.positions[-1])))
    assert same(MOTION.since(MOTION.start - 1), MOTION)


def test_a_motion_knows_when_it_begins_and_ends():
    assert (MOTION.start, MOTION.end) == (MOTION.times[0], MOTION.times[-1])
    assert MOTION.duration == (MOTION.end - MOTION.start) / NS and len(MOTION) == 5


def at_place(place, time=0):
    return Motion.at(time, rest(np.full(N, float(place))))


def places(timeline, *times):
    found = [timeline.state(t) for t in times]
    return [None if state is None else float(state.position[0]) for state in found]


def test_a_timeline_remembers_what_was_commanded_when():
    timeline = Timeline(keep_ns=100)
    assert timeline.current is None and timeline.state(0) is None
    for k, since in enumerate((0, 50, 120)):
        timeline.commit(since, at_place(k))
    assert places(timeline, -1, 0, 49, 50, 119, 120, 10**9) == [None, 0, 0, 1, 1, 2, 2]
    timeline.commit(151, at_place(3))
    assert places(timeline, 49, 50, 120, 151) == [None, 1, 2, 3], "what ended 100 ns ago is forgotten"
    timeline.commit(151, at_place(4))
    assert places(timeline, 150, 151) == [2, 4], "of two at the same time the last one counts"
    timeline.commit(130, at_place(5))
    assert places(timeline, 129, 130, 151) == [2, 5, 5], "what would have begun later never did"
    timeline.clear()
    assert timeline.current is None


def test_the_last_commitment_is_taken_back_if_there_is_one_before_it():
    timeline = Timeline()
    assert timeline.retract() is False
    timeline.commit(0, at_place(0))
    assert timeline.retract() is False and places(timeline, 1) == [0], "there is nothing to go back to: it stays"
    timeline.commit(1, at_place(1))
    timeline.commit(2, at_place(2))
    assert timeline.retract() is True and places(timeline, 0, 2) == [0, 1]
    assert timeline.retract() is True and timeline.retract() is False and places(timeline, 2) == [0]
    timeline.commit(3, at_place(3))
    timeline.commit(3, at_place(4))
    assert timeline.retract() is True and places(timeline, 3) == [3], "of two at one time the first was sent"


def test_when_the_clock_jumps_everything_goes_on_from_where_it_was():
    timeline = Timeline()
    timeline.commit(0, at_place(0))
    timeline.commit(MOTION.start, MOTION)
    timeline.shift(7 * MS)
    assert timeline.current.start == MOTION.start + 7 * MS and places(timeline, 7 * MS - 1, 7 * MS) == [None, 0]
    before, after = MOTION.state(MOTION.start + MS), timeline.state(MOTION.start + 8 * MS)
    assert np.array_equal(before.position, after.position)
