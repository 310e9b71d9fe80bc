"""Force: wrenches without weight and offset; MuJoCo pushes. Torques estimated from efforts: test_momentum.py."""

import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rig import BRINGUP, HOME, MS, ROBOT, START, Rig, check_envelope, smooth_chunk

from vla_contract.errors import ConfigError
from vla_safety.building import Setup, read_parts
from vla_safety.core.config import ContactLimits
from vla_safety.core.contact import ContactMonitor
from vla_safety.core.findings import Finding
from vla_safety.core.modes import Mode
from vla_safety.core.watchdogs import Instant
from vla_safety.monitors import make_monitors, weight_of
from vla_sim.core.cell import Cell

CELL = yaml.safe_load((BRINGUP / "config/safety/cell.yaml").read_text())
TICK = 10 * MS
AWAY = HOME + np.array([0.8, 0.2, 0, 0, 0, 0, 0, 0])


def at(k):
    return Instant(START + k * TICK, START + k * TICK)


# ------------------------------------------------------------------ the force sensor


def contact_limits(**options):
    return ContactLimits(max_force=30, max_torque=5, **options)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 120), min_size=3, max_size=40),
    st.lists(st.sampled_from(["come", "nan", "inf", "late"]), min_size=40, max_size=40),
)
def test_i13_a_replay_with_delays_and_gaps_is_stopped_within_two_samples(forces, fates):
    """However readings are delayed, spoilt or bunched up: the second usable one in a row above the limit is a finding,
    and it stays one until a usable one is below."""
    monitor, above, k = ContactMonitor(contact_limits()), 0, 0
    for force, fate in zip(forces, fates, strict=False):
        k += 9 if fate == "late" else 1
        value = {"nan": math.nan, "inf": math.inf}.get(fate, force)
        finding = monitor.receive((0.0, 0.6 * value, 0.8 * value), (0, 0, 0), at(k))
        if fate not in ("nan", "inf"):
            above = above + 1 if math.hypot(0.6 * force, 0.8 * force) > 30 else 0
        assert (finding is not None) == (above >= 2)


def test_i13_contact_stops_the_robot_and_latches():
    """The robot moves, the sensor speaks at 100 Hz: two samples after the touch it is latched and the stop is out."""
    rig = Rig()
    rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
    rig.run(0.6)
    monitor, samples = ContactMonitor(contact_limits()), 0
    while rig.filter.mode != Mode.ESTOP:
        rig.advance(0.01)
        rig.observe()
        samples += 1
        finding = monitor.receive((80.0, 0, 0), (0, 0, 0), rig.instant)
        if finding is not None:
            rig.filter.report("contact", finding, rig.instant)
            assert rig.filter.pending, "the stop must leave at once"
            rig.collect()
        assert samples <= 2
    assert np.abs(rig.controller.state[1]).max() > 0.1, "it must have moved for the test to mean anything"
    touched = rig.now
    rig.run(0.6)
    times, _, v, _, _ = rig.controller.trace.arrays()
    late = np.abs(v[times > (touched - START) * 1e-9 + 0.4])
    assert rig.filter.finding.reason == "contact_force" and not late.any()
    assert not rig.filter.reset(rig.instant).success, "what pushes is still there"
    rig.filter.report("contact", monitor.receive((0, 0, 0), (0, 0, 0), rig.instant), rig.instant)
    assert rig.filter.reset(rig.instant).success


def touched(cause="contact", reason="contact_force", armed=True, offset=0.03):
    """A rig that was stopped in motion, with an arm that leans on something: it is not quite where it was led."""
    rig = Rig(arm=armed)
    if armed:
        rig.propose(smooth_chunk(rig, AWAY, duration=1.5))
        rig.run(0.6)
    rig.measured_offset[:7] = offset * np.array([-1, 0.5, 0, 0.3, 0, 0, 0])
    rig.observe()
    finding = Finding(reason, "wrench", 80.0, 30.0)
    rig.filter.report(cause, finding, rig.instant)
    rig.collect()
    return rig


