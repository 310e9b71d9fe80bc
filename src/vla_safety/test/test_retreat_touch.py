"""I20: the way back out of a touch."""

import numpy as np
import pytest
from rig import check_envelope
from test_retreat import STEP, confirm, go_back, ready, stop, travelled

from vla_safety.core.findings import Finding


def test_i20_in_contact_it_goes_back_while_the_touch_is_still_reported():
    rig = travelled(0.6)
    stop(rig, Finding("contact_force", "wrench", 80.0, 50.0))
    assert not rig.filter.reset(rig.instant).success
    go_back(rig)
    check_envelope(rig.controller)
    ready(rig)


@pytest.mark.parametrize("reason", ["contact_force", "contact_torque", "external_torque"])
def test_i20_a_way_back_that_presses_harder_ends(reason):
    """A touch that ends becomes softer: it must not become harder than it was at its softest, not even bit by bit."""
    rig = travelled(0.6)
    stop(rig, Finding(reason, "wrench", 80.0, 50.0))
    assert confirm(rig).success
    for value in (80.0, 92.0, 70.0, 60.0, 72.0):
        rig.run(STEP)
        rig.filter.report("cause", Finding(reason, "wrench", value, 50.0), rig.instant)
        assert confirm(rig).success, "going on"
    rig.run(STEP)
    rig.filter.report("cause", Finding(reason, "wrench", 73.0, 50.0), rig.instant)
    rig.run(0.1)
    last = rig.decisions[-1]
    assert (last.source, last.finding.reason, last.finding.value) == ("retreat", "retreat_pressed", 1.46)
    for _ in range(5):
        answer = confirm(rig)
        rig.run(STEP)
    assert "still held" in answer.message
    rig.run(1.0)  # let go
    assert not rig.controller.state[1:].any()
    assert confirm(rig).success, "a person may try again"
    rig.run(0.4)
    assert rig.decisions[-1].finding.reason == "retreat_pressed", "but from as soft as it was"
    rig.run(1.0)
    rig.filter.report("cause", None, rig.instant)
    rig.run(0.2)
    rig.filter.report("cause", Finding(reason, "wrench", 120.0, 50.0), rig.instant)
    rig.run(0.4)
    go_back(rig)
    check_envelope(rig.controller)


def test_i20_an_arm_that_pressed_on_its_way_back_lets_go():
    """It leans on what it pressed: it is commanded where it is, as after every touch."""
    rig = travelled(0.6)
    stop(rig, Finding("contact_force", "wrench", 60.0, 50.0))
    for _ in range(6):
        assert confirm(rig).success
        rig.run(STEP)
    rig.measured_offset[0] = 0.02  # something holds it back
    rig.filter.report("cause", Finding("contact_force", "wrench", 90.0, 50.0), rig.instant)
    rig.run(2.0)
    assert rig.decisions[-1].finding.reason == "retreat_pressed"
    np.testing.assert_allclose(
        rig.filter.committed.positions[-1], rig.controller.state[0], atol=1e-9, err_msg="held where it is commanded"
    )
    pushed = rig.filter.committed.positions[0] - rig.filter.committed.positions[-1]
    assert abs(abs(pushed[0]) - 0.02) < 0.005, "it was led to where it was measured"
