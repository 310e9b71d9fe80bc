"""A tool is mounted while the system runs: by the service and by the command, and seen in the diagnostics."""

import json
import os
import subprocess
import sys

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray

from vla_bringup.files import find
from vla_system_tests.motion import Swinging, Watcher


def test_r11_tool_is_set_while_the_system_runs(start, fence):
    session = start("vla_sim", "vla_safety", safety=str(find("safety", "shared_cell")))
    operator, shown = session.operator, {}

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            if "vla_safety" in status.name:
                shown.update({item.key: item.value for item in status.values})

    operator.node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    watcher, driver = Watcher(operator), Swinging(operator)
    driver.running = False

    def carried(tool: str, payload: str) -> None:
        wanted = {"tool": tool, "payload": payload}
        operator.wait(lambda: wanted.items() <= shown.items(), 20.0, lambda: f"diagnostics show {shown}")

    refused, message = operator.set_tool("pionter")
    assert not refused and "pointer" in message, "a typing error is answered with the names that there are"
    taken, message = operator.set_tool("pointer")
    assert taken, message
    carried("pointer", "none")

    session.prepare(3)
    driver.running = True
    watcher.wait_moving()
    taken, message = operator.set_tool("", "cube")  # while it moves
    assert taken, message
    carried("none", "cube")
    watcher.pass_time(1.0)
    assert operator.mode in ("ARMED", "HOLD")
    assert not fence.violations(np.array(watcher.motion.positions))
    driver.running = False

    environment = {**os.environ, "ROS_DOMAIN_ID": str(session.domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    answer = subprocess.run(
        [sys.executable, "-m", "vla_bringup.cli", "tool", "none", "--json"],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1])["success"]
    carried("none", "none")
