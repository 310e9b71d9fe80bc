"""Speeds of a ball and a rod on a turning beam, and of a cart on a slide, by formulas on paper; and what caps say."""

from dataclasses import replace

import numpy as np
import pytest
from volumes import box

from vla_contract.errors import ConfigError
from vla_safety.core.findings import Finding
from vla_safety.core.intervals import first_intervals, sampled
from vla_safety.core.kinematics import RobotModel
from vla_safety.core.limits import extent_of
from vla_safety.core.motion import Motion
from vla_safety.core.speed import (
    RESERVE,
    LinkSpeeds,
    SpeedCaps,
    Volume,
    cap_everywhere,
    contact_speed,
    is_speed,
    pace,
    too_fast,
)
from vla_safety.core.urdf import parse_urdf

MODEL = RobotModel(
    parse_urdf("""<robot name="r"><link name="base"/>
  <link name="beam"><collision><origin xyz="2 0 0"/><geometry><sphere radius="0.1"/></geometry></collision></link>
  <link name="rod"><collision><geometry><cylinder radius="0.05" length="1"/></geometry></collision></link>
  <link name="cart"><collision><geometry><box size="0.2 0.2 0.2"/></geometry></collision></link>
  <joint name="turn" type="revolute"><parent link="base"/><child link="beam"/><axis xyz="0 0 1"/>
    <limit lower="-9" upper="9"/></joint>
  <joint name="knob" type="revolute"><origin xyz="3 0 0"/><parent link="beam"/><child link="rod"/><axis xyz="0 1 0"/>
    <mimic joint="turn" multiplier="-2"/></joint>
  <joint name="slide" type="prismatic"><origin xyz="0 9 0"/><parent link="base"/><child link="cart"/>
    <axis xyz="1 0 0"/><limit lower="-9" upper="9"/></joint></robot>"""),
    ["slide", "turn"],
)
BEAM, ROD, CART = (MODEL.body_links.index(link) for link in ("beam", "rod", "cart"))


def test_the_speed_of_a_body_is_that_of_its_fastest_point():
    q, v = np.array([[0.3, 0.7], [0.0, 0.0]]), np.array([[0.5, 0.0], [-0.25, 2.0]])
    found = LinkSpeeds(MODEL).speeds(MODEL.place(q), v)
    np.testing.assert_allclose(found[0, [BEAM, ROD, CART]], [0.0, 0.0, 0.5], atol=1e-12)
    assert found[1, CART] == pytest.approx(0.25)
    assert found[1, BEAM] == pytest.approx(2.0 * 2.0 + 2.0 * 0.1)
    # The rod's ends are 0.5 m above and below the knob, which turns at -4 rad/s around the beam's y.
    end = np.linalg.norm(np.cross([0, 0, 2.0], [3, 0, 0.5]) + np.cross([0, -4.0, 0], [0, 0, 0.5]))
    assert found[1, ROD] == pytest.approx(end + np.hypot(2.0, 4.0) * 0.05)


def test_bounds_of_accelerations_follow_from_reach_and_turning():
    speed, acceleration = np.array([[0.5, 2.0]]), np.array([[3.0, 7.0]])
    found = LinkSpeeds(MODEL).accelerations(speed, acceleration)[0]
    assert found[CART] == pytest.approx(3.0)
    assert found[BEAM] == pytest.approx(2.1 * (7.0 + 2.0 * 2.0))
    knob, outer = 0.55, 0.55 + 3.0
    by_turn, by_knob = outer * (7.0 + 2.0 * 2.0), 2 * knob * (7.0 + 2.0 * (4.0 + 2 * 2.0))
    assert found[ROD] == pytest.approx(by_turn + by_knob)


def cart(speed, seconds=2.0, start=0.0):
    """The cart at an even speed, a knot every 0.1 s."""
    t = np.arange(0, seconds + 0.05, 0.1)
    q, v = np.zeros((len(t), 2)), np.zeros((len(t), 2))
    q[:, 0], v[:, 0] = start + speed * t, speed
    return Motion(10**9 + np.round(t * 1e9).astype(np.int64), q, v, np.zeros_like(q))


