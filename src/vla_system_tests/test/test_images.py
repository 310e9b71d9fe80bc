"""Two cameras of 640x480 at 30 Hz arrive without loss between two processes with the shipped transport profile."""

import json
import os
import subprocess
import sys

from vla_bringup.files import share
from vla_bringup.system import DDS_PROFILE_VARIABLES
from vla_node_base.domains import free_domain

FRAMES = 150  # per camera: five seconds


def transmit(domain: int, profile: str) -> dict:
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    for variable in DDS_PROFILE_VARIABLES:
        environment[variable] = profile
    command = [sys.executable, "-m", "vla_system_tests.images"]
    publisher = subprocess.Popen([*command, "publish", "--frames", str(FRAMES)], env=environment)
    try:
        answer = subprocess.run(
            [*command, "subscribe", "--frames", str(FRAMES)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
    finally:
        publisher.kill()
        publisher.wait()
    return json.loads(answer.stdout.splitlines()[-1])


def test_no_image_is_lost_with_the_shipped_profile():
    with free_domain() as domain:
        report = transmit(domain, str(share() / "config" / "fastdds.xml"))
    print(f"shipped profile: {report}")
    assert report["received"] == {"front": FRAMES, "wrist": FRAMES}
