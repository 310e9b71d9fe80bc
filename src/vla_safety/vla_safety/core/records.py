"""What the filter keeps and what it says: values without behaviour."""

from dataclasses import dataclass, field

from vla_safety.core.findings import Decision, Finding
from vla_safety.core.modes import Mode
from vla_safety.core.motion import Motion


@dataclass(frozen=True)
class Answer:
    """What a person gets who asks for a change of mode."""

    success: bool
    message: str


def refusal(finding: Finding) -> Answer:
    """No, and why, and what to do."""
    return Answer(False, f"{finding.sentence}; {finding.remedy}")


@dataclass(frozen=True)
class Status:
    """A picture of the filter; lengths in m, angles in rad."""

    mode: Mode
    finding: Finding | None
    speed_scale: float
    joint_margin: float
    zone_clearance: float
    self_clearance: float
    tracking_error: float
    counts: tuple[int, ...]


@dataclass
class Plan:
    """What is being played, message by message.

    `followed` ns: up to there the committed motion is this plan; from there on it is a stop. `ends_short`: why the plan
    is not the whole proposal; `blocked`: why the last attempt to extend it failed.
    """

    motion: Motion
    source: str
    sequence: int
    scale: float
    followed: int
    ends_short: Finding | None
    blocked: Finding | None = None


@dataclass
class Output:
    """What is to be published, in order."""

    motions: list[Motion] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
