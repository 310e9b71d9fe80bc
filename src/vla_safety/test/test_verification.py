"""Judging several motions in one look is judging each of them; and what a verifier holds counts for all of them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rig import HOME, ROBOT, Rig, smooth_chunk
from test_limits import random_motion

from vla_safety.building import Setup, make_verifier, read_parts
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.limits import extent_of, extents_of
from vla_safety.core.motion import Motion, State, nanoseconds
from vla_safety.core.planning import at_once, with_stop
from vla_safety.core.selfcollision import SelfCollision
from vla_safety.core.speed import LinkSpeeds
from vla_safety.core.splicing import complete, splice
from vla_safety.core.validation import validate
from vla_safety.core.verification import Report, Verifier
from vla_safety.core.zones import Box, ZoneSpec

VERIFIER = Rig(arm=False).filter.verifier
PARTS = read_parts(ROBOT)
REDUCED = Setup(reduced=True)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_i02_bounds_of_several_motions_are_those_of_each(seed):
    rng = np.random.default_rng(seed)
    motions = [random_motion(int(rng.integers(2**32)), int(rng.integers(1, 8))) for _ in range(3)]
    for motion, together in zip(motions, extents_of(motions), strict=True):
        alone = extent_of(motion)
        for kind in ("lowest", "highest", "speed", "acceleration", "jerk"):
            np.testing.assert_allclose(getattr(together, kind), getattr(alone, kind), rtol=1e-12, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_i14_several_motions_are_judged_as_each_is(seed):
    """Slow and fast, short and long, safe and not; so that one that is refused does not touch the others' verdicts."""
    rng = np.random.default_rng(seed)
    motions = [
        random_motion(int(rng.integers(2**32)), int(rng.integers(1, 9)), float(rng.choice([0.0, 0.01, 0.1, 0.5])))
        for _ in range(4)
    ]
    for motion, together in zip(motions, VERIFIER.verify_all(motions), strict=True):
        alone = VERIFIER.verify(motion)
        assert together.safe_until == alone.safe_until and together.safe == alone.safe
        if together.finding is not None and alone.finding is not None:
            assert (together.finding.reason, together.finding.subject) == (alone.finding.reason, alone.finding.subject)


@settings(max_examples=60, deadline=None)
@example(56647935)  # the goal is too far for the slowest pace: refused
@given(st.integers(0, 2**32))
def test_i03_what_is_taken_at_once_verifies_whole(seed):
    """The part of the message that was judged as the plan's is the plan's: message and plan verify on their own."""
    rng = np.random.default_rng(seed)
    rig = Rig()
    safety = rig.filter
    for sequence in range(3):
        goal = HOME + rng.uniform(-0.8, 0.8, len(HOME)) * ([1] * 7 + [0])
        proposal = smooth_chunk(rig, goal, duration=float(rng.uniform(0.3, 2.0)), sequence=sequence)
        now, verifier = rig.instant, safety.verifier
        earliest = now.clock_ns + nanoseconds(safety.config.cycle.lead)
        chunk = complete(validate(proposal, safety._form))
        plan = splice(safety.committed, chunk, now.clock_ns, earliest, verifier.limits, safety.config.proposals)
        refused = isinstance(plan, Finding)  # e.g. too fast even at the slowest pace
        taken = None if refused else at_once(plan, now.clock_ns, earliest, verifier, safety.config.cycle)
        decision = rig.propose(proposal)
        assert not refused or decision.verdict == Verdict.REFUSED
        if isinstance(taken, tuple):
            message, followed = taken
            assert decision.verdict in (Verdict.ACCEPTED, Verdict.SLOWED)
            assert safety.plan.followed == followed and np.array_equal(safety.committed.positions, message.positions)
            assert verifier.verify(message).safe
            assert verifier.verify(with_stop(plan.motion, verifier, safety.config.cycle.stop_fraction)).safe
            ends = message.knot(len(message) - 1)
            assert (
                ends.at_rest
                and message.state(followed).position.tolist() == plan.motion.state(followed).position.tolist()
            )
        rig.run(float(rng.uniform(0.05, 0.5)))


# ------------------------------------------------------------------ what a verifier holds


