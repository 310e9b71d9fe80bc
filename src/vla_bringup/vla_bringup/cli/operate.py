"""Commands that speak to a running system, and `run`, which is one."""

import math
from pathlib import Path
from typing import Any

from vla_bringup.cli.console import FAILED, OK, Console, reported
from vla_bringup.files import find, run_folder
from vla_contract.errors import ConfigError, unknown
from vla_contract.robot import load_robot

WORDS = ("robot", "policy", "safety")
ANSWER_TIMEOUT = 5.0  # s


def run_system(words: list[str], out: Path | None, domain: int | None, console: Console) -> None:
    """Runs the system until Ctrl-C, or until a required node ends.

    Raises:
        ConfigError: for wrong words or files.
        NodeDied: when a required node ended.
    """
    from vla_bringup.runner import Runner
    from vla_bringup.system import robot_system
    from vla_bringup.watch import policy_reasons

    chosen = parse_words(words)
    system = robot_system(chosen["robot"], chosen["policy"], chosen.get("safety", ""))
    logs = (out or run_folder("run")) / "log"
    environment = {} if domain is None else {"ROS_DOMAIN_ID": str(domain)}
    console.say(f"starting {', '.join(spec.name for spec in system)}; logs: {logs}; Ctrl-C ends it")
    with Runner(system, logs, environment) as runner:
        console.say('up. Next: ./vla status, ./vla arm, ./vla instruct "…"; ./vla estop stops')
        with policy_reasons(domain, console.say) as listen:
            runner.wait(listen)


def parse_words(words: list[str], required: tuple[str, ...] = ("robot", "policy")) -> dict[str, str]:
    """`robot=fr3 policy=served` as a map.

    Raises:
        ConfigError: for a word that is not key=value, an unknown or doubled key, or a missing one of `required`.
    """
    chosen: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if (name := key.removeprefix("--")) != key and name in WORDS:
            raise ConfigError(f"{key} is no option of this command; write {name}={value or '…'}")
        if not equals or not value:
            raise ConfigError(f"'{word}' is not key=value; expected robot=… policy=… [safety=…]")
        if key not in WORDS:
            raise ConfigError(unknown("key", key, WORDS))
        if key in chosen:
            raise ConfigError(f"{key} is given twice: '{chosen[key]}' and '{value}'")
        chosen[key] = value
    for key in required:
        if key not in chosen:
            raise ConfigError(f"{key}=… is missing; e.g. ./vla run robot=fr3 policy=served")
    return chosen


def call_trigger(name: str, robot: str, domain: int | None, console: Console) -> None:
    """Calls one of the filter's services and ends the process: 0 done, 1 refused, 3 no filter."""
    with reported(console, {"success": False}):
        from vla_bringup.operator import Operator

        with Operator(load_robot(find("robots", robot)), domain) as operator:
            success, message = operator.trigger(name, ANSWER_TIMEOUT)
        console.say(f"{name}: {'done' if success else 'refused'}{f': {message}' if message else ''}")
        console.finish({"success": success, "message": message}, OK if success else FAILED)


def set_tool(tool: str, payload: str, robot: str, domain: int | None, console: Console) -> None:
    """Tells the filter what is mounted and carried, and ends the process: 0 taken, 1 refused, 3 no filter."""
    with reported(console, {"success": False}):
        from vla_bringup.operator import Operator

        nothing = ("", "none")
        with Operator(load_robot(find("robots", robot)), domain) as operator:
            names = ["" if name in nothing else name for name in (tool, payload)]
            success, message = operator.set_tool(*names, timeout=ANSWER_TIMEOUT)
        console.say(message if success else f"refused: {message}")
        console.finish({"success": success, "message": message}, OK if success else FAILED)


def switch_reduced(on: bool, robot: str, domain: int | None, console: Console) -> None:
    """Switches reduced speed, and ends the process: 0 taken, 1 refused, 3 no filter."""
    with reported(console, {"success": False}):
        from vla_bringup.operator import Operator

        with Operator(load_robot(find("robots", robot)), domain) as operator:
            success, message = operator.reduce_speed(on, timeout=ANSWER_TIMEOUT)
        console.say(message if success else f"refused: {message}")
        console.finish({"success": success, "message": message}, OK if success else FAILED)


def send_instruction(instruction: str, timeout: float, robot: str, domain: int | None, console: Console) -> None:
    """Sends a sentence and ends the process: 0 if the policy says SUCCEEDED, 1 otherwise, 3 if there is no policy."""
    with reported(console, {"outcome": None}):
        from vla_bringup.operator import NotReady, Operator

        with Operator(load_robot(find("robots", robot)), domain) as operator:
            task = operator.execute(instruction, timeout)
            phase = ""
            try:
                while not task.done:
                    if task.feedback.phase != phase:
                        phase = task.feedback.phase
                        console.say(f"{phase} (filter {operator.mode_and_reason})")
                    try:
                        operator.wait(lambda: task.done, 0.5, lambda: "")
                    except NotReady:
                        continue
            except KeyboardInterrupt:
                task.cancel()
                operator.wait(lambda: task.done, ANSWER_TIMEOUT, lambda: "the policy did not confirm the cancellation")
                raise
            assert task.result is not None
            result = task.result
        console.say(f"{result.outcome} after {result.duration:.1f} s{f': {result.message}' if result.message else ''}")
        answer = {"outcome": result.outcome, "message": result.message, "duration_s": result.duration}
        console.finish(answer, OK if result.outcome == "SUCCEEDED" else FAILED)


def show_status(robot: str, domain: int | None, console: Console) -> None:
    """Prints what filter and policy say of themselves and ends the process: 0, or 3 when neither is there."""
    with reported(console, {"safety": None, "policy": None}):
        from vla_bringup.operator import NotReady, Operator

        with Operator(load_robot(find("robots", robot)), domain) as operator:
            try:
                operator.wait(lambda: bool(operator.state and operator.status), ANSWER_TIMEOUT, lambda: "")
            except NotReady:
                pass  # one of the two may be missing; that is worth showing
            report = {"safety": _safety(operator), "policy": _policy(operator)}
            if report == {"safety": None, "policy": None}:
                raise NotReady(f"neither filter nor policy was heard within {ANSWER_TIMEOUT:g} s. {operator.where}")
        for name, facts in report.items():
            console.say(f"{name}: {'not there' if facts is None else ''}")
            for key, value in (facts or {}).items():
                console.say(f"  {key:18} {value}")
        console.finish(report, OK)


def _safety(operator: Any) -> dict[str, Any] | None:
    state = operator.state
    if state is None:
        return None
    keys = ("reason", "speed_scale", "joint_margin", "zone_clearance", "self_clearance", "tracking_error")
    counts = ("accepted", "slowed", "trimmed", "refused", "stopped")
    return {
        "mode": operator.mode,
        **{k: getattr(state, k) for k in keys},
        "decisions": {k: getattr(state, k) for k in counts},
    }


def _policy(operator: Any) -> dict[str, Any] | None:
    status = operator.status
    if status is None:
        return None
    keys = (
        "reason", "policy", "policy_digest", "task_id", "instruction", "chunks", "chunk_rate", "inference_p50",
        "inference_p95", "queue", "starved", "splice_step", "progress", "worker_restarts",
    )  # fmt: skip
    ages = dict(zip(status.streams, status.stream_ages, strict=False))
    missing = [name for name, age in ages.items() if math.isinf(age)]  # never received
    found = {"state": operator.policy_state, **{k: getattr(status, k) for k in keys}}
    return {**found, "stream_ages": ages, "missing_streams": missing}
