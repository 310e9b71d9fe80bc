"""Deny by default, the e-stop's latch, and the filter as the only way to the controller."""

import numpy as np
import pytest
from vla_msgs.msg import SafetyDecision

from vla_node_base.qos import EVENT
from vla_system_tests.motion import AT_REST, Swinging, Watcher


@pytest.fixture
def cell(start):
    """A session with a watcher, a driver that does not run yet, and the decisions."""
    session = start("vla_sim", "vla_safety")
    decisions: list[SafetyDecision] = []
    session.operator.node.create_subscription(SafetyDecision, "/vla_safety/decision", decisions.append, EVENT)
    watcher, driver = Watcher(session.operator), Swinging(session.operator)
    driver.running = False
    return session, watcher, driver, decisions


def test_nothing_moves_before_arming(cell):
    session, watcher, driver, decisions = cell
    operator = session.operator
    watcher.pass_time(0.2)
    driver.running = True
    operator.wait(lambda: len(decisions) >= 3, 20.0, lambda: "no decisions on chunks")
    assert {d.verdict for d in decisions} == {SafetyDecision.REFUSED}
    assert all(d.reason and d.remedy for d in decisions)
    assert operator.mode == "DISARMED"
    assert not watcher.commands
    assert max(watcher.motion.speeds) < AT_REST


def test_estop_stops_latches_and_reset_does_not_resume(cell, fence):
    session, watcher, driver, decisions = cell
    operator = session.operator
    session.prepare(2)
    driver.running = True
    watcher.wait_moving()

    done, _ = operator.trigger("estop")
    stopped = watcher.now_ns
    assert done
    watcher.pass_time(1.0)
    rest = watcher.rest_after(stopped)
    assert operator.mode == "ESTOP"
    assert rest is not None and rest - stopped < 0.6e9
    assert not fence.violations(watcher.positions_after(stopped))

    refused, message = operator.trigger("arm")
    assert not refused and message

    done, _ = operator.trigger("reset")
    assert done
    reset = watcher.now_ns
    watcher.pass_time(1.0)  # the chunks go on coming
    assert watcher.rest_after(reset) == reset, "motion resumed after reset without arming"
    assert operator.mode == "DISARMED"
    assert decisions[-1].verdict == SafetyDecision.REFUSED


def test_the_filter_is_the_only_one_that_commands(cell):
    session, watcher, _, _ = cell
    watcher.pass_time(0.2)
    topic = session.robot.controller.topic
    assert {p.node_name for p in session.operator.node.get_publishers_info_by_topic(topic)} == {"vla_safety"}
    assert "vla_sim" in {s.node_name for s in session.operator.node.get_subscriptions_info_by_topic(topic)}


def test_disarming_in_motion_stops(cell, fence):
    session, watcher, driver, _ = cell
    session.prepare(3)
    driver.running = True
    watcher.wait_moving()
    done, _ = session.operator.trigger("disarm")
    disarmed = watcher.now_ns
    assert done
    watcher.pass_time(1.2)
    rest = watcher.rest_after(disarmed)
    assert rest is not None and rest - disarmed < 1.0e9
    assert not fence.violations(watcher.positions_after(disarmed))
    assert np.isfinite(session.operator.state.zone_clearance)


def test_a_filter_that_only_observes_commands_nothing(start):
    """`eval --observe-only`: the simulator plays the chunks as they are; the filter judges them, and cannot command."""
    session = start("vla_sim", "vla_safety", observe_only=True)
    decisions: list[SafetyDecision] = []
    session.operator.node.create_subscription(SafetyDecision, "/vla_safety/decision", decisions.append, EVENT)
    watcher, _ = Watcher(session.operator), Swinging(session.operator)
    session.prepare(4)
    watcher.wait_moving()
    session.operator.wait(lambda: len(decisions) > 3, 20.0, lambda: "no decisions on chunks")
    topic = session.robot.controller.topic
    assert {p.node_name for p in session.operator.node.get_publishers_info_by_topic(topic)} == {"vla_sim"}
    assert not [d for d in decisions if d.verdict == SafetyDecision.STOPPED]
