"""The mode machine, exhaustively."""

from itertools import product

from vla_safety.core.modes import ENABLED, Event, Mode, transition


def after(mode, event):
    """The mode after an event; one that is refused changes nothing."""
    target = transition(mode, event)
    return mode if target is None else target


def walk(depth):
    """All modes that are reachable in `depth` events; the machine has no memory, so modes suffice."""
    reached = {Mode.DISARMED}
    for _ in range(depth):
        reached |= {after(mode, event) for mode, event in product(reached, Event)}
    return reached


def test_i10_estop_is_left_by_reset_only_and_never_into_motion():
    """The next mode depends on mode and event alone, so all pairs are all interleavings of any length."""
    assert walk(8) == set(Mode)
    for event in Event:
        target = after(Mode.ESTOP, event)
        if event == Event.RESET:
            assert target == Mode.DISARMED
        else:
            assert target == Mode.ESTOP


def test_i10_estop_works_in_every_mode():
    assert all(transition(mode, Event.ESTOP) == Mode.ESTOP for mode in Mode)


def test_i10_no_interleaving_moves_after_an_estop_without_reset_and_arm():
    """Every sequence of 5 events after an e-stop: motion is enabled only behind RESET, then ARM."""
    for events in product(Event, repeat=5):
        mode, reset, armed = Mode.ESTOP, False, False
        for event in events:
            mode = after(mode, event)
            if event == Event.ESTOP:
                reset = armed = False
            elif event == Event.RESET:
                reset = True
            elif event == Event.ARM and reset:
                armed = True
            assert mode not in ENABLED or armed


def test_arming_is_the_only_way_out_of_disarmed():
    for event in Event:
        target = after(Mode.DISARMED, event)
        assert (target in ENABLED) == (event == Event.ARM)


def test_i11_policy_never_takes_over_from_an_override():
    for event in (Event.POLICY, Event.TROUBLE, Event.OVERRIDE_LOST):
        assert (after(Mode.OVERRIDE, event)) not in (Mode.ARMED, Mode.HOLD)


def test_modes_are_numbered_as_in_the_messages():
    """vla_msgs/SafetyState; records of audits hold the numbers as well."""
    numbers = {"DISARMED": 0, "ARMED": 1, "OVERRIDE": 2, "HOLD": 3, "ESTOP": 4}
    assert {mode.name: mode.value for mode in Mode} == numbers
    assert {mode.name for mode in Mode if transition(mode, Event.TROUBLE) is not None} == {"ARMED", "OVERRIDE", "HOLD"}


def test_trouble_never_enables():
    for mode in Mode:
        target = after(mode, Event.TROUBLE)
        assert target not in ENABLED or mode in ENABLED
