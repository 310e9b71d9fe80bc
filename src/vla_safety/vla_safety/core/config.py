"""The safety file: every number the filter goes by, and the zones of the cell. A wrong file is refused whole."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vla_contract.errors import ConfigError, unknown
from vla_contract.robot import Positive, Robot, describe_errors, read_yaml
from vla_safety.core.zones import ZoneSpec

Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

CONSERVATIVE_FORCE = 50.0  # N


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cycle(_Strict):
    """How the filter plays a plan. Times in s.

    Attributes:
        period: between two messages to the controller.
        lead: a message may change the motion this long after now at the earliest: half of it for the filter to judge,
            half for the message to arrive.
        segment: of the plan, beyond the lead, that a message carries before its stop begins. A filter that falls
            silent lets the robot move on for lead + segment, then the stop plays.
        stop_fraction: of the acceleration and jerk limits, that stops use.
    """

    period: Positive = 0.04
    lead: Positive = 0.06
    segment: Positive = 0.2
    stop_fraction: Fraction = 0.9

    @model_validator(mode="after")
    def _overlap(self) -> "Cycle":
        if self.segment <= self.period:
            raise ValueError(
                f"segment {self.segment} s must be longer than period {self.period} s, or each cycle stops"
            )
        return self


class Proposals(_Strict):
    """What a chunk may look like. Times in s.

    Attributes:
        max_stamp_age, max_stamp_lead: window around now that a stamp must lie in.
        start_tolerance: rad or m; the largest difference between a chunk and the commanded state that is bridged.
        bridge: duration that a bridge should have; longest_bridge: that it may have.
        slowest: the smallest speed scale at which a chunk that is too fast is still played.
    """

    max_points: Annotated[int, Field(ge=1, le=10000)] = 400
    max_horizon: Positive = 10.0
    max_stamp_age: Positive = 1.0
    max_stamp_lead: Positive = 0.1
    start_tolerance: Positive = 0.2
    bridge: Positive = 0.2
    longest_bridge: Positive = 1.0
    slowest: Fraction = 0.2


class Watchdogs(_Strict):
    """When silence or deviation stops the robot. Times in s.

    Attributes:
        joint_state_timeout: since the newest usable joint state was received.
        joint_state_age, joint_state_lead: window around now that its stamp must lie in.
        override_timeout: since the newest override was received.
        tracking_tolerance: rad, between measured and commanded positions.
        joint_tracking_tolerance: for joints of its own, rad or m (a gripper that holds an object never arrives).
        rest_velocity: rad/s or m/s; below it a joint counts as at rest.
        stop_grace: after the end of a stop, until the robot must rest.
        estop_heartbeat: longest silence of the hardware e-stop's topic; 0: there is no such device.
        clock_tolerance: by which the clock may deviate from the steady clock from one cycle to the next.
    """

    joint_state_timeout: Positive = 0.1
    joint_state_age: Positive = 0.3
    joint_state_lead: Positive = 0.1
    override_timeout: Positive = 0.5
    tracking_tolerance: Positive = 0.05
    joint_tracking_tolerance: dict[str, Positive] = {}
    rest_velocity: Positive = 0.02
    clock_tolerance: Positive = 0.25
    stop_grace: Positive = 0.5
    estop_heartbeat: NotNegative = 0.0


class ContactLimits(_Strict):
    """When a touch stops the robot. N, Nm and s; `samples` in a row above a limit are a touch.

    Attributes:
        source: where the limits come from. Without one only the conservative default of 50 N (class I of ISO
            10218-1:2025) or less is taken.
        timeout: since the newest usable wrench.
    """

    max_force: Positive
    max_torque: Positive
    source: str = ""
    timeout: Positive = 0.1
    samples: Annotated[int, Field(ge=1, le=2)] = 2

    @model_validator(mode="after")
    def _sourced(self) -> "ContactLimits":
        if not self.source and self.max_force > CONSERVATIVE_FORCE:
            raise ValueError(
                f"max_force {self.max_force} N is above {CONSERVATIVE_FORCE} N; name its source and edition in `source`"
            )
        return self


class SafetyConfig(_Strict):
    """The safety file.

    Attributes:
        margin: m, that every link keeps from every zone; self_margin: m, that links keep from each other.
        contact: limits of the force sensor; None: it is not used.
        position_tolerance: rad or m, by joint: how far a command may exceed its range; for a gripper that is driven
            against its stops by design.
        position_slack: rad or m, by which a measured position may exceed a limit when the robot is armed.
    """

    margin: Positive
    self_margin: Positive
    zones: tuple[ZoneSpec, ...]
    position_tolerance: dict[str, Positive] = {}
    position_slack: Positive = 0.002
    contact: ContactLimits | None = None
    cycle: Cycle = Cycle()
    proposals: Proposals = Proposals()
    watchdogs: Watchdogs = Watchdogs()


def load_safety(path: str | Path, robot: Robot) -> SafetyConfig:
    """Reads a safety file.

    Raises:
        ConfigError: naming file, key, value and what was expected.
    """
    path = Path(path)
    try:
        config = SafetyConfig.model_validate(read_yaml(path, "safety file"))
    except ValidationError as error:
        raise ConfigError(describe_errors(path, error)) from error
    for key, table in (
        ("watchdogs.joint_tracking_tolerance", config.watchdogs.joint_tracking_tolerance),
        ("position_tolerance", config.position_tolerance),
    ):
        for joint in table:
            if joint not in robot.joints:
                raise ConfigError(f"{path}: {key}: {unknown('joint', joint, robot.joints)}")
    return config
