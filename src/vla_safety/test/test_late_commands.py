"""I15: a command that took too long is not sent, wherever the time went; nor is the first one of all."""

import numpy as np
import pytest
from node_inside import inside
from rig import ROBOT, Rig
from test_retreat import confirm, go_back, stop, travelled

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from rclpy.serialization import serialize_message  # noqa: E402

import vla_safety.sending  # noqa: E402
from vla_safety.core.modes import Mode  # noqa: E402
from vla_safety.sending import TOO_LATE  # noqa: E402

LONG = 50_000_000  # ns; the lead is 60 ms, half of it is the filter's


def slept(it, monkeypatch, times=1):
    """The process sleeps once, after the verdict: while its message is being made."""
    left = [times]

    def slow(message):
        if left[0]:
            left[0] -= 1
            it.ns += LONG
        return serialize_message(message)

    monkeypatch.setattr(vla_safety.sending, "serialize_message", slow)


# ------------------------------------------------------------------ between the verdict and the message


def test_i15_a_process_that_sleeps_between_verdict_and_message_sends_nothing_stale(tmp_path, monkeypatch):
    with inside(tmp_path) as it:
        it.moving()
        before, count = it.node.safety.committed, len(it.commands())
        slept(it, monkeypatch)
        it.run(0.04)
        assert len(it.commands()) == count and it.node.safety.committed is before, "the stop in the last one plays"
        assert it.mode == Mode.HOLD and it.node.safety.finding.reason == "late_cycle"
        it.run(1.0)
        assert it.mode == Mode.HOLD, "and is seen to arrive"


@pytest.mark.parametrize("times", [1, 4, 5, 9])
def test_i15_a_stop_is_made_anew_until_one_is_in_time_but_not_for_ever(tmp_path, monkeypatch, times):
    with inside(tmp_path) as it:
        it.moving()
        before, count = it.node.safety.committed, len(it.commands())
        slept(it, monkeypatch, times=times)
        assert it.call("estop").success
        after, sent = it.node.safety.committed, it.commands()[count:]
        if times < 5:
            np.testing.assert_allclose(sent[0].points[-1].positions, after.positions[-1])
            latest = it.ns + 59_000_000
            np.testing.assert_allclose(after.state(latest).position, before.state(latest).position, atol=1e-9)
            assert len(sent) == 1 and after.end <= before.end
        else:
            assert not sent and after is before
        it.run(1.5)
        assert it.mode == Mode.ESTOP and not it.node.safety.escalated
        assert it.call("reset").success


def test_i15_under_simulated_time_the_steady_clock_tells_and_no_stop_is_made_by_the_old_clock(tmp_path, monkeypatch):
    with inside(tmp_path) as it:
        it.moving()
        before, count, stands = it.node.safety.committed, len(it.commands()), it.ns
        it.node.sim_time = True
        monkeypatch.setattr(it.node, "now_ns", lambda: stands)  # the newer clock waits in this process's queue
        slept(it, monkeypatch)
        it.call("estop")
        assert it.mode == Mode.ESTOP and it.node.safety.committed is before and len(it.commands()) == count


def test_what_the_middleware_could_not_deliver_in_time_it_forgets(tmp_path):
    with inside(tmp_path) as it:
        cycle = it.node.safety.config.cycle
        (found,) = it.node.get_publishers_info_by_topic(ROBOT.controller.topic)
        expected = cycle.lead + cycle.segment - cycle.period
        assert found.qos_profile.lifespan.nanoseconds * 1e-9 == pytest.approx(expected)


# ------------------------------------------------------------------ the first message of all


def test_i15_who_is_armed_too_late_is_not_armed(tmp_path, monkeypatch):
    with inside(tmp_path) as it:
        it.run(0.2)
        slept(it, monkeypatch)
        answer = it.call("arm")
        assert not answer.success and answer.message == TOO_LATE
        assert not it.commands() and it.mode == Mode.DISARMED
        it.run(0.4)  # what was not sent would have settled by then
        it.arm()
        it.chunk()
        it.run(0.5)
        assert it.mode == Mode.ARMED and it.commands()


def test_reading_files_before_arming_takes_no_time_from_the_command(tmp_path, monkeypatch):
    """A zone's mesh on a slow disk: the clock is read again once it is known to be the same."""
    with inside(tmp_path) as it:
        it.run(0.2)
        adapter = it.node._adapters[0]
        monkeypatch.setattr(adapter, "arming", lambda: setattr(it, "ns", it.ns + 70_000_000))
        answer = it.call("arm")
        assert answer.success and len(it.commands()) == 1, answer.message


def test_i15_i20_a_retreat_whose_first_message_is_late_does_not_begin(tmp_path, monkeypatch):
    with inside(tmp_path) as it:
        it.moving()
        it.call("estop")
        it.run(1.5)
        count, still = len(it.commands()), it.position
        slept(it, monkeypatch)
        answer = it.call("retreat")
        assert not answer.success and answer.message == TOO_LATE
        it.run(0.6)
        assert len(it.commands()) == count and not it.node.safety.led_back
        for _ in range(5):
            answer = it.call("retreat")
            it.run(0.3)
        assert answer.success and it.node.safety.led_back and np.abs(it.position - still).max() > 1e-3


def test_i15_a_first_message_that_was_not_sent_commands_nothing():
    rig = Rig(arm=False)
    rig.observe()
    rig.filter.arm(rig.instant)
    rig.advance(0.05)
    rig.filter.retract(rig.instant)
    assert not rig.filter.pending and rig.filter.mode == Mode.DISARMED
    assert rig.filter.finding.reason == "late_cycle"
    rig.filter.retract(rig.instant)
    assert rig.filter.finding.reason == "late_cycle", "nothing is pending: nothing is taken back"


def test_i15_i20_a_retreat_begins_again_where_it_was_taken_back():
    rig = travelled(0.6)
    stop(rig)
    count = len(rig.controller.messages)
    assert rig.filter.retreat(rig.instant).success and rig.filter.pending
    rig.advance(0.05)
    rig.filter.retract(rig.instant)
    rig.collect()
    assert len(rig.controller.messages) == count and not rig.filter.led_back
    assert (rig.decisions[-1].source, rig.decisions[-1].finding.reason) == ("retreat", "late_cycle")
    rig.run(0.1)
    assert not confirm(rig).success, "what was not sent would be playing"
    rig.run(0.6)
    assert len(rig.controller.messages) == count
    go_back(rig)
