"""What people see of the filter: its state, markers for RViz, diagnostics."""

import time
from collections.abc import Sequence

from std_msgs.msg import Bool
from visualization_msgs.msg import MarkerArray
from vla_msgs.msg import SafetyState

from vla_contract.robot import Robot
from vla_node_base.conversions import time_msg
from vla_node_base.diagnostics import ERROR, OK, WARN, Diagnostics
from vla_node_base.node import VlaNode
from vla_node_base.qos import LATCHED
from vla_safety.adapters import Adapter
from vla_safety.core.audit import AuditLog
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Decision, Finding, Verdict
from vla_safety.core.latch import LatchFile
from vla_safety.core.modes import Mode
from vla_safety.core.zones import ZoneSet
from vla_safety.markers import Scene, markers
from vla_safety.messages import state_msg

_SHOWN = ("zone", "self_collision", "measured_zone", "measured_self_collision")  # violations that have a place


class Views:
    """Publishes pictures of a filter; reads, never changes it.

    Attributes:
        busy_ns, cycles: spent in cycles and their number since the last diagnostics; counted by the node.
    """

    def __init__(self, node: VlaNode, robot: Robot):
        self._node, self._robot = node, robot
        self._diagnostics = Diagnostics(node)
        self._states = node.create_publisher(SafetyState, "~/state", LATCHED)
        self._markers = node.create_publisher(MarkerArray, "~/markers", LATCHED)
        self._hardware_stop = node.create_publisher(Bool, "~/hardware_stop", LATCHED)
        self._shown: tuple[Mode, Finding | None, bool] | None = None
        self._violation: Finding | None = None
        self.busy_ns = self.cycles = 0
        self._reported_ns = time.monotonic_ns()

    def show(self, safety: SafetyFilter) -> None:
        """What changed of mode, finding and escalation: `~/state`, and `~/hardware_stop`. The drives are told nothing
        before there is a filter: who starts again must not release what its forerunner stopped."""
        before, self._shown = self._shown, (safety.mode, safety.finding, safety.escalated)
        if before is None or before[2] != safety.escalated:
            self._hardware_stop.publish(Bool(data=safety.escalated))
        if before != self._shown:
            self.publish_state(safety)

    def publish_state(self, safety: SafetyFilter) -> None:
        """`~/state`"""
        self._states.publish(state_msg(safety.status(), self._node.now_ns(), self._robot.base_frame))

    def publish_markers(self, safety: SafetyFilter) -> None:
        """`~/markers`, if somebody looks."""
        if self._markers.get_subscription_count() == 0:
            return
        measured, plan, verifier = safety.monitor.newest, safety.plan, safety.verifier
        fences = [zone for check in verifier.checks if isinstance(check, ZoneSet) for zone in check.zones]
        zones = {zone.name: zone for zone in (*safety.config.zones, *fences)}  # obstacles are in the fences only
        scene = Scene(
            zones=tuple(zones.values()),
            model=verifier.model,
            tool=self._robot.tool_frame,
            position=None if measured is None else measured.position,
            plan=None if plan is None else plan.motion,
            committed=safety.committed,
            stop_ns=None if plan is None else plan.followed,
            finding=self._violation,
        )
        self._markers.publish(markers(scene, self._robot.base_frame, time_msg(self._node.now_ns())))

    def tell(self, decision: Decision) -> None:
        """Logs an intervention, and remembers the last violation of a zone or between links, to be shown."""
        finding = decision.finding
        if finding is None or decision.verdict < Verdict.TRIMMED:
            return
        if finding.reason.partition(":")[0] in _SHOWN:
            self._violation = finding
        what = f"{decision.verdict.name} {decision.source} {decision.sequence}"
        self._node.get_logger().warning(f"{what}: {finding.sentence}; {finding.remedy}", throttle_duration_sec=0.5)

    def publish_diagnostics(
        self, safety: SafetyFilter, adapters: Sequence[Adapter], log: AuditLog | None, memory: LatchFile | None
    ) -> None:
        """`/diagnostics`, with what the adapters add; a latch that is not on disk is a warning."""
        more: dict[str, object] = {}
        for adapter in adapters:
            more.update(adapter.diagnostics())
        if log is not None:
            more["audit_head"] = log.head
        warning = memory is not None and bool(memory.error)
        if memory is not None and warning:
            more["latch_error"] = memory.error
        now = time.monotonic_ns()
        status = safety.status()
        level = ERROR if status.mode == Mode.ESTOP else WARN if status.mode == Mode.HOLD else OK
        message = status.mode.name if status.finding is None else f"{status.mode.name}: {status.finding.sentence}"
        values: dict[str, object] = {
            "cycles": self.cycles,
            "load": self.busy_ns / max(1, now - self._reported_ns),
            "joint_margin": status.joint_margin,
            "zone_clearance": status.zone_clearance,
            "self_clearance": status.self_clearance,
            "tracking_error": status.tracking_error,
            "speed_scale": status.speed_scale,
            **more,
        }
        self._diagnostics.publish(max(level, WARN) if warning else level, message, values)
        self.busy_ns, self.cycles, self._reported_ns = 0, 0, now
