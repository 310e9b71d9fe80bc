"""What stands in the cell: the robot of the URDF on a table with three cubes and a tray.

The robot comes from its URDF alone. Everything else (table, objects, lights, scene cameras, actuators, sensors,
contact parameters) is added to it here. Frame of all poses: the robot's base, z up, table top at z = 0. SI units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_contract.errors import ConfigError, unknown

TIMESTEP_NS = 2_000_000  # one physics step [ns]: 500 Hz

CUBE_SIZE = 0.04  # m, edge
CUBE_MASS = 0.05  # kg
CUBES: Mapping[str, tuple[float, float, float]] = {  # name -> RGB
    "red_cube": (0.86, 0.06, 0.06),
    "green_cube": (0.05, 0.62, 0.12),
    "blue_cube": (0.06, 0.18, 0.90),
}
TRAY = "tray"
TRAY_SIZE = 0.16  # m, outer edge
TRAY_WALL = 0.006  # m, thickness
TRAY_HEIGHT = 0.025  # m
TRAY_FLOOR = 0.004  # m, thickness

WORKSPACE_X = (0.36, 0.60)  # m, where centres of objects are drawn
WORKSPACE_Y = (-0.24, 0.24)  # m
CUBE_DISTANCE = 0.10  # m between centres, so that open fingers fit between two cubes
TRAY_DISTANCE = 0.19  # m between the centres of tray and cube, for the same reason

# Scene cameras: position, the point they look at, vertical field of view [deg].
SCENE_CAMERAS: Mapping[str, tuple[Sequence[float], Sequence[float], float]] = {
    "front": ((1.00, 0.0, 0.62), (0.43, 0.0, 0.04), 42.0),
    "overview": ((1.38, -0.98, 0.90), (0.28, 0.0, 0.28), 44.0),
}
LINK_CAMERA_FOVY = 78.0  # deg, of cameras mounted on a link of the robot

_ROBOT, _WORLD = 1, 2  # contact groups: robot against world and world against itself; never robot against itself


@dataclass(frozen=True)
class ObjectPose:
    """Pose of an object standing on the table: m, m, rad about z."""

    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class SceneConfig:
    """Where everything stands at the start of an episode. `seed` is only a label once the poses are given."""

    cubes: Mapping[str, ObjectPose]
    tray: ObjectPose
    seed: int = 0


def sample_scene(seed: int) -> SceneConfig:
    """Random poses of tray and cubes without overlap, with room for the open fingers. Same seed, same scene."""
    rng = np.random.default_rng(seed)

    def draw(yaw: float) -> ObjectPose:
        return ObjectPose(rng.uniform(*WORKSPACE_X), rng.uniform(*WORKSPACE_Y), rng.uniform(-yaw, yaw))

    while True:  # each round fits with a probability far above zero, see the test
        tray, cubes = draw(np.pi / 4), {name: draw(np.pi / 4) for name in CUBES}
        places = list(cubes.values())
        far_from_tray = all(np.hypot(c.x - tray.x, c.y - tray.y) >= TRAY_DISTANCE for c in places)
        apart = all(
            np.hypot(a.x - b.x, a.y - b.y) >= CUBE_DISTANCE for i, a in enumerate(places) for b in places[i + 1 :]
        )
        if far_from_tray and apart:
            return SceneConfig(cubes=cubes, tray=tray, seed=seed)


def build_model(urdf: str, joints: Sequence[str], cameras: Mapping[str, str]) -> mujoco.MjModel:
    """Compiles the cell.

    Args:
        urdf: text of the robot's URDF.
        joints: names of the commanded joints.
        cameras: camera name -> its optical frame. A frame that is a link of the URDF carries a camera with it; any
            other camera must be one of SCENE_CAMERAS.

    Raises:
        ConfigError: when the URDF cannot be read, or a joint or a camera does not exist.
    """
    try:
        spec = mujoco.MjSpec.from_string(urdf)
    except ValueError as error:
        raise ConfigError(f"MuJoCo cannot read the URDF: {error}") from error
    known = [joint.name for joint in spec.joints]
    for joint in joints:
        if joint not in known:
            raise ConfigError(f"robot file: {unknown('joint', joint, known)}; name joints of the URDF")
    spec.compiler.fusestatic = False  # keeps the frames of tool, sensor and camera as bodies
    spec.compiler.discardvisual = False
    _set_options(spec)
    _merge_capsules(spec)
    _dress_robot(spec)
    _add_surroundings(spec)
    _add_tray(spec)
    for name, colour in CUBES.items():
        _add_cube(spec, name, colour)
    _add_cameras(spec, cameras)
    return spec.compile()


def _set_options(spec: mujoco.MjSpec) -> None:
    spec.option.timestep = TIMESTEP_NS * 1e-9
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # Elliptic cones with a high ratio of friction to normal impedance: a held cube does not creep out of the grip.
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    spec.stat.center = [0.4, 0, 0.2]
    spec.stat.extent = 1.0
    visual = spec.visual
    visual.quality.shadowsize = 0  # shadows and multisampling cost 20 times the rest on a CPU
    visual.quality.offsamples = 0
    visual.global_.offwidth, visual.global_.offheight = 1920, 1080
    visual.headlight.ambient = [0.38, 0.38, 0.38]
    visual.headlight.diffuse = [0.22, 0.22, 0.22]
    visual.headlight.specular = [0, 0, 0]
    visual.map.znear, visual.map.zfar = 0.01, 10


def _merge_capsules(spec: mujoco.MjSpec) -> None:
    """Makes one capsule of each cylinder with a sphere of its radius at both ends: URDF has no capsules."""
    for body in spec.bodies:
        spheres = [geom for geom in body.geoms if geom.type == mujoco.mjtGeom.mjGEOM_SPHERE]
        for cylinder in [geom for geom in body.geoms if geom.type == mujoco.mjtGeom.mjGEOM_CYLINDER]:
            axis = np.empty(3)
            mujoco.mju_rotVecQuat(axis, np.array([0, 0, cylinder.size[1]]), np.array(cylinder.quat))
            caps = [
                sphere
                for end in (cylinder.pos - axis, cylinder.pos + axis)
                for sphere in spheres
                if np.allclose(sphere.pos, end, atol=1e-6) and np.isclose(sphere.size[0], cylinder.size[0])
            ]
            if len(caps) == 2:
                cylinder.type = mujoco.mjtGeom.mjGEOM_CAPSULE
                for sphere in caps:
                    spheres.remove(sphere)
                    spec.delete(sphere)


def _dress_robot(spec: mujoco.MjSpec) -> None:
    """Contact groups, actuators and sensors."""
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = _ROBOT, _WORLD
        if geom.parent.name.endswith("finger"):
            geom.condim, geom.friction, geom.solref = 4, [0.8, 0.02, 0.001], [0.006, 1]
            geom.priority = 1
    for joint in spec.joints:
        joint.armature = 0.1  # kg m² (kg on a slide): rotors behind gears; the controller knows it
        actuator = spec.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_motor()
    for equality in spec.equalities:  # the mimic joints of the URDF
        equality.solref = [0.004, 1]
    for body in spec.bodies:
        if body.name == "ft_sensor":
            body.add_site(name="ft_sensor", size=[0.001] * 3, rgba=[0, 0, 0, 0])
            for kind in (mujoco.mjtSensor.mjSENS_FORCE, mujoco.mjtSensor.mjSENS_TORQUE):
                spec.add_sensor(type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname="ft_sensor")


def _add_surroundings(spec: mujoco.MjSpec) -> None:
    world, box = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX
    matte = spec.add_material(name="matte", specular=0, shininess=0, rgba=[1, 1, 1, 1])
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.62, 0.68, 0.74], rgb2=[0.30, 0.34, 0.40], width=128, height=768,
    )  # fmt: skip
    for name, position, size, colour in (
        ("table", (0.55, 0, -0.02), (0.40, 0.55, 0.02), (0.70, 0.69, 0.67, 1)),
        ("pedestal", (-0.04, 0, -0.375), (0.13, 0.13, 0.375), (0.33, 0.35, 0.38, 1)),
        ("floor", (0.3, 0, -0.76), (3, 3, 0.01), (0.42, 0.45, 0.49, 1)),
    ):
        world.add_geom(
            name=name, type=box, pos=position, size=size, rgba=colour, material=matte.name,
            contype=_WORLD, conaffinity=_ROBOT | _WORLD, friction=[0.7, 0.005, 0.0001],
        )  # fmt: skip
    for place, towards, strength in (
        ((0.3, -1.2, 2.2), (0.1, 0.5, -1.0), 0.42),
        ((1.2, 1.0, 2.0), (-0.4, -0.4, -1.0), 0.22),
    ):
        world.add_light(
            pos=place, dir=towards, type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=False,
            diffuse=[strength] * 3, specular=[0, 0, 0], ambient=[0, 0, 0],
        )  # fmt: skip


def _add_tray(spec: mujoco.MjSpec) -> None:
    """Clamped to the table: a mocap body, so that its pose is part of the physics state."""
    body = spec.worldbody.add_body(name=TRAY, mocap=True)
    half, wall, middle = TRAY_SIZE / 2, TRAY_WALL / 2, TRAY_HEIGHT / 2
    floor, edge = (0.17, 0.18, 0.21, 1.0), (0.10, 0.11, 0.13, 1.0)
    parts = [((0.0, 0.0, TRAY_FLOOR / 2), (half, half, TRAY_FLOOR / 2), floor)]
    for sign in (-1, 1):
        parts.append(((sign * (half - wall), 0.0, middle), (wall, half, middle), edge))
        parts.append(((0.0, sign * (half - wall), middle), (half, wall, middle), edge))
    for position, size, colour in parts:
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, pos=position, size=size, rgba=colour, material="matte",
            contype=_WORLD, conaffinity=_ROBOT | _WORLD, friction=[0.7, 0.005, 0.0001],
        )  # fmt: skip


def _add_cube(spec: mujoco.MjSpec, name: str, colour: Sequence[float]) -> None:
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, size=[CUBE_SIZE / 2] * 3, mass=CUBE_MASS, rgba=[*colour, 1], material="matte",
        contype=_WORLD, conaffinity=_ROBOT | _WORLD, condim=4, friction=[0.7, 0.005, 0.0001],
    )  # fmt: skip


def _add_cameras(spec: mujoco.MjSpec, cameras: Mapping[str, str]) -> None:
    links = {body.name: body for body in spec.bodies}
    for name, frame in cameras.items():
        if frame in links:  # an optical frame looks along z with y down, a MuJoCo camera along -z with y up
            links[frame].add_camera(name=name, quat=[0, 1, 0, 0], fovy=LINK_CAMERA_FOVY)
        elif name not in SCENE_CAMERAS:
            raise ConfigError(
                f"camera '{name}': frame '{frame}' is no link of the URDF, and the cell has only these cameras of its "
                f"own: {', '.join(SCENE_CAMERAS)}; use one of them or a link's name"
            )
    for name, (position, target, fovy) in SCENE_CAMERAS.items():
        if name in cameras and cameras[name] in links:
            continue
        back = np.subtract(position, target)
        right = np.cross([0.0, 0.0, 1.0], back)
        up = np.cross(back, right)
        axes = np.column_stack([v / np.linalg.norm(v) for v in (right, up, back)])
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, axes.ravel())
        spec.worldbody.add_camera(name=name, pos=position, fovy=fovy, quat=quaternion)
