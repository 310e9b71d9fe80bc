"""What hangs on the filter's node: each input or feature with topics or services of its own is one adapter.

The node calls its adapters; an adapter tells the node what it heard. None of them decides anything.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sensor_msgs.msg import JointState

from vla_safety.building import Parts
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.findings import Finding
from vla_safety.core.records import Answer
from vla_safety.core.validation import Proposal
from vla_safety.core.watchdogs import Instant
from vla_safety.recording import RecordedFilter


class Host(Protocol):
    """What an adapter needs of the node: rclpy's factories (their callbacks are guarded: an error in one latches the
    e-stop), and the filter.

    Attributes:
        filter: to be called; None before there is a robot description. After a call `flush` publishes what came out.
        safety: the filter itself, for views.
        active: the lifecycle state; while it is another one, nothing may be moved.
    """

    @property
    def filter(self) -> SafetyFilter | RecordedFilter | None: ...

    @property
    def safety(self) -> SafetyFilter | None: ...

    @property
    def active(self) -> bool: ...

    @property
    def sim_time(self) -> bool: ...

    def create_subscription(self, msg_type: Any, topic: str, callback: Any, *args: Any, **options: Any) -> Any: ...

    def create_publisher(self, msg_type: Any, topic: str, *args: Any, **options: Any) -> Any: ...

    def create_client(self, srv_type: Any, srv_name: str, *args: Any, **options: Any) -> Any: ...

    def create_service(self, srv_type: Any, srv_name: str, callback: Any, *args: Any, **options: Any) -> Any: ...

    def create_timer(self, period: float, callback: Any, *args: Any, **options: Any) -> Any: ...

    def get_logger(self) -> Any: ...

    def get_name(self) -> str: ...

    def get_namespace(self) -> str: ...

    def get_publishers_info_by_topic(self, topic_name: str) -> Any: ...

    def get_subscriptions_info_by_topic(self, topic_name: str) -> Any: ...

    def guarded(self, callback: Callable[..., Any]) -> Callable[..., Any]: ...

    def instant(self) -> Instant:
        """Now."""
        ...

    def age_ns(self, info: Mapping[str, int]) -> int:
        """How old a message is at least, ns; negative: it says that it comes from the future. To be asked after
        `instant`. `info` is what rclpy gives to a callback beside the message."""
        ...

    def objection(self, moves: bool = False) -> str:
        """Why what a person asks for is not done, for people; empty: nothing speaks against it. Whoever asks for a stop
        is not asked. `moves`: the robot may move for it."""
        ...

    def propose(self, convert: Callable[[int, int], Proposal], info: Mapping[str, int]) -> None:
        """Has a proposal judged, and publishes what comes of it: `convert(now_ns, max_points)` makes it, and `info` is
        its message's."""
        ...

    def tell(self, cause: str, finding: Finding | None, now: Instant) -> None:
        """Reports a cause to the filter when it appears or goes, or when a touch has become harder or softer; a finding
        stops and latches."""
        ...

    def against(self, now: Instant) -> Finding | None:
        """What any adapter has against moving the robot."""
        ...

    def reconfigure(self, finding: Finding, **changes: Any) -> Answer:
        """Asks the filter for another setup: `changes` are fields of `building.Setup`, `finding` is why the robot is
        held if it must be stopped for it."""
        ...

    def passed_ns(self, judged: Instant, now: Instant) -> int:
        """How long ago a call for `judged` was made, ns; `now` is what `instant` has just said."""
        ...

    def flush(self, judged: Instant, began_ns: int | None = None) -> bool:
        """Publishes what the filter wants to be published. False: commands were not sent, because it is too long ago
        that they were `judged`. `began_ns`: when work on it began, on the steady clock."""
        ...


class Adapter:
    """One of them; the base does nothing."""

    def __init__(self, host: Host):
        self.host = host

    def rebuilt(self, parts: Parts) -> None:
        """A filter was made of `parts` (at the start, and when the safety file is read again). Raising refuses."""

    def reconfigured(self, parts: Parts) -> None:
        """The filter took another setup: `parts.setup`."""

    def joint_state(self, message: JointState, now: Instant) -> None:
        """A joint state came, and the filter has taken it."""

    def check(self, now: Instant) -> None:
        """Called in each cycle, before the filter's."""

    def look(self, now: Instant) -> None:
        """Called twice a second, for what takes longer."""

    def against(self, now: Instant) -> Finding | None:
        """What speaks against moving the robot; asked before it is armed, and before it is led back."""
        return None

    def arming(self) -> Finding | None:
        """The robot is at rest and about to be armed. A finding refuses."""
        return None

    def close(self) -> None:
        """The node is being cleaned up: for what rclpy's entities do not end by themselves."""

    def diagnostics(self) -> dict[str, object]:
        """More values for /diagnostics."""
        return {}
