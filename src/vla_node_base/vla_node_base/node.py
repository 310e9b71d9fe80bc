"""Lifecycle base of the suite's nodes, and how a process runs one.

What rclpy does not do: it hides exceptions in lifecycle callbacks, and lets others end the node without a word of
what it was doing. Here every callback is guarded: an error is logged with its traceback and handed to
`on_callback_error`, where a node decides what it means (the safety filter: stop).
"""

import functools
import gc
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from vla_contract.errors import VlaError
from vla_node_base.parameters import declare

try:
    from rclpy.experimental import EventsExecutor
except ImportError:  # an rclpy from before it had one
    EventsExecutor = None

RCLError = rclpy_implementation.RCLError

EXIT_CONFIG = 2
_SIGNAL_LATENCY = 0.1  # s until a signal is seen by a node that has nothing to do
_LAST_LOOK = 2.0  # s that a process which was told to end goes on for a node that is still busy


class VlaNode(LifecycleNode):
    """A lifecycle node with parameters from a frozen dataclass.

    A subclass sets `Parameters` and overrides `configure` (read files, make publishers; raise to refuse), `activate`,
    `deactivate` and `cleanup`. Their errors are logged and refuse the transition. What was made with `create_…` from
    `configure` on is destroyed after `cleanup`, so that the node can be configured again.

    Attributes:
        active: whether the node is in the lifecycle state of that name.
    """

    Parameters: ClassVar[type]
    _made: list[tuple[Callable[[Any], Any], Any]] | None = None  # how each goes again; None: not configured

    def __init__(self, name: str, **options: Any):
        super().__init__(name, **options)
        self.active = False
        self.params = declare(self, self.Parameters)
        self.autostart = bool(self.declare_parameter("autostart", True).value)
        self.sim_time = bool(self.get_parameter("use_sim_time").value)

    # -- what a subclass provides

    def configure(self) -> None:
        """Reads configuration and creates interfaces. Raising refuses the transition."""

    def activate(self) -> None:
        """Begins to work. Raising refuses the transition."""

    def deactivate(self) -> None:
        """Stops to work; must leave the robot safe."""

    def busy(self) -> str:
        """Why it may not be cleaned up yet, for people; empty: it may. A shutdown then leaves everything as it is, and
        a process that is told to end waits for at most 2 s."""
        return ""

    def cleanup(self) -> None:
        """Gives back what `configure` took; but for publishers, subscriptions, services, clients and timers."""

    def on_callback_error(self, error: Exception) -> None:
        """Called after an error in any callback was logged. The default ends the process: an unknown state is worse
        than none."""
        raise error

    # -- clocks

    def now_ns(self) -> int:
        """ROS time [ns]: the simulator's clock under use_sim_time, else the wall clock."""
        return int(self.get_clock().now().nanoseconds)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._made = []
        result = self._transition("configure", self.configure)
        if result != TransitionCallbackReturn.SUCCESS:
            self._destroy_made()
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._transition("activate", self.activate)
        self.active = result == TransitionCallbackReturn.SUCCESS
        # What was made until now stays. Looked at in every full round of the garbage collector, some hundred thousand
        # objects would stop every callback for 30 ms now and then, in the middle of a motion.
        gc.collect()
        gc.freeze()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        return self._transition("deactivate", self.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("clean up", self._give_back)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self.active:
            self.on_deactivate(state)
        return self._transition("shut down", self._give_back)

    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:
        """rclpy's own service, which lets a request that the state does not allow end the process."""
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)  # type: ignore[misc]
        except RCLError as error:
            asked = request.transition.label or request.transition.id
            self.get_logger().error(f"transition {asked} is refused, the node stays as it is: {error}")
            response.success = False
            return response

    def _give_back(self) -> None:
        if why := self.busy():
            raise VlaError(why)
        self.cleanup()
        self._destroy_made()

    def _destroy_made(self) -> None:
        for destroy, entity in self._made or ():
            destroy(entity)
        self._made = None

    def keep(self, entity: Any, destroy: Callable[[Any], Any]) -> Any:
        """`entity`, which `destroy` takes after `cleanup`, if it was made from `configure` on."""
        if self._made is not None:
            self._made.append((destroy, entity))
        return entity

    def _transition(self, name: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except VlaError as error:
            self.get_logger().error(f"cannot {name}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f"cannot {name}: {traceback.format_exc()}")
            return TransitionCallbackReturn.FAILURE
        self.get_logger().debug(f"{name}: done")
        return TransitionCallbackReturn.SUCCESS

    # -- guarded callbacks

    def guarded(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The callback with its errors logged and handed to `on_callback_error`. One that `configure` made is silent
        after `cleanup`: executors may still hold events of what was destroyed."""
        life = self._made

        @functools.wraps(callback)
        def guard(*args: Any) -> Any:
            if life is not None and life is not self._made:
                return None
            try:
                return callback(*args)
            except Exception as error:
                name = getattr(callback, "__qualname__", repr(callback))
                self.get_logger().error(f"error in {name}: {traceback.format_exc()}")
                self.on_callback_error(error)
                return None

        return guard

    def create_subscription(self, msg_type: Any, topic: str, callback: Any, *args: Any, **options: Any) -> Any:
        made = super().create_subscription(msg_type, topic, self.guarded(callback), *args, **options)
        return self.keep(made, self.destroy_subscription)

    def create_publisher(self, *args: Any, **options: Any) -> Any:
        return self.keep(super().create_publisher(*args, **options), self.destroy_publisher)

    def create_client(self, *args: Any, **options: Any) -> Any:
        return self.keep(super().create_client(*args, **options), self.destroy_client)

    def create_service(self, srv_type: Any, name: str, callback: Any, *args: Any, **options: Any) -> Any:
        """As rclpy's; after an error the response goes out as far as it was filled in, so that the node lives on."""
        guard = self.guarded(callback)

        def serve(request: Any, response: Any) -> Any:
            return guard(request, response) or response

        return self.keep(super().create_service(srv_type, name, serve, *args, **options), self.destroy_service)

    def add_on_set_parameters_callback(self, callback: Any) -> None:
        """As rclpy's."""
        super().add_on_set_parameters_callback(callback)
        self.keep(callback, self.remove_on_set_parameters_callback)

    def create_timer(self, period: float, callback: Any, *args: Any, **options: Any) -> Any:
        made = super().create_timer(period, self.guarded(callback), *args, **options)
        return self.keep(made, self.destroy_timer)


def run(make_node: Callable[[], VlaNode], events: bool = False) -> None:
    """Runs one node as a process until SIGINT or SIGTERM; ends with 0, or with 2 when it refuses its configuration.

    Args:
        events: use rclpy's events executor where it is installed: it takes half of the processor time of the usual one,
            which looks at every entity for every message. It knows no guard conditions.

    Signals only ask for the end. rclpy's own handlers would shut the context down at once: the callback in progress
    would fail, and nothing that `deactivate` has to say could leave the process any more.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    code = 0
    node: VlaNode | None = None
    spin_some: Callable[[], Any] | None = None
    try:
        node = make_node()
        spin_some = spinner(node, events)
        if node.autostart and not _start(node):
            code = EXIT_CONFIG
        else:
            while not stop.is_set():
                spin_some()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except VlaError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_CONFIG
    finally:
        if node is not None:
            _end(node, spin_some)
        rclpy.try_shutdown()
    sys.exit(code)


def spinner(node: Node, events: bool) -> Callable[[], None]:
    """What is to be called again and again: runs callbacks, and comes back soon enough to see a signal."""
    if events and EventsExecutor is not None:
        executor, never = EventsExecutor(), Future()
        executor.add_node(node)
        # Its `spin` never comes back to Python, and a call for each event would cost what it saves.
        return lambda: executor.spin_until_future_complete(never, timeout_sec=_SIGNAL_LATENCY)
    single = SingleThreadedExecutor()
    single.add_node(node)
    return lambda: single.spin_once(timeout_sec=_SIGNAL_LATENCY)


def _start(node: VlaNode) -> bool:
    done = TransitionCallbackReturn.SUCCESS
    return node.trigger_configure() == done and node.trigger_activate() == done


def _end(node: VlaNode, spin_some: Callable[[], Any] | None) -> None:
    try:
        node.active = False
        node.deactivate()
        if spin_some is not None:
            spin_some()  # what that set in motion, results of actions for one
        deadline = time.monotonic() + _LAST_LOOK
        while spin_some is not None and node.busy() and time.monotonic() < deadline:
            spin_some()
        node.cleanup()
        node.destroy_node()
    except Exception:
        # The process ends in any case; what went wrong is worth a line.
        print(f"error while ending: {traceback.format_exc()}", file=sys.stderr)
