"""The system on the topics of a robot file: safety filter first, the policy only when the filter is up.

The robot's own drivers, ros2_control with the joint_trajectory_controller, and its cameras run already:
`ros2 launch vla_bringup robot.launch.py robot:=fr3 policy:=served`
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from vla_bringup.launching import actions
from vla_bringup.system import robot_system


def start(context: LaunchContext) -> list:
    chosen = context.launch_configurations
    return actions(robot_system(chosen["robot"], chosen["policy"], chosen["safety"], rviz=chosen["rviz"] == "true"))


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", description="config/robots/<name>.yaml, or a path"),
            DeclareLaunchArgument("policy", description="config/policies/<name>.yaml, or a path"),
            DeclareLaunchArgument(
                "safety", default_value="", description="config/safety/<name>.yaml; empty: the robot's"
            ),
            DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="open RViz"),
            OpaqueFunction(function=start),
        ]
    )
