"""The node as a real process: what it publishes, takes and refuses, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import WrenchStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from vla_msgs.msg import LockstepAck, SceneState
from vla_msgs.srv import ResetScene

from vla_contract.interpolation import Trajectory
from vla_node_base.conversions import image_view, time_msg, to_ns, trajectory_msg
from vla_node_base.lockstep import ACK_QOS, ACK_TOPIC
from vla_node_base.qos import LATCHED
from vla_sim.core import sample_scene

START = [sys.executable, "-c", "from vla_sim.node import main; main()", "--ros-args"]
DEEP = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)  # a busy test machine must not lose any
CLOCK_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PATIENCE = 30.0  # s of wall time for anything


class Client:
    """Everything the node says, and what can be said to it."""

    def __init__(self, robot, domain, *parameters):
        arguments = [part for p in (f"robot:={robot.path}", *parameters) for part in ("-p", p)]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        self.process = subprocess.Popen(
            [*START, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = node = rclpy.create_node("client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(node)
        self.heard = {}
        self.on_clock = lambda now: None
        for name, kind, topic, qos in (
            ("joints", JointState, "/joint_states", DEEP),
            ("wrench", WrenchStamped, "/ft_sensor/wrench", DEEP),
            ("front", Image, "/camera/front/image_raw", DEEP),
            ("wrist", Image, "/camera/wrist/image_raw", DEEP),
            ("front_info", CameraInfo, "/camera/front/camera_info", DEEP),
            ("truth", SceneState, "/vla_sim/ground_truth", DEEP),
            ("description", String, "/robot_description", LATCHED),
            ("diagnostics", DiagnosticArray, "/diagnostics", 10),
        ):
            self.heard[name] = []
            node.create_subscription(kind, topic, self.heard[name].append, qos)
        self.heard["clock"] = []
        node.create_subscription(Clock, "/clock", self._clock, CLOCK_QOS)
        self.commands = node.create_publisher(JointTrajectory, "/joint_trajectory_controller/joint_trajectory", 1)
        self.acks = node.create_publisher(LockstepAck, ACK_TOPIC, ACK_QOS)
        self.resets = node.create_client(ResetScene, "/vla_sim/reset")

    def _clock(self, message):
        self.heard["clock"].append(to_ns(message.clock))
        self.on_clock(self.now)

    @property
    def now(self):
        return self.heard["clock"][-1] if self.heard["clock"] else 0

    def wait(self, condition, what):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"no {what} after {PATIENCE} s"
            assert self.process.poll() is None, f"the node ended: {self.process.stdout.read()}"
            self.executor.spin_once(0.1)

    def pass_time(self, seconds):
        end = self.now + round(seconds * 1e9)
        self.wait(lambda: self.now >= end, f"{seconds} s of simulated time")

    def ready(self):
        self.wait(lambda: self.heard["wrist"] and self.heard["joints"] and self.now, "first picture")
        self.wait(lambda: self.commands.get_subscription_count() and self.resets.service_is_ready(), "discovery")
        return self

    def reset(self, seed):
        future = self.resets.call_async(ResetScene.Request(seed=seed))
        self.wait(future.done, "answer to a reset")
        return future.result()

    def positions(self):
        return np.array(self.heard["joints"][-1].position)

    def diagnostics(self):
        return {pair.key: pair.value for pair in self.heard["diagnostics"][-1].status[0].values}

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        output = self.process.communicate(timeout=10)[0]
        return self.process.returncode, output

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def start(robot, domain):
    clients = []

    def make(*parameters):
        clients.append(Client(robot, domain, *parameters))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def stamps(messages):
    return np.array([to_ns(message.header.stamp) for message in messages])


def test_publishes_what_a_robot_and_its_cameras_publish(start, robot):
    client = start("seed:=3").ready()
    client.pass_time(2.0)
    heard = client.heard
    for name, period in (("joints", 10), ("wrench", 10), ("front", 67), ("wrist", 67), ("truth", 33)):
        gaps = np.diff(stamps(heard[name])) / 1e6
        assert abs(np.median(gaps) - period) < 2, f"{name}: {gaps}"
        assert len(gaps) > 0.9 * 2000 / period, f"{name} lost messages"
    assert heard["description"][0].data == robot.urdf()
    joints = heard["joints"][-1]
    assert tuple(joints.name) == robot.joints and joints.header.frame_id == "base"
    np.testing.assert_allclose(joints.position, robot.home, atol=1e-4)
    assert len(joints.velocity) == len(joints.effort) == 8
    assert heard["wrench"][-1].header.frame_id == "ft_sensor"
    info = heard["front_info"][-1]
    assert (info.width, info.height, info.header.frame_id) == (192, 192, "front_camera_optical_frame")
    assert info.k[0] == info.k[4] == info.p[0] and info.k[2] == 96 and info.k[8] == 1
    assert to_ns(info.header.stamp) in stamps(heard["front"])
    assert 0.3 < float(client.diagnostics()["real_time_factor"]) < 1.1


def test_pictures_are_those_of_the_cell(start, cell):
    client = start("seed:=4").ready()
    cell.reset(4)
    cell.run(0.5)
    for name in ("front", "wrist"):
        message = client.heard[name][-1]
        assert message.header.frame_id == f"{name}_camera_optical_frame"
        difference = np.abs(image_view(message).astype(int) - cell.render(name))
        assert (difference > 40).mean() < 0.005, "but for the outlines of the settling cubes"


def test_moves_by_trajectory_and_refuses_malformed_ones(start, robot):
    client = start().ready()
    goal = np.array(robot.home) + [0.2, 0.1, -0.1, 0.1, 0.1, 0.1, 0.2, -0.02]
    still = np.zeros((2, 8))
    plan = Trajectory([0.5, 0.8], [goal, goal], still, still)
    client.commands.publish(trajectory_msg(plan, robot.joints, client.now + 100_000_000))
    client.wait(lambda: np.abs(client.positions() - goal).max() < 1e-3, "motion to the goal")
    bad = trajectory_msg(plan, [*robot.joints[:-1], "elbow"])
    client.commands.publish(bad)
    client.wait(lambda: client.heard["diagnostics"] and client.diagnostics()["trajectories_refused"] == "1", "refusal")
    np.testing.assert_allclose(client.positions(), goal, atol=1e-3)
    code, output = client.end()
    assert code == 0 and "unknown joint 'elbow'" in output


def test_reset_gives_the_scene_of_the_seed_and_time_goes_on(start, robot):
    client = start().ready()
    before = client.now
    away = np.array(robot.home) + 0.1
    away[7] = 0.02
    client.commands.publish(trajectory_msg(Trajectory([0.3], [away]), robot.joints))
    client.wait(lambda: np.abs(client.positions() - away).max() < 0.01, "motion")
    assert client.reset(9).success
    client.wait(lambda: client.heard["truth"][-1].seed == 9, "ground truth of the scene")
    truth = {item.name: item for item in client.heard["truth"][-1].objects}
    for name, pose in sample_scene(9).cubes.items():
        assert abs(truth[name].pose.position.x - pose.x) < 1e-3 and abs(truth[name].pose.position.y - pose.y) < 1e-3
    assert set(truth) == {"red_cube", "green_cube", "blue_cube", "tray"}
    client.commands.publish(trajectory_msg(Trajectory([60.0], [away]), robot.joints, before))  # of the scene before
    client.wait(lambda: client.heard["diagnostics"] and client.diagnostics()["trajectories_refused"] == "1", "refusal")
    np.testing.assert_allclose(client.positions(), robot.home, atol=1e-3)
    assert client.now > before and (np.diff(client.heard["clock"]) >= 0).all()


def test_lockstep_waits_for_acknowledgements(start):
    client = start("lockstep:=true", "lockstep_slack:=0.04").ready()
    slack = 40_000_000
    client.acks.publish(LockstepAck(participant="tester", stamp=time_msg(client.now)))
    client.wait(lambda: len(client.heard["clock"]) > 3 and len(set(client.heard["clock"][-3:])) == 1, "standstill")
    stood = client.now
    ahead = []

    def acknowledge(now):
        acked = now // 20_000_000 * 20_000_000  # a participant with a cycle of 20 ms
        ahead.append(now - acked)
        client.acks.publish(LockstepAck(participant="tester", stamp=time_msg(acked)))

    client.on_clock = acknowledge
    for messages in client.heard.values():
        messages.clear()
    client.heard["clock"].append(stood)
    acknowledge(stood)
    client.pass_time(3.0)
    assert max(ahead) <= slack
    gaps = np.diff(stamps(client.heard["joints"]))
    assert set(gaps) == {10_000_000}, "every joint state of the simulated time was published"
    pictures = stamps(client.heard["front"])
    assert len(pictures) >= 44 and np.diff(pictures).max() <= 68_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_cleanly(start, number):
    client = start().ready()
    began = time.monotonic()
    code, output = client.end(number)
    assert code == 0 and "Traceback" not in output, output
    assert time.monotonic() - began < 5
    assert not children(client.process.pid)


def test_ends_cleanly_while_it_starts(start):
    client = start()
    client.wait(lambda: client.node.count_publishers("/clock") > 0, "configuration")
    code, output = client.end()
    assert code == 0 and "Traceback" not in output, output


def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        try:
            parent = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1]
        except (OSError, IndexError):
            continue
        if parent == str(pid):
            found.append(entry)
    return found


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "parameter 'robot' of node 'vla_sim' is empty"),
        (["-p", "robot:=/nowhere.yaml"], "'/nowhere.yaml' cannot be read"),
        (["-p", "tick:=7.0"], "tick"),
    ],
)
def test_refuses_a_wrong_configuration(arguments, reason, domain):
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    done = subprocess.run([*START, *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and reason in done.stdout + done.stderr


def test_says_why_it_cannot_draw(robot, domain):
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    program = "from vla_sim.core import rendering; rendering._loads = lambda library: False; " + START[2]
    command = [sys.executable, "-c", program, "--ros-args", "-p", f"robot:={robot.path}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "apt-get install libegl1" in done.stdout + done.stderr
