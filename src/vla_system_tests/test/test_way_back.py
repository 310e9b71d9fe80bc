"""I20 with real processes: stopped in the middle of a motion, the arm is led back slowly, and works again."""

import numpy as np

from vla_system_tests.motion import MOVING, Swinging, Watcher


def test_i20_a_held_retreat_leads_the_arm_back_and_it_can_be_armed_again(start, fence):
    session = start("vla_sim", "vla_safety")
    session.prepare(1)
    operator = session.operator
    watcher, driver = Watcher(operator), Swinging(operator)
    watcher.wait_moving()
    watcher.pass_time(0.8)
    watcher.wait_moving()
    driver.running = False
    assert operator.trigger("estop")[0]
    operator.wait(lambda: watcher.speed < 0.01, 20.0, lambda: f"still moving at {watcher.speed:.3f} rad/s")
    watcher.pass_time(0.5)
    began, there = watcher.now_ns, watcher.positions_after(watcher.now_ns)[-1]
    assert operator.trigger("retreat")[0]
    calls = 1
    while operator.trigger("retreat")[0]:  # a person who holds the button
        calls += 1
        assert operator.mode == "ESTOP"
    path = watcher.positions_after(began)
    assert calls > 3 and np.abs(path[-1] - there)[:7].max() > 0.05, "it went back"
    assert watcher.fastest_after(began) < 2 * MOVING, "slowly"
    assert not fence.violations(path)
    watcher.pass_time(0.5)
    assert operator.trigger("reset")[0] and operator.trigger("arm")[0]
    driver.running = True
    watcher.wait_moving()
