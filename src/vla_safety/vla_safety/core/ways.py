"""The way out of every stop (I20): what leads the robot back to work, by the reason that stopped it."""

from enum import Enum

from vla_contract.errors import ConfigError, unknown


class Way(Enum):
    """How to go on; the value is what the documentation says."""

    NOTHING = "nothing is stopped"
    NEXT = "the next good proposal; the robot holds until then"
    ARM = "arm"
    RESET = "end the cause, reset, arm"
    BACK = "retreat while you confirm (or by hand), reset, arm"
    HAND = "by hand or in the vendor's mode, reset, arm"
    RESTART = "mend it, restart the filter, reset, arm"


_REASONS = {
    Way.NOTHING: "bridge reduced_speed retreat",
    Way.NEXT: (
        "points joint_names shape not_finite times horizon frame stale_stamp future_stamp expired authority "
        "joint_position joint_velocity joint_acceleration joint_jerk start_jump zone self_collision link_speed "
        "slow_zone shared_zone reduced tool obstacles stale_state state_stamp state_invalid state_jump "
        "chunk_timeout late_cycle"
    ),
    Way.ARM: (
        "mode not_at_rest stopping disarmed override_lost deadman_released deadman_silent no_controller loosened "
        "offset rules_differ"
    ),
    Way.RESET: (
        "clock_jump estop_input estop_heartbeat stale_wrench stale_effort bypass rules_changed estop advice "
        "planning_scene"
    ),
    Way.BACK: (
        "contact_force contact_torque external_torque tracking_error measured_zone measured_self_collision "
        "retreat_released retreat_held retreat_pressed retreat_end"
    ),
    Way.HAND: "stop_failed no_trail",
    Way.RESTART: "audit internal",
}

WAYS = {reason: way for way, reasons in _REASONS.items() for reason in reasons.split()}

# Causes that are still there when a retreat begins, because it is what leads out of them.
TOUCHES = frozenset({"contact_force", "contact_torque", "external_torque"})


def way_out(identifier: str) -> Way:
    """Of a reason (the part before a colon).

    Raises:
        ConfigError: when there is no such reason; lists those that exist.
    """
    key = identifier.partition(":")[0]
    if key not in WAYS:
        raise ConfigError(unknown("reason", key, WAYS))
    return WAYS[key]
