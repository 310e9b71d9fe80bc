"""What a killed process leaves in shared memory is freed; what a living one holds is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_node_base.abandoned import free_abandoned
from vla_node_base.domains import free_domain

NODE = """
import rclpy, sys
rclpy.init(); node = rclpy.create_node("segment_owner"); print("up", flush=True); sys.stdin.read()
"""


def segments_of(pid):
    """The locks of its segments, from the files that it holds open."""
    held = {Path(os.readlink(link)) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {path for path in held if path.match("/dev/shm/fastrtps_????????????????_el")}


@pytest.fixture
def owner():
    """A process with a segment; and the locks of what it made."""
    with free_domain() as domain:
        process = subprocess.Popen(
            [sys.executable, "-c", NODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"ROS_DOMAIN_ID": str(domain)},
        )
        process.stdout.readline()
        yield process, segments_of(process.pid)
        process.kill()
        process.wait()


def age(paths):
    """As if they had been made a minute ago."""
    for path in paths:
        os.utime(path, (time.time() - 60, time.time() - 60))


def test_only_what_nobody_holds_is_freed(owner):
    process, made = owner
    assert made, "Fast DDS keeps its segments elsewhere now"
    age(made)
    free_abandoned()
    assert all(path.exists() for path in made)
    process.send_signal(signal.SIGKILL)
    process.wait()
    free_abandoned()
    assert not any(path.exists() or path.with_name(path.name.removesuffix("_el")).exists() for path in made)


def test_what_is_young_or_of_another_name_stays(tmp_path):
    young, other = tmp_path / "fastrtps_0123456789abcdef_el", tmp_path / "fastrtps_port7411_el"
    for path in (young, other):
        path.touch()
    os.utime(other, (0, 0))
    assert free_abandoned(tmp_path) == 0
    assert young.exists() and other.exists()


def test_the_size_of_what_was_freed_is_told(tmp_path):
    lock, segment = tmp_path / "fastrtps_0123456789abcdef_el", tmp_path / "fastrtps_0123456789abcdef"
    lock.touch()
    segment.write_bytes(bytes(1000))
    os.utime(lock, (0, 0))
    assert free_abandoned(tmp_path) == 1000
    assert not lock.exists() and not segment.exists()
    assert free_abandoned(tmp_path / "absent") == 0
