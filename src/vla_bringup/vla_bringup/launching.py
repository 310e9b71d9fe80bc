"""The list of nodes as launch_ros actions."""

from collections.abc import Sequence

from launch import Action, LaunchContext
from launch.actions import RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from vla_bringup.system import NodeSpec, System


def actions(system: System | Sequence[NodeSpec]) -> list[Action]:
    """Actions that start the nodes in order; what follows a gate waits until the gate ended well."""
    started: list[Action] = []
    for index, spec in enumerate(system):
        action = node_action(spec)
        if spec.gate:
            started.append(RegisterEventHandler(_opens(action, spec, system[index + 1 :])))
            started.append(action)
            break
        started.append(action)
    return started


def node_action(spec: NodeSpec) -> Node:
    """One node. A required one takes the others down with it."""
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        # Without a type, launch_ros would read a string such as "1e3" as a number.
        parameters=[
            {
                key: ParameterValue(value, value_type=type(value)) if isinstance(value, str) else value
                for key, value in spec.parameters.items()
            }
        ],
        remappings=list(spec.remappings),
        arguments=list(spec.arguments),
        additional_env=dict(spec.environment),
        output="both",
        on_exit=[Shutdown(reason=f"required node {spec.name} ended")] if spec.required else None,
    )


def _opens(gate: Node, spec: NodeSpec, rest: Sequence[NodeSpec]) -> OnProcessExit:
    def on_exit(event: ProcessExited, context: LaunchContext) -> list[Action]:
        if event.returncode != 0:
            return [Shutdown(reason=f"{spec.name} ended with {event.returncode}: the rest does not start")]
        return actions(rest)

    return OnProcessExit(target_action=gate, on_exit=on_exit)
