"""The safety file: every number the filter goes by, and the zones of the cell. A wrong file is refused whole."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from vla_contract.errors import ConfigError, unknown
from vla_contract.robot import Positive, Robot, describe_errors, line_of, read_yaml, resolve_path
from vla_safety.core.meshes import read_mesh
from vla_safety.core.tools import ToolTable, Vector
from vla_safety.core.zones import ZoneSpec

Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

CONSERVATIVE_FORCE = 50.0  # N
CONSERVATIVE_TORQUE = 12.5  # Nm: CONSERVATIVE_FORCE at a lever of a quarter of a metre


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
        stop: shape of the stop behind a message. `path`: along the path, where enough of it is left, else joint by
            joint; `joint`: always joint by joint, which is shorter and leaves the path a little.
        settle: that the controller is given to come from where it is to where the robot was measured, when the filter
            takes it over.
    """

    period: Positive = 0.04
    lead: Positive = 0.06
    segment: Positive = 0.2
    stop_fraction: Fraction = 0.9
    stop: Literal["path", "joint"] = "path"
    settle: Positive = 0.3

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
        slowest: the smallest speed scale at which a chunk that is too fast for the joints is still played; a cap on the
            speed of links may ask for a quarter of it.
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
        deadman: longest silence of the dead-man signal that an override needs; 0: there is no such device.
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
    deadman: NotNegative = 0.0
    tracking_tolerance: Positive = 0.05
    joint_tracking_tolerance: dict[str, Positive] = {}
    rest_velocity: Positive = 0.02
    clock_tolerance: Positive = 0.25
    stop_grace: Positive = 0.5
    estop_heartbeat: NotNegative = 0.0


class RetreatSettings(_Strict):
    """How the robot is led back out of where it was stopped.

    Attributes:
        memory: s of motion that are remembered.
        pace: (0, 1], of each joint's velocity limit; link_speed: m/s, that no link may exceed.
        confirmation: s; the longest silence of the human who lets it move. With a dead-man signal that one counts.
    """

    memory: Positive = 15.0
    pace: Fraction = 0.25
    link_speed: Annotated[float, Field(gt=0, le=0.25, allow_inf_nan=False)] = 0.1
    confirmation: Positive = 0.5


class ContactLimits(_Strict):
    """When a touch stops the robot. N, Nm and s; `samples` in a row above a limit are a touch.

    Attributes:
        source: where the limits come from. Without one only the conservative default of 50 N (class I of ISO
            10218-1:2025) or less is taken.
        timeout: since the newest usable wrench.
        frame: link in whose axes and at whose origin the sensor measures; needed unless it weighs nothing.
        weighs: whose weight the readings contain: `nothing` (the driver takes it out), `tool` (tool and payload of this
            file), `all` (also the URDF's links beyond the sensor). It is taken out for the orientation measured.
        max_offset: (0, 1], part of the limits; more than that is never taken for the sensor's own offset.
    """

    max_force: Positive
    max_torque: Positive
    source: str = ""
    timeout: Positive = 0.1
    samples: Annotated[int, Field(ge=1, le=2)] = 2
    frame: str = ""
    weighs: Literal["nothing", "tool", "all"] = "nothing"
    max_offset: Fraction = 0.2

    @model_validator(mode="after")
    def _framed(self) -> "ContactLimits":
        if self.weighs != "nothing" and not self.frame:
            raise ValueError(f"weighs '{self.weighs}' needs `frame`: the link that the sensor measures at")
        return self

    @model_validator(mode="after")
    def _sourced(self) -> "ContactLimits":
        if not self.source and self.max_force > CONSERVATIVE_FORCE:
            raise ValueError(
                f"max_force {self.max_force} N is above {CONSERVATIVE_FORCE} N; name its source and edition in `source`"
            )
        return self


class TorqueLimits(_Strict):
    """When an estimated external torque stops the robot. s; `samples` in a row above a limit are a touch.

    Attributes:
        limits: Nm (N for a slide), one for each joint of the arm.
        source: where the limits come from. Without one at most 12.5 are taken: the conservative 50 N at a lever of a
            quarter of a metre.
        gain: 1/s, of the observer: it sees 63 % of a torque after 1/gain.
        armature: kg m^2 (kg for a slide), by joint: inertia of rotors behind gears, seen from the joint.
        timeout: since the newest joint state with efforts.
        max_offset: (0, 1], part of the limits; more than that is never taken for an error of the model.
    """

    limits: Annotated[dict[str, Positive], Field(min_length=1)]
    source: str = ""
    gain: Positive = 50.0
    armature: dict[str, NotNegative] = {}
    timeout: Positive = 0.1
    samples: Annotated[int, Field(ge=1, le=2)] = 2
    max_offset: Fraction = 0.2

    @model_validator(mode="after")
    def _sourced(self) -> "TorqueLimits":
        joint = max(self.limits, key=lambda name: self.limits[name])
        if not self.source and self.limits[joint] > CONSERVATIVE_TORQUE:
            raise ValueError(
                f"limit of {joint}, {self.limits[joint]} Nm, is above {CONSERVATIVE_TORQUE} Nm; name its source and "
                "edition in `source`"
            )
        return self


