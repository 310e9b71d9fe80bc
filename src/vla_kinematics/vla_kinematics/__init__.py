"""Where the tool is, and how the joints must move to bring it elsewhere. No ROS."""

from vla_kinematics.tool import Followed, ToolKinematics

__all__ = ["Followed", "ToolKinematics"]
