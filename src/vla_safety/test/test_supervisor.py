"""The supervisor by itself: clock, stops that must arrive, what speaks against arming; to the nanosecond."""

import math

import numpy as np
import pytest
from rig import HOME, LIMITS, MS, ROBOT, START, make_filter

from vla_safety.core.findings import Finding
from vla_safety.core.motion import Motion, Timeline, rest
from vla_safety.core.supervision import Supervisor, is_news
from vla_safety.core.verification import Verifier
from vla_safety.core.watchdogs import Instant
from vla_safety.core.zones import ZoneSet

SHIPPED = make_filter()
N = len(HOME)
ANGLES = np.arange(N) < 7
TOLERANCE = round(SHIPPED.config.watchdogs.clock_tolerance * 1e9)
GRACE = round(SHIPPED.config.watchdogs.stop_grace * 1e9)


def make(verifier=SHIPPED.verifier):
    return Supervisor(SHIPPED.config, verifier)


def seen(supervisor, at, q=HOME, v=None):
    now = Instant(at, at)
    assert supervisor.monitor.receive(at, ROBOT.joints, q, np.zeros(N) if v is None else v, now) is None
    return now


@pytest.mark.parametrize(
    ("clock", "watch", "jump"),
    [
        (40 * MS, 40 * MS, 0),
        (40 * MS + TOLERANCE, 40 * MS, 0),
        (40 * MS + TOLERANCE + 1, 40 * MS, TOLERANCE + 1),
        (0, TOLERANCE, 0),
        (0, TOLERANCE + 1, -TOLERANCE - 1),
        (-1, 0, -1),
        (-1, 3 * TOLERANCE, -1 - 3 * TOLERANCE),
        (TOLERANCE, -(10**12), 0),
        (TOLERANCE + 1, -(10**12), TOLERANCE + 1),
    ],
)
def test_i05_clock_and_watch_move_alike_within_the_tolerance(clock, watch, jump):
    supervisor = make()
    supervisor.expect_stop(START)
    assert supervisor.check_clock(Instant(START, START)) == (0, None), "there is nothing to compare with"
    found = supervisor.check_clock(Instant(START + clock, START + watch))
    expected = Finding("clock_jump", "clock", jump / 1e9, TOLERANCE / 1e9)
    assert found == ((0, None) if jump == 0 else (jump, expected))
    # A stop is as long as before it jumped.
    end = START + clock + GRACE + (jump - clock)
    seen(supervisor, end - 1, v=np.full(N, 0.5))
    assert supervisor.check_stop(Instant(end - 1, end - 1), Timeline()) is None
    assert supervisor.check_stop(Instant(end, end), Timeline()) is not None
    again = Instant(START + clock + 40 * MS, START + watch + 40 * MS)
    assert supervisor.check_clock(again) == (0, None), "from the new time on"


def test_a_stop_that_does_not_follow_or_does_not_rest_is_named():
    timeline, due = Timeline(), START + 100 * MS
    timeline.commit(START, Motion.at(START, rest(HOME)))
    astray = HOME + 0.06 * (np.arange(N) == 2)
    failed = Finding("stop_failed", "fr3_joint3", pytest.approx(0.06), 0.05)
    for at, finding in ((due - MS, failed), (due, failed), (due + 1, None), (due + GRACE - 1, None)):
        supervisor = make()
        supervisor.expect_stop(due)
        assert supervisor.check_stop(Instant(START, START), timeline) is None, "nothing is seen yet"
        now = seen(supervisor, at, astray, np.full(N, 0.5))
        assert supervisor.check_stop(now, timeline) == finding
    supervisor = make()
    supervisor.expect_stop(due)
    now = seen(supervisor, due + GRACE, v=0.5 * (np.arange(N) == 4))
    assert supervisor.check_stop(now, timeline) == Finding("stop_failed", "fr3_joint5", 0.5, 0.02)
    late = Instant(due + GRACE + 101 * MS, due + GRACE + 101 * MS)
    unseen = Finding("stop_failed", "joint_states", 0.101, 0.1)
    assert supervisor.check_stop(late, timeline) == unseen, "who does not see has not seen it rest"
    now = seen(supervisor, due + GRACE + 200 * MS)
    assert supervisor.check_stop(now, timeline) is None
    now = seen(supervisor, now.clock_ns + MS, v=np.full(N, 0.5))
    assert supervisor.check_stop(now, timeline) is None, "it has arrived: what moves it later is another matter"