def turning(speed, acceleration=0.0, scale=1.0, start=HOME):
    """Joint 1 from `speed` on, along the same way `scale` times as fast; it goes on at the end."""
    t = np.arange(6) * 0.05
    q = np.repeat(start[None], len(t), axis=0)
    v, a = np.zeros_like(q), np.zeros_like(q)
    q[:, 0] += speed * t + acceleration * t**2 / 2
    v[:, 0], a[:, 0] = (speed + acceleration * t) * scale, acceleration * scale**2
    return Motion(10**18 + np.round(t / scale * 1e9).astype(np.int64), q, v, a)


def shelf():
    """A verifier with a shelf 9 mm below the fingers at home."""
    box = Box(center=(0.5, 0, 0.272), size=(0.4, 2, 0.02))
    return make_verifier(PARTS, Setup(obstacles=(ZoneSpec(name="shelf", kind="keep_out", box=box),)))


def test_a_path_that_is_slowed_down_as_it_is_said_keeps_the_cap_on_speed():
    verifier = make_verifier(PARTS, REDUCED)
    assert verifier.verify(turning(1.0)).finding.reason == "link_speed"
    scale, finding = verifier.pace(turning(1.0))
    assert 0.4 < scale < 0.5 and finding.reason == "link_speed"
    assert verifier.verify(turning(1.0, scale=scale)).safe


def test_a_robot_that_is_led_out_of_where_it_may_not_be_keeps_the_cap_on_speed():
    """Who is led back judges by rules that were split where the robot was found."""
    verifier = make_verifier(PARTS, REDUCED).split(HOME)
    assert verifier.verify(turning(1.0)).finding.reason == "link_speed"
    assert verifier.verify(turning(0.4)).safe


def test_i21_a_speed_that_is_found_is_one_that_the_link_reaches():
    """Not a bound between two samples: who looks at what was played finds the number. The pieces are 25 ms long."""
    verifier, motion = make_verifier(PARTS, REDUCED), turning(0.2, 3.0)
    finding = verifier.verify(motion).finding
    states = motion.curve.sample(finding.at + np.array([0.0, 0.025]))
    speeds = LinkSpeeds(verifier.model).speeds(verifier.model.place(states.positions), states.velocities)
    link = verifier.model.body_links.index(finding.subject)
    assert finding.reason == "link_speed" and finding.value == pytest.approx(speeds[:, link].max())
    assert speeds[0, link] <= finding.limit < speeds[1, link]


def test_a_gripper_does_not_wait_for_the_arm_when_both_stop():
    v = np.array([2.0, 0, 0, 0, 0, 0, 0, 0.02])
    motion = with_stop(Motion.at(0, State(HOME, v, np.zeros(8))), make_verifier(PARTS, Setup()), 1.0)
    moving = motion.velocities[:, [0, 7]] != 0
    assert (moving[0] == [True, True]).all() and (moving == [True, False]).all(axis=1).any()


def test_i14_a_fast_motion_closely_along_a_shelf_is_judged_by_as_many_samples_as_it_takes():
    """In 25 ms the hand could move much further than that; it is no violation yet that the first look cannot tell."""
    verifier = shelf()
    assert verifier.verify(turning(2.4)).safe
    lower = HOME + 0.01 * (np.arange(8) == 1)
    assert verifier.verify(turning(2.4, start=lower)).finding.reason == "zone:shelf"


@pytest.mark.parametrize("near", [0, 1])
def test_the_clearance_of_a_motion_is_its_own_among_others_as_well(near):
    verifier = shelf()
    motions = [turning(0.02, start=HOME - 0.1 * (np.arange(8) == 1))]
    motions.insert(near, turning(0.02))
    found = [report.clearance for report in verifier.verify_all(motions)]
    assert found[near] == pytest.approx(verifier.clearances(HOME)[0][0]) and 0.008 < found[near] < 0.01
    assert 0.02 < found[1 - near] < 0.1, "the arm is higher up there"
    assert verifier.verify(motions[near]).clearance == pytest.approx(found[near])


def test_where_there_is_nothing_to_keep_away_from_a_motion_is_judged_by_its_limits():
    model, motion = VERIFIER.model, turning(1.0)
    everything = {frozenset(pair) for pair in combinations(model.links, 2)}
    verifier = Verifier(VERIFIER.limits, model, [SelfCollision(model, everything, 0.01)])
    assert verifier.verify(motion) == Report(None, motion.end, np.inf)
    assert verifier.verify(turning(2.7)).finding.reason == "joint_velocity"