def bench(name="bench", x=1.0, speed=0.2, reason="slow_zone"):
    return Volume(box(name, "slow", (x, 9, 0), (0.4, 0.4, 0.4), max_speed=speed), speed, reason)


@pytest.mark.parametrize("sign", [1, -1])
def test_reduced_speed_slows_a_path_to_its_reserve(sign):
    caps = SpeedCaps(MODEL, 0.25, [], 0.01)
    assert caps.everywhere == 0.25 and len(caps.caps) == 3
    scale, finding = pace(cart(sign * 0.5), caps, MODEL)
    assert scale == pytest.approx(RESERVE * 0.25 / 0.5, rel=0.011) and scale <= RESERVE * 0.5 * (1 + 1e-9)
    assert replace(finding, at=0.0) == Finding("link_speed", "cart", pytest.approx(0.5), 0.25)
    assert pace(cart(sign * 0.25 * RESERVE), caps, MODEL) == (1.0, None), "exactly at the reserve"
    assert pace(cart(sign * 0.25 * (RESERVE + 0.001)), caps, MODEL)[1].reason == "link_speed"
    still = Motion.at(0, cart(0.0).knot(0))
    assert pace(still, caps, MODEL) == (1.0, None)


def test_what_is_infinitely_fast_cannot_be_slowed_down():
    endless = cart(0.5)
    endless.velocities[4, 0] = 1e200
    with np.errstate(all="ignore"):
        scale, finding = pace(endless, SpeedCaps(MODEL, 0.25, [], 0.01), MODEL)
    assert scale == 0.0 and finding.reason == "link_speed"


def test_a_cap_does_not_count_before_the_body_can_have_touched_its_volume():
    """In pieces of 20 ms the cart comes 5 mm nearer to its middle from each end."""
    caps, motion = SpeedCaps(MODEL, None, [bench()], 0.01), cart(0.5)
    intervals = first_intervals(motion)
    samples = sampled(motion, extent_of(motion), intervals)
    ratios = caps.ratios(samples, MODEL.place(samples.positions))
    counts = ratios.high[:, CART] > 0
    touch = 0.69 / 0.5  # s, with the margin
    first = int(np.argmax(counts))
    assert intervals.start[first] <= touch <= intervals.end[first] + 0.01 and not counts[:first].any()
    assert intervals.start[first] >= touch - 0.03 and counts[first : first + 5].all()


def test_inside_a_volume_its_own_cap_counts_and_is_named():
    caps = SpeedCaps(MODEL, None, [bench(), bench("shared", 3.0, 0.4, "shared_zone"), bench("far", 5.0)], 0.01)
    assert caps.everywhere == np.inf and sorted(caps.caps) == [0.2] * 3 + [0.4] * 3
    scale, finding = pace(cart(0.5, 2.0), caps, MODEL)
    assert scale == pytest.approx(RESERVE * 0.2 / 0.5, rel=0.011)
    assert replace(finding, at=0.0) == Finding("slow_zone:bench", "cart", pytest.approx(0.5), 0.2)
    assert 1.35 < finding.at < 2.0, "from where the cart touches it on"
    scale, finding = pace(cart(0.5, 2.0, start=2.0), caps, MODEL)
    assert scale == pytest.approx(RESERVE * 0.4 / 0.5, rel=0.011)
    assert replace(finding, at=0.0) == Finding("shared_zone:shared", "cart", pytest.approx(0.5), 0.4)
    _, finding = pace(cart(0.5, 2.0, start=4.0), caps, MODEL)
    assert finding.reason == "slow_zone:far"
    assert pace(cart(0.5, 1.0, start=-2.0), caps, MODEL) == (1.0, None), "outside nothing is slowed"
    assert pace(cart(0.19, 9.0), caps, MODEL) == (1.0, None)


def test_where_two_caps_hold_the_stricter_one_decides():
    caps = SpeedCaps(MODEL, 0.3, [bench()], 0.01)
    assert caps.everywhere == 0.3
    _, finding = pace(cart(0.5, 2.0), caps, MODEL)
    assert (finding.reason, finding.limit) == ("slow_zone:bench", 0.2)
    _, finding = pace(cart(0.5, 2.0, start=-3.0), caps, MODEL)
    assert (finding.reason, finding.limit) == ("link_speed", 0.3)


