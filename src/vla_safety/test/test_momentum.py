"""External torque from joint efforts: the momentum observer, its law and its limits; MuJoCo is what pushes."""

import math
import re

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rig import BRINGUP, HOME, ROBOT, START
from test_force import TICK, at, cell_file

from vla_contract.errors import ConfigError
from vla_kinematics import ToolKinematics
from vla_safety.building import read_parts
from vla_safety.core.config import TorqueLimits
from vla_safety.core.dynamics import Dynamics, Momentum
from vla_safety.core.observer import MomentumObserver, TorqueMonitor
from vla_safety.core.urdf import Load, parse_urdf
from vla_safety.core.watchdogs import Instant
from vla_safety.monitors import make_monitors
from vla_sim.core.cell import Cell
from vla_sim.core.controller import JointTrajectoryCommand
from vla_sim.core.expert import Expert, Pose, Situation

ARM = ROBOT.arm_joints
ARMATURE = dict.fromkeys(ROBOT.joints, 0.1)  # kg m^2, of the simulated cell


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
