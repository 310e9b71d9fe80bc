"""What moves: a made-up policy that keeps the arm busy, a watcher of its motion, and the fence it must stay in."""

import threading
from dataclasses import dataclass, field

import mujoco
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.msg import ActionChunk as ActionChunkMsg

from vla_bringup.operator import Operator
from vla_contract.chunk import ActionChunk
from vla_contract.interpolation import Trajectory
from vla_contract.robot import Robot, load_robot
from vla_node_base.conversions import chunk_msg, to_ns, trajectory_from_msg
from vla_node_base.lockstep import Lockstep
from vla_node_base.qos import COMMAND, SENSOR
from vla_sim.core.cell import Cell

Array = NDArray[np.float64]

MOVING = 0.15  # rad/s, of the fastest arm joint
AT_REST = 0.02  # rad/s
TAIL = 0.8  # s: the longest that a message to the controller goes on after the filter's last cycle
SWING, PULSE = 0.8, 2.2  # rad, rad/s: the base joint swings to one side and back
FASTEST = SWING * PULSE * 27**0.5 / 8  # rad/s, of the swing: the largest (1 - cos) sin is 27^(1/2) / 4
HORIZON, STEP, PERIOD = 1.6, 0.05, 0.2  # s, of the chunks and between them
STATE_PERIOD = 10_000_000  # ns between joint states


class Swinging:
    """Publishes chunks in the policy's place: one smooth motion, of which each chunk is a window. In lockstep the
    simulator waits for it, as it waits for a policy."""

    def __init__(self, operator: Operator):
        self._robot = operator.robot
        self._publisher = operator.node.create_publisher(ActionChunkMsg, "/vla_policy/chunk", COMMAND)
        self._begin_ns: int | None = None
        self._next_ns = 0
        self._sequence = 0
        self._lockstep = Lockstep(operator.node, True)
        self.running = True
        operator.node.create_subscription(JointState, self._robot.joint_states.topic, self._on_joints, SENSOR)

    def _on_joints(self, message: JointState) -> None:
        now = to_ns(message.header.stamp)
        if self.running and now >= self._next_ns:
            self._next_ns = now + round(PERIOD * 1e9)
            self.publish(now)
        self._lockstep.acknowledge(now)

    def publish(self, now_ns: int) -> None:
        """Sends the window of the motion that begins now."""
        if self._begin_ns is None:
            self._begin_ns = now_ns
        times = np.arange(1, round(HORIZON / STEP) + 1) * STEP
        phase = PULSE * (times + (now_ns - self._begin_ns) * 1e-9)
        positions = np.tile(np.array(self._robot.home), (len(times), 1))
        velocities, accelerations = np.zeros_like(positions), np.zeros_like(positions)
        # (1 - cos)^2 / 4: starts with zero velocity, acceleration and jerk.
        c, s = np.cos(phase), np.sin(phase)
        positions[:, 0] += SWING * (1 - c) ** 2 / 4
        velocities[:, 0] = SWING * PULSE * (1 - c) * s / 2
        accelerations[:, 0] = SWING * PULSE**2 * (s**2 + c - c**2) / 2
        chunk = ActionChunk(
            now_ns,
            self._robot.joints,
            Trajectory(times, positions, velocities, accelerations),
            self._sequence,
            "swinging",
        )
        self._sequence += 1
        self._publisher.publish(chunk_msg(chunk, self._robot.base_frame))


@dataclass
class Motion:
    """Joint states as they were measured: stamps ns, positions and velocities of all joints."""

    stamps: list[int] = field(default_factory=list)
    positions: list[Array] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)  # rad/s, of the fastest arm joint