def rests(rig, seconds):
    """Commanded positions at the end of each second."""
    places = []
    for _ in range(seconds):
        rig.run(1.0)
        assert not rig.controller.state[1].any()
        places.append(rig.controller.state[0].copy())
    return places


def test_i13_an_arm_that_was_stopped_by_a_touch_lets_go():
    """At rest it is commanded where it was measured, once, within the limits; nothing else moves it."""
    rig = touched()
    stopped = rig.filter.committed.positions[-1].copy()
    first, second, third = rests(rig, 3)
    np.testing.assert_allclose(first, stopped + rig.measured_offset, atol=1e-9)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(second, third)
    assert rig.filter.mode == Mode.ESTOP
    check_envelope(rig.controller)


@pytest.mark.parametrize(
    "options",
    [{"reason": "estop_input"}, {"reason": "tracking_error"}, {"armed": False}],
    ids=["a button", "another cause", "disarmed: somebody else moves the robot"],
)
def test_only_a_touch_makes_an_armed_robot_let_go(options):
    rig = touched(**options)
    before = None if rig.filter.committed is None else rig.filter.committed.positions[-1].copy()
    rests(rig, 2)
    after = rig.filter.committed
    assert (after is None) if before is None else np.array_equal(after.positions[-1], before)
    assert before is not None or not rig.controller.messages


@pytest.mark.parametrize(
    "pressed",
    [
        lambda rig: rig.filter.report("button", Finding("estop_input", "button"), rig.instant),
        lambda rig: rig.filter.estop(rig.instant),
        lambda rig: rig.measured_offset.__setitem__(0, -0.2),
    ],
    ids=["a button", "an e-stop", "further away than it may be"],
)
def test_i10_after_a_touch_an_estop_forbids_even_letting_go(pressed):
    rig = touched()
    pressed(rig)
    rig.collect()
    stopped = rig.filter.committed.positions[-1].copy()
    for place in rests(rig, 2):
        np.testing.assert_allclose(place, stopped, atol=1e-12)


def test_an_arm_does_not_let_go_blindly():
    """Without joint states it is held as it is."""
    rig = touched()
    stopped = rig.filter.committed.positions[-1].copy()
    rig.silent = True
    for place in rests(rig, 2):
        np.testing.assert_allclose(place, stopped, atol=1e-12)


def test_the_offset_is_taken_at_arming_but_a_contact_is_not():
    monitor = ContactMonitor(contact_limits())
    monitor.receive((0, 0, 5), (0, 0, 0), at(0))
    monitor.zero()
    assert monitor.force == 0
    for k in (1, 2):
        finding = monitor.receive((0, 0, 34), (0, 0, 0), at(k))
    assert finding is None
    for k in (3, 4):
        finding = monitor.receive((0, 0, 60), (0, 0, 0), at(k))
    monitor.zero()  # 60 N are a contact: arming does not make them the new zero
    assert finding.reason == "contact_force" and monitor.receive((0, 0, 60), (0, 0, 0), at(5)) is not None


def test_a_wrench_in_another_frame_counts_as_silence():
    monitor = ContactMonitor(contact_limits(frame="ft_sensor"))
    monitor.receive((0, 0, 0), (0, 0, 0), at(0), "ft_sensor")
    assert monitor.check(at(1)) is None
    monitor.receive((0, 0, 0), (0, 0, 0), at(20), "base")
    assert monitor.check(at(20)).reason == "stale_wrench"


def cell_file(tmp_path, **keys):
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump({**CELL, **keys}))
    return path


