"""The cell without ROS: scene, physics, controller, cameras, ground truth."""

from vla_sim.core.cell import Cell, JointState, ObjectTruth, Wrench
from vla_sim.core.controller import JointTrajectoryCommand, TrajectoryController, TrajectoryRejected
from vla_sim.core.scene import CUBES, ObjectPose, SceneConfig, sample_scene

__all__ = [
    "CUBES",
    "Cell",
    "JointState",
    "JointTrajectoryCommand",
    "ObjectPose",
    "ObjectTruth",
    "SceneConfig",
    "TrajectoryController",
    "TrajectoryRejected",
    "Wrench",
    "sample_scene",
]
