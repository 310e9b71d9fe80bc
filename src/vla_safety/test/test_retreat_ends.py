"""What ends a retreat for good, and what it keeps when rules change under it."""

import numpy as np
from rig import HOME, START, check_envelope
from test_retreat import AWAY, PARTS, STEP, confirm, go_back, hand, stop, travelled

from vla_safety.building import Setup, make_verifier
from vla_safety.core.findings import Finding
from vla_safety.core.zones import Box, ZoneSpec


def test_i10_an_estop_ends_a_retreat_that_is_held_on_to_until_it_is_let_go():
    rig = travelled(1.0)
    stop(rig)
    assert confirm(rig).success
    for _ in range(8):
        rig.run(STEP)
        assert confirm(rig).success
    assert rig.controller.state[1].any()
    rig.filter.estop(rig.instant)
    rig.collect()
    for _ in range(12):  # the one who holds on has not seen why it stopped
        rig.run(STEP)
        assert not confirm(rig).success
    assert "let go" in confirm(rig).message and not rig.controller.state[1].any()
    rig.run(0.6)
    go_back(rig)


def test_i14_rules_that_change_end_a_retreat_and_hold_for_the_next_one():
    """A box in its way that is put there while it goes back."""
    rig = travelled(1.0)
    stop(rig)
    assert confirm(rig).success
    for _ in range(4):
        rig.run(STEP)
        assert confirm(rig).success
    changed, middle = (rig.now - START) * 1e-9, hand(HOME + (AWAY - HOME) * 0.3)
    box = ZoneSpec(name="new", kind="keep_out", box=Box(center=tuple(middle), size=(0.1,) * 3))
    setup = Setup(obstacles=(box,))
    verifier = make_verifier(PARTS, setup)
    answer = rig.filter.reconfigure(verifier, rig.instant, finding=Finding("obstacles", "new"), setup=setup)
    rig.collect()
    assert answer.success and rig.decisions[-1].finding.reason == "obstacles"
    rig.run(0.8)
    assert not rig.controller.state[1].any() and confirm(rig).success
    for _ in range(200):
        rig.run(STEP)
        if rig.decisions[-1].source == "retreat" and rig.decisions[-1].finding.reason == "zone:new":
            break
        confirm(rig)
    rig.run(0.6)
    times, q, *_ = rig.controller.trace.arrays()
    assert rig.decisions[-1].finding.reason == "zone:new"
    assert min(verifier.distances(place).min() for place in q[times > changed][::10]) > 0


def test_i20_a_retreat_through_a_slow_zone_is_slow_and_arrives():
    rig = travelled(0.3, duration=1.0)
    stop(rig)
    slow = ZoneSpec(
        name="slow", kind="slow", max_speed=0.02, box=Box(center=tuple(hand(rig.controller.state[0])), size=(0.3,) * 3)
    )
    setup = Setup(obstacles=(slow,))
    assert rig.filter.reconfigure(
        make_verifier(PARTS, setup), rig.instant, finding=Finding("obstacles", "slow")
    ).success
    go_back(rig)
    assert np.allclose(rig.controller.state[0], HOME, atol=1e-4)


def test_i02_a_retreat_leads_the_controller_to_where_the_robot_is_within_the_limits():
    rig = travelled(1.0)
    stop(rig)
    rig.measured_offset[0] = -0.19  # as far from its path as may be
    rig.run(0.1)
    assert confirm(rig).success
    rig.run(1.0)
    check_envelope(rig.controller)
