"""Who moves the robot: override, planner, policy; the dead-man signal; monitors that can only tighten."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import HOME, ROBOT, Rig, check_envelope, smooth_chunk

from vla_safety.building import assemble, read_parts
from vla_safety.core.advice import Advice, Advices
from vla_safety.core.authority import PRIORITY, Authority
from vla_safety.core.config import Watchdogs
from vla_safety.core.findings import Finding, Verdict
from vla_safety.core.modes import Mode
from vla_safety.core.watchdogs import Instant

ONE = HOME + np.array([0.5, 0, 0, 0, 0, 0, 0, -0.01])
OTHER = HOME + np.array([-0.4, 0, 0, 0, 0, 0.2, 0, -0.01])


def send(rig, source, goal, **options):
    return rig.propose(smooth_chunk(rig, goal, source=source, **options))


def with_deadman(limit=0.15) -> Rig:
    rig = Rig(arm=False)
    parts = read_parts(ROBOT)
    watchdogs = parts.config.watchdogs.model_copy(update={"deadman": limit})
    rig.filter = assemble(replace(parts, config=parts.config.model_copy(update={"watchdogs": watchdogs})))
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    return rig


# ------------------------------------------------------------------ planner


def test_i11_a_planner_takes_over_from_the_policy_at_once_and_without_a_jump():
    rig = Rig()
    assert send(rig, "policy", ONE, duration=1.5).points_accepted
    rig.run(0.4)
    assert send(rig, "planner", OTHER, duration=1.5).verdict <= Verdict.SLOWED
    rig.run(0.2)
    refused = send(rig, "policy", ONE)
    assert (refused.verdict, refused.finding.reason, refused.finding.subject) == (3, "authority", "planner")
    rig.run(1.6)
    assert np.allclose(rig.controller.state[0], OTHER, atol=1e-6) and rig.filter.mode == Mode.ARMED
    check_envelope(rig.controller)
    assert send(rig, "policy", ONE).verdict == Verdict.ACCEPTED, "a plan that rests gives the robot back"


def test_i11_a_planner_that_is_lost_stops_and_the_policy_does_not_come_back_by_itself():
    rig = Rig()
    chunk = smooth_chunk(rig, ONE, duration=2.0, source="planner")
    half = replace(
        chunk,
        **{name: getattr(chunk, name)[:10] for name in ("times_ns", "positions", "velocities", "accelerations")},
        points=10,
    )
    assert rig.propose(half).verdict == Verdict.ACCEPTED
    rig.run(2.0)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "chunk_timeout"
    assert not rig.controller.state[1:].any()
    assert send(rig, "policy", HOME).finding.reason == "authority"
    assert send(rig, "planner", HOME, duration=1.5).verdict == Verdict.ACCEPTED
    rig.run(0.4)
    rig.filter.report("x", Finding("estop_input", "x"), rig.instant)
    rig.collect()
    rig.run(0.6)
    rig.filter.report("x", None, rig.instant)
    assert rig.filter.reset(rig.instant).success and rig.filter.arm(rig.instant).success
    rig.collect()
    rig.run(0.4)
    assert send(rig, "policy", HOME, duration=1.5).verdict <= Verdict.SLOWED, "people arm: nobody has the robot"
    check_envelope(rig.controller)


def test_i11_arming_in_hold_takes_the_robot_from_a_lost_planner():
    rig = Rig()
    far = HOME.copy()
    far[1] = 1.2  # into the table: trimmed
    far[-1] = 0.02
    assert send(rig, "planner", far, duration=2.5).verdict == Verdict.TRIMMED
    rig.run(3.0)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "zone:table"
    assert send(rig, "policy", HOME, duration=2.0).finding.subject == "planner"
    assert rig.filter.arm(rig.instant).success
    assert send(rig, "policy", HOME, duration=2.0).verdict <= Verdict.SLOWED


def test_i11_an_override_takes_over_from_a_planner_and_a_planner_never_from_an_override():
    rig = Rig()
    send(rig, "planner", ONE, duration=1.5)
    rig.run(0.4)
    assert send(rig, "override", OTHER, duration=1.5).verdict <= Verdict.SLOWED
    assert rig.filter.mode == Mode.OVERRIDE
    for source in ("planner", "policy"):
        assert send(rig, source, ONE).finding.subject == "override"
    rig.run(0.8)
    assert rig.filter.mode == Mode.DISARMED and rig.filter.finding.reason == "override_lost"
    rig.run(0.5)
    check_envelope(rig.controller)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([*PRIORITY, "stranger", "rest", "clear"]), max_size=40))
def test_i11_a_lower_priority_never_leaks(events):
    """Whatever is accepted outranks, or is, whoever has the robot."""
    authority, now = Authority(Watchdogs()), Instant(0, 0)
    for event in events:
        holder = authority.holder
        if event == "rest" and holder:
            authority.give_back(holder)
            assert authority.holder is None or holder == "override"
        elif event == "clear":
            authority.clear()
        elif authority.against(event, now) is None:
            assert holder is None or PRIORITY[event] >= PRIORITY[holder]
            authority.take(event, now)
        elif event in PRIORITY:
            assert holder is not None and PRIORITY[event] < PRIORITY[holder]


def test_i11_only_the_planner_that_has_the_robot_gives_it_back():
    now = Instant(0, 0)
    for holder, source in (("planner", "policy"), ("override", "planner"), ("override", "override")):
        authority = Authority(Watchdogs())
        authority.take(holder, now)
        authority.give_back(source)
        assert authority.holder == holder, source


def test_i21_who_may_not_move_the_robot_is_told_why():
    authority, now = Authority(Watchdogs(deadman=0.15)), Instant(0, 0)
    assert authority.against("stranger" * 20, now) == Finding("authority", ("stranger" * 20)[:80])
    assert authority.against("override", now) == Finding("deadman_silent", "~/deadman", math.inf, 0.15)
    authority.take("planner", now)
    assert authority.against("policy", now) == Finding("authority", "planner")


def test_a_source_is_silent_since_it_was_last_taken_and_for_ever_before():
    authority = Authority(Watchdogs())
    assert authority.silence("policy", Instant(0, 0)) == math.inf
    authority.take("policy", Instant(0, 0))
    assert authority.silence("policy", Instant(0, 2_500_000_000)) == 2.5
    assert authority.silence("planner", Instant(0, 0)) == math.inf
    authority.clear()
    assert authority.silence("policy", Instant(0, 0)) == math.inf


# ------------------------------------------------------------------ dead-man signal


@pytest.mark.parametrize(
    ("held", "silence", "absent"),
    [
        (True, 0.125, None),
        (True, -0.125, None),
        (True, 0.25, Finding("deadman_silent", "~/deadman", 0.25, 0.125)),
        (True, -0.25, Finding("deadman_silent", "~/deadman", -0.25, 0.125)),
        (False, 0.125, Finding("deadman_released", "~/deadman")),
        (False, 0.25, Finding("deadman_silent", "~/deadman", 0.25, 0.125)),
    ],
)
def test_i11_the_dead_man_signal_counts_up_to_its_limit(held, silence, absent):
    authority = Authority(Watchdogs(deadman=0.125))
    authority.deadman(held, Instant(0, 10**9))
    assert authority.absent(Instant(0, 10**9 + round(silence * 1e9))) == absent


def test_i11_an_override_needs_the_dead_man_signal_and_stops_without_it():
    rig = with_deadman()
    assert send(rig, "override", ONE).finding.reason == "deadman_silent"
    rig.filter.deadman(False, rig.instant)
    assert send(rig, "override", ONE).finding.reason == "deadman_released"
    assert send(rig, "policy", ONE, duration=2.0).verdict == Verdict.ACCEPTED, "it is for humans only"
    rig.run(0.2)
    rig.filter.deadman(True, rig.instant)
    assert send(rig, "override", OTHER, duration=2.0).verdict <= Verdict.SLOWED
    for _ in range(4):
        rig.run(0.08)
        rig.filter.deadman(True, rig.instant)
    assert rig.filter.mode == Mode.OVERRIDE and rig.controller.state[1].any()
    sent = len(rig.offline)
    rig.filter.deadman(False, rig.instant)
    rig.collect()
    assert rig.filter.mode == Mode.DISARMED and rig.filter.finding.reason == "deadman_released"
    assert len(rig.offline) == sent + 1, "the stop leaves at once, not with the next cycle"
    rig.run(0.6)
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


def test_i11_a_silent_dead_man_signal_counts_as_released():
    rig = with_deadman()
    rig.filter.deadman(True, rig.instant)
    assert send(rig, "override", ONE, duration=2.0).verdict <= Verdict.SLOWED
    rig.run(0.24)
    assert rig.filter.mode == Mode.DISARMED and rig.filter.finding.reason == "deadman_silent"
    rig.run(0.6)
    assert not rig.controller.state[1:].any()
    check_envelope(rig.controller)


# ------------------------------------------------------------------ monitors (places for I16 and I17)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats())))
def test_i16_a_monitor_can_only_tighten(words):
    advices, newest = Advices(), {}
    for monitor, cap in words:
        advice = Advice(monitor, cap)
        advices.take(advice)
        if 0 < cap <= 1:
            newest[monitor] = cap
            assert advice.finding is None
        else:
            assert advice.finding is not None, "a speed that is none stops"
        assert 0 < advices.cap <= 1
        assert advices.cap == min(newest.values(), default=1.0)


def test_i16_a_monitor_may_take_back_its_own_caution():
    advices = Advices()
    for cap, counts in ((0.5, 0.5), (1.0, 1.0), (0.25, 0.25), (math.nan, 0.25), (1.0, 1.0)):
        advices.take(Advice("anomaly", cap))
        assert advices.cap == counts


def test_i21_a_cap_that_is_none_is_named_with_its_monitor():
    assert Advice("m" * 100, 1.5).finding == Finding("advice", "m" * 80, 1.5, 1.0)
    gate = Finding("estop", "instruction gate")
    assert Advice("instruction", 0.0, gate).finding == gate, "what a monitor says itself comes first"


def test_i16_what_a_monitor_says_reaches_nothing_but_speed_and_stop():
    """The seam's only fields are a cap and a stop; and no word of a monitor makes the filter take what it refused."""
    assert set(Advice.__dataclass_fields__) == {"monitor", "cap", "stop"}
    plain, advised = Rig(), Rig()
    far = HOME.copy()
    far[1], far[-1] = 1.2, 0.02
    for goal in (ONE, far, HOME):
        for cap in (1.0, 0.5, 0.25):
            advised.filter.advise(Advice("anomaly", cap), advised.instant)
            verdicts = [rig.propose(smooth_chunk(rig, goal, duration=2.5)) for rig in (plain, advised)]
            assert verdicts[1].verdict >= verdicts[0].verdict or verdicts[1].speed_scale <= verdicts[0].speed_scale
            assert verdicts[1].speed_scale <= cap
    for rig in (plain, advised):
        rig.run(4.0)
    assert np.abs(advised.controller.trace.arrays()[2]).max() <= np.abs(plain.controller.trace.arrays()[2]).max() + 1e-9


