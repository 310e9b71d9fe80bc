"""The arm comes to rest in its fence when the policy node, its worker, or policy and filter die at a random instant."""

import os
import signal

import pytest

from vla_bringup.files import find
from vla_contract.robot import load_robot
from vla_system_tests.motion import TAIL, Watcher
from vla_system_tests.processes import alive, children, until
from vla_system_tests.recordings import policy_file, swing

PLAN = 1.6  # s: the longest that a chunk reaches beyond its observation
STOP = 0.8  # s: the filter's stop at the end of it, on a busy machine
SETTLING = 0.06  # s


@pytest.fixture
def moving(start, tmp_path, chance):
    """A system whose policy node swings the arm: session, watcher, recording."""
    robot = load_robot(find("robots", "fr3_sim"))
    policy = policy_file(tmp_path, robot, swing(robot))
    session = start("vla_sim", "vla_safety", "vla_policy", policy=str(policy))
    session.prepare(1)
    watcher = Watcher(session.operator)
    session.operator.execute("swing")
    watcher.wait_moving()
    watcher.pass_time(chance.uniform(0.0, 2.0))
    watcher.wait_moving()
    return session, watcher, tmp_path / "recording.npz"


@pytest.mark.parametrize(
    ("victims", "number"),
    [
        (("vla_policy",), signal.SIGKILL),
        (("vla_policy",), signal.SIGSTOP),
        (("worker",), signal.SIGKILL),
        (("vla_policy", "vla_safety"), signal.SIGKILL),
    ],
    ids=["policy-killed", "policy-frozen", "worker-killed", "policy-and-filter-killed"],
)
def test_i04_the_arm_rests_in_its_fence(moving, fence, victims, number):
    session, watcher, recording = moving
    runner, operator = session.runner, session.operator
    workers = children(runner.pid("vla_policy"))
    assert workers, "the policy node has no worker process"
    recording.unlink()  # a new worker could not load it, so nothing but a stop can follow
    for victim in victims:
        for pid in workers if victim == "worker" else [runner.pid(victim)]:
            os.kill(pid, number)
    killed = watcher.now_ns
    watcher.wait_until(killed + round((PLAN + STOP + 1.0) * 1e9))

    rest, promised = watcher.rest_after(killed), watcher.commands[-1][1]
    assert rest is not None, f"still moving at {watcher.speed:.3f} rad/s"
    print(f"{victims}: at rest after {(rest - killed) * 1e-9:.3f} s, promised {(promised - killed) * 1e-9:.3f} s")
    assert rest - killed <= (PLAN + STOP) * 1e9
    if "vla_safety" in victims:  # a living filter may end the motion with a newer message than the last one seen here
        assert rest <= killed + (TAIL + SETTLING) * 1e9
    assert not fence.violations(watcher.positions_after(killed))
    if "vla_safety" not in victims:
        assert operator.mode in ("HOLD", "ARMED")
        assert watcher.rest_after(watcher.now_ns - 500_000_000) == watcher.now_ns - 500_000_000
    if number == signal.SIGKILL and "vla_policy" in victims:
        until(lambda: not any(alive(pid) for pid in workers), 5.0, lambda: f"worker {workers} outlives its node")
