"""Physics of the cell: it is deterministic, the arm follows, fingers hold, sensors and ground truth are right."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BPoly

from vla_contract.errors import ConfigError
from vla_kinematics import ToolKinematics
from vla_sim.core import CUBES, Cell, JointTrajectoryCommand, ObjectPose, SceneConfig, sample_scene
from vla_sim.core.scene import CUBE_DISTANCE, TRAY_DISTANCE, WORKSPACE_X, WORKSPACE_Y, build_model

OPEN, CLOSED = 0.04, 0.0


class Hand:
    """Moves the tool from point to point; each leg starts and ends at rest."""

    def __init__(self, robot, cell):
        self.robot, self.cell = robot, cell
        self.kinematics = ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame, robot.home)
        self.joints = np.array(robot.home)
        self.place = self.kinematics.forward(self.joints)[0]
        self.error = 0.0  # rad, largest of the arm so far

    def move(self, place, finger, seconds, points=25):
        share = BPoly.from_derivatives([0, 1], [[0, 0, 0], [1, 0, 0]])(np.linspace(0, 1, points))[:, None]
        path = self.place + (np.asarray(place) - self.place) * share
        followed = self.kinematics.follow(self.joints, path, np.diag([1.0, -1.0, -1.0]))
        positions = followed.positions.copy()
        positions[0] = self.joints
        positions[:, 7] = self.joints[7] + (finger - self.joints[7]) * share[:, 0]
        times = np.linspace(0, seconds, points)
        velocities = np.gradient(positions, times, axis=0)
        velocities[[0, -1]] = 0
        self.cell.command(JointTrajectoryCommand.from_arrays(self.robot.joints, times, positions, velocities))
        for _ in range(round(seconds / 0.01)):
            self.cell.step(5)
            wanted, actual = self.cell.controller.desired[0], self.cell.joint_state().positions
            self.error = max(self.error, float(np.abs(wanted - actual)[:7].max()))
        self.place, self.joints = path[-1], positions[-1]


def scene(yaw, x=0.5, y=0.12):
    others = {"green_cube": ObjectPose(0.40, -0.22, 0.0), "blue_cube": ObjectPose(0.55, -0.22, 0.0)}
    return SceneConfig({"red_cube": ObjectPose(x, y, yaw), **others}, ObjectPose(0.45, -0.09, 0.3))


# Scenes


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_scenes_leave_room_for_the_fingers(seed):
    drawn = sample_scene(seed)
    assert set(drawn.cubes) == set(CUBES) and drawn.seed == seed
    places = [(c.x, c.y) for c in drawn.cubes.values()]
    for x, y in [*places, (drawn.tray.x, drawn.tray.y)]:
        assert WORKSPACE_X[0] <= x <= WORKSPACE_X[1] and WORKSPACE_Y[0] <= y <= WORKSPACE_Y[1]
    for k, place in enumerate(places):
        assert np.hypot(*np.subtract(place, (drawn.tray.x, drawn.tray.y))) >= TRAY_DISTANCE
        assert all(np.hypot(*np.subtract(place, other)) >= CUBE_DISTANCE for other in places[k + 1 :])


def test_same_seed_same_scene():
    assert sample_scene(7) == sample_scene(7)
    assert sample_scene(7) != sample_scene(8)


def test_reset_puts_everything_where_the_scene_says(cell, robot):
    drawn = cell.reset(11, start_ns=4_000_000_000)
    assert cell.time_ns == 4_000_000_000 and drawn == sample_scene(11)
    truth = cell.truth()
    for name, pose in {**drawn.cubes, "tray": drawn.tray}.items():
        np.testing.assert_allclose(truth[name].position[:2], [pose.x, pose.y])
        assert 2 * np.arctan2(truth[name].quaternion[3], truth[name].quaternion[0]) == pytest.approx(pose.yaw)
        assert not truth[name].held and not truth[name].in_tray
    np.testing.assert_array_equal(cell.joint_state().positions, robot.home)


def test_refuses_a_scene_of_other_cubes(cell):
    with pytest.raises(ConfigError, match="blue_cube"):
        cell.reset(SceneConfig({"pink_cube": ObjectPose(0.5, 0, 0)}, ObjectPose(0.4, 0.2, 0)))


def test_cubes_stay_where_they_were_put(cell):
    before = cell.truth()
    cell.run(2.0)
    after = cell.truth()
    for name in CUBES:
        np.testing.assert_allclose(after[name].position, before[name].position, atol=5e-4)


# Motion


def test_same_seed_same_motion_bit_for_bit(robot):
    states = []
    for _ in range(2):
        cell = Cell(robot)
        cell.reset(scene(0.4))
        hand = Hand(robot, cell)
        for place, finger, seconds in (
            ((0.5, 0.12, 0.15), OPEN, 0.8),
            ((0.5, 0.12, 0.02), OPEN, 0.5),
            ((0.5, 0.12, 0.02), CLOSED, 0.4),
        ):
            hand.move(place, finger, seconds)
        states.append(cell.save_state())
    np.testing.assert_array_equal(*states)


def test_a_reset_forgets_everything(robot, cell):
    fresh = Cell(robot)
    Hand(robot, cell).move((0.5, 0.2, 0.1), CLOSED, 0.5)
    for one in (cell, fresh):
        one.reset(3)
        one.run(0.2)
    np.testing.assert_array_equal(cell.save_state(), fresh.save_state())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=7, max_size=7))
def test_arm_follows_within_a_hundredth_of_a_radian(shared_cell, robot, offset):
    shared_cell.reset(0)
    home = np.array(robot.home)
    home[1] -= 0.4  # up, away from the table
    goal = np.clip(home[:7] + offset, robot.limits().min_position[:7], robot.limits().max_position[:7])
    reached = np.append(goal, 0.02)
    largest = np.abs(reached - robot.home)[:7].max()
    seconds = max(0.4, np.sqrt(5.8 * largest / 8))  # quintic: peak acceleration 5.8 d / t² below 8 rad/s²
    rest = np.zeros((1, 8))
    shared_cell.command(JointTrajectoryCommand.from_arrays(robot.joints, [seconds], [reached], rest, rest))
    worst = 0.0
    for _ in range(round(seconds / 0.01) + 5):
        shared_cell.step(5)
        error = shared_cell.controller.desired[0] - shared_cell.joint_state().positions
        worst = max(worst, np.abs(error[:7]).max())
    assert worst < 0.01
    np.testing.assert_allclose(shared_cell.joint_state().positions, reached, atol=1e-3)


def test_torques_stay_within_the_joints_limits(robot, cell):
    jump = np.array(robot.home) + [0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -0.02]
    cell.command(JointTrajectoryCommand.from_arrays(robot.joints, [0.001], [jump]))
    for _ in range(100):
        cell.step(1)
        assert (np.abs(cell.joint_state().efforts) <= [87, 87, 87, 87, 12, 12, 12, 30]).all()
    cell.run(2.0)
    np.testing.assert_allclose(cell.joint_state().positions, jump, atol=1e-3)


@pytest.mark.parametrize("yaw", np.radians([0, 12, 22, 33, 40, 44.9, 45, -30]))
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.006, 0.008)])
def test_fingers_grasp_carry_and_drop_a_cube_at_any_yaw(robot, cell, yaw, offset):
    cell.reset(scene(yaw))
    hand = Hand(robot, cell)
    x, y = 0.5 + offset[0], 0.12 + offset[1]
    for z, finger, seconds in ((0.15, OPEN, 1.0), (0.02, OPEN, 0.8), (0.02, CLOSED, 0.6), (0.2, CLOSED, 0.8)):
        hand.move((x, y, z), finger, seconds)
    grasped = cell.truth()["red_cube"]
    assert grasped.held and grasped.position[2] > 0.17
    hand.move((0.45, -0.09, 0.2), CLOSED, 1.2)
    carried = cell.truth()["red_cube"]
    assert carried.held and np.abs(carried.position - hand.place).max() < 0.02 and not carried.in_tray
    for z, finger, seconds in ((0.06, CLOSED, 0.8), (0.06, OPEN, 0.5), (0.2, OPEN, 0.6)):
        hand.move((0.45, -0.09, z), finger, seconds)
    cell.run(0.5)
    dropped = cell.truth()
    assert dropped["red_cube"].in_tray and not dropped["red_cube"].held
    assert not dropped["green_cube"].in_tray and not dropped["blue_cube"].in_tray
    assert hand.error < 0.01


# Sensors and truth


def test_wrench_is_zero_in_free_space_and_carries_the_payload(robot, cell):
    cell.reset(scene(0.0))
    np.testing.assert_allclose(cell.wrench().force, 0, atol=1e-6)
    hand = Hand(robot, cell)
    for z, finger, seconds in ((0.15, OPEN, 1.0), (0.02, OPEN, 0.8), (0.02, CLOSED, 0.6), (0.2, CLOSED, 0.8)):
        hand.move((0.5, 0.12, z), finger, seconds)
    cell.run(1.0)
    np.testing.assert_allclose(cell.wrench().force, [0, 0, 0.05 * 9.81], atol=0.02)  # sensor z points down here


def test_wrench_shows_contact_with_the_table(robot, cell):
    hand = Hand(robot, cell)
    hand.move((0.45, 0.0, 0.02), CLOSED, 1.5)
    hand.move((0.45, 0.0, 0.006), CLOSED, 0.5)  # finger tips reach 8.8 mm beyond the tool frame
    assert cell.wrench().force[2] < -5.0


def test_tray_counts_only_cubes_at_rest_inside(cell):
    drawn = cell.reset(2)
    tray = drawn.tray
    inside = (np.array([tray.x, tray.y, 0.024]), np.array([1.0, 0, 0, 0]))
    home = cell.joint_state().positions
    cell.pose(home, {"blue_cube": inside})
    cell.run(0.3)
    assert [name for name, truth in cell.truth().items() if truth.in_tray] == ["blue_cube"]
    cell.pose(home, {"blue_cube": (inside[0] + [0, 0, 0.1], inside[1])})
    cell.step(10)
    assert not cell.truth()["blue_cube"].in_tray, "it still falls"
    edge = (inside[0] + [0.075 * np.cos(tray.yaw), 0.075 * np.sin(tray.yaw), 0.021], inside[1])
    cell.pose(home, {"blue_cube": edge})
    assert not cell.truth()["blue_cube"].in_tray, "on the wall"


def test_saved_state_continues_exactly(cell):
    cell.reset(5)
    cell.run(0.3)
    saved = cell.save_state()
    cell.run(0.3)
    once = cell.save_state()
    cell.reset(6)
    cell.restore_state(saved)
    cell.run(0.3)
    np.testing.assert_allclose(cell.save_state(), once, atol=1e-9)
    with pytest.raises(ConfigError, match="state has shape"):
        cell.restore_state(saved[:-1])


def test_pose_refuses_unknown_objects(cell):
    with pytest.raises(ConfigError, match="unknown object 'moon'.*red_cube"):
        cell.pose(np.zeros(8), {"moon": (np.zeros(3), np.array([1.0, 0, 0, 0]))})


# Refusals of the model


def test_refuses_what_is_not_a_urdf():
    with pytest.raises(ConfigError, match="cannot read the URDF"):
        build_model("<robot", ["a"], {})


def test_refuses_joints_that_the_urdf_lacks(robot):
    with pytest.raises(ConfigError, match="unknown joint 'elbow'.*fr3_joint1"):
        build_model(robot.urdf(), ["elbow"], {})


def test_refuses_cameras_that_are_nowhere(robot):
    with pytest.raises(ConfigError, match=r"camera 'side'.*front"):
        build_model(robot.urdf(), robot.joints, {"side": "side_optical_frame"})


def test_model_has_what_the_file_says(shared_cell, robot):
    model = shared_cell.model
    assert model.opt.timestep == 0.002
    assert {model.camera(k).name for k in range(model.ncam)} == {"front", "wrist", "overview"}
    assert mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, robot.tool_frame) > 0
