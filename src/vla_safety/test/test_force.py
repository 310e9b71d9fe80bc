"""Force: wrenches without weight and offset, torques estimated from efforts; MuJoCo is what pushes."""

import math
import re

import mujoco
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rig import BRINGUP, HOME, MS, ROBOT, START, Rig, check_envelope, smooth_chunk

from vla_contract.errors import ConfigError
from vla_kinematics import ToolKinematics
from vla_safety.building import Setup, read_parts
from vla_safety.core.config import ContactLimits, TorqueLimits
from vla_safety.core.contact import ContactMonitor
from vla_safety.core.dynamics import Dynamics, Momentum
from vla_safety.core.findings import Finding
from vla_safety.core.modes import Mode
from vla_safety.core.observer import MomentumObserver, TorqueMonitor
from vla_safety.core.urdf import Load, parse_urdf
from vla_safety.core.watchdogs import Instant
from vla_safety.monitors import make_monitors, weight_of
from vla_sim.core.cell import Cell
from vla_sim.core.controller import JointTrajectoryCommand
from vla_sim.core.expert import Expert, Pose, Situation

CELL = yaml.safe_load((BRINGUP / "config/safety/cell.yaml").read_text())
ARM = ROBOT.arm_joints
ARMATURE = dict.fromkeys(ROBOT.joints, 0.1)  # kg m^2, of the simulated cell
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


# ------------------------------------------------------------------ the momentum observer


@settings(deadline=None)
@given(st.floats(5, 500), st.floats(0.001, 0.02), st.floats(1, 80))
def test_the_residual_is_a_first_order_filter_of_the_torque(gain, dt, torque):
    """A mass of 2 kg m^2 that only `torque` accelerates: no overshoot, no drift, at every gain and rate."""
    observer = MomentumObserver(1, gain)
    previous = 0.0
    for k in range(120):
        observer.update(Momentum(np.array([torque * k * dt]), np.zeros(1)), np.zeros(1), dt if k else 0.0)
        share = observer.residual[0] / torque
        assert previous - 1e-9 <= share <= 1 + 1e-9
        expected = 1 - (1 + gain * dt) ** -k
        assert share == pytest.approx(expected, abs=1e-6)
        previous = share


def torque_limits(limit=10.0, **options):
    return TorqueLimits(limits=dict.fromkeys(ARM, limit), armature=ARMATURE, **options)


def torque_monitor(limits=None, loads=()):
    description = parse_urdf(ROBOT.urdf())
    dynamics = Dynamics(ROBOT.urdf(), description, ROBOT.joints, ARM, loads, ARMATURE)
    return TorqueMonitor(limits or torque_limits(), dynamics, ROBOT.joints)


def swing(cell):
    """Joints 1, 2, 4 and 6 to one side and back within 2.9 s."""
    t = np.linspace(0, 2 * np.pi / 2.2, 60)[1:]
    c, s = np.cos(2.2 * t), np.sin(2.2 * t)
    q = np.tile(HOME, (len(t), 1))
    v, a = np.zeros_like(q), np.zeros_like(q)
    for joint, share in ((0, 0.8), (1, 0.4), (3, 0.5), (5, 0.4)):
        q[:, joint] += share * (1 - c) ** 2 / 4
        v[:, joint] = share * 2.2 * (1 - c) * s / 2
        a[:, joint] = share * 2.2**2 * (s**2 + c - c**2) / 2
    v[-1] = 0
    cell.command(JointTrajectoryCommand.from_arrays(ROBOT.joints, t, q, v, a, cell.time_ns))


def run(cell, monitor, samples, before=lambda k: None):
    """Steps of 10 ms; the findings."""
    findings = []
    for k in range(samples):
        before(k)
        cell.step(5)
        state = cell.joint_state()
        now = Instant(cell.time_ns, cell.time_ns)
        findings.append(
            monitor.receive(cell.time_ns, ROBOT.joints, state.positions, state.velocities, state.efforts, now)
        )
    return findings


