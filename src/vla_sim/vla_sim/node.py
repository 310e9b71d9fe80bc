"""The robot cell as a ROS node: what ros2_control and camera drivers would publish and take, simulated."""

import array
import time
from dataclasses import dataclass

import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import WrenchStamped
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.msg import ActionChunk, LockstepAck, ObjectState, SceneState
from vla_msgs.srv import ResetScene

from vla_contract.errors import ConfigError, VlaError
from vla_contract.robot import load_robot
from vla_node_base.conversions import time_msg, to_ns
from vla_node_base.diagnostics import OK, WARN, Diagnostics
from vla_node_base.lockstep import ACK_QOS, ACK_TOPIC
from vla_node_base.node import VlaNode, run
from vla_node_base.parameters import parameter
from vla_node_base.qos import COMMAND, LATCHED, SENSOR
from vla_sim.cameras import CameraThread, quiet_publisher
from vla_sim.core.cell import Cell
from vla_sim.core.controller import JointTrajectoryCommand, TrajectoryPoint, TrajectoryRejected
from vla_sim.core.pacing import LockstepPace, RealTimePace, Schedule
from vla_sim.core.scene import TIMESTEP_NS

START_NS = 1_000_000_000  # the clock starts at 1 s: ROS reads a time of zero as "no time"
LONGEST_BURST_NS = 50_000_000  # of simulated time within one tick, so that commands are seen in between
_CLOCK_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_TRAJECTORY_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_NS = 1_000_000_000


@dataclass(frozen=True)
class Parameters:
    """Of the simulator."""

    robot: str = parameter("", "path of the robot file")
    seed: int = parameter(0, "of the first scene", low=0)
    lockstep: bool = parameter(False, "the clock waits for the acknowledgements of filter and policy")
    lockstep_timeout: float = parameter(
        20.0,
        "in lockstep: wall time after which the clock goes on without who is silent",
        unit="s",
        low=1.0,
        high=600.0,
    )
    lockstep_slack: float = parameter(0.05, "how far the clock runs ahead in lockstep", unit="s", low=0.002, high=1.0)
    unfiltered: bool = parameter(
        False,
        "plays the policy's chunks as they are, without a safety filter, to measure what a filter changes; only here: "
        "refused as soon as another program publishes joint states",
    )
    tick: float = parameter(0.01, "wall time between two advances of the simulation", unit="s", low=0.001, high=0.05)
    truth_rate: float = parameter(30.0, "ground truth, in simulated time", unit="Hz", low=1.0, high=500.0)


