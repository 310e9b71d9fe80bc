"""How often the node says how it is."""

import rclpy

from vla_node_base.domains import free_domain
from vla_policy_node import reporting
from vla_policy_node.reporting import Reporter
from vla_policy_node.runtime import State


class Quiet:
    """What a reporter reads of a runtime to decide whether to speak."""

    class worker:
        no_paths = ""


def test_the_status_comes_at_2_hz_and_with_every_change(monkeypatch):
    with free_domain() as domain:
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        node = rclpy.create_node("reporter", context=context)
        try:
            reporter, clock = Reporter(node), [0.0]
            monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
            monkeypatch.setattr(reporter, "_message", lambda *facts: reporting.PolicyStatus())
            monkeypatch.setattr(reporter, "_diagnose", lambda *facts: None)
            said = 0
            for tick in range(1, 401):  # 20 s; ticks come up to 10 ms early or late
                clock[0] = 0.05 * tick + 0.01 * ((7 * tick) % 3 - 1)
                said += reporter.report(Quiet, None, 0, State.READY, "")
            assert 39 <= said <= 41
            assert reporter.report(Quiet, None, 0, State.WAITING, "for a camera")
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)
