"""When a task is over, and what is said then."""

import math

import pytest

from vla_policy_node.core.statistics import Meter
from vla_policy_node.core.task import Outcome, Rules, Task

S = 10**9


@pytest.fixture
def task():
    return Task("id", "do it", 0, 10.0, Rules(progress=0.9, chunks=3, failures=4, unarmed=1.0))


def outcome(task, now=1.0, cancel=False):
    verdict = task.verdict(round(now * S), cancel)
    return None if verdict is None else (verdict.outcome, verdict.message)


def test_goes_on(task):
    task.published(0.5)
    assert outcome(task) is None and task.chunks == 1 and task.progress == 0.5


def test_succeeds_after_chunks_in_a_row(task):
    for progress in (0.95, 0.95, 0.8, 0.95, 0.95, math.nan, 0.95, 0.95):
        task.published(progress)
        assert outcome(task) is None
    task.published(0.9)
    assert outcome(task) == (Outcome.SUCCEEDED, "the policy reports progress >= 0.9 in 3 chunks in a row")


def test_fails_after_failures_in_a_row(task):
    for _ in range(3):
        task.failed("too dark\ntrace")
    task.published(0.1)
    for _ in range(3):
        task.failed("too dark\ntrace")
    assert outcome(task) is None
    task.failed("too dark\ntrace")
    assert outcome(task) == (Outcome.FAILED, "4 inferences in a row failed, the last one: too dark")


def test_an_outage_is_no_failure_however_long_it_lasts_and_the_time_out_ends_it(task):
    for _ in range(3):
        task.failed("too dark")
    for _ in range(10_000):
        task.unavailable("ws://far: cannot connect; next attempt in 0.5 s")
    assert outcome(task) is None and task.unanswered == 10_000
    assert outcome(task, 10.1) == (
        Outcome.TIMEOUT,
        "not done within 10 s, progress nan; no answer at the end: ws://far: cannot connect; next attempt in 0.5 s",
    )
    task.failed("too dark")
    assert outcome(task, 10.1) == (Outcome.FAILED, "4 inferences in a row failed, the last one: too dark")


def test_a_clock_that_is_set_back_ends_the_task_and_one_that_is_adjusted_does_not(task):
    assert outcome(task, 6.0) is None
    assert outcome(task, 5.2) is None
    assert outcome(task, 4.5) == (
        Outcome.FAILED,
        "the clock was set back by 1.5 s, stamps mean nothing: send the task again",
    )


def test_an_outage_that_is_over_is_not_named_at_the_end(task):
    task.unavailable("ws://far: cannot connect")
    task.published(0.5)
    assert outcome(task, 10.1) == (Outcome.TIMEOUT, "not done within 10 s, progress 0.50")


def test_fails_with_the_worker(task):
    task.broke("no such file\ntrace")
    assert outcome(task) == (Outcome.FAILED, "the policy's worker is down: no such file")


def test_times_out(task):
    assert outcome(task, 10.0) is None
    assert outcome(task, 10.1)[0] == Outcome.TIMEOUT


def test_cancel_goes_before_everything(task):
    task.broke("x")
    assert outcome(task, cancel=True) == (Outcome.CANCELED, "canceled after 1.0 s")


def test_stops_when_unarmed_for_long(task):
    task.mode("DISARMED", False, 0)
    assert outcome(task, 0.9) is None
    task.mode("armed", True, round(0.95 * S))
    task.mode("in ESTOP (estop)", False, 2 * S)
    assert outcome(task, 2.9) is None
    result, message = outcome(task, 3.1)
    assert result == Outcome.STOPPED and message.startswith("the safety filter is in ESTOP (estop): clear the cause")


def test_meter():
    meter = Meter()
    assert all(math.isnan(q) for q in meter.quantiles()) and meter.rate(0) == 0
    for k in range(100):
        meter.inferred(k / 100)
        meter.published(k * S // 2)
    p50, p95, p99 = meter.quantiles()
    assert 0.48 < p50 < 0.51 and 0.93 < p95 < 0.96 and 0.97 < p99 < 0.99
    assert meter.rate(99 * S // 2) == pytest.approx(2.2, abs=0.3) and meter.chunks == 100
    assert meter.rate(100 * S) == 0
