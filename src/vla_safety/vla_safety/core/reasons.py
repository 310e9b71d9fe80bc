"""Every reason the filter can give, in one place: what it means and what a person can do.

The documentation's table is generated from this registry (`python -m vla_safety.reasons_table`).
"""

import math
from dataclasses import dataclass

from vla_contract.errors import ConfigError, unknown


@dataclass(frozen=True)
class Reason:
    """`unit` is that of value and limit; `sentence` may use {subject}, {value}, {limit}, {name} (after the colon)."""

    meaning: str
    sentence: str
    remedy: str
    unit: str = ""


REASONS: dict[str, Reason] = {
    # --- form of a proposal
    "points": Reason(
        "a trajectory has no points, or more than are allowed",
        "{value} points, allowed are 1 to {limit}",
        "send shorter chunks, or raise max_points",
    ),
    "joint_names": Reason(
        "joint names are not exactly the robot's, each once",
        "joint '{subject}' is missing, unknown or named twice",
        "name every joint of the robot file once",
    ),
    "shape": Reason(
        "an array of a point has the wrong length",
        "{subject} has {value} entries, expected {limit}",
        "give each point one position, velocity and acceleration for each joint (or none at all of a kind)",
    ),
    "not_finite": Reason(
        "a number is NaN or infinite",
        "{subject} is {value}",
        "look for a division by zero or an overflow in the source",
    ),
    "times": Reason(
        "times do not increase from zero or more",
        "{subject} is {value} s, it must be above {limit} s",
        "give strictly increasing times, the first not negative",
        "s",
    ),
    "horizon": Reason(
        "a trajectory lasts longer than is allowed",
        "lasts {value} s, allowed are {limit} s",
        "send shorter chunks, or raise max_horizon",
        "s",
    ),
    "frame": Reason(
        "the frame is not the robot's base",
        "frame '{subject}' is not the base frame",
        "send the base frame of the robot file",
    ),
    # --- time of a proposal
    "stale_stamp": Reason(
        "the observation behind a chunk is too old",
        "stamp is {value} s old, allowed are {limit} s",
        "speed up inference, or look for a clock that lags; raise max_stamp_age with care",
        "s",
    ),
    "future_stamp": Reason(
        "a stamp lies in the future",
        "stamp lies {value} s ahead, allowed are {limit} s",
        "synchronise the clocks (chrony), or mend the source of the stamp",
        "s",
    ),
    "expired": Reason(
        "all points have passed before they could be executed",
        "the last point passed {value} s ago",
        "speed up inference or lengthen the horizon",
        "s",
    ),
    # --- who may speak
    "mode": Reason(
        "the filter is not armed",
        "mode is {subject}",
        "arm the robot (vla arm); after an e-stop reset it first",
    ),
    "authority": Reason(
        "a source of higher priority has the robot",
        "'{subject}' has the robot",
        "wait until the planner's motion is over, or arm in HOLD; after an override arm again",
    ),
    # --- envelope
    "joint_position": Reason(
        "a joint would leave its range",
        "{subject} would reach {value}, limit {limit}",
        "keep the motion inside the joint's range",
        "rad",
    ),
    "joint_velocity": Reason(
        "a joint would move too fast",
        "{subject} would move at {value}, limit {limit}",
        "plan slower, or check the policy's units",
        "rad/s",
    ),
    "joint_acceleration": Reason(
        "a joint would accelerate too hard",
        "{subject} would accelerate at {value}, limit {limit}",
        "plan smoother, send velocities and accelerations with each point",
        "rad/s^2",
    ),
    "joint_jerk": Reason(
        "a joint's acceleration would change too fast",
        "{subject} would jerk at {value}, limit {limit}",
        "plan smoother, send velocities and accelerations with each point",
        "rad/s^3",
    ),
    "start_jump": Reason(
        "a trajectory does not start where the robot is commanded to be",
        "{subject} would jump by {value}, limit {limit}",
        "start from the newest joint state, and continue the previous chunk",
        "rad",
    ),
    "bridge": Reason(
        "a trajectory was led on to smoothly from the commanded state",
        "{subject} was off by {value}",
        "nothing to do; continue the previous chunk to avoid it",
        "rad",
    ),
    "reduced_speed": Reason(
        "the speed scale asked for is below one",
        "speed scale {value}",
        "raise the speed scale",
    ),
    # --- speed of links
    "link_speed": Reason(
        "a link would move faster than reduced speed allows",
        "{subject} would move at {value} m/s, limit {limit} m/s",
        "plan slower, or switch reduced speed off when nobody is near",
        "m/s",
    ),
    "slow_zone": Reason(
        "a link would move too fast for a slow zone",
        "{subject} would move at {value} m/s in slow zone '{name}', limit {limit} m/s",
        "plan slower there; if the zone is wrong, correct the safety file and reload it",
        "m/s",
    ),
    "shared_zone": Reason(
        "a link would move so fast in a zone shared with people that a contact could exceed the energy limit",
        "{subject} would move at {value} m/s in shared zone '{name}', limit {limit} m/s",
        "plan slower there, or carry less; if the limit is wrong, correct contact_energy with its source",
        "m/s",
    ),
    "reduced": Reason(
        "reduced speed was switched on while the robot was faster",
        "reduced speed was switched {subject}",
        "nothing to do; the robot goes on at reduced speed",
    ),
    # --- fence
    "zone": Reason(
        "a link would leave a keep-in zone or enter a keep-out zone",
        "{subject} would come within {value} m of zone '{name}', kept are {limit} m",
        "move away from the zone; if it is wrong, correct the safety file and reload it",
        "m",
    ),
    "self_collision": Reason(
        "two links would touch",
        "{subject} would come within {value} m of each other, kept are {limit} m",
        "plan around; if the pair may touch, switch it off in the SRDF",
        "m",
    ),
    "measured_zone": Reason(
        "a link was measured inside a forbidden zone",
        "{subject} is at {value} m from zone '{name}'",
        "free the robot by hand or in the vendor's mode, then reset",
        "m",
    ),
    "measured_self_collision": Reason(
        "two links were measured to overlap",
        "{subject} are {value} m apart",
        "free the robot by hand or in the vendor's mode, then reset",
        "m",
    ),
    # --- watchdogs
    "stale_state": Reason(
        "joint states are missing, frozen or malformed",
        "newest usable joint state is {value} s old, allowed are {limit} s",
        "check the joint state broadcaster, the network and the clocks",
        "s",
    ),
    "state_stamp": Reason(
        "a joint state's stamp is outside the window",
        "joint state is stamped {value} s ago, allowed are {limit} s",
        "synchronise the clocks",
        "s",
    ),
    "state_invalid": Reason(
        "a joint state lacks a joint or holds NaN",
        "joint state of '{subject}' is missing or {value}",
        "check the joint state broadcaster",
    ),
    "state_jump": Reason(
        "a joint state is further from the one before than the joint can have moved",
        "{subject} is measured {value} from where it was just before, it can have moved {limit}",
        "check the joint's encoder and the joint state broadcaster",
        "rad",
    ),
    "chunk_timeout": Reason(
        "no new chunk came in time, the plan was played to its stop",
        "no usable chunk for {value} s, the plan ended",
        "check the policy node",
        "s",
    ),
    "late_cycle": Reason(
        "a cycle of the filter came too late to continue the plan",
        "cycle came {value} s late",
        "give the filter more of the processor",
        "s",
    ),
    "tracking_error": Reason(
        "the robot is not where it was commanded to be",
        "{subject} is off by {value}, tolerance {limit}",
        "look for an obstacle or a faulty joint, then reset",
        "rad",
    ),
    "clock_jump": Reason(
        "the clock jumped",
        "clock jumped by {value} s, tolerance {limit} s",
        "keep the clock steady (chrony in slew mode), then reset",
        "s",
    ),
    "stop_failed": Reason(
        "the robot did not follow a commanded stop",
        "{subject} is off by or moves at {value}, allowed {limit}",
        "press the hardware e-stop; look for a controller that does not listen",
    ),
    # --- devices and other programs
    "estop_input": Reason(
        "the hardware e-stop says stop", "e-stop input '{subject}' is pressed", "release the button, then reset"
    ),
    "estop_heartbeat": Reason(
        "the hardware e-stop is silent",
        "no word from the e-stop input for {value} s, allowed are {limit} s",
        "check the e-stop's cable and driver, then reset",
        "s",
    ),
    "contact_force": Reason(
        "the force sensor exceeds its limit",
        "force is {value} N, limit {limit} N",
        "free what is touched, then reset",
        "N",
    ),
    "contact_torque": Reason(
        "the force sensor's torque exceeds its limit",
        "torque is {value} Nm, limit {limit} Nm",
        "free what is touched, then reset",
        "Nm",
    ),
    "stale_wrench": Reason(
        "the force sensor is silent or malformed",
        "newest usable wrench is {value} s old, allowed are {limit} s",
        "check the force sensor's driver, then reset",
        "s",
    ),
    "external_torque": Reason(
        "the torque that something exerts on a joint, estimated from its effort, exceeds its limit",
        "something pushes {subject} with {value} Nm, limit {limit} Nm",
        "free what is touched; if nothing is, name what is mounted and carried (vla tool), then reset",
        "Nm",
    ),
    "stale_effort": Reason(
        "joint states without usable efforts",
        "newest joint state with efforts is {value} s old, allowed are {limit} s",
        "let the joint state broadcaster publish efforts, or take external_torque out of the safety file; then reset",
        "s",
    ),
    "obstacles": Reason(
        "the robot was stopped, because the obstacles of the planning scene changed",
        "obstacles are now: {subject}",
        "nothing to do, the next motion that keeps clear of them is taken",
    ),
    "planning_scene": Reason(
        "MoveIt's planning scene is not known, or cannot be kept",
        "planning scene: {subject}",
        "start move_group, or mend the object that is named; then reset",
    ),
    "tool": Reason(
        "another tool or payload was asked for, and the motion at hand does not keep the zones with it",
        "stopped to take tool and payload '{subject}'",
        "lead the robot to where it has room, then set the tool again",
    ),
    "bypass": Reason(
        "another program commands the controller, on its topic or by a goal for its action",
        "'{subject}' commands the controller as well",
        "end that program or its goal, then reset; everything that moves the robot goes through the filter",
    ),
    "no_controller": Reason(
        "nobody listens on the controller's topic, so the first commands would be lost",
        "no controller listens on '{subject}'",
        "start the controller, or correct controller.topic in the robot file",
    ),
    "offset": Reason(
        "what is felt at rest is too much to be a sensor's or a model's own error",
        "{subject} feels {value} at rest, {limit} at most are taken as its own error",
        "free what is touched; if nothing is, tare the sensor, or raise max_offset with care",
    ),
    "rules_differ": Reason(
        "a file that the filter judges by is no longer what the filter has read",
        "{subject} was changed since it was read",
        "put the file back, or take it: reload, after a change of the robot file restart",
    ),
    "loosened": Reason(
        "a limit was loosened while the robot was armed: it was stopped and disarmed",
        "{subject} was loosened while the robot was armed",
        "arm if that was meant",
    ),
    "rules_changed": Reason(
        "somebody tried to change the rules while the robot was armed; the old ones are still in force",
        "{subject} was changed while the robot was armed",
        "find out who did it; to take new rules disarm, change the file, call reload",
    ),
    "audit": Reason(
        "a record could not be written",
        "audit record failed: {subject}",
        "make room on the disk, then restart the filter",
    ),
    # --- people
    "estop": Reason("the e-stop was pressed", "e-stop by {subject}", "remove the cause, then reset"),
    "disarmed": Reason("the robot was disarmed", "disarmed by {subject}", "arm the robot"),
    "override_lost": Reason(
        "the override fell silent",
        "no override for {value} s, allowed are {limit} s",
        "take the override up again, or arm for the policy",
        "s",
    ),
    "deadman_released": Reason(
        "the dead-man signal was released during an override, or not held at its start",
        "the dead-man signal '{subject}' is released",
        "hold it, then arm and take the override up again",
    ),
    "deadman_silent": Reason(
        "the dead-man signal is silent",
        "no dead-man signal for {value} s, allowed are {limit} s",
        "check the dead-man switch, its driver and the clock of its machine, then arm again",
        "s",
    ),
    # --- the way out
    "retreat": Reason(
        "the robot is led back along its path",
        "the robot goes back along its path",
        "hold the confirmation as long as it shall move",
    ),
    "retreat_released": Reason(
        "the confirmation of a retreat ended",
        "no confirmation for {value} s, allowed are {limit} s",
        "confirm again to go on, or reset",
        "s",
    ),
    "stopping": Reason(
        "what was commanded is not over yet",
        "{subject} is not over for another {value} s",
        "wait until it rests, or stop it",
        "s",
    ),
    "retreat_held": Reason(
        "something else stopped the retreat, and its confirmation has not ended since",
        "a stop came while the confirmation of a retreat was held, and it is still held",
        "let go, then confirm again",
    ),
    "retreat_pressed": Reason(
        "the robot pressed harder while it was led back out of a touch",
        "'{subject}' felt {value} times its limit on the way back, {limit} times before",
        "the way back is blocked: free the robot by hand, then reset",
    ),
    "retreat_end": Reason(
        "the remembered path is at its end",
        "the robot is back at the beginning of the path that was remembered",
        "reset, then arm; if that is refused, free the robot by hand or in the vendor's mode",
    ),
    "no_trail": Reason(
        "there is no path to go back along",
        "the robot is {value} from the path that it travelled, allowed are {limit}",
        "free the robot by hand or in the vendor's mode, then reset",
        "rad",
    ),
    # --- monitors
    "advice": Reason(
        "a monitor asked for a speed that is none",
        "monitor '{subject}' asked for speed scale {value}",
        "mend the monitor, then reset",
    ),
    # --- arming
    "not_at_rest": Reason(
        "the robot moves",
        "{subject} moves at {value}, at rest is {limit}",
        "wait until the robot rests",
        "rad/s",
    ),
    "internal": Reason(
        "a check of the filter failed to run",
        "a check failed: {subject}",
        "report it with the log; the robot stays stopped",
    ),
}


def reason_of(identifier: str) -> Reason:
    """The registry's entry for `identifier` (the part before a colon).

    Raises:
        ConfigError: when there is none; lists those that exist.
    """
    key = identifier.partition(":")[0]
    if key not in REASONS:
        raise ConfigError(unknown("reason", key, REASONS))
    return REASONS[key]


def remedy_for(identifier: str) -> str:
    """What a person can do about it."""
    return reason_of(identifier).remedy


def explain(identifier: str, subject: str, value: float, limit: float) -> str:
    """One plain sentence with the numbers."""
    return reason_of(identifier).sentence.format(
        subject=subject, value=_number(value), limit=_number(limit), name=identifier.partition(":")[2]
    )


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.4g}"
