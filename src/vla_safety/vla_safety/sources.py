"""People and planners at the node: trajectories that take the robot over, the dead-man signal, the way back."""

from collections.abc import Mapping

from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_node_base.qos import COMMAND
from vla_safety.adapters import Adapter, Host
from vla_safety.core.records import refusal
from vla_safety.core.validation import OVERRIDE, PLANNER
from vla_safety.messages import proposal_from_trajectory


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
        now = host.instant()
        if message.data and host.age_ns(info) * 1e-9 > host.safety.config.watchdogs.deadman:
            return  # held when it was sent; whether it still is, the next one says
        host.filter.deadman(bool(message.data), now)
        host.flush()

    def _retreat(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.host.filter is None:
            response.success, response.message = False, "no robot description yet"
            return response
        now = self.host.instant()
        finding = self.host.against(now)
        answer = refusal(finding) if finding is not None else self.host.filter.retreat(now)
        self.host.flush()
        response.success, response.message = answer.success, answer.message
        self.host.get_logger().info(f"retreat: {answer.message}", throttle_duration_sec=2.0)
        return response
