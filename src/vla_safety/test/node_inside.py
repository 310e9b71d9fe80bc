"""The node in the test's own process, with every clock in the test's hand: its callbacks are called, nothing waits."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from rig import BRINGUP, HOME, MS, ROBOT

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vla_msgs.msg")

from rclpy.publisher import Publisher  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Bool  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402
from vla_msgs.srv import SetTool  # noqa: E402

import vla_safety.node  # noqa: E402
from vla_contract.chunk import ActionChunk as Chunk  # noqa: E402
from vla_contract.interpolation import Trajectory  # noqa: E402
from vla_node_base.conversions import chunk_msg, duration_msg, time_msg  # noqa: E402
from vla_node_base.domains import free_domain  # noqa: E402
from vla_safety.core.modes import Mode  # noqa: E402


def read(publisher, message):
    """A message, or the bytes of one."""
    return deserialize_message(message, publisher.msg_type) if isinstance(message, bytes) else message


AWAY = HOME + np.array([0.4, 0, 0, 0, 0, 0, 0, 0])


class Inside:
    """A configured and activated filter, and a robot that follows.

    Args:
        before: called before the node is made.

    Attributes:
        ns: what every clock says.
        follows: whether the robot does; else it runs away.
        sent: (topic, message) of all that was published.
    """

    def __init__(self, monkeypatch, tmp_path, changes=("", ""), activate=True, before=None, **parameters):
        text = (BRINGUP / "config/safety/cell.yaml").read_text()
        (tmp_path / "cell.yaml").write_text(text.replace(*changes) if changes[0] else text)
        given = {"robot": ROBOT.path, "safety": tmp_path / "cell.yaml", **parameters}
        rclpy.init(args=["--ros-args", *(x for k, v in given.items() for x in ("-p", f"{k}:={v}"))])
        if before is not None:
            before()
        self.ns, self.follows, self.sent, self.position = 1_700_000_000_000_000_000, True, [], HOME.copy()
        clocks = SimpleNamespace(monotonic_ns=lambda: self.ns, time_ns=lambda: self.ns)
        monkeypatch.setattr(vla_safety.node, "time", clocks)
        monkeypatch.setattr(
            Publisher, "publish", lambda to, message: self.sent.append((to.topic_name, read(to, message)))
        )
        self.node = vla_safety.node.SafetyNode()
        monkeypatch.setattr(self.node, "now_ns", lambda: self.ns)
        monkeypatch.setattr(self.node, "against", lambda now: None)  # no controller listens in this process
        self.done = rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        assert self.node.trigger_configure() == self.done
        if activate:
            assert self.node.trigger_activate() == self.done

    @property
    def mode(self):
        return self.node.safety.mode

    def published(self, topic):
        return [message for name, message in self.sent if name.endswith(topic)]

    def commands(self):
        return self.published(ROBOT.controller.topic)

    def decisions(self, source=None):
        found = self.published("/decision")
        return [d for d in found if source in (None, d.source)]

    def hear(self, topic, message, age=0.0):
        """A message comes, sent `age` s ago."""
        sent = self.ns - round(age * 1e9)
        info = {"source_timestamp": sent, "received_timestamp": self.ns}
        for subscription in [s for s in self.node.subscriptions if s.topic_name.endswith(topic)]:
            with_info = subscription._callback_type is subscription.CallbackType.WithMessageInfo
            subscription.callback(message, *((info,) if with_info else ()))

    def call(self, name, **request):
        kind = {"set_tool": SetTool, "reduced_speed": SetBool}.get(name, Trigger)
        service = next(s for s in self.node.services if s.srv_name.endswith(f"/{name}"))
        return service.callback(kind.Request(**request), kind.Response())

    def run(self, seconds, cycle=True):
        """Joint states each 10 ms, a cycle each 40 ms."""
        for k in range(1, round(seconds * 100) + 1):
            self.ns += 10 * MS
            safety, velocity = self.node.safety, np.zeros(len(HOME))
            if not self.follows:
                velocity[0] = 0.3
                self.position = self.position + 0.01 * velocity
            elif safety is not None and safety.committed is not None:
                state = safety.committed.state(self.ns)
                self.position, velocity = state.position, state.velocity
            message = JointState(name=list(ROBOT.joints), position=self.position.tolist(), velocity=velocity.tolist())
            message.header.stamp = time_msg(self.ns)
            self.hear(ROBOT.joint_states.topic, message)
            if cycle and k % 4 == 0:
                self.node._cycle()

    def arm(self):
        self.run(0.2)
        answer = self.call("arm")
        assert answer.success, answer.message
        self.run(0.6)

    def curve(self, goal, duration):
        committed = self.node.safety.committed
        start = HOME if committed is None else committed.positions[-1]
        s = np.linspace(0, 1, 21)[1:, None]
        return s[:, 0] * duration, start + (10 * s**3 - 15 * s**4 + 6 * s**5) * (goal - start)

    def chunk(self, goal=AWAY, sequence=1, duration=2.0):
        times, positions = self.curve(goal, duration)
        trajectory = Trajectory(times + 0.2, positions)
        self.hear("/vla_policy/chunk", chunk_msg(Chunk(self.ns, ROBOT.joints, trajectory, sequence), ROBOT.base_frame))

    def override(self, age=0.0, goal=AWAY):
        """Without a stamp. Returns the decision."""
        message = JointTrajectory(joint_names=list(ROBOT.joints))
        for t, q in zip(*self.curve(goal, 2.0), strict=True):
            point = JointTrajectoryPoint(positions=q.tolist(), velocities=[])
            point.time_from_start = duration_msg(0.2 + t)
            message.points.append(point)
        self.hear("/override", message, age)
        return self.decisions("override")[-1]

    def button(self, pressed, age=0.0):
        self.hear("/estop_input", Bool(data=pressed), age)

    def moving(self):
        """Armed, and under way."""
        self.arm()
        self.chunk()
        self.run(0.8)
        assert self.mode == Mode.ARMED and np.abs(self.node.safety.committed.state(self.ns).velocity).max() > 0.05

    def close(self):
        self.node.destroy_node()
        rclpy.try_shutdown()


@contextlib.contextmanager
def inside(tmp_path, **options):
    """A node in a domain of its own."""
    with free_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        made = Inside(patch, tmp_path, **options)
        try:
            yield made
        finally:
            made.close()
