"""The expert: laws on a kinematic model, and the task itself on the real cell."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_contract.robot import load_robot
from vla_kinematics import ToolKinematics
from vla_sim.core.cell import Cell
from vla_sim.core.controller import JointTrajectoryCommand
from vla_sim.core.expert import Expert, Pose, Situation

ROBOT = Path(__file__).parents[2] / "vla_bringup" / "config" / "robots" / "fr3_sim.yaml"
EXPERT = Expert()
REST = np.zeros(3)


def situation(tool, finger, cubes, tray=(0.5, 0.15, 0.0), yaw=0.0):
    poses = {name: Pose(np.array(place), yaw) for name, place in cubes.items()}
    return Situation(np.array(tool, dtype=float), finger, poses, Pose(np.array(tray)))


@given(
    tool=st.tuples(st.floats(0.3, 0.65), st.floats(-0.3, 0.3), st.floats(0.03, 0.4)),
    cube=st.tuples(st.floats(0.38, 0.58), st.floats(-0.25, -0.05)),
    finger=st.floats(0.0, 0.04),
    yaw=st.floats(-0.8, 0.8),
)
@settings(max_examples=40, deadline=None)
def test_from_any_situation_the_plan_ends_with_the_cube_in_the_tray(tool, cube, finger, yaw):
    plan = EXPERT.plan(situation(tool, finger, {"red": (*cube, 0.02)}, yaw=yaw), "red", REST, 120, 0.1)
    assert plan.progress[-1] == 1.0
    assert np.hypot(*(plan.tool[-1, :2] - [0.5, 0.15])) < 0.02, "it ends above the tray"
    assert plan.gripper[-1] == 1.0


@given(st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)))
@settings(max_examples=20, deadline=None)
def test_speed_and_acceleration_of_a_plan_are_bounded(velocity):
    start = situation((0.4, 0.2, 0.3), 0.04, {"red": (0.5, -0.2, 0.02)})
    plan = EXPERT.plan(start, "red", np.array(velocity), 60, 0.1)
    velocities = np.diff(np.vstack([start.tool, plan.tool]), axis=0) / 0.1
    assert np.linalg.norm(velocities, axis=1).max() < 0.285
    assert np.linalg.norm(np.diff(velocities, axis=0), axis=1).max() / 0.1 < 1.35


def test_a_plan_is_consistent_with_the_plan_made_along_it():
    start = situation((0.4, 0.2, 0.3), 0.04, {"red": (0.5, -0.2, 0.02)})
    whole = EXPERT.plan(start, "red", REST, 16, 0.1)
    velocity = (whole.tool[5] - whole.tool[3]) / 0.2
    rest = EXPERT.plan(situation(whole.tool[4], 0.04, {"red": (0.5, -0.2, 0.02)}), "red", velocity, 11, 0.1)
    assert np.abs(rest.tool - whole.tool[5:]).max() < 0.01


def test_a_wrong_cube_in_the_gripper_is_put_down():
    start = situation((0.45, 0.0, 0.2), 0.02, {"red": (0.5, -0.2, 0.02), "blue": (0.45, 0.0, 0.2)})
    assert EXPERT.held(start) == "blue"
    plan = EXPERT.plan(start, "red", REST, 40, 0.1)
    assert plan.gripper[0] == 0.0, "not dropped from above"
    assert plan.tool[:, 2].min() < 0.05 and plan.gripper.max() == 1.0


def test_a_placed_cube_means_done_once_the_tool_has_left():
    start = situation((0.5, 0.15, 0.25), 0.04, {"red": (0.5, 0.15, 0.024)})
    assert EXPERT.command(start, "red").progress == 1.0
    assert EXPERT.placed(start) == ("red",)


def test_an_unknown_cube_is_an_error():
    with pytest.raises(KeyError):
        EXPERT.command(situation((0.4, 0, 0.3), 0.04, {"red": (0.5, 0, 0.02)}), "pink")


@pytest.mark.parametrize("seed", range(12))
def test_the_expert_solves_the_task_in_the_cell(seed):
    robot = load_robot(ROBOT)
    cell = Cell(robot)
    kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
    down = kinematics.forward(robot.home)[1]
    cell.reset(70_000 + seed)
    name = ("red_cube", "green_cube", "blue_cube")[seed % 3]
    times = 0.1 * np.arange(1, 17)
    fastest = 0.0
    while cell.time_ns < 12e9 and not cell.truth()[name].in_tray:
        truths, joints = cell.truth(), cell.joint_state().positions
        poses = {
            key: Pose(truth.position, 2 * float(np.arctan2(truth.quaternion[3], truth.quaternion[0])))
            for key, truth in truths.items()
        }
        now = Situation(kinematics.forward(joints)[0], float(joints[7]), poses, poses.pop("tray"))
        plan = EXPERT.plan(now, name, REST, 16, 0.1)
        positions = kinematics.follow(joints, plan.tool, down).positions
        positions[:, 7] = plan.gripper * 0.04
        velocities = np.gradient(positions, 0.1, axis=0)
        velocities[-1] = 0.0
        velocities[:, 7] = 0.0
        cell.command(JointTrajectoryCommand.from_arrays(robot.joints, times, positions, velocities))
        cell.run(0.3)
        fastest = max(fastest, float(np.abs(cell.joint_state().velocities[:7]).max()))
    assert cell.truth()[name].in_tray
    assert fastest < 2.0, "well below the joints' velocity limits"
