"""The demo's system in the simulator: safety filter, simulated cell, policy. Nothing moves before the filter is armed.

Then, in another terminal:

    ros2 service call /vla_safety/arm std_srvs/srv/Trigger
    ros2 action send_goal /vla_policy/execute_task vla_msgs/action/ExecuteTask \\
        "{instruction: put the red cube in the tray}"
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from vla_bringup.launching import actions
from vla_bringup.system import demo_system


def start(context: LaunchContext) -> list:
    chosen = context.launch_configurations
    return actions(
        demo_system(
            robot=chosen["robot"],
            policy=chosen["policy"],
            safety=chosen["safety"],
            seed=int(chosen["seed"]),
            rviz=chosen["rviz"] == "true",
        )
    )


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", default_value="fr3_sim", description="config/robots/<name>.yaml, or a path"),
            DeclareLaunchArgument("policy", default_value="flow", description="config/policies/<name>.yaml, or a path"),
            DeclareLaunchArgument(
                "safety", default_value="", description="config/safety/<name>.yaml; empty: the robot's"
            ),
            DeclareLaunchArgument("seed", default_value="0", description="of the scene"),
            DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="open RViz"),
            OpaqueFunction(function=start),
        ]
    )
