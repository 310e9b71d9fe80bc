"""What the policy waits for is said once, until it works again."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from vla_bringup.operator import POLICY_STATES
from vla_bringup.watch import Reasons

STATES = {name: number for number, name in POLICY_STATES.items()}


def test_reasons_are_said_when_they_are_new():
    said = []
    reasons = Reasons(said.append)
    for state, reason in (
        ("UNCONFIGURED", ""),
        ("WAITING", "nobody at host:1; next attempt in 0.5 s"),
        ("WAITING", "nobody at host:1; next attempt in 1.0 s"),
        ("READY", ""),
        ("RUNNING", ""),
        ("WAITING", "nobody at host:1; next attempt in 0.5 s"),
    ):
        reasons.hear(SimpleNamespace(state=STATES[state], reason=reason))
    waiting = "vla_policy is WAITING: nobody at host:1; next attempt in 0.5 s"
    assert said == [waiting, "vla_policy is READY", waiting]
