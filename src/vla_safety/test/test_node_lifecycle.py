"""The node's lifecycle: nothing moves while it is not active, and nothing moves while nobody supervises."""

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_inside import inside
from rig import ROBOT
from std_msgs.msg import String

from vla_safety.core.modes import Mode


def test_what_is_not_active_moves_nothing_and_stops_at_any_time(tmp_path):
    with inside(tmp_path, activate=False) as it:
        it.run(0.2)
        for name in ("arm", "retreat"):
            answer = it.call(name)
            assert not answer.success and "not active" in answer.message, name
        assert it.node.trigger_activate() == it.done
        it.arm()
        assert it.node.trigger_deactivate() == it.done
        assert it.mode == Mode.DISARMED and it.decisions()[-1].subject == "deactivation"
        count = len(it.decisions())
        it.chunk()
        it.run(0.4)
        assert len(it.decisions()) == count and not it.call("arm").success, "a proposal is not even looked at"
        assert it.call("estop").success and it.mode == Mode.ESTOP
        it.run(1.2)
        assert it.call("reset").success
        assert it.node.trigger_activate() == it.done
        it.moving()


def test_i10_a_stop_by_deactivation_is_watched_to_its_end_and_not_cleaned_up_before(tmp_path):
    with inside(tmp_path) as it:
        it.moving()
        assert it.node.trigger_deactivate() == it.done
        stop = it.commands()[-1].points[-1]
        assert not any(stop.velocities) and it.mode == Mode.DISARMED
        assert it.node.trigger_cleanup() != it.done and it.node.safety is not None, "it still moves"
        it.follows = False
        it.run(1.5)
        assert it.mode == Mode.ESTOP and it.node.safety.finding.reason == "stop_failed"
        assert it.published("/hardware_stop")[-1].data, "the drives are cut, whatever the lifecycle says"


def test_a_filter_that_was_cleaned_up_can_be_configured_again(tmp_path):
    with inside(tmp_path) as it:
        it.arm()
        before = sorted(x.topic_name for x in it.node.subscriptions)
        timers = len(list(it.node.timers))
        assert it.node.trigger_deactivate() == it.done
        it.run(1.0)
        assert it.node.trigger_cleanup() == it.done
        assert it.node.filter is None and not any(s.srv_name.endswith("/arm") for s in it.node.services)
        assert not any("/vla" in s.topic_name for s in it.node.subscriptions) and not list(it.node.timers)
        assert it.node.trigger_configure() == it.done and it.node.trigger_activate() == it.done
        assert sorted(x.topic_name for x in it.node.subscriptions) == before and len(list(it.node.timers)) == timers
        assert [p.topic_name for p in it.node.publishers].count(ROBOT.controller.topic) == 1
        it.moving()


def test_a_transition_that_an_armed_filter_does_not_allow_is_refused_and_it_moves_on(tmp_path):
    with inside(tmp_path) as it:
        it.moving()
        (service,) = (s for s in it.node.services if s.srv_name.endswith("/change_state"))
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP, 250):
            request = ChangeState.Request(transition=Transition(id=transition))
            assert not service.callback(request, ChangeState.Response(success=True)).success
        it.run(0.2)
        assert it.mode == Mode.ARMED and it.node.active


def test_a_shutdown_in_motion_stops_and_goes_on_watching(tmp_path):
    with inside(tmp_path) as it:
        it.moving()
        it.node.trigger_shutdown()
        assert it.mode == Mode.DISARMED and not any(it.commands()[-1].points[-1].velocities)
        assert not it.call("arm").success
        it.follows = False
        it.run(1.5)
        assert it.published("/hardware_stop")[-1].data


def test_a_shutdown_at_rest_gives_everything_back(tmp_path):
    with inside(tmp_path) as it:
        it.run(0.2)
        it.node.trigger_shutdown()
        assert it.node.filter is None and not list(it.node.timers)


def test_the_hardware_stop_says_what_the_filter_knows_and_outlives_it(tmp_path):
    with inside(tmp_path, state_dir=tmp_path / "state") as it:
        assert [m.data for m in it.published("/hardware_stop")] == [False]
        it.moving()
        assert it.call("disarm").success
        it.follows = False
        it.run(1.5)
        assert it.node.safety.finding.reason == "stop_failed"
        assert [m.data for m in it.published("/hardware_stop")] == [False, True]
    with inside(tmp_path, state_dir=tmp_path / "state") as it:  # the filter was started again
        assert it.mode == Mode.ESTOP and [m.data for m in it.published("/hardware_stop")] == [True]
        it.run(0.2)
        answer = it.call("reset")
        assert answer.success, answer.message
        it.arm()
        assert [m.data for m in it.published("/hardware_stop")] == [True, False]


@pytest.mark.parametrize("shadow", [True, False])
def test_in_shadow_everything_is_judged_and_nothing_is_commanded(tmp_path, shadow):
    with inside(tmp_path, shadow=shadow, audit_dir=tmp_path / "audit") as it:
        assert ([p.topic_name for p in it.node.publishers].count(ROBOT.controller.topic) == 0) == shadow
        it.arm()
        it.chunk()
        it.run(0.4)
        assert it.decisions("policy")[0].points_accepted > 10 and it.mode == Mode.ARMED
        assert bool(it.commands()) != shadow
    records = "".join(path.read_text() for path in (tmp_path / "audit").iterdir())
    assert '"k":"propose"' in records.replace(" ", "")


@pytest.mark.parametrize("how", ["service", "button"])
def test_i10_an_estop_before_there_is_a_description_is_latched_when_it_comes(tmp_path, how):
    with inside(tmp_path, description_topic="/robot_description") as it:
        refused = it.call("arm")
        assert not refused.success and "description" in refused.message
        if how == "service":
            assert it.call("estop").success
        else:
            it.button(True)
        it.hear("/robot_description", String(data=ROBOT.urdf()))
        it.run(0.2)
        assert it.mode == Mode.ESTOP and not it.call("arm").success
        assert it.call("reset").success == (how == "service"), "the button is pressed yet"
        it.button(False)
        it.run(1.1)
        assert it.call("reset").success
        it.arm()
