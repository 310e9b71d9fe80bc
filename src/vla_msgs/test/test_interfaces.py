"""The generated interfaces carry what other software relies on: fields, constants, and values over the wire."""

import re
from pathlib import Path

import pytest
from rclpy.serialization import deserialize_message, serialize_message
from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk, PolicyStatus, SafetyDecision, SafetyState
from vla_msgs.srv import ResetScene

ROOT = Path(__file__).parents[1]
FILES = sorted(path for kind in ("msg", "srv", "action") for path in (ROOT / kind).iterdir())


def test_constants():
    verdicts = ("ACCEPTED", "SLOWED", "TRIMMED", "REFUSED", "STOPPED")
    assert [getattr(SafetyDecision, name) for name in verdicts] == list(range(5))
    modes = ("DISARMED", "ARMED", "OVERRIDE", "HOLD", "ESTOP")
    assert [getattr(SafetyState, name) for name in modes] == list(range(5))
    outcomes = ("SUCCEEDED", "FAILED", "TIMEOUT", "CANCELED", "STOPPED", "REFUSED")
    assert [getattr(ExecuteTask.Result, name) for name in outcomes] == list(range(6))
    assert PolicyStatus.UNCONFIGURED == 0 and PolicyStatus.FAILED == 5


def test_chunk_survives_the_wire():
    chunk = ActionChunk(sequence=2**63, policy="p", instruction="put the red cube in the tray", confidence=float("nan"))
    chunk.trajectory.joint_names = ["a"]
    back = deserialize_message(serialize_message(chunk), ActionChunk)
    assert (back.sequence, back.policy, back.instruction) == (chunk.sequence, chunk.policy, chunk.instruction)
    assert back.confidence != back.confidence
    assert list(back.trajectory.joint_names) == ["a"]


def test_reset_takes_any_seed():
    assert ResetScene.Request(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_number_says_what_it_means(path):
    """House rule: a field with a number has its unit, range or meaning in a comment."""
    for line in path.read_text().splitlines():
        if (
            re.match(r"(float|int|uint|builtin_interfaces/(Duration|Time))\S*\s+\w+", line)
            and "=" not in line.split("#")[0]
        ):
            assert "#" in line or "stamp" in line, f"{path.name}: '{line}' has no comment"
