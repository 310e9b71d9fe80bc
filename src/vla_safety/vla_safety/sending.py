"""The last step to the controller: a command that is late is not sent, and none arrives when it is stale.

A process may be frozen or starved at any instant, also between the verdict and the message. So a message is made first,
byte by byte, then the clock is looked at, and after that nothing is left to be done but to hand it to the middleware.
"""

from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from trajectory_msgs.msg import JointTrajectory

from vla_contract.robot import Robot
from vla_node_base.qos import COMMAND
from vla_safety.adapters import Host
from vla_safety.core.config import Cycle
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.motion import nanoseconds
from vla_safety.core.watchdogs import Instant
from vla_safety.messages import motion_msg
from vla_safety.recording import RecordedFilter

TOO_LATE = "it took too long to send the first command, so nothing was sent; the machine is too busy: ask again"
_ATTEMPTS = 5  # to make a stop in time; after that the one that is committed plays out


class Commands:
    """The only publisher on the controller's topic.

    Args:
        host: the filter's node; robot: whose controller it is; cycle: of the filter.
        expire: a reliable topic brings a lost message seconds later. While the message before it still plays the same
            path that does no harm; after that the robot would leap onto a path that it has left. So the middleware
            forgets it. In lockstep, where the simulator's clock waits, nothing is late.
    """

    def __init__(self, host: Host, robot: Robot, cycle: Cycle, expire: bool):
        self._host = host
        self._joints = robot.joints
        self._longest = nanoseconds(cycle.lead) // 2
        qos = QoSProfile(depth=COMMAND.depth, reliability=COMMAND.reliability)
        if expire:
            qos.lifespan = Duration(seconds=cycle.lead + cycle.segment - cycle.period)
        self._publisher = host.create_publisher(JointTrajectory, robot.controller.topic, qos)

    def send(self, called: SafetyFilter | RecordedFilter, judged: Instant) -> bool:
        """Publishes what is pending, which stays to be drained. What is late is taken back, and a stop made anew, but
        under simulated time, where the clock of a process that slept is of the past as well.

        Returns:
            Whether what was pending has been sent.
        """
        in_time = True
        for left in reversed(range(_ATTEMPTS)):
            messages = [serialize_message(motion_msg(motion, self._joints)) for motion in called.pending]
            now = self._host.instant()
            if self._host.passed_ns(judged, now) <= self._longest or not messages:
                for message in messages:
                    self._publisher.publish(message)
                return in_time
            in_time = False
            called.retract(now, again=left > 0 and not self._host.sim_time)
            judged = now
        return in_time
