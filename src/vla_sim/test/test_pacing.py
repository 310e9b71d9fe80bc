"""When the simulated clock may move."""

from hypothesis import given
from hypothesis import strategies as st

from vla_sim.core.pacing import LockstepPace, RealTimePace, Schedule

MS = 1_000_000
S = 1_000 * MS


def test_real_time_follows_the_wall_clock():
    pace = RealTimePace()
    assert pace.target(50 * S, 1 * S) == 1 * S
    assert pace.target(50 * S + 8 * MS, 1 * S) == 1 * S + 8 * MS
    assert pace.slipped_ns == 0


def test_a_late_simulator_slows_down_instead_of_jumping():
    pace = RealTimePace(largest_lag_ns=100 * MS)
    pace.target(0, 0)
    assert pace.target(3 * S, 0) == 100 * MS
    assert pace.slipped_ns == 2900 * MS
    assert pace.target(3 * S + 10 * MS, 100 * MS) == 110 * MS


@given(st.lists(st.integers(0, 300 * MS), max_size=40))
def test_real_time_never_goes_back_nor_beyond_the_largest_lag(steps):
    pace, wall, sim = RealTimePace(), 0, 0
    pace.target(0, 0)
    for step in steps:
        wall += step
        target = pace.target(wall, sim)
        assert sim <= target <= sim + pace.largest_lag_ns
        sim = target
    assert sim + pace.slipped_ns == wall


def test_lockstep_waits_for_the_slowest():
    pace = LockstepPace(slack_ns=50 * MS)
    pace.acknowledge("safety", 200 * MS, 0)
    pace.acknowledge("policy", 120 * MS, 0)
    assert pace.target(9 * S, 0) == 170 * MS
    pace.acknowledge("policy", 300 * MS, 0)
    assert pace.target(9 * S, 0) == 250 * MS
    pace.acknowledge("policy", 100 * MS, 0)  # an older one changes nothing
    assert pace.target(9 * S, 0) == 250 * MS


def test_lockstep_is_free_until_someone_takes_part():
    pace = LockstepPace(slack_ns=50 * MS)
    pace.target(0, 0)
    assert pace.drop_silent(20 * MS) == []
    assert pace.target(30 * MS, 0) == 30 * MS
    pace.acknowledge("safety", 30 * MS, 30 * MS)
    assert pace.target(5 * S, 30 * MS) == 80 * MS


def test_lockstep_drops_only_who_is_silent_and_in_the_way():
    pace = LockstepPace(slack_ns=50 * MS, timeout_ns=10 * S)
    pace.acknowledge("dead", 100 * MS, 0)
    pace.acknowledge("waits", 150 * MS, 0)
    assert pace.drop_silent(9 * S) == []
    assert pace.drop_silent(11 * S) == ["dead"]
    assert pace.target(11 * S, 150 * MS) == 200 * MS
    assert pace.drop_silent(22 * S) == ["waits"]
    assert pace.target(22 * S, 200 * MS) == 200 * MS, "free again, from here on"
    assert pace.target(22 * S + MS, 200 * MS) == 201 * MS


@given(st.floats(1, 500), st.lists(st.integers(1, 100 * MS), min_size=1, max_size=100))
def test_schedule_comes_due_once_per_instant(rate, steps):
    schedule, now, times = Schedule(rate), 0, []
    for step in steps:
        now += step
        expected = schedule.next_ns()
        if schedule.due(now):
            assert now >= expected
            times.append(now)
            assert not schedule.due(now)
        assert schedule.next_ns() > now or schedule.next_ns() == expected
    instants = [int(t // (S / rate)) for t in times]
    assert len(set(instants)) == len(instants)


def test_schedule_at_15_hz_in_steps_of_2_ms_keeps_its_rate():
    schedule = Schedule(15.0)
    due = [t for t in range(0, 10 * S, 2 * MS) if schedule.due(t)]
    assert len(due) == 150 and max(b - a for a, b in zip(due, due[1:], strict=False)) <= 68 * MS


def test_lockstep_drops_all_who_died_in_the_same_instant():
    pace = LockstepPace(slack_ns=50 * MS, timeout_ns=10 * S)
    for name in ("filter", "policy"):
        pace.acknowledge(name, 3 * S, 0)
    assert pace.drop_silent(9 * S) == []
    assert sorted(pace.drop_silent(11 * S)) == ["filter", "policy"]