@pytest.mark.parametrize("cap", [0.0, -1.0, 1.5, math.nan, math.inf])
def test_i16_a_monitor_that_makes_no_sense_stops(cap):
    rig = Rig()
    send(rig, "policy", ONE, duration=2.0)
    rig.run(0.3)
    rig.filter.advise(Advice("anomaly", cap), rig.instant)
    rig.collect()
    assert rig.filter.mode == Mode.ESTOP and rig.filter.finding.reason == "advice"
    rig.run(0.6)
    assert not rig.controller.state[1:].any()
    assert not rig.filter.reset(rig.instant).success
    rig.filter.advise(Advice("anomaly", 0.5), rig.instant)
    assert rig.filter.mode == Mode.ESTOP and rig.filter.reset(rig.instant).success


def test_i17_a_refused_instruction_stops_and_can_do_nothing_else():
    rig = Rig()
    send(rig, "policy", ONE, duration=2.0)
    rig.run(0.3)
    rig.filter.advise(Advice("instruction", stop=Finding("estop", "instruction gate")), rig.instant)
    rig.collect()
    assert rig.filter.mode == Mode.ESTOP
    rig.filter.advise(Advice("instruction"), rig.instant)
    assert rig.filter.mode == Mode.ESTOP, "taking it back resumes nothing"
    assert send(rig, "policy", ONE).finding.reason == "mode"
