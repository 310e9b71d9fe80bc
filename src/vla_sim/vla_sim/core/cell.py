"""The robot cell: physics, controller, cameras and ground truth behind one object without ROS.

One thread at a time may use a cell. Times are simulated: integer nanoseconds, zero at a reset unless it says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ConfigError, unknown
from vla_contract.robot import Robot
from vla_sim.core.controller import JointTrajectoryCommand, TrajectoryController
from vla_sim.core.rendering import SceneRenderer, intrinsics
from vla_sim.core.scene import (
    CUBE_SIZE,
    CUBES,
    SCENE_CAMERAS,
    TIMESTEP_NS,
    TRAY,
    TRAY_HEIGHT,
    TRAY_SIZE,
    TRAY_WALL,
    SceneConfig,
    build_model,
    sample_scene,
)

Array = NDArray[np.float64]

ARM_STIFFNESS, ARM_DAMPING = 900.0, 60.0  # 1/s², 1/s: critically damped error dynamics at 30 rad/s
FINGER_STIFFNESS, FINGER_DAMPING = 2000.0, 40.0  # N/m, N s/m
FINGER_FORCE = 30.0  # N per finger
REST_SPEED = 0.02  # m/s and rad/s·edge; slower counts as resting
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class JointState:
    """Measured joint states (n,) in the robot file's order: rad or m, by seconds, and Nm or N."""

    positions: Array
    velocities: Array
    efforts: Array


@dataclass(frozen=True)
class Wrench:
    """What the environment exerts on the hand at the sensor, in frame `ft_sensor`: N (3,), Nm (3,). The weight of the
    hand is taken out; what it holds and its inertia are not."""

    force: Array
    torque: Array


@dataclass(frozen=True)
class ObjectTruth:
    """Where an object really is: m (3,), quaternion wxyz (4,), base frame."""

    position: Array
    quaternion: Array
    held: bool  # touched by both fingers and by nothing else
    in_tray: bool  # inside the tray and at rest