def test_i13_a_motion_without_contact_raises_no_alarm():
    """Swinging at up to 0.9 rad/s, and closing the gripper: the estimate stays below a tenth of a newton metre."""
    cell, monitor, peak = Cell(ROBOT), torque_monitor(), 0.0
    swing(cell)

    def note(_):
        nonlocal peak
        peak = max(peak, float(np.abs(monitor.external).max()))

    assert run(cell, monitor, 300, note) == [None] * 300
    assert np.abs(cell.data.qvel).max() < 0.1 and peak < 0.1
    closed = np.array(ROBOT.home) * [1, 1, 1, 1, 1, 1, 1, 0]
    cell.command(JointTrajectoryCommand.from_arrays(ROBOT.joints, [0.8], closed[None], stamp_ns=cell.time_ns))
    assert run(cell, monitor, 120, note) == [None] * 120


@pytest.mark.parametrize("seed", [70_000, 70_001, 70_002])
def test_i13_a_pick_and_place_raises_no_alarm(seed):
    """A cube into the tray, in MuJoCo, under the limits of shared_cell.yaml: grasps and letting go are no contact."""
    cell, parts = Cell(ROBOT), read_parts(ROBOT, BRINGUP / "config/safety/shared_cell.yaml")
    contact, torque = make_monitors(parts)
    kinematics = ToolKinematics(ROBOT.urdf(), ROBOT.joints, ROBOT.tool_frame, ROBOT.home)
    down, expert, times = kinematics.forward(ROBOT.home)[1], Expert(), 0.1 * np.arange(1, 17)
    cell.reset(seed)
    peaks = [0.0, 0.0]
    while cell.time_ns < 12e9 and not cell.truth()["red_cube"].in_tray:
        q = cell.joint_state().positions
        poses = {
            name: Pose(truth.position, 2 * float(np.arctan2(truth.quaternion[3], truth.quaternion[0])))
            for name, truth in cell.truth().items()
        }
        now = Situation(kinematics.forward(q)[0], float(q[7]), poses, poses.pop("tray"))
        plan = expert.plan(now, "red_cube", np.zeros(3), 16, 0.1)
        way = kinematics.follow(q, plan.tool, down).positions
        way[:, 7] = plan.gripper * 0.04
        speeds = np.gradient(way, 0.1, axis=0)
        speeds[-1], speeds[:, 7] = 0.0, 0.0
        cell.command(JointTrajectoryCommand.from_arrays(ROBOT.joints, times, way, speeds))
        for _ in range(30):
            assert run(cell, torque, 1) == [None]
            contact.pose(cell.joint_state().positions)
            wrench, clock = cell.wrench(), Instant(cell.time_ns, cell.time_ns)
            assert contact.receive(tuple(wrench.force), tuple(wrench.torque), clock, "ft_sensor") is None
            peaks = [max(peaks[0], contact.force), max(peaks[1], torque.load)]
    assert cell.truth()["red_cube"].in_tray
    assert peaks[0] < 40.0 and peaks[1] < 0.8, f"N, and share of the limit: {peaks}"


@pytest.mark.parametrize(("link", "force"), [("fr3_hand", 70), ("fr3_link5", 70), ("fr3_link4", 200)])
def test_i13_the_estimate_is_the_torque_that_mujoco_exerts(link, force):
    """A push on a link while the arm moves: J^T f within 5 %, and a finding on the second sample above the limit."""
    cell, monitor = Cell(ROBOT), torque_monitor(torque_limits(12.0))
    body, push = cell.model.body(link).id, force * np.array([0.36, 0.87, 0.34])
    swing(cell)
    run(cell, monitor, 60)
    cell.data.xfrc_applied[body, :3] = push
    above, found = 0, None
    for k in range(30):
        finding = run(cell, monitor, 1)[0]
        above = above + 1 if np.abs(monitor.external).max() > 12.0 else 0
        if finding is not None:
            found = k
            assert above == 2 and finding.reason == "external_torque" and finding.subject in ARM
            break
    assert found is not None and found <= 5, "within 60 ms of the push"
    run(cell, monitor, 15)
    jacobian, rotation = np.zeros((3, cell.model.nv)), np.zeros((3, cell.model.nv))
    mujoco.mj_jac(cell.model, cell.data, jacobian, rotation, cell.data.xipos[body], body)
    true = (jacobian.T @ push)[[cell.model.joint(name).dofadr[0] for name in ARM]]
    assert np.abs(monitor.external - true).max() < 0.05 * np.abs(true).max() + 0.3


