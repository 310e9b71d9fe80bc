"""What ends a retreat for good, and what it keeps when rules change under it."""

from dataclasses import replace

import numpy as np
import pytest
from rig import HOME, START, Rig, check_envelope, make_filter
from test_retreat import AWAY, PARTS, STEP, confirm, go_back, hand, stop, travelled

from vla_safety.building import Setup, make_verifier
from vla_safety.core.findings import Decision, Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.records import Answer
from vla_safety.core.zones import Box, ZoneSpec


def test_i10_an_estop_ends_a_retreat_that_is_held_on_to_until_it_is_let_go():
    rig = travelled(1.0)
    stop(rig)
    assert confirm(rig).success
    for _ in range(8):
        rig.run(STEP)
        assert confirm(rig).success
    assert rig.controller.state[1].any()
    rig.filter.estop(rig.instant)
    rig.collect()
    for _ in range(12):  # the one who holds on has not seen why it stopped
        rig.run(STEP)
        assert not confirm(rig).success
    assert "let go" in confirm(rig).message and not rig.controller.state[1].any()
    rig.run(0.6)
    go_back(rig)


def test_i14_rules_that_change_end_a_retreat_and_hold_for_the_next_one():
    """A box in its way that is put there while it goes back."""
    rig = travelled(1.0)
    stop(rig)
    assert confirm(rig).success
    for _ in range(4):
        rig.run(STEP)
        assert confirm(rig).success
    changed, middle = (rig.now - START) * 1e-9, hand(HOME + (AWAY - HOME) * 0.3)
    box = ZoneSpec(name="new", kind="keep_out", box=Box(center=tuple(middle), size=(0.1,) * 3))
    setup = Setup(obstacles=(box,))
    verifier = make_verifier(PARTS, setup)
    answer = rig.filter.reconfigure(verifier, rig.instant, finding=Finding("obstacles", "new"), setup=setup)
    rig.collect()
    assert answer.success and rig.decisions[-1].finding.reason == "obstacles"
    rig.run(0.8)
    assert not rig.controller.state[1].any() and confirm(rig).success
    for _ in range(200):
        rig.run(STEP)
        if rig.decisions[-1].source == "retreat" and rig.decisions[-1].finding.reason == "zone:new":
            break
        confirm(rig)
    rig.run(0.6)
    times, q, *_ = rig.controller.trace.arrays()
    assert rig.decisions[-1].finding.reason == "zone:new"
    assert min(verifier.distances(place).min() for place in q[times > changed][::10]) > 0


def test_i20_a_retreat_through_a_slow_zone_is_slow_and_arrives():
    rig = travelled(0.3, duration=1.0)
    stop(rig)
    slow = ZoneSpec(
        name="slow", kind="slow", max_speed=0.02, box=Box(center=tuple(hand(rig.controller.state[0])), size=(0.3,) * 3)
    )
    setup = Setup(obstacles=(slow,))
    assert rig.filter.reconfigure(
        make_verifier(PARTS, setup), rig.instant, finding=Finding("obstacles", "slow")
    ).success
    go_back(rig)
    assert np.allclose(rig.controller.state[0], HOME, atol=1e-4)


def test_i02_a_retreat_leads_the_controller_to_where_the_robot_is_within_the_limits():
    rig = travelled(1.0)
    stop(rig)
    rig.measured_offset[0] = -0.19  # as far from its path as may be
    rig.run(0.1)
    assert confirm(rig).success
    rig.run(1.0)
    check_envelope(rig.controller)


def disarmed():
    """A robot that was disarmed on its way, and is led back."""
    rig = travelled(1.0)
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.run(0.8)
    assert confirm(rig) == Answer(True, "going back")
    rig.run(STEP)
    return rig


def test_i21_the_end_of_a_way_back_is_told_and_its_speed_is_its_own():
    rig = disarmed()
    assert confirm(rig) == Answer(True, "going back, 100% of the path is left")
    assert rig.filter.status().speed_scale == 1.0
    while rig.filter.plan is not None:
        rig.run(STEP)
        confirm(rig)
    end = Finding("retreat_end", "path")
    ends = [decision for decision in rig.decisions if decision.source == "retreat"]
    assert [replace(decision, stamp_ns=0) for decision in ends][:1] == [Decision(Verdict.STOPPED, "retreat", 1, end)]
    assert rig.filter.mode == Mode.DISARMED and np.allclose(rig.controller.state[0], HOME, atol=1e-4)


def test_i20_a_robot_that_did_not_move_has_no_way_back():
    end = Finding("retreat_end", "path")
    rig = Rig()
    rig.filter.disarm(rig.instant)
    rig.run(0.2)
    assert confirm(rig) == Answer(False, f"{end.sentence}; {end.remedy}")


@pytest.mark.parametrize("pushed", [False, True])
def test_i20_who_lets_go_may_go_on_but_a_robot_that_was_pushed_off_its_way_is_latched(pushed):
    rig = disarmed()
    for _ in range(5):
        rig.run(STEP)
        assert confirm(rig).success
    released = rig.now
    if pushed:
        rig.measured_offset[0] = 0.08
    rig.run(0.6)
    last = rig.decisions[-1]
    assert (last.verdict, last.source) == (Verdict.STOPPED, "retreat")
    if pushed:
        assert last.finding == Finding("tracking_error", "fr3_joint1", pytest.approx(0.08), 0.05)
        assert (rig.filter.mode, rig.filter.finding) == (Mode.ESTOP, last.finding)
    else:
        silence = (last.stamp_ns - released) * 1e-9
        assert last.finding == Finding("retreat_released", "operator", pytest.approx(silence), 0.5)
        assert (rig.filter.mode, rig.filter.finding) == (Mode.DISARMED, Finding("disarmed", "operator"))
    rig.run(1.0)
    assert not rig.controller.state[1].any()


def test_i20_a_filter_that_takes_the_place_of_another_knows_the_way():
    rig = travelled(1.0)
    rig.filter.disarm(rig.instant)
    rig.collect()
    rig.run(0.8)
    before, rig.filter = rig.filter, make_filter()
    rig.filter.inherit(before)
    rig.run(STEP)
    go_back(rig, mode=Mode.DISARMED)
    assert np.allclose(rig.controller.state[0][:7], HOME[:7], atol=1e-4)


def test_i15_a_retreat_whose_messages_come_too_late_says_so():
    rig = travelled(0.6)
    stop(rig)
    assert confirm(rig).success
    rig.run(0.4)
    confirm(rig)
    for _ in range(8):
        rig.advance(0.04)
        rig.observe()
        rig.filter.cycle(rig.instant)
        if rig.filter.pending:
            break
    assert rig.filter.pending and rig.filter.led_back
    rig.filter.retract(rig.instant)
    rig.collect()
    assert (rig.decisions[-1].source, rig.decisions[-1].finding.reason) == ("retreat", "late_cycle")
