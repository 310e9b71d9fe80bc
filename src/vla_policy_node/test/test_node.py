"""The node as a process, with real topics around it."""

import itertools
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from conftest import write_policy
from diagnostic_msgs.msg import DiagnosticArray
from rig import LockstepRig, Rig
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import PolicyStatus, SafetyState

from vla_contract.interpolation import Trajectory
from vla_node_base.conversions import chunk_from_msg, trajectory_msg
from vla_node_base.domains import free_domain

Result = ExecuteTask.Result


@pytest.fixture
def start(robot, recording, tmp_path):
    stack = ExitStack()

    def make(parameters=(), ready=True, kind=Rig, **policy):
        domain = stack.enter_context(free_domain())
        rig = kind(robot.path, write_policy(tmp_path, **policy), domain, parameters)
        stack.callback(rig.close)
        if ready:
            rig.wait_state(PolicyStatus.READY)
        return rig

    with stack:
        yield make


def test_a_task_from_goal_to_success(start):
    rig = start()
    feedback = []
    handle = rig.send(feedback=lambda m: feedback.append(m.feedback))
    assert handle.accepted
    status, result = rig.result(handle)
    assert status == GoalStatus.STATUS_SUCCEEDED and result.outcome == Result.SUCCEEDED, result.message
    assert "progress >= 0.9 in 3 chunks in a row" in result.message
    assert result.duration.sec + result.duration.nanosec * 1e-9 > 2.5
    messages = [m for _, m in rig.chunks]
    assert [m.sequence for m in messages] == list(range(1, len(messages) + 1)) and len(messages) >= 4
    first = messages[0]
    assert first.policy == "replay:wave" and len(first.policy_digest) == 64 and first.header.frame_id == "base"
    assert first.task_id and first.instruction == "wave" and {m.task_id for m in messages} == {first.task_id}
    assert all(len(p.velocities) == len(p.accelerations) == 3 for m in messages for p in m.trajectory.points)
    assert all(b - a > 0.3e9 for a, b in itertools.pairwise(rig.chunk_stamps()))
    assert rig.markers and len(rig.markers[-1].markers[0].points) == 16
    assert rig.markers[-1].markers[0].header.frame_id == "base"
    assert feedback[-1].chunks >= 3 and feedback[-1].progress > 0.8
    rig.spin(lambda: "SUCCEEDED" in rig.traces[-1].text)  # on another topic than the result
    assert rig.traces[0].text == "task begins"
    last = rig.wait_state(PolicyStatus.READY)
    assert last.splice_step < 1e-6 and last.inference_p95 < 1.0
    assert last.streams == ["camera front", "camera wrist", "joint_states"]


def test_chunks_continue_each_other(start):
    rig = start(options={"cameras": ["front"], "at_end": "again"})
    rig.send()
    rig.spin(lambda: len(rig.chunks) >= 6)
    for (_, before), (_, after) in itertools.pairwise(rig.chunks):
        old, new = chunk_from_msg(before), chunk_from_msg(after)
        shift = (new.stamp_ns - old.stamp_ns) * 1e-9
        start_time = new.trajectory.start
        frozen = np.linspace(start_time, start_time + 0.09, 20)
        a, b = old.trajectory.sample(frozen + shift), new.trajectory.sample(frozen)
        np.testing.assert_allclose(b.positions, a.positions, atol=1e-6)
        np.testing.assert_allclose(b.velocities, a.velocities, atol=1e-5)
        np.testing.assert_allclose(b.accelerations, a.accelerations, atol=1e-3)


