"""System 2 over system 1: a planner beside the real node."""

import itertools
from contextlib import closing

import pytest
from conftest import write_policy
from listener import STANDS
from rig import Rig
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import PolicyStatus, ReasoningTrace

from vla_node_base.conversions import time_msg
from vla_node_base.domains import free_domain
from vla_node_base.qos import COMMAND
from vla_policy_node.subtasks import LONGEST

Result = ExecuteTask.Result


@pytest.fixture
def rig(robot, recording, tmp_path):
    with free_domain() as domain:
        path = write_policy(tmp_path, backend="listener:load", failures=100_000)
        with closing(Rig(robot.path, path, domain, ["subtask_timeout:=2.0"])) as rig:
            rig.planner = rig.node.create_publisher(ReasoningTrace, "/vla_policy/subtask", COMMAND)
            rig.wait_state(PolicyStatus.READY)
            rig.spin(lambda: rig.planner.get_subscription_count())
            yield rig


def say(rig, subtask, task_id="", stamp_ns=0, text=""):
    message = ReasoningTrace(source="planner", subtask=subtask, task_id=task_id, text=text)
    message.header.stamp = time_msg(stamp_ns)
    rig.planner.publish(message)


def refused(rig, reason, *thought, **fields):
    """Sends a thought until the log says why it is ignored: a reason a second."""

    def said():
        say(rig, *thought, **fields)
        return reason in rig.output()

    rig.spin(said)


def told(rig, sentence):
    """Waits until the policy is told `sentence`."""
    start = rig.output().count(f"told to <{sentence}>")
    rig.spin(lambda: rig.output().count(f"told to <{sentence}>") > start)


def test_the_newest_subtask_is_what_the_policy_is_told(rig):
    refused(rig, "no task is running", "too early")
    handle = rig.send("clear the table")
    told(rig, "clear the table")
    for k in itertools.count():  # a planner thinks at its own pace; the newest thought counts
        say(rig, f"step {k // 10}")
        rig.spin_for(0.05)
        if k == 20:
            break
    told(rig, "step 2")
    task = rig.traces[0].task_id
    refused(rig, "it is for task somebody else's", "of another task", task_id="somebody else's")
    refused(rig, "it is older than the task", "an old thought", stamp_ns=1)
    refused(rig, f"it has {LONGEST + 1} characters, at most {LONGEST} are allowed", "x" * (LONGEST + 1))
    # Its own progress does not end the task; while it holds, chunk after chunk says that it is done.
    say(rig, f"  {STANDS} ", task_id=task, text="nothing is in reach")
    rig.spin(lambda: len(rig.chunks) >= 5)
    assert rig.status().state == PolicyStatus.RUNNING and rig.status().progress == 1.0
    trace = rig.traces[-1]
    assert (trace.subtask, trace.text, trace.instruction) == (STANDS, "nothing is in reach", "clear the table")
    # Silence gives the policy the whole task again.
    told(rig, "clear the table")
    assert rig.traces[-1].subtask == "" and "silent for 2 s" in rig.traces[-1].text
    future = handle.cancel_goal_async()
    rig.spin(future.done)
    assert rig.result(handle)[1].outcome == Result.CANCELED


def test_a_task_ends_by_what_was_told_of_the_whole(rig):
    handle = rig.send(STANDS)
    say(rig, "look around")
    told(rig, "look around")
    say(rig, "", text="seen enough")
    assert rig.result(handle)[1].outcome == Result.SUCCEEDED
    rig.spin(lambda: "SUCCEEDED" in rig.traces[-1].text)
    assert [t.subtask for t in rig.traces if t.text in ("a planner's subtask", "seen enough")] == ["look around", ""]
