"""The launch file with the real launch_ros, where that is installed (it does not come with the wheels)."""

import os
import signal
import subprocess
import sys

import pytest

from vla_bringup.files import find, share
from vla_bringup.operator import Operator
from vla_contract.robot import load_robot
from vla_node_base.domains import free_domain
from vla_system_tests.processes import marked, new_mark, until
from vla_system_tests.recordings import policy_file, swing

pytest.importorskip("launch_ros")

LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
source = PythonLaunchDescriptionSource(sys.argv[1])
service = LaunchService()
arguments = [word.split(":=", 1) for word in sys.argv[2:]]
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""


def test_demo_launch_starts_the_system_and_ends_with_the_filter(tmp_path):
    robot = load_robot(find("robots", "fr3_sim"))
    policy = policy_file(tmp_path, robot, swing(robot))
    mark = new_mark()
    with free_domain() as domain:
        launch = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(share() / "launch" / "demo.launch.py"), f"policy:={policy}", "seed:=4"],
            env={**os.environ, **mark, "ROS_DOMAIN_ID": str(domain)},
        )
        try:
            with Operator(robot, domain) as operator:
                ready = lambda: operator.policy_state == "READY" and bool(operator.scene and operator.state)  # noqa: E731
                operator.wait(ready, 60.0, lambda: "the launched system is not ready")
                assert operator.scene is not None and operator.scene.seed == 4
                (safety,) = [pid for pid, text in marked(mark).items() if "__node:=vla_safety " in text]
                os.kill(safety, signal.SIGKILL)
                launch.wait(30)
        finally:
            launch.kill()
            launch.wait()
    until(lambda: not marked(mark), 10.0, lambda: f"left over: {marked(mark)}")
