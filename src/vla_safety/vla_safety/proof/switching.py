"""I11: who has the robot, kept beside the filter from what is sent and played; it shares no code with `core/authority`.

A source of higher rank takes the robot over with a trajectory that is taken. A planner has given it back when the
controller rests at the end of its trajectory, a human only when the robot was armed again. A leak is a message of a
source that does not have the robot.
"""

import numpy as np
from numpy.typing import NDArray

from vla_safety.core.findings import Decision, Verdict
from vla_safety.core.records import Output
from vla_safety.core.validation import Proposal
from vla_safety.proof.rig import ROBOT
from vla_safety.proof.tally import Tally

RANK = {"policy": 0, "planner": 1, "override": 2}
_RESTS = 1e-6  # rad and rad/s


class Switches:
    """Counts switches between sources, and finds leaks."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._mover = ""  # whose trajectory was taken last
        self._holder = ""  # who has the robot to itself; empty: whoever comes first
        self._goal: NDArray[np.float64] | None = None

    def armed(self) -> None:
        """A person armed the robot: nobody has it."""
        self._holder = ""

    def proposed(
        self, proposal: Proposal, decision: Decision, output: Output, state: NDArray[np.float64]
    ) -> str | None:
        """What is wrong with the answer to a proposal, if it leaks. `state`: (3, n) that the controller plays."""
        taken = decision.verdict <= Verdict.TRIMMED
        if not taken and decision.finding is not None and decision.finding.reason == "authority":
            self._tally.counts["proposals of a source without authority"] += 1
        if not taken:
            return self._leak(f"{proposal.source}, which was refused") if output.motions else None
        if self._holder == "planner" and self._at_goal(state):
            self._holder = ""
        holder, source = self._holder, proposal.source
        if source != self._mover and self._mover:
            self._tally.counts["switches"] += 1
            self._tally.counts[f"switches from {self._mover} to {source}"] += 1
        self._mover, self._holder = source, "" if source == "policy" else source
        order = [list(proposal.joint_names).index(name) for name in ROBOT.joints]
        self._goal = np.array(proposal.positions[-1], dtype=float)[order]
        return self._leak(f"{source}, while {holder} has the robot") if holder and RANK[source] < RANK[holder] else None

    def cycled(self, source: str | None, output: Output) -> str | None:
        """What is wrong with a cycle's messages, which go on along the plan of `source`; None: they stop."""
        if not output.motions or source is None or source == self._mover:
            return None
        return self._leak(f"{source}, while {self._mover or 'nobody'} has the robot")

    def _at_goal(self, state: NDArray[np.float64]) -> bool:
        return self._goal is not None and bool(
            np.abs(state[0] - self._goal).max() < _RESTS and np.abs(state[1]).max() < _RESTS
        )

    def _leak(self, whose: str) -> str:
        self._tally.counts["leaks"] += 1
        return f"a message of {whose}"
