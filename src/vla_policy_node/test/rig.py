"""Everything around the policy node, in one thread: a robot that follows its chunks, cameras, and a client."""

import array
import os
import signal
import subprocess
import sys
import time

import numpy as np
import rclpy
from conftest import CAMERAS, JOINTS
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock as Clock_
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk, LockstepAck, PolicyStatus, ReasoningTrace, SafetyState

from vla_node_base.conversions import chunk_from_msg, duration_msg, image_msg, time_msg, to_ns
from vla_node_base.lockstep import ACK_QOS, ACK_TOPIC
from vla_node_base.qos import COMMAND, EVENT, LATCHED, SENSOR

STEADY = Clock(clock_type=ClockType.STEADY_TIME)


class Rig:
    """Publishes streams in real time; the robot is exactly where the newest chunk says."""

    def __init__(self, robot_file, policy_file, domain, parameters=()):
        self.domain = domain
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("rig", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.chunks, self.statuses, self.traces, self.markers = [], [], [], []
        self.plan, self.follows, self.position = None, True, np.array([0.0, 0.5, 0.04])
        self.cameras, self.joints, self.frame, self.shade = set(CAMERAS), True, "", 0
        subscribe = self.node.create_subscription
        subscribe(ActionChunk, "/vla_policy/chunk", self._on_chunk, COMMAND)
        subscribe(PolicyStatus, "/vla_policy/status", self.statuses.append, LATCHED)
        subscribe(ReasoningTrace, "/vla_policy/reasoning", self.traces.append, EVENT)
        subscribe(MarkerArray, "/vla_policy/markers", self.markers.append, LATCHED)
        self._images = {n: self.node.create_publisher(Image, f"/camera/{n}/image_raw", SENSOR) for n in CAMERAS}
        self._states = self.node.create_publisher(JointState, "/joint_states", SENSOR)
        self._safety = self.node.create_publisher(SafetyState, "/vla_safety/state", LATCHED)
        self._commands = self.node.create_publisher(
            JointTrajectory, "/joint_trajectory_controller/joint_trajectory", COMMAND
        )
        self.client = ActionClient(self.node, ExecuteTask, "/vla_policy/execute_task")
        self._begin()
        arguments = ["-p", f"robot:={robot_file}", "-p", f"policy:={policy_file}"]
        for parameter in parameters:
            arguments += ["-p", parameter]
        here = os.path.dirname(os.path.abspath(__file__))
        path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
        self.log = open(os.path.join(os.path.dirname(robot_file), "node.log"), "w+")  # noqa: SIM115, closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vla_policy_node.node", "--ros-args", *arguments],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain), "PYTHONPATH": path},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def _begin(self):
        self.node.create_timer(0.01, self._publish_joints, clock=STEADY)
        self.node.create_timer(1 / 15, self._publish_images, clock=STEADY)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        self.client.destroy()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def output(self):
        self.log.flush()
        with open(self.log.name) as file:
            return file.read()

    # -- the world

    def now(self):
        return self.node.get_clock().now().nanoseconds

    def _on_chunk(self, message):
        self.chunks.append((self.now(), message))
        self.plan = chunk_from_msg(message)

    def state(self, now):
        if self.plan is None or not self.follows:
            return self.position, np.zeros(3)
        seconds = (now - self.plan.stamp_ns) * 1e-9
        if seconds < self.plan.trajectory.start:
            return self.position, np.zeros(3)
        samples = self.plan.trajectory.sample(seconds)
        self.position = samples.positions[0]
        return self.position, samples.velocities[0]

    def _publish_joints(self):
        now = self.now()
        position, velocity = self.state(now)
        if not self.joints:
            return
        message = JointState(name=["other", *JOINTS[::-1]])
        message.header.stamp = time_msg(now)
        message.position = array.array("d", [9.0, *position[::-1]])
        message.velocity = array.array("d", [0.0, *velocity[::-1]])
        self._states.publish(message)

    def _publish_images(self):
        now = self.now()
        self.shade = (self.shade + 1) % 256
        for name in self.cameras:
            height, width = CAMERAS[name]
            pixels = np.full((height, width, 3), self.shade, np.uint8)
            self._images[name].publish(image_msg(pixels, self.frame or f"{name}_frame", now))

    def safety(self, mode, reason=""):
        self._safety.publish(SafetyState(mode=mode, reason=reason))

    def command(self, message):
        self._commands.publish(message)

    # -- what tests do

    def spin(self, until, timeout=30.0):
        deadline = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < deadline, f"timed out; the node said:\n{self.output()}"
            assert self.process.poll() is None, f"the node ended:\n{self.output()}"
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, duration):
        deadline = time.monotonic() + duration
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def status(self):
        return self.statuses[-1] if self.statuses else None

    def wait_state(self, state, timeout=30.0):
        self.spin(lambda: self.statuses and self.statuses[-1].state == state, timeout)
        return self.statuses[-1]

    def send(self, instruction="wave", timeout=0.0, feedback=None):
        self.spin(self.client.server_is_ready)
        goal = ExecuteTask.Goal(instruction=instruction, timeout=duration_msg(timeout))
        future = self.client.send_goal_async(goal, feedback_callback=feedback)
        self.spin(future.done)
        return future.result()

    def result(self, handle, timeout=30.0):
        future = handle.get_result_async()
        self.spin(future.done, timeout)
        return future.result().status, future.result().result

    def chunk_stamps(self):
        return [to_ns(message.header.stamp) for _, message in self.chunks]


class LockstepRig(Rig):
    """Its clock advances by `step` and waits for the node's acknowledgement, as the simulator's does."""

    STEP = 10_000_000  # ns

    def _begin(self):
        self.time, self.acknowledged = 1_000_000_000, -1
        self._clock = self.node.create_publisher(Clock_, "/clock", SENSOR)
        self.node.create_subscription(LockstepAck, ACK_TOPIC, self._on_ack, ACK_QOS)

    def _on_ack(self, message):
        self.acknowledged = max(self.acknowledged, to_ns(message.stamp))

    def now(self):
        return self.time

    def publish(self):
        self._publish_joints()
        if self.time % 70_000_000 == 0:
            self._publish_images()
        self._clock.publish(Clock_(clock=time_msg(self.time)))

    def advance(self, timeout=10.0):
        """One step, when everything due before it is done. Says whether the node let it."""
        deadline = time.monotonic() + timeout
        while self.acknowledged < self.time:
            if time.monotonic() > deadline:
                return False
            self.executor.spin_once(timeout_sec=0.02)
        self.time += self.STEP
        self.publish()
        return True

    def run_until(self, condition, steps=1000):
        for _ in range(steps):
            if condition():
                return
            assert self.advance(), f"lockstep stands at {self.time}:\n{self.output()}"
        raise AssertionError(f"not in {steps} steps:\n{self.output()}")
