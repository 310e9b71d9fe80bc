"""I4, R8: real processes killed or frozen at random instants of a motion: at rest, in the fence, in time.

The simulator goes on as a controller would. One system serves for all kills; only what was killed is started again.
"""

import os
import random
import signal
import time
from pathlib import Path

from vla_bringup.files import find
from vla_bringup.operator import NotReady
from vla_bringup.session import Session
from vla_contract.errors import VlaError
from vla_contract.robot import load_robot
from vla_safety.proof.tally import Tally
from vla_system_tests.campaign.rounds import system, workspace
from vla_system_tests.campaign.state import Keeper
from vla_system_tests.motion import AT_REST, TAIL, Fence, Motion, Watcher
from vla_system_tests.processes import alive, until
from vla_system_tests.recordings import policy_file, swing

FILTER, POLICY = "vla_safety", "vla_policy"
VICTIMS = ((FILTER,), (FILTER,), (POLICY,), (FILTER, POLICY))
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
PLAN = 1.6  # s: the longest that a chunk reaches beyond its observation
SETTLING = 0.06  # s: joint states come every 10 ms, and the measured arm follows the commanded one
AFTER = 0.7  # s that are watched after the arm must rest
RESTART = 60.0  # s of wall time for a node to be up again


def run_kills(keeper: Keeper, folder: Path) -> None:
    """Kills until the goal is reached. A system that does not come up again is replaced by a new one."""
    fence = workspace()
    robot = load_robot(find("robots", "fr3_sim"))
    files = folder / "kills"
    files.mkdir(parents=True, exist_ok=True)
    policy = str(policy_file(files, robot, swing(robot)))
    failures = 0
    while not keeper.progress.complete:
        try:
            with system(files / "log", policy) as session:
                watcher = Watcher(session.operator)
                while not keeper.progress.complete:
                    keeper.advance(
                        1, _kill(session, watcher, fence, keeper.progress.seed, keeper.progress.done), force=True
                    )
                    failures = 0
        except (NotReady, VlaError, AssertionError) as error:
            failures += 1
            trouble = Tally()
            trouble.counts["systems started anew"] += 1
            keeper.progress.memory.setdefault("troubles", []).append(f"kill {keeper.progress.done}: {str(error)[:500]}")
            keeper.advance(0, trouble, force=True)
            if failures >= 5:
                raise


def _kill(session: Session, watcher: Watcher, fence: Fence, seed: int, number: int) -> Tally:
    chance = random.Random(seed * 1_000_003 + number)
    victims, how = chance.choice(VICTIMS), chance.choice(SIGNALS)
    again = {"part": "kills", "seed": seed, "kill": number, "victims": victims, "signal": how.name}
    tally, operator, runner = Tally(), session.operator, session.runner
    watcher.motion, watcher.commands = Motion(), []
    session.prepare(chance.randrange(2**31))
    operator.execute("swing")
    watcher.wait_moving(60.0)
    watcher.pass_time(chance.uniform(0.0, 2.0))
    watcher.wait_moving(60.0)  # at the turning points of the swing it rests for a moment

    assert watcher.commands, "the arm moves, but no command was heard: the watcher is deaf"
    speed = watcher.speed
    for victim in victims:
        os.kill(runner.pid(victim), how)
    killed = watcher.now_ns
    allowed = TAIL if FILTER in victims else PLAN + TAIL
    watcher.wait_until(killed + round((allowed + AFTER) * 1e9), 90.0)
    rest, promised = watcher.rest_after(killed), watcher.commands[-1][1]
    faults = []
    if rest is None:
        faults.append(f"still moving at {watcher.speed:.3f} rad/s")
    else:
        took = (rest - killed) * 1e-9
        tally.high("s to rest after the filter" if FILTER in victims else "s to rest after the policy", took)
        if took > allowed + SETTLING:
            faults.append(f"at rest after {took:.3f} s, predicted {allowed:.2f} s")
        if FILTER in victims and rest > promised + round(SETTLING * 1e9):
            # Who is stopped while it sends has told some readers and not others. TAIL bounds that message as well.
            tally.counts["at rest by a message that the controller heard and the judge did not"] += 1
    outside = fence.violations(watcher.positions_after(killed))
    if outside:
        tally.counts["fence exits"] += 1
        faults += outside
    tally.counts["kills"] += 1
    tally.counts["at rest"] += rest is not None
    tally.counts["at rest in time and in the fence"] += not faults
    tally.counts[f"{how.name} of {' and '.join(victims)}"] += 1
    tally.high("rad/s at a kill", speed)
    faults += _wake(session, watcher, victims, how, tally)
    for fault in faults:
        tally.violated(fault, again)
    _mend(session, victims, how)
    return tally


def _wake(session: Session, watcher: Watcher, victims: tuple[str, ...], how: signal.Signals, tally: Tally) -> list[str]:
    """A filter that thaws must not move the robot by what it had in mind before."""
    if how != signal.SIGSTOP or victims != (FILTER,):
        return []
    # The policy lives and goes on sending; what is judged is that the first motion is a new, verified one, or none.
    thawed = watcher.now_ns
    os.kill(session.runner.pid(POLICY), signal.SIGSTOP)
    os.kill(session.runner.pid(FILTER), signal.SIGCONT)
    watcher.pass_time(0.5)
    os.kill(session.runner.pid(POLICY), signal.SIGCONT)
    tally.counts["thawed"] += 1
    speeds = [s for t, s in zip(watcher.motion.stamps, watcher.motion.speeds, strict=True) if t > thawed]
    if max(speeds, default=0.0) > AT_REST and watcher.rest_after(thawed) != thawed:
        sent = session.operator.mode
        return [f"it moved at {max(speeds):.3f} rad/s after the filter thawed ({sent})"]
    return []


def _gone(name: str, pid: int) -> None:
    until(lambda: not alive(pid), 5.0, lambda: f"{name} survived SIGKILL")


def _mend(session: Session, victims: tuple[str, ...], how: signal.Signals) -> None:
    """Starts again what was killed, wakes what was frozen, and waits until both work."""
    operator, runner = session.operator, session.runner
    for victim in victims:
        if how == signal.SIGSTOP:
            os.kill(runner.pid(victim), signal.SIGCONT)
            continue
        pid = runner.pid(victim)
        _gone(victim, pid)
        if victim == FILTER:
            operator.state = None
        else:
            operator.status = None
        runner.restart(victim)
    deadline = time.monotonic() + RESTART
    operator.wait(
        lambda: operator.state is not None and operator.policy_state in ("READY", "RUNNING", "WAITING"),
        max(1.0, deadline - time.monotonic()),
        lambda: f"after {how.name} of {victims}: filter {operator.mode_and_reason}, policy {operator.policy_state}",
        session.check,
    )