def test_what_is_carried_is_no_contact():
    """A load of 3 kg in the hand: named, it is nothing; not named, it is 10 Nm and more."""
    parsed = parse_urdf(ROBOT.urdf())
    center = next(load.center for load in parsed.loads if load.link == "fr3_hand")
    cell = Cell(ROBOT)
    cell.model.body("fr3_hand").mass += 3.0
    cell.reset(0)
    aware, unaware = torque_monitor(loads=(Load("fr3_hand", 3.0, center),)), torque_monitor()
    swing(cell)
    assert run(cell, aware, 280) == [None] * 280
    assert np.abs(aware.external).max() < 0.2
    cell.reset(0)
    assert any(run(cell, unaware, 60))
    unaware.carry(Dynamics(ROBOT.urdf(), parsed, ROBOT.joints, ARM, (Load("fr3_hand", 3.0, center),), ARMATURE))
    assert run(cell, unaware, 60)[-1] is None and np.abs(unaware.external).max() < 0.2


def feed(monitor, k, efforts, names=ROBOT.joints, velocities=None, stamp=None):
    q = list(HOME[: len(names)])
    velocities = [0.0] * len(names) if velocities is None else velocities
    return monitor.receive(START + (k if stamp is None else stamp) * TICK, names, q, velocities, efforts, at(k))


NONE = [0.0] * len(ROBOT.joints)
SPOILT = {
    "no efforts": {"efforts": []},
    "NaN": {"efforts": [0, 0, math.nan, 0, 0, 0, 0, 0]},
    "infinite": {"efforts": [math.inf, 0, 0, 0, 0, 0, 0, 0]},
    "absurd": {"efforts": [1e300, 0, 0, 0, 0, 0, 0, 0]},
    "a joint is missing": {"efforts": NONE[:-1], "names": ROBOT.joints[1:]},
    "a joint comes twice": {"efforts": NONE, "names": (*ROBOT.joints[:-1], ROBOT.joints[0])},
    "no velocities": {"efforts": NONE, "velocities": []},
    "the same stamp": {"efforts": NONE, "stamp": 0},
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_i06_efforts_that_are_missing_or_broken_stop(spoilt):
    monitor = torque_monitor()
    assert monitor.check(at(0)).reason == "stale_effort"
    feed(monitor, 0, NONE)
    assert monitor.check(at(9)) is None
    for k in range(1, 12):
        feed(monitor, k, **spoilt)
    assert monitor.check(at(11)).reason == "stale_effort"


def test_a_contact_that_was_found_stays_while_samples_are_spoilt():
    cell, monitor = Cell(ROBOT), torque_monitor()
    run(cell, monitor, 10)
    cell.data.xfrc_applied[cell.model.body("fr3_hand").id, :3] = [0, 0, -90]
    assert run(cell, monitor, 20)[-1] is not None
    assert monitor.receive(cell.time_ns + TICK, ROBOT.joints, HOME, NONE, [math.nan] * 8, at(0)) is not None
    refused = monitor.zero()
    assert refused.reason == "offset" and refused.value > refused.limit, "a contact is no offset"
    assert run(cell, monitor, 2)[-1] is not None
    cell.data.xfrc_applied[:] = 0
    assert run(cell, monitor, 30)[-1] is None


def test_limits_of_torque_above_the_conservative_default_need_a_source():
    with pytest.raises(ValidationError, match="fr3_joint1, 12.6 Nm.*name its source"):
        torque_limits(12.6)
    assert torque_limits(40.0, source="vendor's manual, edition 2").limits["fr3_joint1"] == 40


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"limits": {"fr3_joint1": 5.0}}, "give a limit for each joint of the arm"),
        ({"limits": {**dict.fromkeys(ARM, 5.0), "fr3_finger_joint1": 5.0}}, "fr3_finger_joint1"),
        ({"limits": {**dict.fromkeys(ARM, 5.0), "elbow": 5.0}}, "joint 'elbow'"),
        ({"limits": dict.fromkeys(ARM, 5.0), "armature": {"elbow": 1.0}}, "armature.*joint 'elbow'"),
        ({"limits": {}}, "limits"),
    ],
)
def test_i07_a_missing_limit_refuses_the_file(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        read_parts(ROBOT, cell_file(tmp_path, external_torque=keys))


def test_a_robot_without_masses_is_refused(tmp_path):

    urdf = re.sub(r"<inertial>.*?</inertial>", "", ROBOT.urdf(), flags=re.DOTALL)
    parts = read_parts(ROBOT, cell_file(tmp_path, external_torque={"limits": dict.fromkeys(ARM, 5.0)}), urdf)
    with pytest.raises(ConfigError, match="moves no mass"):
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
