"""A whole simulated system under control: started, ready, and asked to do trials.

Demo, evaluation and system tests use it.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vla_bringup.episode import Episode
from vla_bringup.judge import Verdict, judge
from vla_bringup.operator import NotReady, Operator, Task, TaskResult
from vla_bringup.runner import Runner
from vla_bringup.system import System
from vla_bringup.watch import Reasons
from vla_contract.robot import load_robot
from vla_node_base.domains import free_domain

READY_TIMEOUT = 120.0  # s; a cold disk and a busy machine included
ARM_TIMEOUT = 15.0  # s
STALL_TIMEOUT = 30.0  # s of wall time without any simulated time passing
AT_REST = 0.02  # rad/s and m/s, of the fastest joint
FRESH = 0.25  # s simulated after a reset: longer than the filter takes a joint state for fresh
SETTLE_TIME = 2.0  # s simulated, for a released cube to come to rest

Tick = Callable[["Session", Task], None]


@dataclass(frozen=True)
class TrialResult:
    """What the policy said, what the ground truth says, and how it went."""

    task: TaskResult
    verdict: Verdict
    episode: Episode


class Session:
    """A system beside the simulator, in a ROS domain of its own. Use it as a context manager.

    Args:
        system: what to start, e.g. `demo_system(…)` or a part of it.
        log_folder: for the logs of the nodes.
        domain: ROS domain; None: a free one.
        say: gets one line per phase of the start.
    """

    def __init__(
        self,
        system: System,
        log_folder: Path,
        *,
        domain: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.robot = load_robot(str(system[0].parameters["robot"]))
        self.system = system
        self.log_folder = log_folder
        self.domain = domain if domain is not None else -1
        self.runner: Runner
        self.operator: Operator
        self._say = say
        self._reasons = Reasons(say)
        self._stack = ExitStack()

    def __enter__(self) -> "Session":
        with ExitStack() as stack:
            if self.domain < 0:
                self.domain = stack.enter_context(free_domain())
            environment = {"ROS_DOMAIN_ID": str(self.domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
            self._say(f"starting {', '.join(spec.name for spec in self.system)} in ROS domain {self.domain}")
            self.runner = stack.enter_context(Runner(self.system, self.log_folder, environment))
            self.operator = stack.enter_context(Operator(self.robot, self.domain))
            self._wait_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        operator = self.operator
        conditions: tuple[tuple[str, str, Callable[[], bool]], ...] = (
            ("vla_sim", "the simulator's ground truth", lambda: operator.scene is not None),
            ("vla_safety", "the filter's state", lambda: operator.state is not None),
            ("vla_policy", "a policy that is READY", lambda: operator.policy_state == "READY"),
        )
        started = {spec.name for spec in self.system}
        for node, what, condition in conditions:
            if node not in started:
                continue
            operator.wait(
                condition,
                max(0.1, deadline - time.monotonic()),
                lambda node=node, what=what: self._missing(node, what),  # type: ignore[misc]
                self._check_start,
            )
            self._say(f"{node} is up")

    def _check_start(self) -> None:
        self.check()
        status = self.operator.status
        if status is not None:
            self._reasons.hear(status)
        if status is not None and self.operator.policy_state == "FAILED":
            raise NotReady(f"vla_policy has failed for good: {status.reason}; see {self.log_folder / 'vla_policy.log'}")

    def _missing(self, node: str, what: str) -> str:
        operator, seen = self.operator, ""
        if node == "vla_policy" and operator.status is not None:
            seen = f" (it is {operator.policy_state}: {operator.status.reason or 'no reason given'})"
        log = self.log_folder / f"{node}.log"
        return f"{node} is not ready: {what} did not come{seen}; the end of {log}:\n{self.runner.log_tail(node)}"

    def check(self) -> None:
        """Raises:
        NodeDied: when a required node has ended.
        """
        self.runner.check()

    # -- trials

    def prepare(self, seed: int) -> None:
        """The scene of `seed`, robot at home and at rest, filter armed.

        Raises:
            NotReady: naming the node and what it waits for.
            NodeDied: when a node ended.
        """
        operator = self.operator
        if operator.mode != "ESTOP":
            operator.trigger("disarm")
        # A stop that is still on its way would move the robot away from home again.
        operator.wait(lambda: operator.speed < AT_REST, STALL_TIMEOUT, lambda: "the robot does not rest", self.check)
        operator.reset_scene(seed)
        # Armed at once, the filter could take the robot to be where it was before the reset.
        after = operator.reset_time_s + FRESH
        operator.wait(
            lambda: operator.filter_time_s > after,
            STALL_TIMEOUT,
            lambda: f"vla_safety's clock stands at {operator.filter_time_s:.2f} s after the reset",
            self.check,
        )
        if operator.mode == "ESTOP":
            self._insist("reset")
        self.arm()

    def arm(self) -> None:
        """Arms the filter as soon as it agrees.

        Raises:
            NotReady: with the filter's last reason.
        """
        operator = self.operator
        self._insist("arm")
        operator.wait(
            lambda: operator.mode in ("ARMED", "HOLD"),
            ARM_TIMEOUT,
            lambda: f"vla_safety is {operator.mode_and_reason}, not ARMED",
        )

    def _insist(self, name: str) -> None:
        """Calls a service of the filter until it agrees; it may have to wait for fresh input, or for rest."""
        deadline = time.monotonic() + ARM_TIMEOUT
        while True:
            self.check()
            done, message = self.operator.trigger(name)
            if done:
                return
            if time.monotonic() > deadline:
                raise NotReady(f"vla_safety refuses to {name} for {ARM_TIMEOUT:g} s: {message}")
            self._next_state()

    def _next_state(self) -> None:
        operator = self.operator
        known = operator.state
        operator.wait(lambda: operator.state is not known, 5.0, lambda: "no state came from vla_safety")

    def trial(self, instruction: str, target: str, timeout: float = 0.0, tick: Tick | None = None) -> TrialResult:
        """Lets the policy do what `instruction` says in the scene that was prepared, and judges by ground truth.

        Args:
            target: the cube that is judged.
            timeout: s simulated; 0: the policy's default.
            tick: called a few times a second while the task runs.

        Raises:
            NotReady, NodeDied: when the system does not work. A task that fails is a result, not an error.
        """
        operator = self.operator
        operator.episode = episode = Episode(self.robot.joints)
        try:
            task = operator.execute(instruction, timeout)
            self.follow(task, tick)
            self._settle(target)
        finally:
            operator.episode = None
        assert task.result is not None and operator.scene is not None
        return TrialResult(task.result, judge(target, operator.scene.objects), episode)

    def follow(self, task: Task, tick: Tick | None = None) -> None:
        """Waits for the end of a task; simulated time must go on meanwhile.

        Raises:
            NotReady: when the simulator's clock stands still.
            NodeDied: when a node ended.
        """
        operator = self.operator
        seen, since = operator.time_s, time.monotonic()
        while not task.done:
            self.check()
            if tick is not None:
                tick(self, task)
            now = operator.time_s
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > STALL_TIMEOUT:
                raise NotReady(
                    f"simulated time stands at {now:.2f} s: vla_sim did not go on within {STALL_TIMEOUT:g} s; "
                    f"in lockstep it waits for vla_safety, which is {operator.mode_and_reason}, and for vla_policy, "
                    f"which is {operator.policy_state}"
                )
            try:
                operator.wait(lambda: task.done, 0.2, lambda: "")
            except NotReady:
                continue

    def _settle(self, target: str) -> None:
        """Gives a cube that was let go the time to come to rest."""
        operator = self.operator
        end = operator.time_s + SETTLE_TIME

        def settled() -> bool:
            assert operator.scene is not None
            return operator.time_s >= end or judge(target, operator.scene.objects).success

        operator.wait(settled, STALL_TIMEOUT, lambda: "simulated time did not go on after the task", self.check)
