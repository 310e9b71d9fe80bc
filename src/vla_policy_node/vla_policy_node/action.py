"""An action server whose goals may last: rclpy's own would spin the executor while a coroutine of it waits."""

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from vla_msgs.action import ExecuteTask

from vla_node_base.conversions import duration_msg
from vla_policy_node.core.task import Verdict


class TaskServer(ActionServer):
    """Takes every goal, marks it as executing, and concludes it when told to.

    rclpy runs a goal as a coroutine and polls it in a busy loop until it is done. Here no coroutine exists before the
    result does.

    Args:
        begin: called with each new goal, in the executor's thread.
        cancel: called when a client wants a goal canceled; `goal.is_cancel_requested` is true afterwards.
    """

    def __init__(
        self,
        node: Node,
        action_type: Any,
        name: str,
        begin: Callable[[ServerGoalHandle], None],
        cancel: Callable[[ServerGoalHandle], CancelResponse],
    ):
        self._begin = begin
        super().__init__(
            node,
            action_type,
            name,
            execute_callback=lambda goal: None,
            handle_accepted_callback=self._accepted,
            cancel_callback=cancel,
        )

    def _accepted(self, goal: ServerGoalHandle) -> None:
        goal.execute()
        self._begin(goal)

    def notify_execute(self, goal_handle: ServerGoalHandle, execute_callback: Any) -> None:
        """A goal only changes its state."""

    def conclude(self, goal: ServerGoalHandle, result: Any, succeeded: bool) -> None:
        """Sends the result at once, for the node may end now; the goal ends as succeeded, as canceled if that was asked
        for, else as aborted."""

        def finish(handle: ServerGoalHandle) -> Any:
            if handle.is_cancel_requested:
                handle.canceled()
            elif succeeded:
                handle.succeed()
            else:
                handle.abort()
            return result

        try:
            self._execute_goal(finish, goal).send(None)
        except StopIteration:
            return
        raise RuntimeError("rclpy waits for something before it sends a result")


def result_msg(verdict: Verdict, duration: float) -> ExecuteTask.Result:
    """What a client is told; `duration` in s."""
    return ExecuteTask.Result(
        outcome=int(verdict.outcome), message=verdict.message, duration=duration_msg(max(0.0, duration))
    )
