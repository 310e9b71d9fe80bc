"""What is sent, to the nanosecond: stops, holding still, giving way."""

import numpy as np
import pytest
from rig import HOME, MS, ROBOT, START, Rig, smooth_chunk

from vla_safety.core.conductor import Conductor
from vla_safety.core.config import Cycle, Watchdogs
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.motion import Motion, rest
from vla_safety.core.records import Plan
from vla_safety.core.verification import Report
from vla_safety.core.watchdogs import Instant, Measured, StateMonitor
from vla_safety.proof.rig import make_filter

CYCLE = Cycle()
LEAD = round(CYCLE.lead * 1e9)
ANGLES = np.arange(len(HOME)) < 7
VERIFIER = make_filter().verifier
NOW = Instant(START, START)


def at_rest(measured=HOME, age=0):
    """A conductor whose motion is over since a second, and a monitor of where the robot is, `age` ns ago."""
    conductor = Conductor(VERIFIER, CYCLE, ANGLES)
    conductor.begin(Instant(START - 10**9, START - 10**9), Motion.at(START - 10**9, rest(HOME)))
    conductor.outbox.clear()
    limits = VERIFIER.limits
    monitor = StateMonitor(limits.names, Watchdogs(joint_state_age=10.0), limits.max_velocity)
    before = Instant(START - age, START - age)
    assert monitor.receive(START - age, ROBOT.joints, measured, np.zeros(len(HOME)), before) is None
    return conductor, monitor


def sent(conductor):
    (motion,) = conductor.outbox
    return motion


@pytest.mark.parametrize("lean", [0.0, 0.02, -0.04])
def test_i13_an_arm_gives_way_twice_as_slowly_as_the_limits_allow(lean):
    measured = HOME + lean * (np.arange(len(HOME)) == 2) + 0.001 * (np.arange(len(HOME)) == 7)
    conductor, monitor = at_rest(measured)
    end = conductor.give_way(NOW, monitor)
    motion = sent(conductor)
    limits = VERIFIER.limits
    needed = max(
        15 / 8 * abs(lean) / limits.max_velocity[2],
        (10 / 3**0.5 * abs(lean) / limits.max_acceleration[2]) ** 0.5,
        (60 * abs(lean) / limits.max_jerk[2]) ** (1 / 3),
    )
    assert motion.times.tolist() == [START + LEAD, pytest.approx(START + 2 * LEAD + 2e9 * needed, abs=100)]
    assert end == motion.end
    np.testing.assert_array_equal(motion.positions[0], HOME)
    np.testing.assert_array_equal(motion.positions[1], np.where(ANGLES, measured, HOME))
    assert not motion.velocities.any() and not motion.accelerations.any()


def test_i06_a_filter_that_does_not_see_sends_nothing_to_a_robot_that_rests():
    for age, motions in ((100 * MS, 1), (101 * MS, 0)):
        conductor, monitor = at_rest(age=age)
        assert conductor.halt(NOW, monitor) is None, "there is nothing to wait for"
        assert len(conductor.outbox) == motions
        conductor, monitor = at_rest(age=age)
        assert (conductor.give_way(NOW, monitor) is None) == (motions == 0)


def test_a_robot_that_follows_is_held_where_it_is_commanded_and_one_that_does_not_where_it_is():
    for lean, held in ((0.04, 0.0), (0.06, 0.06)):
        conductor, monitor = at_rest(HOME + lean * (np.arange(len(HOME)) == 0))
        conductor.halt(NOW, monitor)
        motion = sent(conductor)
        assert len(motion) == 1 and motion.knot(0).at_rest
        assert motion.positions[0, 0] == HOME[0] + held
        limits = VERIFIER.limits
        led = max(  # s that the controller needs to lead it there
            15 / 8 * held / limits.max_velocity[0],
            (10 / 3**0.5 * held / limits.max_acceleration[0]) ** 0.5,
            (60 * held / limits.max_jerk[0]) ** (1 / 3),
        )
        assert motion.start == pytest.approx(START + LEAD + led * 1e9, abs=100)