def test_the_bound_between_samples_holds_and_is_close():
    """The beam speeds up; the bound of an interval is never below the speed within it."""
    t = np.linspace(0, 1, 11)
    q, v, a = np.zeros((11, 2)), np.zeros((11, 2)), np.zeros((11, 2))
    q[:, 1], v[:, 1], a[:, 1] = t**3 / 3, t**2, 2 * t
    motion = Motion(np.round(t * 1e9).astype(np.int64), q, v, a)
    caps = SpeedCaps(MODEL, 1.0, [], 0.01)
    intervals = first_intervals(motion)
    samples = sampled(motion, extent_of(motion), intervals)
    ratios = caps.ratios(samples, MODEL.place(samples.positions))
    for body, lever in ((BEAM, 2.1), (CART, 0.0)):
        low, high = lever * intervals.end**2, lever * intervals.end**2
        np.testing.assert_allclose(ratios.low[:, body], low, atol=1e-9)
        assert (ratios.high[:, body] >= high - 1e-9).all()
        assert (ratios.high[:, body] <= high * 1.1 + 0.15).all()
    rate, change, half = samples.speed[:, 1], samples.acceleration[:, 1], samples.spans[:, 0] / 2
    mean = (intervals.start**2 + intervals.end**2) / 2
    expected = 2.1 * np.minimum(mean + half * (change + rate**2), rate)
    np.testing.assert_allclose(ratios.high[:, BEAM], expected, atol=1e-6)
    k = len(intervals) - 1
    surely = caps.finding(ratios, k, 0.5, surely=True)
    assert surely == Finding("link_speed", surely.subject, pytest.approx(ratios.low[k].max()), 1.0, 0.5)
    assert surely.subject == MODEL.body_links[int(np.argmax(ratios.low[k]))]
    assert caps.finding(ratios, k, 0.5, surely=False).value == pytest.approx(ratios.high[k].max())


def test_what_exceeds_a_cap_is_too_fast_and_so_is_what_is_no_number():
    ratios = np.array([[1.0, 0.0], [1 + 0.9e-9, 0.0], [1 + 1.1e-9, 0.0], [0.0, np.nan], [np.inf, 0.0]])
    assert too_fast(ratios).tolist() == [False, False, True, True, True]


def test_without_a_cap_there_is_none():
    assert cap_everywhere(None) == np.inf and cap_everywhere(SpeedCaps(MODEL, 0.25, [], 0.01)) == 0.25
    with pytest.raises(ConfigError) as error:
        SpeedCaps(MODEL, None, [], 0.01)
    assert str(error.value) == "there is no cap on speed; leave SpeedCaps away"


def test_speeds_are_told_from_other_findings():
    assert all(is_speed(Finding(reason)) for reason in ("link_speed", "slow_zone:x", "shared_zone:x"))
    assert not is_speed(Finding("zone:link_speed"))


def test_contact_speed_follows_from_energy_and_both_masses():
    """Half of 8 kg and 2 kg of load are 6 kg; with 3 kg of a person reduced to 2 kg."""
    assert contact_speed(energy=4.0, human_mass=3.0, moving_mass=8.0, load=2.0) == pytest.approx(2.0)


def test_a_path_that_gains_speed_is_slowed_down_hardly_more_than_it_needs():
    """The bound of a piece of 25 ms would ask for more than 4 %."""
    t = np.linspace(0, 0.5, 11)
    q, v, a = np.zeros((11, 2)), np.zeros((11, 2)), np.zeros((11, 2))
    q[:, 1], v[:, 1], a[:, 1] = 4 * t**3 / 3, 4 * t**2, 8 * t
    motion = Motion(np.round(t * 1e9).astype(np.int64), q, v, a)
    fastest = LinkSpeeds(MODEL).speeds(MODEL.place(q[-1:]), v[-1:]).max()
    scale, finding = pace(motion, SpeedCaps(MODEL, 1.0, [], 0.01), MODEL)
    assert finding.subject == "rod" and RESERVE / fastest / 1.011 < scale <= RESERVE / fastest * (1 + 1e-9)