class Watcher:
    """Records measured motion and every command to the controller. Times are simulated nanoseconds."""

    def __init__(self, operator: Operator):
        self._operator = operator
        self._robot: Robot = operator.robot
        self._arm = [self._robot.joints.index(joint) for joint in self._robot.arm_joints]
        self.motion = Motion()
        self.commands: list[tuple[int, int]] = []  # time received, time at which it has come to rest
        self.leaps: list[tuple[int, float]] = []  # time received, rad from the curve before to this one
        self._curve: tuple[int, Trajectory] | None = None
        self._lock = threading.Lock()
        node = operator.node
        node.create_subscription(JointState, self._robot.joint_states.topic, self._on_joints, SENSOR)
        node.create_subscription(JointTrajectory, self._robot.controller.topic, self._on_command, COMMAND)

    def _on_joints(self, message: JointState) -> None:
        velocities = np.array(message.velocity)
        with self._lock:
            self.motion.stamps.append(to_ns(message.header.stamp))
            self.motion.positions.append(np.array(message.position))
            self.motion.speeds.append(float(np.abs(velocities[self._arm]).max()))

    def _on_command(self, message: JointTrajectory) -> None:
        now = self.now_ns
        begin, curve = to_ns(message.header.stamp) or now, trajectory_from_msg(message)
        end = begin + round(curve.times[-1] * 1e9)
        self.commands.append((now, end))
        if end < now:
            return  # the controller refuses it
        if self._curve is not None:
            at = max(now, begin)
            was, is_ = (c.sample((at - b) * 1e-9).positions[0, self._arm] for b, c in (self._curve, (begin, curve)))
            self.leaps.append((now, float(np.abs(is_ - was).max())))
        self._curve = begin, curve

    @property
    def now_ns(self) -> int:
        """Time of the newest joint state."""
        return self.motion.stamps[-1] if self.motion.stamps else 0

    @property
    def speed(self) -> float:
        """Of the fastest arm joint, rad/s."""
        return self.motion.speeds[-1] if self.motion.speeds else 0.0

    def wait_until(self, stamp_ns: int, timeout: float = 30.0) -> None:
        """Blocks until simulated time has come to `stamp_ns`."""
        self._operator.wait(
            lambda: self.now_ns >= stamp_ns, timeout, lambda: f"simulated time stands at {self.now_ns * 1e-9:.2f} s"
        )

    def fresh_ns(self) -> int:
        """A simulated time that is not before now, whatever the load of the machine: joint states are looked at later
        than they were sent, but no more than `SENSOR.depth` of them wait."""
        self.wait_until(self.now_ns + 1)
        return self.now_ns + SENSOR.depth * STATE_PERIOD

    def wait_moving(self, timeout: float = 20.0) -> None:
        """Blocks until the arm moves."""
        self._operator.wait(
            lambda: self.speed > MOVING,
            timeout,
            lambda: f"the arm does not move; the filter is {self._operator.mode_and_reason}",
        )

    def pass_time(self, duration: float) -> None:
        """Blocks for simulated seconds."""
        self.wait_until(self.now_ns + round(duration * 1e9))

    def rest_after(self, stamp_ns: int) -> int | None:
        """When the arm came to rest for good, counted from `stamp_ns`; None while it moves."""
        with self._lock:
            stamps, speeds = np.array(self.motion.stamps), np.array(self.motion.speeds)
        moving = np.flatnonzero((speeds > AT_REST) & (stamps > stamp_ns))
        if not len(moving):
            return stamp_ns
        return None if moving[-1] + 1 >= len(stamps) else int(stamps[moving[-1] + 1])

    def fastest_after(self, stamp_ns: int) -> float:
        """Of the arm's joints, from one position to the next, rad/s."""
        with self._lock:
            stamps, positions = np.array(self.motion.stamps), np.array(self.motion.positions)
        kept = stamps >= stamp_ns
        steps = np.abs(np.diff(positions[kept][:, self._arm], axis=0)).max(axis=1)
        return float((steps / (np.diff(stamps[kept]) * 1e-9)).max(initial=0.0))

    def longest_leap(self, stamp_ns: int) -> float:
        """From what the controller played to what it was commanded at that instant, rad, since `stamp_ns`."""
        return max((leap for at, leap in self.leaps if at >= stamp_ns), default=0.0)

    def positions_after(self, stamp_ns: int) -> Array:
        """(N, n) measured from `stamp_ns` on."""
        with self._lock:
            kept = [p for t, p in zip(self.motion.stamps, self.motion.positions, strict=True) if t >= stamp_ns]
        return np.array(kept)


class Fence:
    """The table and the workspace box, judged by MuJoCo's own geometry: nothing of the safety filter is used."""

    def __init__(self, robot_file: str, low: tuple[float, float, float], high: tuple[float, float, float]):
        self._cell = Cell(load_robot(robot_file))
        model = self._cell.model
        self._low, self._high = np.array(low), np.array(high)
        self._table = model.geom("table").id
        fixed = {"world", "base", "fr3_link0"}
        loose = {"red_cube", "green_cube", "blue_cube", "tray"}
        self._links = [
            g for g in range(model.ngeom)
            if model.body(int(model.geom_bodyid[g])).name not in fixed | loose
        ]  # fmt: skip

    def violations(self, positions: Array) -> list[str]:
        """What is wrong with joint positions (N, n), in words; every tenth row is looked at, and the last."""
        found = []
        model, data = self._cell.model, self._cell.data
        for row in {*range(0, len(positions), 10), len(positions) - 1}:
            self._cell.pose(positions[row], {})
            for geom in self._links:
                link = model.body(int(model.geom_bodyid[geom])).name
                if mujoco.mj_geomDistance(model, data, geom, self._table, 0.5, None) < 0:
                    found.append(f"{link} is in the table")
                centre = data.geom_xpos[geom]
                if np.any(centre < self._low) or np.any(centre > self._high):
                    found.append(f"{link} is outside the workspace at {centre.round(3)}")
        return sorted(set(found))
