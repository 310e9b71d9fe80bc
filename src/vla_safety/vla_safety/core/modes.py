"""The mode machine: one table, no state of its own."""

from enum import Enum, IntEnum


class Mode(IntEnum):
    """What the filter does; the values are those of vla_msgs/SafetyState."""

    DISARMED = 0
    ARMED = 1
    OVERRIDE = 2
    HOLD = 3
    ESTOP = 4


class Event(Enum):
    """What can happen to it. Preconditions (fresh inputs, at rest, …) are checked before an event is raised."""

    ARM = "arm"
    DISARM = "disarm"
    ESTOP = "estop"
    RESET = "reset"
    TROUBLE = "trouble"
    POLICY = "policy"
    OVERRIDE = "override"
    OVERRIDE_LOST = "override_lost"


_TABLE: dict[tuple[Mode, Event], Mode] = {
    (Mode.DISARMED, Event.ARM): Mode.ARMED,
    (Mode.ARMED, Event.ARM): Mode.ARMED,
    (Mode.HOLD, Event.ARM): Mode.ARMED,
    (Mode.ARMED, Event.POLICY): Mode.ARMED,
    (Mode.HOLD, Event.POLICY): Mode.ARMED,
    (Mode.ARMED, Event.OVERRIDE): Mode.OVERRIDE,
    (Mode.HOLD, Event.OVERRIDE): Mode.OVERRIDE,
    (Mode.OVERRIDE, Event.OVERRIDE): Mode.OVERRIDE,
    (Mode.ARMED, Event.TROUBLE): Mode.HOLD,
    (Mode.HOLD, Event.TROUBLE): Mode.HOLD,
    # A human who took over is not silently replaced by the policy: after an override there is no HOLD to go on from.
    (Mode.OVERRIDE, Event.TROUBLE): Mode.DISARMED,
    (Mode.OVERRIDE, Event.OVERRIDE_LOST): Mode.DISARMED,
    (Mode.DISARMED, Event.DISARM): Mode.DISARMED,
    (Mode.ARMED, Event.DISARM): Mode.DISARMED,
    (Mode.OVERRIDE, Event.DISARM): Mode.DISARMED,
    (Mode.HOLD, Event.DISARM): Mode.DISARMED,
    (Mode.ESTOP, Event.RESET): Mode.DISARMED,
    **{(mode, Event.ESTOP): Mode.ESTOP for mode in Mode},
}

MOVING = frozenset({Mode.ARMED, Mode.OVERRIDE})
ENABLED = frozenset({Mode.ARMED, Mode.OVERRIDE, Mode.HOLD})


def transition(mode: Mode, event: Event) -> Mode | None:
    """The mode after `event`; None: the event means nothing in this mode and is refused."""
    return _TABLE.get((mode, event))
