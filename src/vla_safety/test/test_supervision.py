"""Causes, latches, contact, stops that do not arrive."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError
from rig import HOME, MS, ROBOT, START, Rig, smooth_chunk

from vla_contract.errors import ConfigError
from vla_safety.building import assemble, build_filter, read_parts
from vla_safety.core.config import ContactLimits, load_safety
from vla_safety.core.contact import ContactMonitor
from vla_safety.core.findings import Finding
from vla_safety.core.latch import LatchFile
from vla_safety.core.modes import Mode
from vla_safety.core.supervision import is_news
from vla_safety.core.watchdogs import Instant
from vla_safety.core.ways import TOUCHES

AWAY = HOME + np.array([0.8, 0, 0, 0, 0, 0, 0, -0.01])


def test_a_reported_cause_stops_latches_and_blocks_reset_until_it_is_gone():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.2))
    rig.run(0.3)
    rig.filter.report("button", Finding("estop_input", "button"), rig.instant)
    rig.collect()
    assert rig.filter.mode == Mode.ESTOP
    rig.run(0.6)
    assert not rig.controller.state[1:].any()
    assert "pressed" in rig.filter.reset(rig.instant).message
    rig.filter.report("button", None, rig.instant)
    assert rig.filter.mode == Mode.ESTOP, "no automatic resume"
    assert rig.filter.reset(rig.instant).success
    rig.filter.report("button", Finding("estop_input", "button"), rig.instant)
    assert rig.filter.mode == Mode.ESTOP


def test_i10_a_latched_estop_survives_a_restart(tmp_path):
    parts, memory = read_parts(ROBOT), LatchFile(tmp_path / "state/robot.estop")
    first = assemble(parts, memory)
    assert first.mode == Mode.DISARMED
    first.estop(Instant(START, START), "operator")
    for _ in range(2):
        again = assemble(parts, LatchFile(memory.path))
        assert again.mode == Mode.ESTOP and again.finding.reason == "estop" and again.finding.subject == "operator"
        assert not again.arm(Instant(START, START)).success
    now = Instant(START, START)
    again.observe(START, ROBOT.joints, HOME, np.zeros(len(HOME)), now)
    assert again.reset(now).success
    assert assemble(parts, LatchFile(memory.path)).mode == Mode.DISARMED


@pytest.mark.parametrize("content", ["", "{", "[]", '{"reason": 3}', '{"reason": "nonsense", "subject": "x"}'])
def test_i10_an_unreadable_latch_is_a_latched_one(tmp_path, content):
    path = tmp_path / "robot.estop"
    path.write_text(content)
    assert assemble(read_parts(ROBOT), LatchFile(path)).mode == Mode.ESTOP


def test_a_latch_that_cannot_be_removed_stays(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inside").write_text("")
    memory = LatchFile(path)  # a folder in its place cannot be unlinked
    safety = assemble(read_parts(ROBOT), memory)
    assert safety.mode == Mode.ESTOP
    now = Instant(START, START)
    safety.observe(START, ROBOT.joints, HOME, np.zeros(len(HOME)), now)
    answer = safety.reset(now)
    assert not answer.success and "cannot be removed" in answer.message and safety.mode == Mode.ESTOP


def test_a_stop_that_does_not_arrive_is_escalated():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=2.0))
    rig.run(0.3)
    rig.filter.estop(rig.instant)
    rig.filter.drain()  # the stop is lost, and the robot goes on
    for _ in range(40):
        rig.now += 40 * MS
        q = HOME + np.array([0.02, 0, 0, 0, 0, 0, 0, 0]) * (rig.now - START) * 1e-9
        rig.filter.observe(rig.now, ROBOT.joints, q, np.full(len(HOME), 0.1), rig.instant)
        rig.filter.cycle(rig.instant)
    assert rig.filter.escalated and rig.filter.mode == Mode.ESTOP


def test_a_stop_that_arrives_is_not():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=2.0))
    rig.run(0.4)
    rig.filter.estop(rig.instant)
    rig.collect()
    rig.run(1.5)
    assert not rig.filter.escalated and rig.filter.finding.reason == "estop"


def test_a_stop_to_hold_that_is_followed_by_motion_is_not_taken_for_one_that_failed():
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=2.0))
    rig.run(0.4)
    rig.silent = True
    rig.run(0.16)
    assert rig.filter.mode == Mode.HOLD and rig.filter.finding.reason == "stale_state"
    rig.silent = False
    rig.run(0.2)
    rig.propose(smooth_chunk(rig, AWAY, duration=2.0))
    rig.run(1.6)
    assert rig.filter.mode == Mode.ARMED and not rig.filter.escalated and rig.controller.state[1].any()


def test_shadow_judges_and_commands_nothing():
    rig = Rig(arm=False)
    parts = read_parts(ROBOT, shadow=True)
    rig.filter = assemble(parts)
    rig.observe()
    assert rig.filter.arm(rig.instant).success
    rig.run(0.4)
    decision = rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    assert decision.points_accepted > 0
    far = AWAY.copy()
    far[1] = 1.2
    assert rig.propose(smooth_chunk(rig, far, duration=2.0)).finding is not None
    rig.measured_offset[0] = 0.3  # something else moves the robot
    rig.run(1.0)
    assert rig.filter.mode in (Mode.ARMED, Mode.HOLD)
    assert not rig.controller.messages and not rig.offline


# ------------------------------------------------------------------ contact


def limits(**options):
    return ContactLimits(max_force=30, max_torque=5, **options)


def test_i13_contact_stops_within_two_samples():
    monitor = ContactMonitor(limits())
    now = Instant(START, START)
    assert monitor.receive((0, 0, 6), (0, 0, 0), now) is None
    monitor.zero()  # the sensor is off by 6 N
    assert monitor.receive((0, 0, 35), (0, 0, 0), now) is None
    assert monitor.receive((0, 0, 37), (0, 0, 0), now) is None
    finding = monitor.receive((0, 0, 37), (0, 0, 0), now)
    assert (finding.reason, finding.value, finding.limit) == ("contact_force", 31, 30)
    assert monitor.receive((0, 0, 6), (0, 0, 0), now) is None
    assert monitor.receive((0, 0, 6), (4, 4, 0), now) is None
    assert monitor.receive((0, 0, 6), (4, 4, 0), now).reason == "contact_torque"


@pytest.mark.parametrize("reason", sorted(TOUCHES))
def test_a_touch_is_told_again_when_it_has_changed_and_other_causes_only_once(reason):
    told, heard = None, []
    for share in (1.02, 1.03, 1.5, 2.4, 1.6, 1.1, 1.12, 1.3, math.nan, 1.3, None):
        found = None if share is None else Finding(reason, "wrench", share * 50, 50.0)
        if is_news(told, found):
            told = found
            heard.append(share)
    assert [str(share) for share in heard] == [str(s) for s in (1.02, 1.5, 2.4, 1.6, 1.1, 1.3, math.nan, 1.3, None)], (
        "softer counts: what a retreat may press is counted from there"
    )
    silent = Finding("stale_wrench", "wrench", 0.2, 0.1)
    assert is_news(None, silent) and not is_news(silent, Finding("stale_wrench", "wrench", 9.0, 0.1))
    assert not is_news(None, None) and is_news(silent, None)


def test_i06_a_silent_or_broken_force_sensor_is_noticed():
    monitor = ContactMonitor(limits())
    assert monitor.check(Instant(START, START)).reason == "stale_wrench"
    monitor.receive((0, 0, 0), (0, 0, 0), Instant(START, START))
    assert monitor.check(Instant(START, START + 99 * MS)) is None
    for k in range(5):
        monitor.receive((math.nan, 0, 0), (0, 0, 0), Instant(START, START + (100 + k) * MS))
    assert monitor.check(Instant(START, START + 105 * MS)).reason == "stale_wrench"


def test_force_limits_above_the_conservative_default_need_a_source():
    with pytest.raises(ValidationError, match="name its source"):
        ContactLimits(max_force=140, max_torque=5)
    assert ContactLimits(max_force=140, max_torque=5, source="ISO/TS 15066:2016, table A.2").max_force == 140


# ------------------------------------------------------------------ configuration


def write(tmp_path, text):
    path = tmp_path / "cell.yaml"
    path.write_text(text)
    return path


GOOD = "margin: 0.004\nself_margin: 0.01\nzones: []\n"


def test_i07_a_safety_file_without_a_margin_or_zones_is_refused(tmp_path):
    for missing in ("margin", "self_margin", "zones"):
        text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(missing))
        with pytest.raises(ConfigError, match=f"{missing}: Field required"):
            load_safety(write(tmp_path, text), ROBOT)
    assert load_safety(write(tmp_path, GOOD), ROBOT).zones == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "speed: 3\n", "speed"),
        (GOOD.replace("0.004", ".nan"), "margin"),
        (GOOD.replace("0.004", "-1"), "margin"),
        (GOOD + "cycle: {period: 0.3}\n", "must be longer than period"),
        (GOOD + "watchdogs: {joint_tracking_tolerance: {nope: 1}}\n", "unknown joint 'nope'"),
        ("margin: [", "not YAML"),
    ],
)
def test_i07_a_wrong_safety_file_is_refused_whole(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_safety(write(tmp_path, text), ROBOT)


def test_r16_missing_limits_refuse_the_filter(tmp_path):
    limits_file = ROBOT.resolve(ROBOT.description.joint_limits)
    text = limits_file.read_text().replace("has_jerk_limits: true", "has_jerk_limits: false", 1)
    (tmp_path / "limits.yaml").write_text(text)
    description = ROBOT.description.model_copy(update={"joint_limits": str(tmp_path / "limits.yaml")})
    robot = ROBOT.model_copy(update={"description": description})
    with pytest.raises(ConfigError, match="fr3_joint1.*no jerk limit"):
        build_filter(robot)


def test_the_self_test_refuses_a_home_inside_a_zone(tmp_path):
    zone = {"name": "home", "kind": "keep_out", "box": {"center": [0.45, 0, 0.3], "size": [0.1, 0.1, 0.1]}}
    text = GOOD.replace("zones: []", "zones: " + json.dumps([zone]))
    with pytest.raises(ConfigError, match="self-test: home of 'fr3_sim' is not safe"):
        build_filter(ROBOT, write(tmp_path, text))
