"""What comes late, from the future, while the filter slept, or twice: buttons, switches, people, the force sensor."""

import numpy as np
import pytest
from node_inside import inside
from rig import ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from geometry_msgs.msg import WrenchStamped  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from vla_msgs.msg import SafetyDecision  # noqa: E402

from vla_node_base.conversions import time_msg  # noqa: E402
from vla_node_base.qos import LATCHED  # noqa: E402
from vla_safety.core.modes import Mode  # noqa: E402

HEARTBEAT = ("watchdogs:", "watchdogs:\n  estop_heartbeat: 0.3")


def deadman(limit):
    return ("watchdogs:", f"watchdogs:\n  deadman: {limit}\n  override_timeout: 9.0")


# ------------------------------------------------------------------ the button


def test_i10_a_press_between_two_looks_is_a_press_and_a_release_needs_a_second(tmp_path):
    with inside(tmp_path) as it:
        it.moving()
        it.button(True)
        it.button(False)
        assert it.mode == Mode.ESTOP and it.node.safety.finding.reason == "estop_input"
        assert not any(it.commands()[-1].points[-1].velocities)
        it.run(0.9)
        assert "~/estop_input" in it.call("reset").message
        it.run(0.2)
        assert it.call("reset").success


def test_i10_of_two_buttons_on_the_topic_the_pressed_one_counts(tmp_path):
    with inside(tmp_path) as it:
        it.moving()
        for _ in range(30):  # one is held and says so, the other is not
            it.button(True)
            it.run(0.05)
            it.button(False)
            it.run(0.05)
            assert it.mode == Mode.ESTOP and not it.call("reset").success
        it.run(1.1)
        assert it.call("reset").success


def test_r14_without_the_heartbeat_nothing_is_reset_and_nothing_armed(tmp_path):
    with inside(tmp_path, changes=HEARTBEAT) as it:
        it.run(0.2)
        assert it.mode == Mode.ESTOP and it.node.safety.finding.reason == "estop_heartbeat"
        refused = it.call("reset")
        assert not refused.success and "no word from the e-stop input" in refused.message
        it.button(False)
        it.run(0.2)
        assert it.call("reset").success
        it.button(False)
        assert it.call("arm").success
        it.run(0.28)
        assert it.mode == Mode.ARMED
        it.run(0.08)
        assert it.mode == Mode.ESTOP and it.node.safety.finding.reason == "estop_heartbeat"
        assert not it.call("reset").success, "it is still missing"


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (0.2, True), (0.35, False), (3.0, False), (-0.2, False)])
def test_i06_a_heartbeat_counts_from_when_it_was_sent(tmp_path, age, alive):
    with inside(tmp_path, changes=HEARTBEAT) as it:
        it.button(False)
        it.run(0.2)
        it.ns += 200_000_000
        it.button(False, age)
        it.run(0.04)
        assert (it.mode == Mode.DISARMED) == alive
        if alive:
            it.run(0.4 - age)
            assert it.mode == Mode.ESTOP, "and its silence as well"


def test_a_button_that_was_pressed_before_the_filter_was_started_is_asked(tmp_path):
    """One that speaks on change only, and keeps its last word for those who come later."""
    made = []

    def press():
        made.append(rclpy.create_node("button"))
        made[0].create_publisher(Bool, "/vla_safety/estop_input", LATCHED).publish(Bool(data=True))

    with inside(tmp_path, before=press) as it:
        executor = SingleThreadedExecutor()
        executor.add_node(it.node)
        button = next(a for a in it.node._adapters if type(a).__name__ == "EstopInput")
        for _ in range(600):
            button.look(it.node.instant())
            executor.spin_once(timeout_sec=0.05)
            if it.mode == Mode.ESTOP:
                break
        assert it.mode == Mode.ESTOP and it.node.safety.finding.reason == "estop_input"
        executor.remove_node(it.node)
        made[0].destroy_node()


# ------------------------------------------------------------------ who comes from the past or the future


@pytest.mark.parametrize("age", [1.5, 3.0, -0.5, -3.0])
def test_i05_what_has_no_stamp_is_judged_by_when_it_was_sent_on_both_sides(tmp_path, age):
    with inside(tmp_path) as it:
        it.arm()
        refused = it.override(age)
        assert refused.verdict == SafetyDecision.REFUSED and "stamp" in refused.reason, refused
        assert it.mode == Mode.ARMED
        assert it.override(0.05).verdict <= SafetyDecision.SLOWED


@pytest.mark.parametrize(("age", "held"), [(0.0, True), (0.1, True), (0.2, False), (0.29, False), (-0.12, False)])
def test_i11_a_dead_man_signal_is_judged_by_a_limit_below_that_of_proposals_too(tmp_path, age, held):
    with inside(tmp_path, changes=deadman(0.15)) as it:
        it.arm()
        it.hear("/deadman", Bool(data=True), age)
        decision = it.override()
        assert (decision.verdict <= SafetyDecision.SLOWED) == held, decision
        assert held or decision.reason == "deadman_silent"
        it.run(0.24)
        assert it.mode == (Mode.DISARMED if held else Mode.ARMED), "who held it is silent by now"


