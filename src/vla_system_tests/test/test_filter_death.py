"""The arm stops by itself, in time and in its fence, when the safety filter dies or freezes at a random instant."""

import os
import random
import signal

import pytest

from vla_bringup.session import Session
from vla_system_tests.motion import FASTEST, TAIL, Fence, Swinging, Watcher

IN_FLIGHT = FASTEST * 2 * 0.04  # rad: one message is in the middleware while the process is frozen, 40 ms ahead
SETTLING = 0.06  # s: joint states come every 10 ms, and the measured arm follows the commanded one


def swinging(start, chance: random.Random, lockstep: bool = True) -> tuple[Session, Swinging, Watcher]:
    session = start("vla_sim", "vla_safety", lockstep=lockstep)
    session.prepare(1)
    watcher, driver = Watcher(session.operator), Swinging(session.operator)
    watcher.wait_moving()
    watcher.pass_time(chance.uniform(0.0, 1.5))
    watcher.wait_moving()  # at the turning points of the swing it rests for a moment
    return session, driver, watcher


def assert_at_rest(watcher: Watcher, fence: Fence, killed_ns: int) -> None:
    """The arm rests in time, and has stayed in its fence.

    When the last command said that it would, or, where the filter died while it sent the next and has told the
    controller but not this one, within the longest that any message goes on.
    """
    watcher.wait_until(killed_ns + round((TAIL + 1.0) * 1e9))
    promised = watcher.commands[-1][1]
    rest = watcher.rest_after(killed_ns)
    assert rest is not None, f"still moving at {watcher.speed:.3f} rad/s"
    print(f"at rest after {(rest - killed_ns) * 1e-9:.3f} s, promised {(promised - killed_ns) * 1e-9:.3f} s")
    assert promised - killed_ns <= TAIL * 1e9
    assert rest <= killed_ns + (TAIL + SETTLING) * 1e9
    assert not fence.violations(watcher.positions_after(killed_ns))


@pytest.mark.parametrize("lockstep", [True, True, False], ids=["first", "second", "real-time"])
def test_i04_r08_sigkill_in_mid_chunk_ends_at_rest_in_time(start, fence, chance, lockstep):
    session, _, watcher = swinging(start, chance, lockstep)
    os.kill(session.runner.pid("vla_safety"), signal.SIGKILL)
    assert_at_rest(watcher, fence, watcher.now_ns if lockstep else watcher.fresh_ns())


def test_i04_a_frozen_filter_stops_and_does_not_resume_by_itself(start, fence, chance):
    session, driver, watcher = swinging(start, chance)
    pid = session.runner.pid("vla_safety")
    os.kill(pid, signal.SIGSTOP)
    driver.running = False  # what waits in the filter's queue is stale when it wakes
    killed = watcher.now_ns
    assert_at_rest(watcher, fence, killed)
    thawed = watcher.now_ns
    os.kill(pid, signal.SIGCONT)
    watcher.pass_time(1.0)
    assert watcher.rest_after(thawed) == thawed, "it moved although no chunk came"
    assert not fence.violations(watcher.positions_after(killed))


def test_i15_a_filter_that_was_frozen_shortly_does_not_judge_by_an_old_clock(start, fence, chance):
    """It wakes with old chunks and an old simulated clock in its queues: no motion may come of them. What was in the
    middleware when it froze does arrive, and is a message late."""
    session, driver, watcher = swinging(start, chance, lockstep=False)
    pid = session.runner.pid("vla_safety")
    for pause in (0.15, 0.4, 0.7):
        frozen = watcher.now_ns
        os.kill(pid, signal.SIGSTOP)
        watcher.pass_time(pause)
        os.kill(pid, signal.SIGCONT)
        driver.running = False
        watcher.pass_time(1.5)
        leap = watcher.longest_leap(frozen)
        print(f"frozen for {pause} s, longest leap {leap:.4f} rad")
        assert leap <= IN_FLIGHT, "it was commanded where it would have been by the old clock"
        driver.running = True
        watcher.wait_moving()
    assert not fence.violations(watcher.positions_after(0))


def test_r10_a_silent_policy_ends_at_rest(start, fence, chance):
    """Chunks that stop coming: the plan is played to its end, with a stop; then the filter holds."""
    session, driver, watcher = swinging(start, chance)
    driver.running = False
    silent = watcher.now_ns
    session.operator.wait(
        lambda: session.operator.mode == "HOLD", 20.0, lambda: f"the filter is {session.operator.mode_and_reason}"
    )
    watcher.pass_time(0.5)
    rest = watcher.rest_after(silent)
    assert rest is not None and rest - silent < 3.0e9
    assert not fence.violations(watcher.positions_after(silent))