class Rules:
    """Joint 1 may not be beyond `wall`."""

    def __init__(self, wall):
        self.wall = wall

    def verify(self, motion):
        beyond = motion.positions[:, 0] > self.wall
        finding = Finding("zone:wall", "hand", float(motion.positions[beyond][0, 0])) if beyond.any() else None
        return Report(finding, motion.end, 1.0)


@pytest.mark.parametrize(
    ("over", "commanded", "measured", "judged"),
    [
        (True, True, 0.04, 0.5),
        (True, False, 0.04, 0.04),
        (True, True, None, 0.5),
        (True, False, None, 0.5),
        (False, True, 0.04, 0.3),
        (False, False, 0.04, 0.3),
        (None, True, 0.04, 0.04),
        (None, False, 0.04, 0.04),
        (None, False, None, None),
    ],
)
@pytest.mark.parametrize("shadow", [False, True])
def test_i14_new_rules_judge_what_is_played_or_where_the_robot_is_if_nobody_commands_it(
    over, commanded, measured, judged, shadow
):
    """It is led from 0.3 to 0.5; `over`: since long, None: nothing ever was."""
    conductor = Conductor(VERIFIER, CYCLE, ANGLES, shadow)
    if over is not None:
        since = START - (10**9 if over else 100 * MS)
        places = np.array([HOME, HOME])
        places[:, 0] = 0.3, 0.5
        still = np.zeros_like(places)
        conductor.begin(Instant(since, since), Motion(since + np.array([0, 500 * MS]), places, still, still))
    where = None if measured is None else Measured(START, START, HOME * 0 + measured, HOME * 0)
    for wall in (-1.0, 1.0):
        found = conductor.against(Rules(wall), NOW, where, commanded=commanded)
        expected = Finding("zone:wall", "hand", judged) if judged is not None and wall < 0 and not shadow else None
        assert repr(found) == repr(expected)


def test_i15_a_late_cycle_says_by_how_much():
    rig = Rig()
    goal = HOME + 0.8 * (np.arange(len(HOME)) == 0)
    rig.propose(smooth_chunk(rig, goal, duration=1.2))
    rig.run(0.3)
    followed = rig.filter.plan.followed
    rig.advance(0.35)
    rig.run(0.04)
    late = (rig.now + LEAD - followed) * 1e-9
    assert rig.filter.mode == Mode.HOLD
    assert rig.filter.finding == Finding("late_cycle", "filter", pytest.approx(late, abs=1e-12), 0.0)


def test_i21_what_is_not_over_yet_is_told_with_the_time_that_it_takes():
    conductor, _ = at_rest()
    assert conductor.unfinished(NOW) is None
    motion = Motion(START + np.array([0, 500 * MS]), np.stack([HOME, HOME]), *np.zeros((2, 2, len(HOME))))
    conductor.begin(NOW, motion)
    assert repr(conductor.unfinished(NOW)) == repr(Finding("stopping", "the commanded stop", 0.5))
    conductor.plan = Plan(motion, "policy", 1, 1.0, START, None)
    assert repr(conductor.unfinished(NOW)) == repr(Finding("stopping", "the commanded motion", 0.5))
    over = Instant(START + 500 * MS, START + 500 * MS)
    assert repr(conductor.unfinished(over)) == repr(Finding("stopping", "the commanded motion", 0.0))
    conductor.drop()
    assert conductor.unfinished(over) is None


def test_how_much_a_proposal_was_slowed_down_is_told_while_it_is_played():
    rig = Rig()
    decision = rig.propose(smooth_chunk(rig, HOME + 0.8 * (np.arange(len(HOME)) == 0), duration=0.5))
    assert decision.verdict == Verdict.SLOWED and 0.2 < decision.speed_scale < 0.9
    assert rig.filter.plan.scale == rig.filter.status().speed_scale == decision.speed_scale
