"""People and planners at the node: trajectories that take the robot over, the dead-man signal, the way back."""

from collections.abc import Mapping
from dataclasses import replace

from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_node_base.qos import COMMAND
from vla_safety.adapters import Adapter, Host
from vla_safety.core.records import Answer, refusal
from vla_safety.core.validation import OVERRIDE, PLANNER
from vla_safety.messages import proposal_from_trajectory
from vla_safety.sending import TOO_LATE


class Sources(Adapter):
    """`~/override`, `~/planner`, `~/deadman` and `~/retreat`."""

    def __init__(self, host: Host):
        super().__init__(host)
        self._counts = {OVERRIDE: 0, PLANNER: 0}
        host.create_subscription(
            JointTrajectory, "~/override", lambda m, info: self._propose(OVERRIDE, m, info), COMMAND
        )
        host.create_subscription(JointTrajectory, "~/planner", lambda m, info: self._propose(PLANNER, m, info), COMMAND)
        host.create_subscription(Bool, "~/deadman", self._on_deadman, COMMAND)
        host.create_service(Trigger, "~/retreat", self._retreat)

    def _propose(self, source: str, message: JointTrajectory, info: Mapping[str, int]) -> None:
        self._counts[source] += 1
        number = self._counts[source]
        self.host.propose(lambda now_ns, limit: proposal_from_trajectory(source, message, number, now_ns, limit), info)

    def _on_deadman(self, message: Bool, info: Mapping[str, int]) -> None:
        host = self.host
        if host.filter is None or host.safety is None:
            return
        now, since = host.instant(), 0
        if message.data:
            since = host.age_ns(info)
            if not 0 <= since * 1e-9 <= host.safety.config.watchdogs.deadman or not host.active:
                return  # held when it was sent; whether it still is, the next one says
        # Silence counts from when it was sent. A switch that was let go stops at once, however late that is heard.
        host.filter.deadman(bool(message.data), replace(now, watch_ns=now.watch_ns - since))
        host.flush(now)

    def _retreat(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        now = self.host.instant()
        if (why := self.host.objection(moves=True)) or self.host.filter is None:
            response.success, response.message = False, why
            return response
        finding = self.host.against(now)
        now = self.host.instant()
        answer = refusal(finding) if finding is not None else self.host.filter.retreat(now)
        if not self.host.flush(now):
            answer = Answer(False, TOO_LATE)
        response.success, response.message = answer.success, answer.message
        self.host.get_logger().info(f"retreat: {answer.message}", throttle_duration_sec=2.0)
        return response
