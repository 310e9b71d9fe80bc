"""The arm is led against what stands in the cell: the touch stops it, by the force sensor or by the joints' efforts;
it lets go, and goes back when a person says so."""

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import WrenchStamped
from scipy.interpolate import CubicSpline
from sensor_msgs.msg import JointState
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import SafetyDecision

from vla_bringup.files import find
from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory
from vla_kinematics.tool import ToolKinematics
from vla_node_base.conversions import chunk_msg, to_ns
from vla_node_base.lockstep import Lockstep
from vla_node_base.qos import COMMAND, EVENT, SENSOR
from vla_sim.core.scene import TRAY, TRAY_HEIGHT, TRAY_SIZE, TRAY_WALL
from vla_system_tests.motion import AT_REST, Watcher

SHARED = yaml.safe_load(find("safety", "shared_cell").read_text())
SAMPLE_NS = 10_000_000  # between two joint states, and between two wrenches
SLACK_NS = 50_000_000  # that the clock runs ahead of the filter in lockstep
PRESS = 0.022  # m below the tray's rim that the tool is sent; the table's zone would refuse more
SPEED = 0.06  # m/s
STEP, HORIZON, PERIOD = 0.04, 1.2, 0.2  # s, of the chunks and between them
MOST = 150.0  # N, of a rigid arm on a rigid tray from the decision until the stop is over
LEFT = 15.0  # N, when it rests


class Presser:
    """Publishes chunks in the policy's place: with closed fingers down on the rim of the tray, and into it."""

    def __init__(self, session):
        self._operator, self._robot = session.operator, session.robot
        robot = self._robot
        self._kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self._publisher = session.operator.node.create_publisher(ActionChunkMsg, "/vla_policy/chunk", COMMAND)
        self._lockstep = Lockstep(session.operator.node, True)
        self._curve = self._begin_ns = None
        self._next_ns = self._sequence = 0
        self.forces: list[tuple[int, float]] = []
        node = session.operator.node
        node.create_subscription(JointState, self._robot.joint_states.topic, self._on_joints, SENSOR)
        node.create_subscription(WrenchStamped, self._robot.wrench_topic, self._on_wrench, SENSOR)

    def aim(self, rim):
        """At a point (3,) m on the rim."""
        robot, kinematics = self._robot, self._kinematics
        start, rotation = kinematics.forward(robot.home)
        way = np.array([start, rim + [0, 0, 0.06], rim - [0, 0, PRESS]])
        lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
        s = np.linspace(0, lengths[-1], 120)
        points = np.column_stack([np.interp(s, lengths, way[:, axis]) for axis in range(3)])
        followed = kinematics.follow(robot.home, points, rotation)
        assert followed.residuals.max() < 0.002, "the rim must be within reach"
        positions = followed.positions.copy()
        close = np.clip(1 - s / 0.1, 0, 1)
        positions[:, robot.joints.index(robot.gripper.joint)] *= close**2 * (3 - 2 * close)
        # Slow at both ends, so that the curve begins and ends at rest.
        duration = lengths[-1] / SPEED
        share = s / lengths[-1]
        times = duration * (share + 0.15 * np.sin(2 * np.pi * share) / (2 * np.pi) * -1)
        self._curve = CubicSpline(times, positions, bc_type="clamped")
        self._begin_ns = None

    def height(self, positions):
        """Of the tool above the table, m."""
        return self._kinematics.forward(positions)[0][2]

    def _on_wrench(self, message):
        f = message.wrench.force
        self.forces.append((to_ns(message.header.stamp), float(np.linalg.norm([f.x, f.y, f.z]))))

    def _on_joints(self, message):
        now = to_ns(message.header.stamp)
        if self._curve is not None and now >= self._next_ns:
            self._press(now)
        self._lockstep.acknowledge(now)

    def _press(self, now):
        self._next_ns = now + round(PERIOD * 1e9)
        self._begin_ns = self._begin_ns or now
        times = np.arange(1, round(HORIZON / STEP) + 1) * STEP
        at = np.minimum(times + (now - self._begin_ns) * 1e-9, self._curve.x[-1])
        moving = (at < self._curve.x[-1])[:, None]
        rows = [self._curve(at), self._curve(at, 1) * moving, self._curve(at, 2) * moving]
        chunk = ActionChunk(now, self._robot.joints, Trajectory(times, *rows), self._sequence, "presser")
        self._sequence += 1
        self._publisher.publish(chunk_msg(chunk, self._robot.base_frame))