def test_one_task_at_a_time_and_cancel(start):
    rig = start()
    running = rig.send()
    second = rig.send("another")
    status, result = rig.result(second)
    assert status == GoalStatus.STATUS_ABORTED and result.outcome == Result.REFUSED
    assert "task 'wave'" in result.message and "cancel it first" in result.message
    rig.spin(lambda: len(rig.chunks) >= 3)
    cancel = running.cancel_goal_async()
    rig.spin(cancel.done)
    assert len(cancel.result().goals_canceling) == 1
    status, result = rig.result(running)
    assert status == GoalStatus.STATUS_CANCELED and result.outcome == Result.CANCELED
    rig.wait_state(PolicyStatus.READY)
    # The last chunk leads to rest, soon.
    last = chunk_from_msg(rig.chunks[-1][1])
    assert np.abs(last.trajectory.velocities[-1]).max() < 1e-9
    assert last.trajectory.end - last.trajectory.start < 1.5
    assert rig.result(rig.send())[1].outcome == Result.SUCCEEDED


def test_refusals(start):
    rig = start()
    assert "the instruction is empty" in rig.result(rig.send("  "))[1].message


def test_timeout(start):
    rig = start(checkpoint="wave.npz")
    _, result = rig.result(rig.send(timeout=0.8))
    assert result.outcome == Result.TIMEOUT and "not done within 0.8 s" in result.message


def test_waits_for_a_camera_by_name(start):
    rig = start()
    rig.cameras.discard("wrist")
    handle = rig.send()
    rig.spin(lambda: rig.status().reason == "waiting for camera wrist: no image yet")
    assert rig.status().state == PolicyStatus.WAITING and not rig.chunks
    rig.cameras.add("wrist")
    assert rig.result(handle)[1].outcome == Result.SUCCEEDED


def test_waits_for_joint_states_in_mid_task(start):
    rig = start()
    handle = rig.send()
    rig.spin(lambda: len(rig.chunks) >= 2)
    rig.joints = False
    waiting = rig.wait_state(PolicyStatus.WAITING)
    assert "joint_states: " in waiting.reason
    count = len(rig.chunks)
    rig.spin(lambda: rig.status().starved >= 1)
    assert len(rig.chunks) == count
    rig.joints = True
    assert rig.result(handle)[1].outcome == Result.SUCCEEDED


def test_wrong_camera_frame_is_named(start):
    rig = start()
    rig.frame = "map"
    rig.send()
    rig.spin(lambda: "camera front: frame 'map', two.yaml says 'front_frame'" in rig.status().reason)
    assert rig.status().state == PolicyStatus.WAITING and not rig.chunks


def test_stops_when_the_filter_is_disarmed(start):
    rig = start()
    rig.safety(SafetyState.ARMED)
    handle = rig.send()
    rig.spin(lambda: len(rig.chunks) >= 2)
    rig.safety(SafetyState.ESTOP, "estop")
    _, result = rig.result(handle)
    assert (
        result.outcome == Result.STOPPED and "in ESTOP (estop)" in result.message and "arm the robot" in result.message
    )


def test_starts_again_from_what_the_controller_plays(start):
    """The filter braked and holds: the next chunk begins where the robot was stopped, not where the plan had got to."""
    rig = start(options={"cameras": [], "at_end": "again"})
    rig.send()
    rig.spin(lambda: len(rig.chunks) >= 3)
    held = rig.position.copy()
    rig.follows = False
    stop = Trajectory([0.0, 0.1], np.stack([held, held]), np.zeros((2, 3)), np.zeros((2, 3)))
    rig.command(trajectory_msg(stop, ("j1", "j2", "grip"), rig.now()))
    count = len(rig.chunks)
    rig.spin(lambda: len(rig.chunks) >= count + 3)
    for _, message in rig.chunks[-2:]:
        chunk = chunk_from_msg(message)
        np.testing.assert_allclose(chunk.positions[0], held, atol=1e-6)
        assert np.abs(chunk.trajectory.velocities[0]).max() < 1e-6


def test_worker_crash_is_survived(start, tmp_path):
    rig = start(backend="naughty:load")
    handle = rig.send(f"crash-once {tmp_path / 'flag'}")
    assert rig.result(handle)[1].outcome == Result.SUCCEEDED
    assert rig.status().worker_restarts == 1


def test_worker_that_fails_for_good_ends_the_task(start):
    rig = start(backend="naughty:load", failures=3)
    _, result = rig.result(rig.send("refuse"))
    assert (
        result.outcome == Result.FAILED
        and "3 inferences in a row failed, the last one: the picture is too dark" in result.message
    )


