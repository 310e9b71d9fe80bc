"""The controller's side: whether anybody listens to the filter, and whether anybody else commands the robot (I12)."""

from action_msgs.msg import GoalStatus, GoalStatusArray
from rclpy.qos import qos_profile_action_status_default

from vla_contract.robot import Robot
from vla_safety.adapters import Adapter, Host
from vla_safety.core.findings import Finding
from vla_safety.core.modes import Mode
from vla_safety.core.watchdogs import Instant

_CAUSE, _GOAL_CAUSE = "bypass", "bypass by a goal"
_ACTIVE = (GoalStatus.STATUS_ACCEPTED, GoalStatus.STATUS_EXECUTING, GoalStatus.STATUS_CANCELING)
_ONLOOKERS = frozenset({"vla_policy"})  # it plans from what is commanded


class Controller(Adapter):
    """Watches a joint_trajectory_controller's topic, and its action beside it.

    Nobody arms while no controller listens: the first commands would be lost, and the robot not be where it is
    commanded to be. Where the robot file names the controller, that one must listen; else anybody whose name does not
    begin with an underscore, as those of command line tools and of nodes that discovery does not know yet do.
    """

    def __init__(self, host: Host, robot: Robot):
        super().__init__(host)
        self._topic, self._name = robot.controller.topic, robot.controller.name
        self._status = f"{self._topic.rpartition('/')[0]}/follow_joint_trajectory/_action/status"
        self._goals = 0
        self._servers: set[bytes] = set()  # whose goals they may be
        host.create_subscription(GoalStatusArray, self._status, self._on_status, qos_profile_action_status_default)

    def against(self, now: Instant) -> Finding | None:
        self.look(now)
        listeners = {info.node_name for info in self.host.get_subscriptions_info_by_topic(self._topic)} - _ONLOOKERS
        if not any(name == self._name if self._name else not name.startswith("_") for name in listeners):
            return Finding("no_controller", self._topic)
        return self._by_goal()

    def look(self, now: Instant) -> None:
        host = self.host
        own = (host.get_namespace(), host.get_name())
        others = [(info.node_namespace, info.node_name) for info in host.get_publishers_info_by_topic(self._topic)]
        if own in others:
            others.remove(own)  # once: a second one of the same name is somebody else
        found = Finding("bypass", f"{others[0][0].rstrip('/')}/{others[0][1]}") if others else None
        host.tell(_CAUSE, found, now)
        if self._goals and not self._servers & self._now_serving():
            self._goals = 0  # the controller is gone, and its goals with it
        self._tell_goals(now)

    def _on_status(self, message: GoalStatusArray) -> None:
        before, self._goals = self._goals, sum(goal.status in _ACTIVE for goal in message.status_list)
        if self._goals and not before:
            self._servers = self._now_serving()
        self._tell_goals(self.host.instant())

    def _tell_goals(self, now: Instant) -> None:
        """While the filter commands nothing, others may: that stops nobody, it only speaks against arming."""
        safety = self.host.safety
        theirs = safety is not None and safety.mode == Mode.DISARMED and not safety.led_back
        if not self._goals or not theirs:
            self.host.tell(_GOAL_CAUSE, self._by_goal(), now)

    def _now_serving(self) -> set[bytes]:
        return {bytes(info.endpoint_gid) for info in self.host.get_publishers_info_by_topic(self._status)}

    def _by_goal(self) -> Finding | None:
        if not self._goals:
            return None
        return Finding("bypass", f"{self._goals} goal{'s' if self._goals > 1 else ''} of follow_joint_trajectory")