def test_i11_the_silence_of_a_dead_man_signal_counts_from_when_it_was_sent(tmp_path):
    with inside(tmp_path, changes=deadman(0.4)) as it:
        it.arm()
        it.hear("/deadman", Bool(data=True), age=0.3)
        it.override()
        assert it.mode == Mode.OVERRIDE
        it.run(0.2)
        assert it.mode == Mode.DISARMED and it.node.safety.finding.reason == "deadman_silent"


def test_i11_a_switch_that_was_let_go_stops_however_late_that_is_heard(tmp_path):
    with inside(tmp_path, changes=deadman(0.4)) as it:
        it.arm()
        it.hear("/deadman", Bool(data=True))
        it.override()
        it.run(0.2)
        it.hear("/deadman", Bool(data=False), age=3.0)
        assert it.mode == Mode.DISARMED and it.node.safety.finding.reason == "deadman_released"


@pytest.mark.parametrize("age", [0.0, 0.05, 0.12, -0.12, 3.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_i06_a_wrench_counts_from_its_stamp_and_one_that_stands_still_is_silence(tmp_path, age, frozen):
    with inside(tmp_path, changes=("watchdogs:", "contact: {max_force: 30, max_torque: 5}\nwatchdogs:")) as it:
        first = it.ns
        for _ in range(30):
            message = WrenchStamped()
            message.header.stamp = time_msg((first if frozen else it.ns) - round(age * 1e9))
            it.hear(ROBOT.wrench_topic, message)
            it.run(0.01)
            it.node._cycle()
        said = it.call("reset").message  # before the first wrench there was none
        assert ("force sensor" in said or "wrench" in said) != (abs(age) <= 0.1 and not frozen), said


# ------------------------------------------------------------------ while it slept


def test_i15_what_people_asked_while_the_filter_slept_is_not_done_on_waking(tmp_path):
    with inside(tmp_path) as it:
        it.run(0.2)
        it.ns += 5_000_000_000
        for name, request in (
            ("arm", {}), ("retreat", {}), ("reload", {}), ("reset", {}),
            ("set_tool", {"tool": "nothing"}), ("reduced_speed", {"data": False}),
        ):  # fmt: skip
            answer = it.call(name, **request)
            assert not answer.success and "slept" in answer.message and "ask again" in answer.message, name
        assert it.call("reduced_speed", data=True).success, "what is stricter is always taken"
        assert it.call("disarm").success and it.call("estop").success and it.mode == Mode.ESTOP
        it.run(0.32)
        assert it.call("reset").success
        it.arm()


def test_who_reads_the_safety_file_again_does_not_sleep_meanwhile(tmp_path, monkeypatch):
    with inside(tmp_path) as it:
        it.run(0.2)
        build = it.node._build
        monkeypatch.setattr(it.node, "_build", lambda urdf: [setattr(it, "ns", it.ns + 900_000_000), build(urdf)])
        assert it.call("reload").success and "zones" in it.call("reload").message
        (tmp_path / "cell.yaml").write_text("zones: none")
        assert "the old zones stay" in it.call("reload").message
        assert "slept" not in it.call("arm").message


def test_i15_under_simulated_time_nobody_arms_by_the_clock_of_before_a_sleep(tmp_path, monkeypatch):
    with inside(tmp_path, use_sim_time=True) as it:
        monkeypatch.setattr(it.node, "now_ns", lambda: clock)
        clock = it.ns
        for _ in range(5):
            it.ns += 20_000_000
            it.node.instant()
        it.ns += 200_000_000
        assert "slept" in it.call("arm").message
        it.ns += 100_000_000
        assert "slept" in it.call("arm").message, "the clock stands"
        assert it.call("estop").success


# ------------------------------------------------------------------ late is never sent


@pytest.mark.parametrize("stops", ["button", "estop", "disarm", "deadman"])
def test_i15_a_stop_that_took_too_long_is_made_again_for_now(tmp_path, stops):
    with inside(tmp_path, changes=deadman(0.4)) as it:
        it.arm()
        it.hear("/deadman", Bool(data=True))
        it.override()
        it.run(0.36)
        count, slow = len(it.commands()), 50_000_000
        for name in ("report", "estop", "disarm", "deadman"):
            quick = getattr(it.node._filter, name)
            setattr(it.node._filter, name, lambda *a, _quick=quick: [_quick(*a), setattr(it, "ns", it.ns + slow)][0])
        before, latest = it.node.safety.committed, it.ns + slow + 59_000_000  # lead: 0.06 s
        if stops == "button":
            it.button(True)
        elif stops == "deadman":
            it.hear("/deadman", Bool(data=False))
        else:
            assert it.call(stops).success
        (sent,) = it.commands()[count:]
        after = it.node.safety.committed
        np.testing.assert_allclose(sent.points[-1].positions, after.positions[-1])
        np.testing.assert_allclose(after.state(latest).position, before.state(latest).position, atol=1e-9)
        assert after.end < before.end and not any(sent.points[-1].velocities)
