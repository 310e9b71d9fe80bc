"""Forces that the robot's own weight and motion ask for, from the inertials of its URDF and of what it carries.

Equation of motion, with the robot file's joints as coordinates:

    M(q) dv/dt + C(q, v) v + g(q) + f(v) = tau + tau_ext

Pinocchio computes M, C and g for the tree of all moving joints. Rows of a joint that others mimic hold for the tree, so
only rows of joints that nothing mimics are used; for a parallel gripper these are the joints of the arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pinocchio as pin
from numpy.typing import NDArray

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.motion import Array
from vla_safety.core.urdf import Description, Load

Vector = tuple[float, float, float]

_CREEP = 0.01  # rad/s or m/s, over which dry friction turns from one direction to the other


@dataclass(frozen=True)
class Momentum:
    """What the momentum observer needs of one state; all (m,), one for each joint that is observed.

    Attributes:
        value: M v, generalised momentum [Nms, or Ns for a slide].
        rate: C^T v - g - f, its change without any torque [Nm or N].
    """

    value: Array
    rate: Array


class Dynamics:
    """Rigid-body dynamics of a robot and its loads.

    Args:
        urdf: text of the URDF.
        description: the same, parsed, with the links that loads hang on.
        joints: (n,) names in the order of q.
        observed: (m,) joints whose rows are wanted.
        loads: what is fixed to links besides the URDF's own inertials.
        armature: kg m^2 (kg for a slide) of rotors behind gears, by joint, seen from the joint; a URDF cannot say it.
        gravity: m/s^2 (3,), in the base frame.

    Raises:
        ConfigError: when Pinocchio cannot read the URDF, a moving link has no mass, or a name is unknown.
    """

    def __init__(
        self,
        urdf: str,
        description: Description,
        joints: Sequence[str],
        observed: Sequence[str],
        loads: Sequence[Load] = (),
        armature: Mapping[str, float] | None = None,
        gravity: Vector = (0.0, 0.0, -9.81),
    ):
        try:
            self._model = model = pin.buildModelFromXML(urdf)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"Pinocchio cannot read the URDF: {error}") from error
        self._data = model.createData()
        model.gravity.linear = np.array(gravity)
        moving = {joint.name: joint for joint in description.joints if joint.kind != "fixed"}
        for name in observed:
            if name not in moving:
                raise ConfigError(unknown("joint", name, moving))
            if any(joint.mimic and joint.mimic[0] == name for joint in moving.values()):
                raise ConfigError(
                    f"joint '{name}' is mimicked by another, so its torque cannot be told apart; leave it out of "
                    "external_torque.limits"
                )
        # Each coordinate of the tree is an affine function of one of the robot file's.
        self._column: NDArray[np.int64] = np.zeros(model.nv, dtype=np.int64)
        self._gear, self._offset = np.ones(model.nv), np.zeros(model.nv)
        for name, joint in moving.items():
            driver, gear, offset = joint.mimic or (name, 1.0, 0.0)
            row = self._row(name)
            self._column[row], self._gear[row], self._offset[row] = list(joints).index(driver), gear, offset
        self._rows = np.array([self._row(name) for name in observed])
        self._armature = np.zeros(model.nv)
        for name, value in (armature or {}).items():
            if name not in moving:
                raise ConfigError(f"armature: {unknown('joint', name, moving)}")
            self._armature[self._row(name)] = value
        self._damping, self._friction = np.array(model.damping), np.array(model.friction)
        self._add(loads, description)
        massless = np.diag(pin.crba(model, self._data, pin.neutral(model))) <= 0
        if massless.any():
            name = model.names[1 + int(np.argmax(massless))]
            raise ConfigError(f"URDF joint '{name}' moves no mass; give the link behind it an <inertial>")

    def _row(self, joint: str) -> int:
        return int(self._model.joints[self._model.getJointId(joint)].idx_v)

    def _add(self, loads: Sequence[Load], description: Description) -> None:
        model, parents = self._model, {joint.child: joint for joint in description.joints}
        for load in loads:
            link, placement = load.link, pin.SE3.Identity()
            while not model.existFrame(link):  # a tool's link: known to the filter, not to the URDF
                if link not in parents:
                    raise ConfigError(unknown("link", link, description.links))
                placement = pin.SE3(parents[link].rotation, parents[link].translation) * placement
                link = parents[link].parent
            frame = model.frames[model.getFrameId(link, pin.FrameType.BODY)]
            body = pin.Inertia(load.mass, load.center, np.zeros((3, 3)))
            model.appendBodyToJoint(frame.parentJoint, body, frame.placement * placement)
        self._data = model.createData()

    def momentum(self, q: Array, v: Array) -> Momentum:
        """Of the state `q`, `v` (n,)."""
        model, data = self._model, self._data
        speeds = v[self._column] * self._gear
        place = self._configuration(q[self._column] * self._gear + self._offset)
        inertia = pin.crba(model, data, place) + np.diag(self._armature)
        coriolis = pin.computeCoriolisMatrix(model, data, place, speeds)
        gravity = pin.computeGeneralizedGravity(model, data, place)
        friction = self._damping * speeds + self._friction * np.tanh(speeds / _CREEP)
        rate = coriolis.T @ speeds - gravity - friction
        return Momentum((inertia @ speeds)[self._rows], rate[self._rows])

    def _configuration(self, angles: Array) -> Array:
        """(nq,) from (nv,): Pinocchio writes a joint without limits as cosine and sine."""
        if self._model.nq == self._model.nv:
            return angles
        result = np.empty(self._model.nq)
        for joint in list(self._model.joints)[1:]:
            angle = angles[joint.idx_v]
            result[joint.idx_q : joint.idx_q + joint.nq] = angle if joint.nq == 1 else (np.cos(angle), np.sin(angle))
        return result