@pytest.mark.parametrize(("sense", "other"), [("contact", "external_torque"), ("external_torque", "contact")])
def test_i13_a_touch_stops_and_latches_within_two_samples(start, tmp_path, sense, other):
    safety = tmp_path / "shared.yaml"
    safety.write_text(yaml.safe_dump({key: value for key, value in SHARED.items() if key != other}))
    session = start("vla_sim", "vla_safety", safety=str(safety))
    operator = session.operator
    decisions: list[SafetyDecision] = []
    operator.node.create_subscription(SafetyDecision, "/vla_safety/decision", decisions.append, EVENT)
    watcher, presser = Watcher(operator), Presser(session)
    session.prepare(2)
    tray = next(item.pose for item in operator.scene.objects if item.name == TRAY)
    yaw = 2 * np.arctan2(tray.orientation.z, tray.orientation.w)
    middle = TRAY_SIZE / 2 - TRAY_WALL
    presser.aim(np.array([tray.position.x + middle * np.cos(yaw), tray.position.y + middle * np.sin(yaw), TRAY_HEIGHT]))

    operator.wait(
        lambda: operator.mode == "ESTOP", 60.0, lambda: f"{operator.mode}; {[(d.reason, d.subject) for d in decisions]}"
    )
    reason = {"contact": "contact_force", "external_torque": "external_torque"}[sense]
    stop = next(d for d in decisions if d.verdict == SafetyDecision.STOPPED and d.reason == reason)
    stopped = to_ns(stop.header.stamp)
    watcher.pass_time(1.0)
    assert stop.value > stop.limit and stop.remedy

    stamps, forces = (np.array(column) for column in zip(*presser.forces, strict=True))
    felt = int(np.argmax(forces > 5.0))
    if sense == "contact":
        # The value that it stopped for tells which sample it was, however busy the machine is.
        first = int(np.argmax((forces[:-1] > stop.limit) & (forces[1:] > stop.limit)))
        assert np.argmin(np.abs(forces - stop.value)[: first + 10]) == first + 1, (
            first,
            stop.value,
            forces[first:][:10],
        )
        felt = first + 1
    assert -SLACK_NS <= stopped - stamps[felt] <= 3 * SAMPLE_NS + SLACK_NS
    # From the decision on: the first instant of an impact, one sample of up to 270 N, is over before anything can stop.
    pressed = forces[stamps > stopped]
    assert pressed.max() < MOST, pressed.max()
    assert presser.forces[-1][1] < LEFT, "it must let go of what it leans on"
    rest = watcher.rest_after(stopped)
    assert rest is not None and rest - stopped < 0.6e9

    refused, message = operator.trigger("arm")
    assert not refused and message, "latched"
    assert operator.mode == "ESTOP"
    assert watcher.speed < AT_REST

    # A person leads it out: up again, and never back against the tray.
    released, height = len(presser.forces), presser.height(watcher.motion.positions[-1])
    for _ in range(80):
        led, message = operator.trigger("retreat")
        if presser.height(watcher.motion.positions[-1]) > height + 0.03:
            break
        assert led, message
        watcher.pass_time(0.1)
    assert presser.height(watcher.motion.positions[-1]) > height + 0.03
    assert max(force for _, force in presser.forces[released:]) < LEFT
    assert operator.mode == "ESTOP"