CONTACT = {"max_force": 30.0, "max_torque": 5.0, "frame": "ft_sensor"}
HAMMER = {
    "parent": "fr3_hand_tcp",
    "shapes": [{"sphere": {"center": [0, 0, 0], "radius": 0.02}}],
    "mass": 1.5,
    "center_of_mass": [0.02, 0.01, 0.05],
}
POSTURES = (HOME, HOME + [0.3, 0.2, 0.4, 0.3, 0.9, -0.6, 0.7, -0.02], HOME + [0, -0.4, 0, 0.6, -1.2, 0.9, 0.1, 0])


@pytest.mark.parametrize("q", POSTURES)
def test_the_weight_behind_the_sensor_is_what_mujocos_sensor_reads(tmp_path, q):
    parts = read_parts(ROBOT, cell_file(tmp_path, contact={**CONTACT, "weighs": "all"}))
    weight = weight_of(parts, Setup())
    cell = Cell(ROBOT.model_copy(update={"home": tuple(q)}))
    raw = -cell.data.sensordata[:6]
    np.testing.assert_allclose(weight.wrench(q), raw, atol=1e-6)
    assert np.linalg.norm(raw[:3]) > 5


def test_a_tools_weight_is_taken_out_in_every_posture(tmp_path):
    """A hammer of 1.5 kg, turned over: with the zero at arming alone it would be a contact."""
    keys = {"tools": {"hammer": HAMMER}, "contact": {**CONTACT, "max_force": 25.0, "weighs": "tool"}}
    parts = read_parts(ROBOT, cell_file(tmp_path, **keys))
    monitor, _ = make_monitors(parts)
    monitor.receive((0, 0, 0), (0, 0, 0), at(0))
    assert monitor.check(at(0)).reason == "stale_wrench", "the weight is not known before the posture is"
    heavy = weight_of(parts, Setup(tool="hammer"))
    turned = HOME + [0, 0, 0, 0, 0, 1.5, 0, 0]
    readings = {k: heavy.wrench(q) + [1, 2, -1, 0.1, 0, 0] for k, q in enumerate((HOME, turned))}
    unaware = ContactMonitor(parts.config.contact.model_copy(update={"weighs": "nothing", "max_offset": 1.0}))
    monitor.carry(heavy)
    for k, q in enumerate((HOME, turned)):
        monitor.pose(q)
        for each in (monitor, unaware):
            each.receive(tuple(readings[k][:3]), tuple(readings[k][3:]), at(k), "ft_sensor")
            if k == 0:
                each.zero()
    assert monitor.force < 1e-9 and unaware.force > 15
    assert np.linalg.norm(heavy.wrench(HOME)[:3]) == pytest.approx(1.5 * 9.81)


def test_a_sensor_that_weighs_needs_its_frame(tmp_path):
    with pytest.raises(ValidationError, match="the link that the sensor measures at"):
        contact_limits(weighs="tool")
    parts = read_parts(ROBOT, cell_file(tmp_path, contact={**CONTACT, "frame": "ft", "weighs": "all"}))
    with pytest.raises(ConfigError, match="contact.frame.*ft_sensor"):
        make_monitors(parts)


def test_i13_i20_after_a_touch_the_way_back_is_open():
    """Stopped, let go, and led back along the path while the touch is still reported; then gone, reset and armed."""
    rig = touched()
    (stopped,) = rests(rig, 1)
    places = []
    for _ in range(60):
        answer = rig.filter.retreat(rig.instant)
        rig.collect()
        rig.run(0.12)
        places.append(rig.controller.state[0][0])
    assert answer.success, answer.message
    assert (np.diff(places) < 1e-3).all(), "never back against what was touched"
    assert np.abs(rig.controller.state[0] - HOME)[:4].max() < np.abs(stopped - HOME)[:4].max() / 2
    rig.run(1.5)
    assert rig.filter.mode == Mode.ESTOP and not rig.filter.arm(rig.instant).success
    rig.filter.report("contact", None, rig.instant)
    rig.collect()
    assert rig.filter.reset(rig.instant).success and rig.filter.arm(rig.instant).success
