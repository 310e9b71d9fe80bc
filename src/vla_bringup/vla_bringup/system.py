"""The running system as one list of node specifications.

`launch/*.launch.py` turn the list into launch_ros actions, `runner.py` turns the same list into processes where
launch_ros is not installed. Nothing is described twice.

The order of the list is the order of the start. A *gate* is a short-lived process: what follows it starts only after it
ended with exit status 0. When a required node ends, everything is shut down.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vla_bringup.files import find, share
from vla_contract.errors import ConfigError
from vla_contract.robot import Robot, load_robot

Value = bool | int | float | str | tuple[str, ...]

DDS_PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
ROBOT_STATE = "~/.ros/vla"  # where a latched e-stop survives a restart, and the filter's decisions are recorded
AUDIT_KEEP = 20_000.0  # MB of records: about a fortnight of work; the oldest are deleted
FILTER_TIMEOUT = 30.0  # s for the safety filter to come up


@dataclass(frozen=True)
class NodeSpec:
    """One process of the running system.

    Attributes:
        package, executable: what `ros2 run` would be given.
        name: of the node.
        parameters: name -> value.
        remappings: pairs (from, to).
        arguments: of the command line, before `--ros-args`.
        environment: variables set on top of those of the starter.
        required: when it ends, the rest is shut down.
        gate: ends by itself; status 0 lets the rest of the list start, any other shuts everything down.
    """

    package: str
    executable: str
    name: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    required: bool = True
    gate: bool = False


System = tuple[NodeSpec, ...]


def demo_system(
    robot: str = "fr3_sim",
    policy: str = "flow",
    safety: str = "",
    *,
    seed: int = 0,
    lockstep: bool = False,
    allow_blank: bool = False,
    view: bool = False,
    rviz: bool = False,
    observe_only: bool = False,
) -> System:
    """The system beside the simulator.

    The simulator takes the robot's place; the filter is the only node that commands it, so without the filter nothing
    moves and nothing has to wait for it.

    Args:
        robot, policy, safety: path of a YAML file, or the name of a shipped one; an empty `safety` means the file that
            the robot file names.
        seed: of the first scene.
        lockstep: the simulator's clock waits for filter and policy, so that the load of the machine does not matter.
        allow_blank: the policy takes an empty instruction (evaluation of what it does without one).
        view, rviz: open a window.
        observe_only: the filter judges and records but commands nothing, and the simulator plays the policy's chunks as
            they are. There is no such thing for a robot: only the simulator can do it.

    Raises:
        ConfigError: when a file is missing or wrong.
    """
    files = _files(robot, policy, safety)
    common: dict[str, Value] = {"robot": str(files.robot.path), "use_sim_time": True, "lockstep": lockstep}
    system = [
        _node("vla_safety", "vla_safety", {**common, "safety": str(files.safety), "shadow": observe_only}),
        _node("vla_sim", "vla_sim", {**common, "seed": seed, "unfiltered": observe_only}),
        _node("vla_policy_node", "vla_policy", {**common, "policy": str(files.policy), "allow_blank": allow_blank}),
    ]
    if view:
        viewer = _node("vla_bringup", "vla_viewer", {"robot": str(files.robot.path)}, required=False)
        system.append(replace(viewer, environment={**viewer.environment, "MUJOCO_GL": "glfw"}))
    if rviz:
        system += _rviz(files.robot, use_sim_time=True)
    return tuple(system)


def robot_system(robot: str, policy: str, safety: str = "", *, rviz: bool = False) -> System:
    """The system on the topics of a robot file, without the simulator. Arguments as in `demo_system`.

    Nothing starts before the safety filter is up and has passed its self-test. A latched e-stop and the record of all
    decisions are kept in `ROBOT_STATE`.
    """
    files = _files(robot, policy, safety)
    common: dict[str, Value] = {"robot": str(files.robot.path)}
    kept = {"state_dir": ROBOT_STATE, "audit_dir": f"{ROBOT_STATE}/audit", "audit_keep": AUDIT_KEEP}
    system = [
        _node("vla_safety", "vla_safety", {**common, "safety": str(files.safety), **kept}),
        _node("vla_bringup", "vla_wait_for_filter", {"timeout": FILTER_TIMEOUT}, required=False, gate=True),
        _node("vla_policy_node", "vla_policy", {**common, "policy": str(files.policy)}),
    ]
    if rviz:
        system += _rviz(files.robot, use_sim_time=False)
    return tuple(system)


@dataclass(frozen=True)
class _Files:
    robot: Robot
    policy: Path
    safety: Path


def _files(robot: str, policy: str, safety: str) -> _Files:
    loaded = load_robot(find("robots", robot))
    chosen = find("safety", safety) if safety else loaded.resolve(loaded.safety)
    return _Files(loaded, find("policies", policy), chosen)


_EXECUTABLES = {"vla_safety": "vla_safety", "vla_sim": "vla_sim", "vla_policy": "vla_policy_node"}


def _node(
    package: str, name: str, parameters: Mapping[str, Value], required: bool = True, gate: bool = False
) -> NodeSpec:
    return NodeSpec(
        package=package,
        executable=_EXECUTABLES.get(name, name),
        name=name,
        parameters=parameters,
        environment=_transport(),
        required=required,
        gate=gate,
    )


def _transport() -> dict[str, str]:
    """Fast DDS drops large images with its own defaults; a profile that the user has set wins over ours."""
    profile = share() / "config" / "fastdds.xml"
    if not profile.is_file():
        raise ConfigError(f"'{profile}' is missing: images would be lost without this transport profile; restore it")
    return {variable: str(profile) for variable in DDS_PROFILE_VARIABLES if variable not in os.environ}


def _rviz(robot: Robot, use_sim_time: bool) -> list[NodeSpec]:
    config = share() / "rviz" / "demo.rviz"
    return [
        NodeSpec(
            package="robot_state_publisher",
            executable="robot_state_publisher",
            name="robot_state_publisher",
            parameters={"robot_description": robot.urdf(), "use_sim_time": use_sim_time},
            remappings=(("joint_states", robot.joint_states.topic),),
            required=False,
        ),
        NodeSpec(
            package="rviz2",
            executable="rviz2",
            name="rviz2",
            arguments=("-d", str(config)),
            parameters={"use_sim_time": use_sim_time},
            required=False,
        ),
    ]
