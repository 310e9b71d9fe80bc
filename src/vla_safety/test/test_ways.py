"""I20: every stop has a way out, and what a touch is."""

import pytest

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.reasons import REASONS
from vla_safety.core.ways import TOUCHES, WAYS, Way, way_out


def test_i20_every_reason_has_a_way_out_whatever_comes_after_the_colon():
    assert set(WAYS) == set(REASONS)
    for reason in REASONS:
        assert way_out(reason) == way_out(f"{reason}:table:2") == WAYS[reason] in Way


@pytest.mark.parametrize(
    ("way", "reasons"),
    [
        (Way.NOTHING, "bridge reduced_speed"),
        (Way.NEXT, "points zone:table slow_zone:bench chunk_timeout stale_state"),
        (Way.ARM, "mode disarmed override_lost loosened"),
        (Way.RESET, "estop estop_input clock_jump planning_scene"),
        (Way.BACK, "contact_force measured_zone:table retreat_end tracking_error"),
        (Way.HAND, "stop_failed no_trail"),
        (Way.RESTART, "audit internal"),
    ],
)
def test_i20_the_way_out_fits_what_stopped_the_robot(way, reasons):
    assert {way_out(reason) for reason in reasons.split()} == {way}


def test_i20_a_touch_is_what_a_retreat_leads_out_of():
    assert {"contact_force", "contact_torque", "external_torque"} == TOUCHES
    assert {way_out(reason) for reason in TOUCHES} == {Way.BACK}


def test_an_unknown_reason_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError) as error:
        way_out("nope:table")
    assert str(error.value) == unknown("reason", "nope", REASONS)
