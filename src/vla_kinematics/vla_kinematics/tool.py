"""Forward and differential inverse kinematics of one tool frame.

Inverse kinematics is a chain of small quadratic programmes (pin-pink): follow the tool frame, stay near home with
what freedom is left, keep the joints' position limits. A point that cannot be reached is answered with the nearest
posture found *and its residual*; whoever executes the motion decides what to do with it.

Near a singularity (a stretched arm, aligned wrist axes) a small motion of the tool would ask for a large one of the
joints. Two things prevent that: the programmes are damped by the square of the error that is left, and more where a
step makes it larger (Levenberg-Marquardt); and from point to point no joint may move more than a share of what the tool
was asked to move. The tool then lags behind, as the residuals say, and catches up where it can.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pinocchio as pin
from numpy.typing import ArrayLike, NDArray
from pink import Configuration, solve_ik
from pink.limits import Limit
from pink.tasks import FrameTask, PostureTask

from vla_contract.errors import ConfigError, InferenceError, unknown

Array = NDArray[np.float64]

# One step of a programme is a whole Gauss-Newton step: velocities are read as displacements over 1 s.
_STEP = 1.0
_TOLERANCE = 2e-4  # m and rad; a tenth of what a camera pixel shows on the table
_ITERATIONS = 12  # most per point; points a few centimetres apart need one or two
_LONGEST_STEP = 0.3  # rad; the tool's motion is nearly linear over it, so that far points are approached, not overshot
_TILT_COST = 0.3  # of 1 rad, against 1 for 1 m
_POSTURE_COST = 1e-3  # against a tool cost of 1: the posture never pulls the tool away visibly
_POSTURE_GAIN = 0.1  # share of the way home per step that the free motion of the elbow may take
_DAMPING = 0.01  # times the square of the tool's error; gone where the tool arrives
# Most that a joint moves from one point to the next. Far from singularities an FR3 needs less than half of it.
_JOINT_PER_METRE = 12.0  # rad/m of the tool's way (or m/m)
_JOINT_PER_TURN = 4.0  # rad/rad of the tool's turn
_JOINT_FREE = 0.05  # rad, for a tool that stands: the elbow goes home, a tool that lags catches up


@dataclass(frozen=True)
class Followed:
    """Joint positions along a path of the tool.

    Attributes:
        positions: (K, n) rad or m, in the order of `joint_names`.
        residuals: (K,) m, distance between the tool at `positions[k]` and the point that was asked for.
        tilts: (K,) rad, angle between the tool's orientation there and the one that was asked for.
    """

    positions: Array
    residuals: Array
    tilts: Array


class ToolKinematics:
    """Kinematics of `tool_frame`, seen from the root of the URDF.

    Args:
        urdf: text of the robot's URDF.
        joint_names: (n,) the order of every joint vector. Joints that do not move the tool (a gripper's) may be among
            them: they are passed through.
        tool_frame: name of a link.
        home: (n,) rad or m, the posture that redundant joints are drawn to. Default: the middle of the limits.

    Raises:
        ConfigError: when the URDF cannot be parsed, a joint or frame is unknown, the tool depends on a joint that is
            not named, or `home` has the wrong length.
    """

    def __init__(self, urdf: str, joint_names: Sequence[str], tool_frame: str, home: ArrayLike | None = None):
        self.joint_names = tuple(joint_names)
        self.tool_frame = tool_frame
        self._model, self._columns = _chain(urdf, self.joint_names, tool_frame)
        self._data = self._model.createData()
        self._frame = self._model.getFrameId(tool_frame)
        low, high = self._model.lowerPositionLimit, self._model.upperPositionLimit
        posture = (low + high) / 2 if home is None else self._checked(home)[self._columns]
        self._tool = FrameTask(tool_frame, position_cost=1.0, orientation_cost=_TILT_COST, lm_damping=_DAMPING)
        self._posture = PostureTask(cost=_POSTURE_COST, gain=_POSTURE_GAIN)
        self._home = np.clip(posture, low, high)
        self._posture.set_target(self._home)
        self._box = _Box(low, high)

    def forward(self, positions: ArrayLike) -> tuple[Array, Array]:
        """Pose of the tool in the root frame: position (3,) m and rotation (3, 3), for `positions` (n,) rad or m."""
        pin.framesForwardKinematics(self._model, self._data, self._checked(positions)[self._columns])
        pose = self._data.oMf[self._frame]
        return pose.translation.copy(), pose.rotation.copy()

    def follow(self, start: ArrayLike, path: ArrayLike, rotation: ArrayLike | None = None) -> Followed:
        """Joint positions that lead the tool along `path`, each point from the posture of the one before.

        From one point to the next no joint moves more than 12 rad per metre and 4 rad per radian between the two poses
        that are asked for, and 0.05 rad: near a singularity the tool lags behind instead.

        Args:
            start: (n,) rad or m, posture before the first point. Joints that do not move the tool keep this position.
            path: (K, 3) m, in the root frame.
            rotation: of the tool in the root frame, (3, 3) along the whole path or (K, 3, 3) point by point. Default:
                as it is at `start`.

        Raises:
            InferenceError: when `start`, `path` or `rotation` has the wrong shape or holds a number that is not finite.
        """
        start = self._checked(start)
        points = np.asarray(path, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise InferenceError(f"tool path of shape {points.shape}: expected finite (K, 3) m in the root frame")
        rotations = np.asarray(self.forward(start)[1] if rotation is None else rotation, dtype=np.float64)
        if rotations.shape not in ((3, 3), (len(points), 3, 3)) or not np.isfinite(rotations).all():
            raise InferenceError(
                f"tool rotation of shape {rotations.shape}: expected finite (3, 3) or ({len(points)}, 3, 3), root frame"
            )
        rotations = np.broadcast_to(rotations, (len(points), 3, 3))
        low, high = self._model.lowerPositionLimit, self._model.upperPositionLimit
        configuration = Configuration(self._model, self._data, np.clip(start[self._columns], low, high))
        result = np.tile(start, (len(points), 1))
        residuals, tilts = np.empty(len(points)), np.empty(len(points))
        asked = configuration.get_transform_frame_to_world(self.tool_frame)
        for k, point in enumerate(points):
            before, asked = asked, pin.SE3(rotations[k], point)
            way, turn = _distance(before, asked)
            moved = _JOINT_PER_METRE * way + _JOINT_PER_TURN * turn
            self._box.around(configuration.q, _JOINT_FREE + moved)
            if k > 0 and max(residuals[k - 1], tilts[k - 1]) > _TOLERANCE:
                self._nudge(configuration, min(_JOINT_FREE, moved))
            residuals[k], tilts[k] = self._reach(configuration, asked)
            result[k, self._columns] = configuration.q
        return Followed(result, residuals, tilts)

    def _nudge(self, configuration: Configuration, most: float) -> None:
        """Toward home, no joint by more than `most`. An arm that lags is about stretched: it can bend either way, and
        the way that is not home's may soon lead against a joint's limit."""
        away = self._home - configuration.q
        longest = float(np.abs(away).max(initial=0.0))
        step = away * min(1.0, most / max(longest, 1e-12))
        configuration.update(np.clip(configuration.q + step, self._box.low, self._box.high))

    def _reach(self, configuration: Configuration, target: pin.SE3) -> tuple[float, float]:
        """Moves `configuration` toward `target`; returns what is left: m, rad."""
        self._tool.set_target(target)
        errors, kept = (np.inf, np.inf), configuration.q
        damping = _DAMPING
        for iteration in range(_ITERATIONS + 1):
            pose = configuration.get_transform_frame_to_world(self.tool_frame)
            before, errors = errors, _distance(pose, target)
            arrived = max(errors) < _TOLERANCE
            worse = not arrived and _cost(errors) > _cost(before)
            if worse:
                # The step was too long for the arm's curvature, as at the end of its reach: a shorter one from there.
                configuration.update(kept)
                errors, damping = before, 10 * damping
            else:
                kept, damping = configuration.q, max(_DAMPING, 0.1 * damping)
            stuck = not worse and sum(errors) > 0.98 * sum(before)
            # At least one step even when the point is reached: it draws the elbow home on long stays.
            if iteration > 0 and (arrived or (stuck and iteration > 3)):
                break
            if iteration == _ITERATIONS:
                break
            self._tool.lm_damping = damping
            velocity = solve_ik(
                configuration,
                (self._tool, self._posture),
                _STEP,
                solver="daqp",
                limits=(self._box,),
                safety_break=False,
            )
            longest = float(np.abs(velocity).max(initial=0.0))
            configuration.integrate_inplace(velocity, _STEP * min(1.0, _LONGEST_STEP / max(longest, 1e-12)))
            # The last bits of an active limit are the solver's; the next programme must start inside.
            configuration.update(np.clip(configuration.q, self._box.low, self._box.high))
        return errors

    def _checked(self, positions: ArrayLike) -> Array:
        values = np.asarray(positions, dtype=np.float64)
        if values.shape != (len(self.joint_names),) or not np.isfinite(values).all():
            raise InferenceError(
                f"joint positions {values}: expected {len(self.joint_names)} finite numbers "
                f"({', '.join(self.joint_names)})"
            )
        return values


class _Box(Limit):  # type: ignore[misc]  # pink is untyped
    """Where the joints may go for the next point: within their limits, and not far from where they are."""

    def __init__(self, low: Array, high: Array):
        self._lowest, self._highest = low, high
        self.low, self.high = low, high
        self._sides = np.vstack([np.eye(len(low)), -np.eye(len(low))])

    def around(self, positions: Array, most: float) -> None:
        """Not farther than `most` rad or m from `positions` (n,), which are within the limits."""
        self.low = np.maximum(self._lowest, positions - most)
        self.high = np.minimum(self._highest, positions + most)

    def compute_qp_inequalities(self, configuration: Configuration, dt: float) -> tuple[Array, Array]:
        """G, h of G x <= h, for a displacement x; see pink."""
        return self._sides, np.concatenate([self.high - configuration.q, configuration.q - self.low])


def _cost(errors: tuple[float, float]) -> float:
    """What the programmes make small: m and rad as the tool's task weighs them."""
    return errors[0] ** 2 + (_TILT_COST * errors[1]) ** 2


def _distance(pose: pin.SE3, target: pin.SE3) -> tuple[float, float]:
    angle = np.linalg.norm(pin.log3(pose.rotation.T @ target.rotation))
    return float(np.linalg.norm(pose.translation - target.translation)), float(angle)


def _chain(urdf: str, names: tuple[str, ...], tool_frame: str) -> tuple[pin.Model, NDArray[np.intp]]:
    """The model of the joints that carry `tool_frame`, and the column of each of them in `names`."""
    try:
        full = pin.buildModelFromXML(urdf)
    except Exception as error:  # pinocchio raises bare ValueError or RuntimeError
        raise ConfigError(f"URDF cannot be parsed: {error}") from error
    known = list(full.names)[1:]
    for name in names:
        if name not in known:
            raise ConfigError(f"URDF: {unknown('joint', name, known)}")
    if not full.existFrame(tool_frame):
        raise ConfigError(f"URDF: {unknown('frame', tool_frame, [frame.name for frame in full.frames])}")
    carriers = {full.names[j] for j in full.supports[full.frames[full.getFrameId(tool_frame)].parentJoint]} - {
        "universe"
    }
    unnamed = carriers - set(names)
    if unnamed:
        raise ConfigError(
            f"frame '{tool_frame}' moves with joints {sorted(unnamed)}, which joint_names lacks; name them"
        )
    locked = [full.getJointId(name) for name in known if name not in carriers]
    model = pin.buildReducedModel(full, locked, pin.neutral(full))
    columns = np.array([names.index(name) for name in list(model.names)[1:]], dtype=np.intp)
    return model, columns