def test_a_model_that_cannot_load(start):
    rig = start(ready=False, backend="naughty:load", options={"refuse_to_load": True})
    failed = rig.wait_state(PolicyStatus.FAILED)
    assert failed.reason == "the checkpoint is of another year"
    _, result = rig.result(rig.send())
    assert result.outcome == Result.REFUSED and "another year" in result.message


def test_a_misconfigured_node_refuses_to_start(robot, tmp_path):
    with (
        free_domain() as domain,
        closing(Rig(robot.path, write_policy(tmp_path, checkpoint="missing.npz"), domain)) as rig,
    ):
        assert rig.process.wait(timeout=20) == 2
        assert "cannot configure: 'missing.npz' does not exist" in rig.output()


def test_no_orphan_after_sigkill(start):
    from test_worker import gone, wait_for

    rig = start()
    children = _children(rig.process.pid)
    assert len(children) == 1
    rig.process.kill()
    rig.process.wait()
    wait_for(lambda: gone(children[0]), 5.0)


def _children(pid):
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def test_the_node_imports_no_model_runtime(start):
    rig = start()
    maps = Path(f"/proc/{rig.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "pinocchio" not in maps


class TestLockstep:
    PARAMETERS = ("use_sim_time:=true", "lockstep:=true", "simulated_latency:=0.12")

    def start(self, start, instruction):
        rig = start(self.PARAMETERS, kind=LockstepRig, backend="naughty:load")
        rig.spin(lambda: rig._clock.get_subscription_count() >= 2)
        rig.publish()
        handle = rig.client.send_goal_async(ExecuteTask.Goal(instruction=instruction))
        rig.spin(handle.done)
        return rig, handle.result()

    def test_a_chunk_comes_when_its_latency_has_passed(self, start):
        """However fast or slow the inference was: here it takes four times as long as it may."""
        rig, _ = self.start(start, "slow 0.5")
        rig.run_until(lambda: len(rig.chunks) >= 4)
        for received, message in rig.chunks:
            latency = received - (message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)
            assert 0.12e9 <= latency <= 0.19e9
        assert np.diff(rig.chunk_stamps()).tolist() == [420_000_000] * 3
        assert rig.status().starved == 0

    def test_a_task_in_lockstep(self, start):
        rig, handle = self.start(start, "wave")
        result = handle.get_result_async()
        rig.run_until(result.done)
        assert result.result().result.outcome == Result.SUCCEEDED


def test_the_strategy_changes_at_run_time(start):
    from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
    from rcl_interfaces.srv import SetParameters

    rig = start(["strategy:=ensemble"])
    client = rig.node.create_client(SetParameters, "/vla_policy/set_parameters")
    rig.spin(client.service_is_ready)

    def choose(strategy):
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=strategy)
        future = client.call_async(SetParameters.Request(parameters=[Parameter(name="strategy", value=value)]))
        rig.spin(future.done)
        return future.result().results[0]

    assert choose("rtc").successful and choose("").successful
    refused = choose("fastest")
    assert not refused.successful and "known: async, ensemble, rtc, sync" in refused.reason
    assert rig.result(rig.send())[1].outcome == Result.SUCCEEDED


def test_diagnostics_tell_what_the_status_tells_and_how_images_arrive(start):
    rig = start()
    told = []
    rig.node.create_subscription(DiagnosticArray, "/diagnostics", lambda m: told.extend(m.status), 10)
    rig.send()
    rig.spin(lambda: rig.status().inference_p50 > 0)
    told.clear()

    def values():
        return {pair.key: pair.value for status in told[-1:] for pair in status.values}

    rig.spin(lambda: int(values().get("images of front", 0)) > 5)
    figures = {"inference_p50", "inference_p95", "inference_p99", "queue", "starved", "splice_step"}
    assert figures | {"age of camera front", "age of joint_states"} <= values().keys()
    assert values()["gpu_memory"] == "none used"
    assert values()["image delay of wrist"].startswith("p50 ")
