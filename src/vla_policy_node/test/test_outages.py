"""What the node does, and says, while its policy's server or its worker is away. Real processes, real topics."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import CAMERAS, JOINTS, write_policy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from remote import Server
from rig import Rig
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import PolicyStatus

from vla_node_base.conversions import chunk_from_msg
from vla_node_base.domains import free_domain
from vla_policy_node.core.model_inputs import robot_layout

SUCCEEDED, TIMEOUT = ExecuteTask.Result.SUCCEEDED, ExecuteTask.Result.TIMEOUT


class Watched(Rig):
    """A rig that hears /diagnostics too."""

    def _begin(self):
        super()._begin()
        self.told = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", lambda m: self.told.extend(m.status), 10)

    def diagnosis(self):
        """Level, words and values of the newest."""
        newest = self.told[-1] if self.told else DiagnosticStatus(level=DiagnosticStatus.STALE)
        return newest.level, newest.message, {pair.key: pair.value for pair in newest.values}

    def spin_to(self, level, *words, timeout=30.0):
        """Until status and diagnostics say so."""
        self.spin(lambda: self.statuses and all(word in self.status().reason for word in words), timeout)
        self.told.clear()
        self.spin(lambda: self.diagnosis()[0] == level and all(word in self.diagnosis()[1] for word in words), timeout)

    def rest(self):
        """Until the plan is over; where the robot is then."""
        self.spin(lambda: (self.now() - self.plan.stamp_ns) * 1e-9 > self.plan.trajectory.end)
        position, velocity = self.state(self.now())
        assert np.abs(velocity).max() < 1e-9
        return position.copy()


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(stack, robot, recording, tmp_path):
    def make(**policy):
        domain = stack.enter_context(free_domain())
        rig = Watched(robot.path, write_policy(tmp_path, **policy), domain)
        stack.callback(rig.close)
        return rig

    return make


@pytest.fixture
def server(stack, robot, recording, tmp_path):
    """`vla serve` with the recorded motion."""
    (tmp_path / "served").mkdir()
    served = write_policy(tmp_path / "served", checkpoint=str(recording))
    process = Server("-m", "vla_policy_node.serve", str(robot.path), str(served), "--port", "{port}")
    stack.callback(process.kill)
    return process


@pytest.fixture
def remote(start, robot):
    """The node with a client of the server; every option that can be left out is."""

    def make(port):
        options = {
            "port": port,
            "inputs": robot_layout(robot, tuple(CAMERAS)),
            "action": {"space": "joint_position", "joints": list(JOINTS)},
            "horizon": 16,
            "dt": 0.1,
        }
        return start(backend="openpi", checkpoint=".", options=options)

    return make


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_a_server_that_goes_in_mid_task_costs_a_rest_and_no_more(remote, server, outage):
    rig = remote(server.port)
    rig.wait_state(PolicyStatus.READY)
    address = f"ws://127.0.0.1:{server.port}"
    handle = rig.send(timeout=300.0)
    rig.spin(lambda: len(rig.chunks) >= 3)
    server.kill() if outage == "killed" else server.signal(signal.SIGSTOP)

    rig.spin_to(DiagnosticStatus.WARN, f"waiting for {address}", "next attempt in")
    assert rig.status().state == PolicyStatus.WAITING
    count, held = len(rig.chunks), rig.rest()
    # Far more observations are left without an answer than failures end a task.
    rig.spin(lambda: int(rig.diagnosis()[2].get("unanswered", 0)) > 20, timeout=60.0)
    assert len(rig.chunks) == count and rig.status().starved >= 1, "nothing is commanded meanwhile"
    _, words, values = rig.diagnosis()
    assert values["server"] == address and address in words and int(values["server_outages"]) >= 1

    server.start() if outage == "killed" else server.signal(signal.SIGCONT)
    rig.spin(lambda: len(rig.chunks) > count)
    first = chunk_from_msg(rig.chunks[count][1])
    np.testing.assert_allclose(first.positions[0], held, atol=1e-6)
    status, result = rig.result(handle)
    assert result.outcome == SUCCEEDED, result.message
    assert rig.status().worker_restarts == 0
    rig.spin(lambda: rig.status().state == PolicyStatus.READY and rig.status().reason == "")
    rig.spin_to(DiagnosticStatus.OK, "")
    assert rig.diagnosis()[2]["server_trouble"] == "none"
    phases = [trace.text for trace in rig.traces]
    assert sum("next attempt" in phase for phase in phases) < 10, "not a trace for every figure that changes"


def test_a_server_that_comes_and_goes_is_seen_while_nobody_gives_a_task(remote, server):
    server.kill()
    rig = remote(server.port)
    address = f"ws://127.0.0.1:{server.port}"
    for _ in range(2):
        rig.wait_state(PolicyStatus.WAITING)
        rig.spin_to(DiagnosticStatus.WARN, f"waiting for {address}", "cannot connect", "next attempt in")
        assert rig.status().state == PolicyStatus.WAITING and not rig.status().task_id
        server.start()
        rig.wait_state(PolicyStatus.READY)
        rig.spin_to(DiagnosticStatus.OK, "")
        assert rig.diagnosis()[1] == "ready" and rig.status().reason == ""
        server.kill()


def test_the_task_s_own_time_out_ends_it_while_the_server_is_away(remote, server):
    server.kill()
    rig = remote(server.port)
    rig.wait_state(PolicyStatus.WAITING)
    _, result = rig.result(rig.send(timeout=2.0))
    assert result.outcome == TIMEOUT and not rig.chunks
    assert f"no answer at the end: ws://127.0.0.1:{server.port}" in result.message


def _children(pid):
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def test_the_robot_rests_while_the_worker_starts_again(start, tmp_path):
    hold = tmp_path / "hold"
    rig = start(backend="naughty:load", options={"cameras": ["front"], "hold": str(hold)})
    rig.wait_state(PolicyStatus.READY)
    handle = rig.send(timeout=300.0)
    rig.spin(lambda: len(rig.chunks) >= 3)
    hold.touch()
    (worker,) = _children(rig.process.pid)
    os.kill(worker, signal.SIGKILL)

    rig.spin_to(DiagnosticStatus.WARN, "starts again in", "killed by signal 9")
    assert rig.status().state == PolicyStatus.LOADING
    count, held = len(rig.chunks), rig.rest()
    rig.spin(lambda: rig.status().queue < 0)
    assert len(rig.chunks) == count, "nothing is commanded meanwhile"

    hold.unlink()
    rig.spin(lambda: len(rig.chunks) > count)
    np.testing.assert_allclose(chunk_from_msg(rig.chunks[count][1]).positions[0], held, atol=1e-6)
    assert rig.result(handle)[1].outcome == SUCCEEDED
    assert rig.status().worker_restarts == 1


def test_a_worker_that_is_down_for_good_is_an_error(start):
    rig = start(backend="naughty:load", options={"refuse_to_load": True})
    rig.spin_to(DiagnosticStatus.ERROR, "the checkpoint is of another year")
    assert rig.status().state == PolicyStatus.FAILED


def test_a_missing_camera_is_a_warning(start):
    rig = start()
    rig.wait_state(PolicyStatus.READY)
    rig.spin_to(DiagnosticStatus.OK, "")
    rig.cameras.discard("wrist")
    rig.send()
    rig.spin_to(DiagnosticStatus.WARN, "waiting for camera wrist: ")


def test_a_chunk_that_ends_early_is_reported(start):
    rig = start(backend="naughty:load")
    rig.wait_state(PolicyStatus.READY)
    rig.send("shorten")
    words = "the answer leaves the robot's reach at point 4"
    rig.spin_to(DiagnosticStatus.WARN, words)
    assert rig.status().state == PolicyStatus.RUNNING and words in rig.diagnosis()[2]["shortened"]


def test_why_paths_are_not_drawn_is_said_once(start):
    rig = start(backend="naughty:load", options={"cameras": ["front"], "blind": True})
    rig.wait_state(PolicyStatus.READY)
    assert rig.result(rig.send())[1].outcome == SUCCEEDED
    assert len(rig.chunks) > 2 and not rig.markers
    assert rig.output().count("vla_policy/markers stay empty: paths cannot be drawn: the worker's interpreter") == 1
    assert rig.diagnosis()[2]["paths"].startswith("cannot be drawn: the worker's interpreter")
