"""Judging several motions in one look is judging each of them."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rig import HOME, Rig, smooth_chunk
from test_limits import random_motion

from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.limits import extent_of, extents_of
from vla_safety.core.motion import nanoseconds
from vla_safety.core.planning import at_once, with_stop
from vla_safety.core.splicing import complete, splice
from vla_safety.core.validation import validate

VERIFIER = Rig(arm=False).filter.verifier


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