def test_a_speed_that_is_unknown_fails_a_stop_without_a_number():
    supervisor = make()
    supervisor.expect_stop(START)
    at = START + GRACE
    assert supervisor.monitor.receive(at, ROBOT.joints, HOME, [], Instant(at, at)) is None
    found = supervisor.check_stop(Instant(at, at), Timeline())
    assert repr(found) == repr(Finding("stop_failed", "fr3_joint1", math.nan, 0.02))


def test_what_speaks_against_arming_and_against_a_retreat():
    supervisor = make()
    now = Instant(START, START)
    stale = Finding("stale_state", "joint_states", math.inf, 0.1)
    assert supervisor.blocked(now) == supervisor.in_the_way(now) == stale
    seen(supervisor, START, v=0.5 * (np.arange(N) == 4))
    moving = Finding("not_at_rest", "fr3_joint5", 0.5, 0.02)
    assert supervisor.blocked(now) == supervisor.in_the_way(now) == moving
    touch, button = Finding("contact_force", "wrench", 80.0, 50.0), Finding("estop_input", "button")
    supervisor.causes["contact"] = touch
    assert supervisor.blocked(now) == touch and supervisor.in_the_way(now) == moving
    supervisor.causes["button"] = button
    assert supervisor.blocked(now) == touch and supervisor.in_the_way(now) == button
    assert supervisor.touches() == {"contact": touch}


def touch(value):
    return Finding("contact_force", "wrench", value, 64.0)


@pytest.mark.parametrize(
    ("told", "finding", "news"),
    [
        (None, None, False),
        (None, touch(80.0), True),
        (touch(80.0), None, True),
        (touch(80.0), touch(80.0), False),
        (touch(80.0), touch(80.0 + 3.1), False),
        (touch(80.0), touch(80.0 + 3.3), True),
        (touch(80.0), touch(80.0 - 3.1), False),
        (touch(80.0), touch(80.0 - 3.3), True),
        (touch(0.0), touch(3.2), False),
        (touch(80.0), touch(math.nan), True),
        (Finding("estop_input", "button", 1.0, 1.0), Finding("estop_input", "button", 9.0, 1.0), False),
    ],
)
def test_a_cause_is_told_again_when_it_came_went_or_a_touch_has_changed(told, finding, news):
    assert is_news(told, finding) is news


def test_the_picture_has_no_number_where_there_is_none():
    timeline = Timeline()
    supervisor = make()
    assert all(math.isnan(x) for x in supervisor.picture(timeline, ANGLES))
    q = HOME + 0.3 * (np.arange(N) == 3)
    seen(supervisor, START, q)
    zone, own = SHIPPED.verifier.clearances(q)[0][:2]
    room = min(np.min((LIMITS.max_position - q)[:7]), np.min((q - LIMITS.min_position)[:7]))
    assert repr(supervisor.picture(timeline, ANGLES)) == repr((float(room), zone, own, math.nan))
    timeline.commit(START, Motion.at(START, rest(HOME + 0.01 * (np.arange(N) == 1))))
    assert supervisor.picture(timeline, ANGLES)[3] == pytest.approx(0.3)
    model = SHIPPED.verifier.model
    bare = make(Verifier(LIMITS, model, [ZoneSet([], model, 0.004), SHIPPED.verifier.checks[1]]))
    seen(bare, START)
    picture = bare.picture(timeline, ANGLES)
    assert math.isnan(picture[1]) and 0.01 < picture[2] < 1.0


def test_a_robot_in_a_zone_is_found_with_zone_link_and_depth():
    low = HOME + 0.9 * (np.arange(N) == 1)
    smallest, finding = SHIPPED.verifier.clearances(low)
    depth = smallest[0]
    assert depth < -0.01
    assert finding == Finding("measured_zone:table", finding.subject, depth, 0.0)
    assert finding.subject in SHIPPED.verifier.model.body_links
    supervisor = make()
    assert supervisor.check_measured(Timeline()) is None
    seen(supervisor, START, low)
    assert supervisor.check_measured(Timeline()) == finding
    timeline = Timeline()
    timeline.commit(START, Motion.at(START, rest(HOME)))
    astray = Finding("tracking_error", "fr3_joint2", pytest.approx(0.9), 0.05)
    assert supervisor.check_measured(timeline) == supervisor.check_tracking(timeline) == astray


def test_a_gripper_stops_by_itself_and_the_arm_together():
    assert [list(group) for group in SHIPPED.verifier.groups] == [[0, 1, 2, 3, 4, 5, 6], [7]]