class Cell:
    """The robot of a robot file on its table. It starts in the scene of seed 0.

    Raises:
        ConfigError: when the robot file's URDF, joints or cameras do not fit.
    """

    def __init__(self, robot: Robot):
        self.robot = robot
        cameras = {name: camera.frame for name, camera in robot.cameras.items()}
        self.model = build_model(robot.urdf(), robot.joints, cameras)
        self.data = mujoco.MjData(self.model)
        model = self.model
        joints = [model.joint(name) for name in robot.joints]
        self._qpos = np.array([int(joint.qposadr[0]) for joint in joints])
        self._dofs = np.array([int(joint.dofadr[0]) for joint in joints])
        self._sliding = np.array([joint.type[0] == mujoco.mjtJoint.mjJNT_SLIDE for joint in joints])
        self._torque_limits = np.array([model.jnt_actfrcrange[joint.id][1] for joint in joints])
        self._mimics = _mimics(model, self._qpos)
        self._actuators = np.array([model.actuator(name).id for name in robot.joints])
        self._home = np.array(robot.home)
        self._fingers = [i for i in range(model.nbody) if model.body(i).name.endswith("finger")]
        self._bodies = {name: int(model.body(name).id) for name in (*CUBES, TRAY)}
        self._sensor_site = model.site("ft_sensor").id if model.nsensor else None
        self._renderer: SceneRenderer | None = None
        self.controller = TrajectoryController(robot.joints, self._home)
        self.episode = 0
        self.scene = self.reset(0)

    # Time and motion

    @property
    def time_ns(self) -> int:
        """Simulated time [ns]; a reset sets it."""
        return self._steps * TIMESTEP_NS

    def reset(self, scene: int | SceneConfig, start_ns: int = 0) -> SceneConfig:
        """Robot at home and at rest, objects where the seed or the scene says, time `start_ns`. Returns the scene.

        Raises:
            ConfigError: when the scene lacks a cube, or has an unknown one.
        """
        config = scene if isinstance(scene, SceneConfig) else sample_scene(scene)
        if set(config.cubes) != set(CUBES):
            raise ConfigError(f"scene has cubes {sorted(config.cubes)}, expected exactly {sorted(CUBES)}")
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        data.qpos[self._qpos] = self._home
        for mimic in self._mimics:
            data.qpos[mimic.qpos] = self._home[mimic.leader]
        for name, pose in config.cubes.items():
            address = int(model.joint(name).qposadr[0])
            data.qpos[address : address + 7] = [pose.x, pose.y, CUBE_SIZE / 2, *_yaw(pose.yaw)]
        data.mocap_pos[0] = [config.tray.x, config.tray.y, 0]
        data.mocap_quat[0] = _yaw(config.tray.yaw)
        mujoco.mj_forward(model, data)
        self._actuate(self._home, np.zeros_like(self._home), np.zeros_like(self._home))
        mujoco.mj_forward(model, data)  # sensors read what they read at rest
        self._steps = start_ns // TIMESTEP_NS
        data.time = self.time_ns * 1e-9
        self.controller.hold(self._home)
        self.scene = config
        self.episode += 1
        return config

    def pose(self, positions: Array, objects: Mapping[str, tuple[Array, Array]]) -> None:
        """Puts robot and objects where someone else saw them, at rest; to draw what happened elsewhere.

        Args:
            positions: (n,) rad or m in the robot file's order.
            objects: name -> position (3,) m and quaternion wxyz (4,); the others stay where they are.

        Raises:
            ConfigError: on an object that the cell does not have.
        """
        data = self.data
        data.qvel[:] = 0
        data.qpos[self._qpos] = positions
        for mimic in self._mimics:
            data.qpos[mimic.qpos] = data.qpos[self._qpos[mimic.leader]]
        for name, (position, quaternion) in objects.items():
            if name == TRAY:
                data.mocap_pos[0], data.mocap_quat[0] = position, quaternion
            elif name in CUBES:
                address = int(self.model.joint(name).qposadr[0])
                data.qpos[address : address + 7] = [*position, *quaternion]
            else:
                raise ConfigError(unknown("object", name, self._bodies))
        mujoco.mj_forward(self.model, data)
        self.controller.hold(data.qpos[self._qpos])

    def command(self, command: JointTrajectoryCommand) -> None:
        """Hands a trajectory to the controller.

        Raises:
            TrajectoryRejected: when it is malformed; what plays now goes on.
        """
        self.controller.accept(command, self.time_ns)

    def step(self, steps: int = 1) -> None:
        """Advances by `steps` physics steps of 2 ms."""
        model, data = self.model, self.data
        times = [self.time_ns + k * TIMESTEP_NS for k in range(steps)]
        desired = self.controller.sample(times)
        for k in range(steps):
            mujoco.mj_step1(model, data)
            self._actuate(desired.positions[k], desired.velocities[k], desired.accelerations[k])
            mujoco.mj_step2(model, data)
        self._steps += steps
        self._refresh()

    def run(self, seconds: float) -> None:
        """Advances by simulated seconds, rounded to whole steps."""
        remaining = round(seconds * 1e9 / TIMESTEP_NS)
        while remaining > 0:
            self.step(min(remaining, 50))
            remaining -= 50

    def _refresh(self) -> None:
        """Brings poses up to the joint positions that the last step ended with."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _actuate(self, position: Array, velocity: Array, acceleration: Array) -> None:
        """Computed torque for the arm, a servo of limited force for the fingers."""
        model, data = self.model, self.data
        error = position - data.qpos[self._qpos]
        rate = velocity - data.qvel[self._dofs]
        wanted = acceleration + ARM_STIFFNESS * error + ARM_DAMPING * rate
        full = np.zeros(model.nv)
        full[self._dofs] = np.where(self._sliding, 0.0, wanted)
        torque = np.empty(model.nv)
        mujoco.mj_mulM(model, data, torque, full)
        torque += data.qfrc_bias - data.qfrc_passive
        effort = torque[self._dofs]
        effort[self._sliding] += (FINGER_STIFFNESS * error + FINGER_DAMPING * rate)[self._sliding]
        limits = np.where(self._sliding, FINGER_FORCE, self._torque_limits)
        data.ctrl[self._actuators] = np.clip(effort, -limits, limits)
        for mimic in self._mimics:  # driven to where its leader is wanted, with the same limited force
            push = FINGER_STIFFNESS * (position[mimic.leader] - data.qpos[mimic.qpos])
            push += FINGER_DAMPING * (velocity[mimic.leader] - data.qvel[mimic.dof]) + torque[mimic.dof]
            data.ctrl[mimic.actuator] = np.clip(push, -FINGER_FORCE, FINGER_FORCE)

    def joint_state(self) -> JointState:
        """Measured now."""
        data = self.data
        return JointState(data.qpos[self._qpos].copy(), data.qvel[self._dofs].copy(), data.ctrl[self._actuators].copy())

    def wrench(self) -> Wrench:
        """Measured in the last step.

        Raises:
            ConfigError: when the URDF has no link `ft_sensor`.
        """
        if self._sensor_site is None:
            raise ConfigError("the URDF has no link 'ft_sensor'; add one, or leave wrench_topic out of the robot file")
        model, data = self.model, self.data
        rotation = data.site_xmat[self._sensor_site].reshape(3, 3)
        body = int(model.site_bodyid[self._sensor_site])
        weight = float(model.body_subtreemass[body]) * model.opt.gravity
        arm = data.subtree_com[body] - data.site_xpos[self._sensor_site]
        force, torque = -data.sensordata[:3], -data.sensordata[3:6]  # MuJoCo gives what the flange exerts on the hand
        return Wrench(force - rotation.T @ weight, torque - rotation.T @ np.cross(arm, weight))

    def tool_pose(self) -> tuple[Array, Array]:
        """Position (3,) m and rotation (3, 3) of the tool frame in the base frame."""
        body = self.data.body(self.robot.tool_frame)
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()

    def render(self, camera: str, width: int | None = None, height: int | None = None) -> NDArray[np.uint8]:
        """RGB uint8 (height, width, 3); the size is the robot file's unless given.

        Raises:
            ConfigError: when there is no such camera, or it has no size of its own and none is given.
            RenderingUnavailable: when this machine cannot draw.
        """
        number = self.camera_id(camera)
        own = self.robot.cameras.get(camera)
        if own is not None:
            width, height = width or own.width, height or own.height
        if not width or not height:
            raise ConfigError(f"camera '{camera}' is not in the robot file: give width and height")
        if self._renderer is None:
            self._renderer = SceneRenderer(self.model)
        return self._renderer.render(self.data, number, width, height)

    def camera_id(self, camera: str) -> int:
        """MuJoCo's number of a camera."""
        number = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if number < 0:
            raise ConfigError(unknown("camera", camera, {*self.robot.cameras, *SCENE_CAMERAS}))
        return number

    def intrinsics(self, camera: str, width: int, height: int) -> Array:
        """(3, 3) pinhole matrix K [px] of a camera at that size."""
        return intrinsics(float(self.model.cam_fovy[self.camera_id(camera)]), width, height)

    def close(self) -> None:
        """Frees the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # Ground truth: for judges and experts, never for policies

    def truth(self) -> Mapping[str, ObjectTruth]:
        """Every cube and the tray."""
        touching = self._contacts()
        tray = self.data.body(self._bodies[TRAY])
        truths = {TRAY: ObjectTruth(tray.xpos.copy(), tray.xquat.copy(), held=False, in_tray=False)}
        for name in CUBES:
            number = self._bodies[name]
            body, touched = self.data.body(number), touching[number]
            held = bool(self._fingers) and touched == set(self._fingers)
            resting = bool(np.abs(body.cvel).max() < REST_SPEED) and not touched & set(self._fingers)
            local = tray.xmat.reshape(3, 3).T @ (body.xpos - tray.xpos)
            inside = np.abs(local[:2]).max() < TRAY_SIZE / 2 - TRAY_WALL and local[2] < TRAY_HEIGHT + CUBE_SIZE / 2
            truths[name] = ObjectTruth(body.xpos.copy(), body.xquat.copy(), held, bool(inside and resting))
        return truths

    def _contacts(self) -> dict[int, set[int]]:
        """Body number of each cube -> body numbers that touch it."""
        touching: dict[int, set[int]] = {self._bodies[name]: set() for name in CUBES}
        pairs = self.model.geom_bodyid[self.data.contact.geom[: self.data.ncon]].reshape(-1, 2)
        for a, b in pairs.tolist():
            if a in touching:
                touching[a].add(b)
            if b in touching:
                touching[b].add(a)
        return touching

    def save_state(self) -> Array:
        """The whole physics state, to draw or resume it later."""
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, state, _STATE)
        return state

    def restore_state(self, state: Array) -> None:
        """Puts a saved state back. The controller then holds the joint positions of that state.

        Raises:
            ConfigError: when the state comes from another cell.
        """
        size = mujoco.mj_stateSize(self.model, _STATE)
        if np.shape(state) != (size,):
            raise ConfigError(f"state has shape {np.shape(state)}, this cell's states have ({size},): use its own")
        mujoco.mj_setState(self.model, self.data, np.asarray(state, dtype=np.float64), _STATE)
        mujoco.mj_forward(self.model, self.data)
        self._steps = round(self.data.time * 1e9 / TIMESTEP_NS)
        self.controller.hold(self.data.qpos[self._qpos])


@dataclass(frozen=True)
class _Mimic:
    """A joint that repeats a commanded one: its addresses, and the leader's place among the commanded joints."""

    qpos: int
    dof: int
    actuator: int
    leader: int


def _mimics(model: mujoco.MjModel, commanded: NDArray[np.int_]) -> list[_Mimic]:
    mimics = []
    for k in range(model.neq):
        follower, leader = int(model.eq_obj1id[k]), int(model.eq_obj2id[k])
        place = np.flatnonzero(commanded == model.jnt_qposadr[leader])
        if model.eq_type[k] == mujoco.mjtEq.mjEQ_JOINT and len(place):
            actuator = model.actuator(model.joint(follower).name).id
            mimics.append(
                _Mimic(int(model.jnt_qposadr[follower]), int(model.jnt_dofadr[follower]), actuator, int(place[0]))
            )
    return mimics


def _yaw(angle: float) -> list[float]:
    """Quaternion wxyz of a turn about z [rad]."""
    return [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]
