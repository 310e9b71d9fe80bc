"""What is said of a policy's server, with a clock of our own."""

import pytest

from vla_policy_node.worker.health import Health

AWAY = "ws://far: cannot connect; next attempt in 0.5 s"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    health = Health(clock)
    health.begin({"server": "ws://far", "patience": 66.0})
    return health


def answer(health, clock, seconds, trouble="", inferred=True):
    """What is said just before the answer comes."""
    with health.waiting():
        clock.now += seconds
        said = health.trouble
    health.heard(trouble, inferred)
    return said


def test_a_policy_in_the_worker_itself_has_no_server_to_be_away(clock):
    health = Health(clock)
    health.begin({})
    assert answer(health, clock, 30.0) == "" and health.trouble == "" and health.hang(5.0) == 5.0


def test_a_server_is_in_trouble_until_it_has_answered(health, clock):
    assert health.trouble == "ws://far: not heard of yet"
    assert answer(health, clock, 0.5) == "ws://far: not heard of yet"
    assert health.trouble == "" and health.outages == 0


def test_outages_are_counted_once_each(health, clock):
    for _ in range(3):
        answer(health, clock, 0.1)
        for _ in range(5):
            answer(health, clock, 0.1, AWAY, inferred=False)
            assert health.trouble == AWAY
    assert health.outages == 3


def test_what_is_waited_for_is_said_with_its_end(health, clock):
    answer(health, clock, 0.1)
    assert answer(health, clock, 0.9) == ""
    assert answer(health, clock, 1.5, AWAY) == "ws://far: no answer for 1.5 s, it is given up after 66 s"
    assert answer(health, clock, 1.5) == f"ws://far: no answer for 1.5 s, it is given up after 66 s ({AWAY})"


def test_a_server_that_always_takes_long_is_not_in_trouble_for_that(health, clock):
    answer(health, clock, 60.0)  # compiles
    answer(health, clock, 1.5)
    answer(health, clock, 0.01, inferred=False)  # a check says nothing of the model
    assert answer(health, clock, 2.0) == ""
    assert "no answer for 3.5 s" in answer(health, clock, 3.5)


def test_waiting_within_the_backend_s_own_time_outs_is_no_hang(health):
    assert health.hang(5.0) > 66.0 and health.hang(500.0) == 500.0
