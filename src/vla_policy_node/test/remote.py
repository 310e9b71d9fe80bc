"""What the tests of action spaces and remote policies share: robots, observations, servers, clients of ours."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_contract.chunk import ActionChunk
from vla_contract.errors import InferenceError
from vla_contract.observation import Observation
from vla_contract.robot import Robot, load_robot, read_yaml
from vla_policy_node.backends import Backend, load_backend, locate

BRINGUP = Path(__file__).parents[2] / "vla_bringup"
FR3 = load_robot(BRINGUP / "config" / "robots" / "fr3_sim.yaml")
HOME = np.array(FR3.home)
STAMP = 1_700_000_000_000_000_000
# Options of a client that waits for a busy machine, and knocks again at once: tests kill servers.
QUICK = {"timeout": 20.0, "first_timeout": 20.0, "connect_timeout": 5.0, "shortest_retry": 0.02, "longest_retry": 0.05}


def aloha() -> Robot:
    """A two-armed robot of 14 joints, none of them named as the gripper."""
    joints = tuple(
        f"{side}/{joint}"
        for side in ("left", "right")
        for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
    )
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    cameras = {
        name: {"topic": f"/{name}/image_raw", "frame": name, "width": 640, "height": 480, "rate": 30.0}
        for name in names
    }
    return Robot.model_validate(
        {
            "name": "aloha",
            "description": {"urdf": "aloha.urdf", "srdf": "aloha.srdf", "joint_limits": "aloha.yaml"},
            "base_frame": "base",
            "tool_frame": "tool",
            "joints": joints,
            "home": [0.0] * 14,
            "cameras": cameras,
            "safety": "none",
        }
    )


def observation(robot: Robot = FR3, seed: int = 0, instruction: str = "put the red cube in the tray") -> Observation:
    """Random pictures of the robot's cameras, the robot near home."""
    random = np.random.default_rng(seed)
    return Observation(
        stamp_ns=STAMP + seed,
        images={
            name: random.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
            for name, camera in robot.cameras.items()
        },
        positions=np.array(robot.home) + random.uniform(0, 0.02, len(robot.joints)) * -1,
        velocities=random.normal(0, 0.1, len(robot.joints)),
        instruction=instruction,
    )


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], timeout: float = 90.0) -> None:
    """Waits for a condition of another process."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout} s"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody accepts connections at a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A server process at a port of its own; can be killed, frozen, started again. `patience`: s until it listens."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None, patience: float = 90.0):
        self.port, self._patience = free_port(), patience
        self._command = [part.format(port=self.port) for part in command]
        self._environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        self.process = subprocess.Popen([sys.executable, *self._command], env=self._environment)

        def up() -> bool:
            assert self.process is not None and self.process.poll() is None, "the server ended at once"
            return listens(self.port)

        until(up, self._patience)

    def signal(self, number: int) -> None:
        """Sends a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As power failure does."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def remote_backend(policy: str, port: int, robot: Robot = FR3, **changes: object) -> Backend:
    """The client that a policy file which ships describes, quick, at a port of the loopback interface."""
    content = read_yaml(BRINGUP / "config" / "policies" / f"{policy}.yaml", "policy file")
    options = {**content["options"], "port": port, **QUICK, **changes}
    return load_backend(locate(content["backend"]), Path("."), robot, options)


def answered(backend: Backend, seen: Observation) -> ActionChunk:
    """An inference that goes through once the server is back."""
    chunks: list[ActionChunk] = []

    def attempt() -> bool:
        try:
            chunks.append(backend.infer(seen, None))
        except InferenceError:
            return False
        return True

    until(attempt)
    return chunks[0]
