"""The plan of an evaluation and its numbers."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from vla_bringup.judge import named_cube
from vla_bringup.trials import Outcome, interval, plan, summary, touched
from vla_contract.errors import ConfigError


def test_the_same_seed_gives_the_same_plan():
    assert plan(20, 3) == plan(20, 3)
    assert plan(20, 3) != plan(20, 4)


def test_more_trials_extend_a_plan():
    assert plan(50, 3)[:20] == plan(20, 3)


@given(st.integers(1, 60), st.integers(0, 1000))
def test_colours_come_in_equal_parts_and_sentences_name_them(trials, seed):
    planned = plan(trials, seed)
    counts = Counter(t.target for t in planned)
    assert max(counts.values()) - min([counts.get(c, 0) for c in ("red_cube", "green_cube", "blue_cube")]) <= 1
    assert all(named_cube(t.instruction) == t.target for t in planned)


def test_sentences_vary():
    assert len({t.instruction for t in plan(50, 0)}) == 15
    assert any("crimson" in t.instruction for t in plan(50, 0))


def test_unseen_sentences_name_their_cube_and_differ_from_the_usual_ones():
    planned = plan(30, 0, wording="unseen")
    assert all(named_cube(t.instruction) == t.target for t in planned)
    assert not {t.instruction for t in planned} & {t.instruction for t in plan(30, 0)}
    assert len({t.instruction for t in planned}) == 30
    assert [t.seed for t in planned] == [t.seed for t in plan(30, 0)]


def test_blank_judges_what_it_does_not_say():
    planned = plan(6, 0, blank=True)
    assert {t.instruction for t in planned} == {""}
    assert len({t.target for t in planned}) == 3


def test_a_fixed_instruction_decides_the_target():
    assert {t.target for t in plan(4, 0, "take the azure cube")} == {"blue_cube"}
    assert {t.target for t in plan(4, 0, "take that one", "green")} == {"green_cube"}
    with pytest.raises(ConfigError):
        plan(4, 0, "take that one")


@pytest.mark.parametrize(("good", "n"), [(0, 10), (10, 10), (44, 50), (1, 1)])
def test_interval_is_that_of_clopper_and_pearson(good, n):
    low, high = interval(good, n)
    assert low == pytest.approx(0 if good == 0 else beta.ppf(0.025, good, n - good + 1))
    assert high == pytest.approx(1 if good == n else beta.ppf(0.975, good + 1, n - good))


def test_summary_counts():
    planned = plan(3, 0)
    outcomes = [
        Outcome(planned[0], True, False, planned[0].target, "SUCCEEDED", "", 8.0),
        Outcome(planned[1], False, True, "red_cube", "SUCCEEDED", "", 9.0),
        Outcome(planned[2], False, False, None, "TIMEOUT", "", 30.0),
    ]
    report = summary(outcomes, 0, "abc")
    assert report["trials"] == 3 and report["successes"] == 1 and report["wrong_object"] == 1
    assert report["success_rate"] == pytest.approx(1 / 3)
    assert report["per_instruction"][planned[0].label]["successes"] == 1
    assert report["policy_digest"] == "abc"
    assert {"ci95", "seed", "per_target"} <= report.keys()


def test_no_trial_yet_is_no_error():
    assert summary([], 0, "")["ci95"] == [0.0, 1.0]


def test_a_chunk_is_touched_unless_it_is_taken_whole():
    assert touched({}) is None
    assert touched({"accepted": 99, "slowed": 1, "bridged": 50}) == pytest.approx(0.01)
    assert touched({"accepted": 6, "trimmed": 1, "refused": 2, "stopped": 1}) == pytest.approx(0.4)