class SimNode(VlaNode):
    """Owns the cell and its clock. Everything but drawing happens in the executor's thread."""

    Parameters = Parameters

    def __init__(self) -> None:
        super().__init__("vla_sim")
        self._cameras: CameraThread | None = None
        self._ticking: list[rclpy.timer.Timer] = []
        self._refused = 0

    # -- lifecycle

    def configure(self) -> None:
        params = self.params
        if not params.robot:
            raise ConfigError("parameter 'robot' of node 'vla_sim' is empty; give the path of a robot file")
        robot = load_robot(params.robot)
        self._cell = cell = Cell(robot)
        self._reset(params.seed, START_NS)
        self._pace: RealTimePace | LockstepPace = (
            LockstepPace(round(params.lockstep_slack * _NS), round(params.lockstep_timeout * _NS))
            if params.lockstep
            else RealTimePace()
        )
        if robot.wrench_topic:
            cell.wrench()  # refuses a URDF without the sensor's link
        self._joint_schedule = Schedule(robot.joint_states.rate)
        self._truth_schedule = Schedule(params.truth_rate)
        publisher = quiet_publisher(self)
        self._clock_publisher = publisher(ClockMsg, "/clock", _CLOCK_QOS)
        self._joints = publisher(JointState, robot.joint_states.topic, SENSOR)
        self._wrench = publisher(WrenchStamped, robot.wrench_topic, SENSOR) if robot.wrench_topic else None
        self._truth = publisher(SceneState, "~/ground_truth", LATCHED)
        self._description = publisher(String, "/robot_description", LATCHED)
        self._description.publish(String(data=robot.urdf()))
        self._diagnostics = Diagnostics(self)
        self._cameras = CameraThread(self, cell) if robot.cameras else None
        self.create_subscription(JointTrajectory, robot.controller.topic, self._on_trajectory, _TRAJECTORY_QOS)
        if params.unfiltered:
            self._relay = publisher(JointTrajectory, robot.controller.topic, COMMAND)
            self.create_subscription(ActionChunk, "/vla_policy/chunk", self._on_chunk, COMMAND)
        if params.lockstep:
            self.create_subscription(LockstepAck, ACK_TOPIC, self._on_ack, ACK_QOS)
        self.create_service(ResetScene, "~/reset", self._on_reset)

    def activate(self) -> None:
        if self._cameras is not None:
            self._cameras.start()
        self._report_from = (time.monotonic_ns(), self._cell.time_ns)
        self._said_ns = 0
        self._publish_state()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._ticking = [
            self.create_timer(self.params.tick, self._advance, clock=steady),
            self.create_timer(1.0, self._report, clock=steady),
        ]

    def deactivate(self) -> None:
        for timer in self._ticking:
            self.destroy_timer(timer)
        self._ticking = []
        if self._cameras is not None:
            self._cameras.stop()

    # -- time

    def _advance(self) -> None:
        """Steps as far as the clock may go, and publishes what comes due on the way."""
        cell, wall = self._cell, time.monotonic_ns()
        if isinstance(self._pace, LockstepPace):
            for name in self._pace.drop_silent(wall):
                limit = self._pace.timeout_ns / _NS
                self.get_logger().error(
                    f"lockstep: '{name}' is silent for more than {limit:.0f} s: going on without it"
                )
        # A quarter of a tick ahead in real time: what is due at a tick must not miss it because the timer was early.
        early = 0 if self.params.lockstep else round(self.params.tick * _NS / 4)
        target = min(self._pace.target(wall, cell.time_ns) + early, cell.time_ns + LONGEST_BURST_NS)
        while cell.time_ns + TIMESTEP_NS <= target:
            cell.step(self._steps_until(target))
            self._publish_due()
        if wall - self._said_ns > _NS // 10:  # lockstep stands: a lost message must not end it
            self._publish_clock()

    def _steps_until(self, target: int) -> int:
        """Physics steps to the target or to the next instant at which something is due."""
        instants = [self._joint_schedule.next_ns(), self._truth_schedule.next_ns(), target - TIMESTEP_NS + 1]
        if self._cameras is not None:
            instants.append(self._cameras.next_ns())
        return max(1, -((self._cell.time_ns - min(instants)) // TIMESTEP_NS))

    def _publish_due(self) -> None:
        now = self._cell.time_ns
        if self._cameras is not None:
            self._cameras.capture()
            if self.params.lockstep:
                self._cameras.flush()
        if self._truth_schedule.due(now):
            self._publish_truth()
        if self._joint_schedule.due(now):
            self._publish_state()

    def _publish_state(self) -> None:
        stamp = time_msg(self._cell.time_ns)
        state = self._cell.joint_state()
        joints = JointState(name=list(self._cell.robot.joints))
        joints.header.stamp = stamp
        joints.header.frame_id = self._cell.robot.base_frame
        joints.position = array.array("d", state.positions.tobytes())
        joints.velocity = array.array("d", state.velocities.tobytes())
        joints.effort = array.array("d", state.efforts.tobytes())
        self._joints.publish(joints)
        if self._wrench is not None:
            self._publish_wrench(stamp)
        self._publish_clock()  # last, so that who wakes by the clock finds the newest state

    def _publish_clock(self) -> None:
        self._said_ns = time.monotonic_ns()
        self._clock_publisher.publish(ClockMsg(clock=time_msg(self._cell.time_ns)))

    def _publish_wrench(self, stamp: Time) -> None:
        wrench = self._cell.wrench()
        message = WrenchStamped()
        message.header.stamp = stamp
        message.header.frame_id = "ft_sensor"
        force, torque = message.wrench.force, message.wrench.torque
        force.x, force.y, force.z = wrench.force.tolist()
        torque.x, torque.y, torque.z = wrench.torque.tolist()
        self._wrench.publish(message)

    def _publish_truth(self) -> None:
        cell = self._cell
        message = SceneState(seed=cell.scene.seed, episode=cell.episode)
        message.header.stamp = time_msg(cell.time_ns)
        message.header.frame_id = cell.robot.base_frame
        for name, truth in cell.truth().items():
            item = ObjectState(name=name, held=truth.held, in_tray=truth.in_tray)
            p, q = item.pose.position, item.pose.orientation
            p.x, p.y, p.z = truth.position.tolist()
            q.w, q.x, q.y, q.z = truth.quaternion.tolist()
            message.objects.append(item)
        self._truth.publish(message)

    # -- what comes in

    def _reset(self, seed: int, start_ns: int) -> None:
        self._cell.reset(seed, start_ns)
        self._reset_ns = start_ns

    def _on_trajectory(self, message: JointTrajectory) -> None:
        points = tuple(
            TrajectoryPoint(to_ns(p.time_from_start), p.positions, p.velocities, p.accelerations, p.effort)
            for p in message.points
        )
        stamp = to_ns(message.header.stamp)
        try:
            if 0 < stamp < self._reset_ns:
                raise TrajectoryRejected(
                    f"stamp {stamp / _NS:.3f} s lies before the reset at {self._reset_ns / _NS:.3f} s: plan anew"
                )
            self._cell.command(JointTrajectoryCommand(tuple(message.joint_names), points, stamp))
        except TrajectoryRejected as error:
            self._refused += 1
            self.get_logger().error(f"trajectory refused: {error}", throttle_duration_sec=1.0)

    def _on_chunk(self, message: ActionChunk) -> None:
        """Hands a chunk on as it is; only its last point is brought to rest, as the controller demands."""
        joints = self._cell.robot.joint_states.topic
        if self.count_publishers(joints) > 1:
            self.get_logger().error(
                f"unfiltered: another program publishes on {joints}, this may be a robot: nothing is handed on",
                throttle_duration_sec=1.0,
            )
            return
        trajectory = message.trajectory
        trajectory.header = message.header
        if trajectory.points:
            last = trajectory.points[-1]
            last.velocities = [0.0] * len(last.velocities)
            last.accelerations = [0.0] * len(last.accelerations)
        self._relay.publish(trajectory)

    def _on_ack(self, message: LockstepAck) -> None:
        assert isinstance(self._pace, LockstepPace)
        self._pace.acknowledge(message.participant, to_ns(message.stamp), time.monotonic_ns())
        self._advance()

    def _on_reset(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        try:
            self._reset(int(request.seed), self._cell.time_ns)
            self._publish_truth()
            self._publish_state()
            response.success = True
        except VlaError as error:
            response.success, response.message = False, str(error)
        return response

    # -- health

    def _report(self) -> None:
        wall, sim = time.monotonic_ns(), self._cell.time_ns
        wall_before, sim_before = self._report_from
        self._report_from = (wall, sim)
        factor = (sim - sim_before) / max(1, wall - wall_before)
        values: dict[str, object] = {
            "real_time_factor": factor,
            "mode": "lockstep" if self.params.lockstep else "real time",
            "trajectories_refused": self._refused,
            "episode": self._cell.episode,
        }
        if self._cameras is not None:
            values["pictures"] = self._cameras.drawn
            values["pictures_dropped"] = self._cameras.dropped
            values["seconds_per_picture"] = self._cameras.seconds / max(1, self._cameras.drawn)
        slow = not self.params.lockstep and factor < 0.95
        if isinstance(self._pace, RealTimePace):
            values["slipped_s"] = self._pace.slipped_ns / _NS
        text = f"runs at {factor:.2f} of real time: the machine is too busy" if slow else "runs"
        self._diagnostics.publish(WARN if slow else OK, text, values)


def main() -> None:
    """Entry point of the process."""
    run(SimNode)
