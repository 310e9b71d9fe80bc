"""A process that slept judges nothing by an old clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import MS

from vla_safety.arrivals import age_ns
from vla_safety.core.wakefulness import DRAIN, Wakefulness

DRAIN_MS = round(DRAIN * 1000)


def test_i15_after_a_sleep_nothing_is_believed_until_the_clock_moved_and_the_queues_are_empty():
    wake = Wakefulness(0.1)
    assert wake.look(0, 0) and wake.look(0, 50 * MS)
    assert not wake.look(0, 400 * MS), "slept for 350 ms; the clock is the one of before"
    assert not wake.look(20 * MS, 401 * MS), "a queued message of /clock: an old one"
    assert not wake.look(20 * MS, (400 + DRAIN_MS - 1) * MS)
    assert wake.look(350 * MS, (400 + DRAIN_MS) * MS)


def test_i15_what_comes_without_a_stamp_may_be_as_old_as_the_sleep():
    wake = Wakefulness(0.1)
    assert wake.age_ns(0) == 0
    wake.look(0, 0)
    assert wake.age_ns(0) == 0
    wake.look(9000 * MS, 9000 * MS)
    assert wake.age_ns(9000 * MS) == 9000 * MS
    for t in (9010, 9100, 9190, 9280, 9299):
        wake.look(t * MS, t * MS)
        assert wake.age_ns(t * MS) == t * MS, "a message that waited may still be among what is received"
    wake.look(9300 * MS, 9300 * MS)
    assert wake.age_ns(9300 * MS) == 0


def test_i15_what_was_received_after_a_sleep_stays_in_doubt_until_it_is_looked_at():
    wake = Wakefulness(0.1)
    for t in (0, 2000, 2090, 2180, 2270, 2360, 2450):
        wake.look(t * MS, t * MS)
    assert wake.age_ns(2450 * MS) == 0, "received now"
    assert wake.age_ns(2010 * MS) == 2450 * MS, "received when the process woke; a busy executor comes to it only now"
    assert wake.age_ns(1990 * MS) == 2450 * MS, "the middleware's thread woke before the executor's"
    assert wake.age_ns(-10 * MS) == 2460 * MS, "received before the sleep"


def test_i15_a_sleep_counts_from_the_last_look_before_it():
    wake = Wakefulness(0.1)
    for t in (1000, 1100, 1500, 1510):
        wake.look(t * MS, t * MS)
    assert wake.age_ns(1505 * MS) == 410 * MS


def test_i15_how_long_it_slept_is_known_until_the_queues_are_empty():
    wake = Wakefulness(0.1)
    assert wake.slept_ns == 0
    for t, slept in ((1000, 0), (1100, 0), (1500, 400), (1590, 400), (1680, 400), (1770, 400), (1800, 0), (1850, 0)):
        wake.look(t * MS, t * MS)
        assert wake.slept_ns == slept * MS, t


def test_i15_work_of_ones_own_is_no_sleep():
    wake = Wakefulness(0.1)
    wake.look(0, 0)
    wake.worked(5000 * MS)
    assert wake.look(5050 * MS, 5050 * MS) and wake.slept_ns == 0 and wake.age_ns(5050 * MS) == 0
    assert not wake.look(5151 * MS, 5151 * MS)


@pytest.mark.parametrize(
    ("sent", "received", "age"),
    [
        (1000, 1000, 0),
        (700, 990, 300),
        (1050, 1000, 0),
        (1100, 1000, 0),
        (1101, 1000, -101),
        (9000, 0, -8000),
        (0, 0, 0),
    ],
)
def test_i05_a_message_is_as_old_as_its_sender_says_and_one_of_the_future_is_told(sent, received, age):
    info = {"source_timestamp": sent * MS, "received_timestamp": received * MS}
    assert age_ns(info, Wakefulness(0.1), 1000 * MS, 77 * MS) == age * MS
    assert age_ns({}, Wakefulness(0.1), 1000 * MS, 77 * MS) == 0


def test_i15_a_message_that_waited_is_as_old_as_the_sleep():
    wake = Wakefulness(0.1)
    for t in (0, 5000):
        wake.look(t * MS, t * MS)
    info = {"source_timestamp": 9990 * MS, "received_timestamp": 9995 * MS}
    assert age_ns(info, wake, 10_000 * MS, 5000 * MS) == 5000 * MS


def test_a_clock_that_stands_still_keeps_it_waiting():
    wake = Wakefulness(0.1)
    wake.look(7, 0)
    for k in range(1, 100):
        assert not wake.look(7, 500 * MS + k * MS)
    assert wake.look(8, 650 * MS)


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=50))
def test_short_gaps_are_no_sleep(gaps):
    wake, steady = Wakefulness(0.1), 0
    for gap in gaps:
        steady += gap * MS
        assert wake.look(0, steady)


def test_the_time_between_two_looks_is_known():
    wake = Wakefulness(0.1)
    assert wake.gap_ns == 0
    wake.look(0, 5 * MS)
    assert wake.gap_ns == 0, "nobody looked before"
    wake.look(0, 7 * MS)
    assert wake.gap_ns == 2 * MS
    wake.look(0, 300 * MS)
    assert wake.gap_ns == 293 * MS


def test_a_sleep_after_work_of_its_own_is_still_a_sleep():
    wake = Wakefulness(0.1)
    wake.look(0, 0)
    wake.worked(900 * MS)
    assert wake.look(0, 950 * MS) and wake.gap_ns == 50 * MS
    wake.worked(1900 * MS)
    assert not wake.look(0, 2100 * MS), "the process slept after its work"


def test_i15_who_never_slept_finds_nothing_old_soon_after_the_machine_was_started():
    """A steady clock begins there."""
    wake = Wakefulness(0.1)
    for t in (0, 90, 180, 270, 360, 450):
        wake.look(t * MS, t * MS)
        assert wake.age_ns(max(0, t - 40) * MS) == wake.slept_ns == 0, t