class ContactEnergy(_Strict):
    """How hard a link may hit a person in a zone of kind `shared`, by the two-body model of ISO/TS 15066:2016, annex A.

    Attributes:
        max_energy: J, of a transient contact. human_mass: kg, effective mass of the body region.
        source: where the two come from. Without one the speed that follows from them is 250 mm/s at most.
    """

    max_energy: Positive
    human_mass: Positive
    source: str = ""


class SafetyConfig(_Strict):
    """The safety file.

    Attributes:
        margin: m, that every link keeps from every zone; self_margin: m, that links keep from each other.
        contact: limits of the force sensor; None: it is not used.
        position_tolerance: rad or m, by joint: how far a command may exceed its range; for a gripper that is driven
            against its stops by design.
        external_torque: limits of the torque estimated from joint efforts; None: it is not estimated.
        tools, payloads: what can be mounted and carried, by name; tool, payload: what is when the filter starts.
        gravity: m/s^2, in the base frame.
        reduced_speed: m/s, that no link exceeds while reduced speed is on.
        contact_energy: what holds in zones of kind `shared`; None: 250 mm/s.
        position_slack: rad or m, by which a measured position may exceed a limit when the robot is armed.
    """

    margin: Positive
    self_margin: Positive
    zones: tuple[ZoneSpec, ...]
    position_tolerance: dict[str, Positive] = {}
    position_slack: Positive = 0.002
    contact: ContactLimits | None = None
    external_torque: TorqueLimits | None = None
    tools: ToolTable = {}
    payloads: ToolTable = {}
    tool: str = ""
    payload: str = ""
    gravity: Vector = (0.0, 0.0, -9.81)
    reduced_speed: Annotated[float, Field(gt=0, le=0.25, allow_inf_nan=False)] = 0.25
    contact_energy: ContactEnergy | None = None
    cycle: Cycle = Cycle()
    proposals: Proposals = Proposals()
    watchdogs: Watchdogs = Watchdogs()
    retreat: RetreatSettings = RetreatSettings()
    _mesh_files: tuple[Path, ...] = PrivateAttr(())

    @property
    def mesh_files(self) -> tuple[Path, ...]:
        """Those that zones were read from."""
        return self._mesh_files


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
    torque = config.external_torque
    for key, table in (
        ("watchdogs.joint_tracking_tolerance", config.watchdogs.joint_tracking_tolerance),
        ("position_tolerance", config.position_tolerance),
        ("external_torque.limits", torque.limits if torque else {}),
        ("external_torque.armature", torque.armature if torque else {}),
    ):
        for joint in table:
            if joint not in robot.joints:
                raise ConfigError(f"{path}: {key}: {unknown('joint', joint, robot.joints)}")
    if torque is not None and set(torque.limits) != set(robot.arm_joints):
        odd = sorted(set(torque.limits) ^ set(robot.arm_joints))
        raise ConfigError(
            f"{path}: external_torque.limits: {', '.join(odd)}: give a limit for each joint of the arm, and no other"
        )
    zones = tuple(_settled(zone, path, k) for k, zone in enumerate(config.zones))
    files = [resolve_path(z.mesh.file, path.parent) for z in config.zones if z.mesh is not None and z.mesh.file]
    settled = config.model_copy(update={"zones": zones})
    settled._mesh_files = tuple(files)
    return settled


def _settled(zone: ZoneSpec, path: Path, index: int) -> ZoneSpec:
    """A zone that knows where it stands, with its mesh's file read."""
    line = line_of(path, ("zones", index))
    if zone.mesh is not None and zone.mesh.file:
        key = ("zones", index, "mesh")
        try:
            corners = read_mesh(resolve_path(zone.mesh.file, path.parent), zone.mesh.scale)
        except ConfigError as error:
            raise ConfigError(
                f"{path}: line {line_of(path, key)}: {'.'.join(map(str, key))}: zone '{zone.name}': {error}"
            ) from error
        points = tuple((float(x), float(y), float(z)) for x, y, z in corners)
        zone = zone.model_copy(update={"mesh": zone.mesh.model_copy(update={"file": "", "points": points})})
    zone.came_from(f"{path}, line {line}")
    return zone
