"""I15: the filter's process, in motion, beside processes that want its processor for themselves."""

import contextlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from rig import HOME, LIMITS, ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from trajectory_msgs.msg import JointTrajectory  # noqa: E402
from vla_msgs.msg import SafetyState  # noqa: E402

from vla_node_base.conversions import to_ns  # noqa: E402
from vla_node_base.qos import EVENT  # noqa: E402
from vla_safety.core.motion import Motion  # noqa: E402
from vla_safety.proof.oracle import TOUCH, envelope_faults  # noqa: E402
from vla_safety.proof.rig import GRIPPER_SLACK, START, Controller, shipped_fence  # noqa: E402

HOGS = 3
ENOUGH = 20  # messages under load that go on with a motion
FAST = 0.05  # rad/s
TIGHT = "cycle: {lead: 0.12, segment: 0.6}"  # half of the lead to judge in: the others have the processor for longer
AWAY = HOME + np.array([0.3, 0, 0, 0, 0, 0, 0, -0.01])


@contextlib.contextmanager
def hogs(pid):
    """All threads of a process share one processor with others that never rest."""
    cpu = min(os.sched_getaffinity(0))
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {cpu})
    code = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nprint('busy', flush=True)\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        busy = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
            for _ in range(HOGS)
        ]
        for process in busy:
            stack.callback(process.kill)
        assert all(process.stdout.readline() == "busy\n" for process in busy)
        yield
        assert all(process.poll() is None for process in busy)


def motion(message, shift):
    """A command as the filter's own motion, on a clock that is `shift` ns behind."""
    rows = [
        np.array([getattr(p, kind) for p in message.points]) for kind in ("positions", "velocities", "accelerations")
    ]
    stamp = to_ns(message.header.stamp) - shift
    return Motion(np.array([stamp + to_ns(p.time_from_start) for p in message.points]), *rows)


def played(sent):
    """What a controller makes of the commands [(message, ns at which it was sent)]."""
    shift = sent[0][1] - START
    controller, now = Controller(HOME), START
    for message, at in sent:
        controller.play(now, at - shift)
        now = at - shift
        controller.take(motion(message, shift), now)
    controller.play(now, controller.messages[-1][1].end + 10_000_000)
    return controller


def test_i15_a_filter_that_hardly_gets_the_processor_commands_no_step_and_nothing_beyond_limits(bench):
    sent = []
    bench.process.kill()
    bench.process.wait()
    file = bench.tmp_path / "cell.yaml"
    file.write_text(re.sub("cycle: .*", TIGHT, file.read_text()))
    bench.process = subprocess.Popen(bench.command)
    bench.node.create_subscription(
        JointTrajectory,
        ROBOT.controller.topic,
        lambda message, info: sent.append((message, info["source_timestamp"])),
        EVENT,
    )
    bench.mode(SafetyState.DISARMED)
    bench.arm()
    bench.until(lambda: sent, "a first command")
    with hogs(bench.process.pid):
        goals, loaded = [AWAY, HOME], len(sent)

        def enough():
            moving = [message for message, _ in sent[loaded:] if np.abs(message.points[0].velocities).max() > FAST]
            return len(moving) >= ENOUGH

        while not enough():  # whatever stops it under such a load, people go on
            if bench.state.mode == SafetyState.ESTOP:
                bench.call("reset")
            elif bench.state.mode == SafetyState.DISARMED:
                bench.call("arm")
            else:
                bench.send_chunk(goals[0], len(bench.decisions) + 1, duration=1.0)
                known = len(bench.decisions)
                bench.until(lambda n=known: len(bench.decisions) > n, "a decision")
                bench.until(
                    lambda: bench.arrived(goals[0]) or enough() or bench.state.mode != SafetyState.ARMED, "the goal"
                )
                goals.reverse()
    controller = played(sent)
    times, rows = controller.trace.samples()
    assert np.abs(rows[:, 1]).max() > FAST, "it moved"
    faults = envelope_faults(times, rows, LIMITS, GRIPPER_SLACK)
    assert not faults, faults
    assert shipped_fence().deepest(rows[:, 0], rows[:, 1], 1e-3).distance >= -TOUCH
    assert not rows[-1, 1:].any()
