"""Pieces of a plan: what is sent, and that all of it was judged."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from rig import HOME, LIMITS, MS

from vla_safety.core.config import Cycle
from vla_safety.core.findings import Finding
from vla_safety.core.motion import Motion, rest
from vla_safety.core.planning import at_once, hold_at, longest_prefix, next_message, soonest_stop, with_stop
from vla_safety.core.splicing import Splice
from vla_safety.core.stopping import stop
from vla_safety.core.verification import Report

N = len(HOME)
T0 = 10**15
BAD = Finding("zone:wall", "hand", 0.001, 0.004)
PATH, JOINT = Cycle(), Cycle(stop="joint")


@dataclass
class Judge:
    """A verifier that keeps what it was asked; `wall`: joint 1 may not come further."""

    wall: float = np.inf
    asked: list = field(default_factory=list)
    limits = LIMITS
    groups = None

    def verify(self, motion):
        self.asked.append(motion)
        beyond = motion.positions[:, 0] > HOME[0] + self.wall
        if not beyond.any():
            return Report(None, motion.end, 1.0)
        return Report(BAD, int(motion.times[max(0, int(np.argmax(beyond)) - 1)]), 1.0)

    def verify_all(self, motions):
        return [self.verify(motion) for motion in motions]


def plan(seconds=2.0, step=100, speed=0.5):
    """Joint 1 at an even speed, a knot every `step` ms, until it stops."""
    times = np.arange(0, round(seconds * 1000) + 1, step)
    q, v = np.repeat(HOME[None], len(times), 0), np.zeros((len(times), N))
    q[:, 0] += speed * times * 1e-3
    v[:, 0] = speed
    motion = Motion(T0 + times * MS, q, v, np.zeros_like(q))
    return motion.then(stop(motion.knot(len(motion) - 1), motion.end, LIMITS, 0.9))


PLAN = plan()


def spliced(motion, at=T0 + 100 * MS):
    return Splice(motion, at, 0, len(motion), 1.0, None)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Motion.__dataclass_fields__)


@pytest.mark.parametrize("cycle", [PATH, JOINT])
@pytest.mark.parametrize("splice", [160, 157, 103, 101])
def test_i03_of_a_first_message_all_is_judged_that_is_not_the_plan(cycle, splice):
    judge = Judge()
    now, at = T0 + 41 * MS, T0 + splice * MS
    message, followed = at_once(spliced(PLAN), now, at, judge, cycle)
    whole, piece = judge.asked
    assert same(whole, with_stop(PLAN, judge, 0.9))
    assert message.start == T0 and message.knot(len(message) - 1).at_rest and message.end == piece.end
    k = message.times.tolist().index(piece.start)
    assert same(message.knots(k, len(message) - 1), piece), "what is judged is the message's end"
    assert same(message.knots(0, k), PLAN.knots(0, k)), "what is not judged again are the plan's own knots"
    assert piece.start <= followed
    wanted = at + 200 * MS
    assert followed == (T0 + 300 * MS if splice in (103, 101) else wanted), "not just behind a knot"
    assert np.array_equal(message.state(followed).position, PLAN.state(followed).position)


def test_i03_a_plan_that_does_not_verify_is_not_begun_at_once():
    judge = Judge(wall=0.6)
    report = at_once(spliced(PLAN), T0, T0 + 100 * MS, judge, PATH)
    assert report.finding == BAD and report.safe_until < PLAN.end
    assert at_once(spliced(PLAN, T0 + 320 * MS), T0, T0 + 100 * MS, judge, PATH) is None, "it begins too far ahead"
    near = Judge(wall=0.155)  # the stop of the first message reaches beyond it, the plan returns before
    back = Motion(PLAN.times, PLAN.positions.copy(), PLAN.velocities, PLAN.accelerations)
    back.positions[4:, 0] = HOME[0]
    assert at_once(spliced(back), T0, T0 + 100 * MS, near, JOINT).finding is None, "the whole is fine"


@pytest.mark.parametrize("known", [True, False])
def test_i03_the_longest_part_with_a_stop_that_verifies_is_taken(known):
    judge = Judge(wall=0.6)
    report = judge.verify(with_stop(PLAN, judge, 0.9)) if known else None
    part, finding = longest_prefix(spliced(PLAN), judge, 0.9, report)
    assert finding == BAD and same(part, PLAN.knots(0, len(part) - 1))
    ends = [with_stop(PLAN.knots(k, k), judge, 0.9).positions[-1, 0] - HOME[0] for k in range(len(PLAN))]
    assert ends[len(part) - 1] <= 0.6 < ends[len(part) + 1]
    for wall, kept in ((9.0, len(PLAN)), (0.12, 3)):
        part, finding = longest_prefix(spliced(PLAN), Judge(wall=wall), 0.9)
        assert len(part) == kept and (finding is None) == (wall == 9.0)
    assert longest_prefix(spliced(PLAN), Judge(wall=0.07), 0.9) == (None, BAD), "not even the first knot behind it"
    assert longest_prefix(spliced(PLAN), Judge(wall=-1.0), 0.9) == (None, BAD)


def test_i03_the_next_message_is_as_long_as_it_may_be():
    now, at = T0 + 41 * MS, T0 + 150 * MS
    for wall, share in ((9.0, 1.0), (0.17, 0.5), (0.12, 0.25)):
        judge = Judge(wall=wall)
        message, followed, blocked = next_message(PLAN, T0, now, at, judge, JOINT)
        assert blocked is None and followed == at + round(200 * share) * MS
        assert same(message, with_stop(PLAN.since(now).until(followed), judge, 0.9))
    assert next_message(PLAN, T0, now, at, Judge(wall=0.05), JOINT) == (None, T0, BAD)
    assert next_message(PLAN, at + 200 * MS, now, at, Judge(), JOINT) == (None, at + 200 * MS, None), "nothing is new"
    message, followed, _ = next_message(PLAN, T0, now, T0 + 103 * MS, Judge(), JOINT)
    assert followed == T0 + 300 * MS, "3 ms behind a knot: at the knot"
    message, followed, _ = next_message(PLAN, T0, now, T0 + 105 * MS, Judge(), JOINT)
    assert followed == T0 + 305 * MS
    message, followed, _ = next_message(PLAN, T0, PLAN.end - 50 * MS, PLAN.end - 10 * MS, Judge(), JOINT)
    assert followed == message.end == PLAN.end


def test_a_stop_along_the_path_comes_before_one_joint_by_joint():
    slow = plan(speed=0.3)
    now, at = T0 + 41 * MS, T0 + 150 * MS
    judge = Judge()
    message, *_ = next_message(slow, T0, now, at, judge, PATH)
    assert len(judge.asked) == 1 and not same(message, with_stop(slow.since(now).until(at + 200 * MS), judge, 0.9))


class OnlyJoint(Judge):
    """Whatever ends along the path is refused."""

    def verify(self, motion):
        report = super().verify(motion)
        return Report(BAD, motion.start, 1.0) if len(self.asked) % 2 else report


def test_where_the_stop_along_the_path_does_not_verify_the_other_one_is_taken():
    now, at = T0 + 41 * MS, T0 + 150 * MS
    judge = OnlyJoint()
    message, followed, blocked = next_message(PLAN, T0, now, at, judge, PATH)
    assert same(message, with_stop(PLAN.since(now).until(at + 200 * MS), judge, 0.9)) and len(judge.asked) == 2
    assert (followed, blocked) == (at + 200 * MS, None)


def test_the_soonest_stop_begins_at_the_splice():
    now, at = T0 + 41 * MS, T0 + 150 * MS
    judge = Judge()
    assert same(soonest_stop(PLAN, now, at, judge, 0.9), with_stop(PLAN.since(now).until(at), judge, 0.9))
    knot = with_stop(PLAN.since(now).until(T0 + 100 * MS), judge, 0.9)
    assert same(soonest_stop(PLAN, now, T0 + 104 * MS, judge, 0.9), knot), "just behind a knot: at the knot"
    later = with_stop(PLAN.since(now).until(T0 + 105 * MS), judge, 0.9)
    assert same(soonest_stop(PLAN, now, T0 + 105 * MS, judge, 0.9), later)
    assert same(soonest_stop(PLAN, now, at, Judge(wall=0.05), 0.9), PLAN.since(now)), "else what is committed"
    ahead = soonest_stop(PLAN, T0 - 90 * MS, T0 - 30 * MS, judge, 0.9)
    assert same(ahead, with_stop(PLAN.knots(0, 0), judge, 0.9)), "what has not begun is stopped at its beginning"


def test_what_is_nearly_over_is_played_to_its_end_and_what_is_over_is_held():
    last = rest(PLAN.positions[-1])
    for now in (PLAN.end - MS, PLAN.end, PLAN.end + MS):
        found = soonest_stop(PLAN, now, now + 60 * MS, Judge(), 0.9)
        held = Motion.at(now + 60 * MS, last)
        assert same(found, PLAN.since(now).then(held) if now < PLAN.end else held)
    found = soonest_stop(PLAN, PLAN.end - 60 * MS, PLAN.end, Judge(), 0.9)
    assert same(found, PLAN.since(PLAN.end - 60 * MS)), "the end is not held twice"


@pytest.mark.parametrize(("beyond", "held"), [(0.002, 0.0), (0.0021, 0.0021), (-0.1, -0.1)])
def test_i20_a_robot_is_held_where_it_is_or_at_a_limit_that_it_hardly_exceeds(beyond, held):
    for limit, sign in ((LIMITS.max_position, 1), (LIMITS.min_position, -1)):
        measured = HOME.copy()
        measured[3] = limit[3] + sign * beyond
        motion = hold_at(measured, T0, Judge(), 0.002 + 1e-12)
        assert len(motion) == 1 and motion.start == T0 and motion.knot(0).at_rest
        assert motion.positions[0, 3] == pytest.approx(limit[3] + sign * held, abs=1e-12)
        assert np.array_equal(np.delete(motion.positions[0], 3), np.delete(HOME, 3))
    assert hold_at(HOME + 1.0 * (np.arange(N) == 0), T0, Judge(wall=0.5), 0.002) == BAD
