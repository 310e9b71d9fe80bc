"""Where every body of the robot is, for many configurations at once.

A *body* is a convex collision primitive: all points within a radius of the hull of a few points (a capsule has two, a
sphere one, a box eight with radius zero). Forward kinematics is a walk along the tree with (N, 4, 4) arrays.

`reach` bounds how far a body can move: no point of body b moves faster than sum_i reach[b, i] |dq_i/dt|, in any
configuration. It follows from the triangle inequality: a point of b is never further from axis i than the offsets of
the joints between them, summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.motion import Array
from vla_safety.core.urdf import Description, Joint, Shape


@dataclass(frozen=True)
class Frame:
    """A link that moves on its own: parent frame, placement at zero, joint, column of q and its gear."""

    parent: int
    rotation: Array
    translation: Array
    prismatic: bool
    axis: Array
    cross: Array
    column: int
    multiplier: float
    offset: float


@dataclass(frozen=True)
class Placement:
    """Bodies in N configurations.

    Attributes:
        points: (N, P, 3) m, the points of all bodies in the base frame; `RobotModel.starts` tells where each begins.
        rotations, translations: of the moving frames, (F, N, 3, 3) and (F, N, 3).
    """

    points: Array
    rotations: Array
    translations: Array


class RobotModel:
    """Kinematics and collision bodies of one robot.

    Args:
        description: its URDF.
        joints: (n,) names in the order of q. Every moving joint must be among them or mimic one that is.

    Raises:
        ConfigError: on a joint that is missing or mimics an unknown one.
    """

    def __init__(self, description: Description, joints: Sequence[str]):
        self.joints = tuple(joints)
        self.root = description.root
        self.links = description.links
        self._frames: list[Frame] = []
        # link -> (moving frame, rotation and translation in it); frame 0 is the base.
        self.link_frames: dict[str, tuple[int, Array, Array]] = {description.root: (0, np.eye(3), np.zeros(3))}
        known = {joint.name for joint in description.joints}
        for name in joints:
            if name not in known:
                raise ConfigError(f"the URDF does not have the robot file's {unknown('joint', name, known)}")
        for joint in description.joints:
            self._add(joint)
        self._steps = _Steps(self._frames)
        self._columns = np.array([frame.column for frame in self._frames], dtype=np.int64)
        self._multipliers = np.array([frame.multiplier for frame in self._frames])
        self._offsets = np.array([frame.offset for frame in self._frames])
        self._collect(description.shapes)
        self._by_frame = self._frame_reach(description)
        self.reach = self._by_joint(self._by_frame)

    def _add(self, joint: Joint) -> None:
        frame, rotation, translation = self.link_frames[joint.parent]
        placed = rotation @ joint.rotation, translation + rotation @ joint.translation
        if joint.kind == "fixed":
            self.link_frames[joint.child] = (frame, *placed)
            return
        driver, multiplier, offset = joint.mimic or (joint.name, 1.0, 0.0)
        if driver not in self.joints:
            raise ConfigError(f"URDF joint '{joint.name}' moves, but is not in the robot file: {list(self.joints)}")
        x, y, z = joint.axis
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        self._frames.append(
            Frame(
                frame,
                *placed,
                joint.kind == "prismatic",
                joint.axis,
                cross,
                self.joints.index(driver),
                multiplier,
                offset,
            )
        )
        self.link_frames[joint.child] = (len(self._frames), np.eye(3), np.zeros(3))

    def _collect(self, shapes: Sequence[Shape]) -> None:
        if not shapes:
            raise ConfigError("the URDF has no collision geometry; without it no zone can be kept")
        placed = sorted(((self.link_frames[s.link], s) for s in shapes), key=lambda item: item[0][0])
        self.body_links = tuple(shape.link for _, shape in placed)
        self.body_frames = np.array([place[0] for place, _ in placed])
        self.body_radii = np.array([shape.radius for _, shape in placed])
        counts = np.array([len(shape.points) for _, shape in placed])
        self.body_sizes = counts
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.point_radii = np.repeat(self.body_radii, counts)
        local = [shape.points @ rotation.T + translation for (_, rotation, translation), shape in placed]
        self._local: Array = np.concatenate(local)
        # Points by the moving frame that they are fixed to, filled up to the same number, as columns (x, y, z, 1).
        frames, self._group, points = np.unique(
            np.repeat(self.body_frames, counts), return_inverse=True, return_counts=True
        )
        self._slot: NDArray[np.int64] = np.concatenate([np.arange(count) for count in points])
        self._held: NDArray[np.int64] = frames
        self._local_columns: Array = np.ones((len(frames), 4, int(points.max())))
        self._local_columns[self._group, :3, self._slot] = self._local

    def _frame_reach(self, description: Description) -> Array:
        """(B, F): how fast each moving frame can move each body."""
        travels = {self.joints.index(j.name): j.travel for j in description.joints if j.name in self.joints}
        self._travels = np.array([travels[column] for column in range(len(self.joints))])
        distances = [float(np.linalg.norm(self.local_points(b), axis=1).max()) for b in range(len(self.body_links))]
        ends = zip(self.body_frames.tolist(), distances, self.body_radii.tolist(), strict=True)
        return np.array([self._chain_reach(frame, distance + radius) for frame, distance, radius in ends])

    def _chain_reach(self, frame: int, distance: float) -> Array:
        """(F,) m for revolute joints, 1 for prismatic ones: how fast each moving frame can move what is fixed to moving
        frame `frame` and nowhere further than `distance` [m] from its origin."""
        reach = np.zeros(len(self._frames))
        while frame > 0:
            f = self._frames[frame - 1]
            gear = abs(f.multiplier)
            if f.prismatic:
                distance += self._travels[f.column] * gear + abs(f.offset)
            reach[frame - 1] = gear * (1.0 if f.prismatic else distance)
            distance += float(np.linalg.norm(f.translation))
            frame = f.parent
        return reach

    def _by_joint(self, by_frame: Array) -> Array:
        """Sums (…, F) over frames with the same joint, to (…, n)."""
        result = np.zeros((*by_frame.shape[:-1], len(self.joints)))
        for index, frame in enumerate(self._frames):
            result[..., frame.column] += by_frame[..., index]
        return result

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The moving frames 1, 2, ..., parents before children; frame 0 is the base."""
        return tuple(self._frames)

    @property
    def frame_reach(self) -> Array:
        """(B, F) m for revolute joints, 1 for prismatic ones, times the gear: how fast each moving frame can move each
        body with the speed of the joint that drives it."""
        return self._by_frame

    def relative_reach(self, a: int, b: int) -> Array:
        """(n,): how fast bodies `a` and `b` can move relative to each other; joints that move both are left out."""
        return self._relative(self._by_frame[a], self._by_frame[b])

    def approach(self, body: int, link: str, distance: float) -> Array:
        """(n,): how fast a body and a volume can move relative to each other, that is fixed to `link` and nowhere
        further than `distance` [m] from its origin."""
        frame, _, translation = self.link_frames[link]
        volume = self._chain_reach(frame, distance + float(np.linalg.norm(translation)))
        return self._relative(self._by_frame[body], volume)

    def _relative(self, a: Array, b: Array) -> Array:
        only_one = (a > 0) != (b > 0)
        return self._by_joint(np.where(only_one, a + b, 0.0))

    def local_points(self, body: int) -> Array:
        """(m, 3) of one body, in its moving frame."""
        return self._local[self.starts[body] : self.starts[body] + self.body_sizes[body]]

    def place(self, q: Array) -> Placement:
        """Bodies at configurations `q` (N, n)."""
        count, held = len(q), len(self._held)
        poses = self._steps.poses((q[:, self._columns] * self._multipliers + self._offsets).T)
        placed = poses[self._held, :, :3].reshape(held, 3 * count, 4) @ self._local_columns
        points = placed.reshape(held, count, 3, -1)[self._group, :, :, self._slot]
        return Placement(points.transpose(1, 0, 2), poses[..., :3, :3], poses[..., :3, 3])

    def link_pose(self, link: str, placement: Placement) -> tuple[Array, Array]:
        """Rotation (N, 3, 3) and origin (N, 3) of a link.

        Raises:
            ConfigError: when there is no such link.
        """
        if link not in self.link_frames:
            raise ConfigError(unknown("link", link, self.links))
        frame, rotation, translation = self.link_frames[link]
        parent = placement.rotations[frame]
        return parent @ rotation, placement.translations[frame] + parent @ translation


class _Steps:
    """From each moving frame's parent to it, as 4x4 matrices: `fixed`, plus `sine` times the sine of its joint's angle
    (the way of a prismatic one), plus `cosine` times its cosine. With R the placement at zero and K the cross product
    with the axis, Rodrigues' formula R (I + sin K + (1 - cos) K^2) in these three parts."""

    def __init__(self, frames: Sequence[Frame]):
        self._parents = [f.parent for f in frames]
        self._slides = np.array([f.prismatic for f in frames], dtype=bool)[:, None]
        self._fixed = np.zeros((len(frames), 1, 4, 4))
        self._sine, self._cosine = np.zeros_like(self._fixed), np.zeros_like(self._fixed)
        for fixed, sine, cosine, f in zip(self._fixed[:, 0], self._sine[:, 0], self._cosine[:, 0], frames, strict=True):
            fixed[:3, :3], fixed[:3, 3], fixed[3, 3] = f.rotation, f.translation, 1.0
            if f.prismatic:
                sine[:3, 3] = f.rotation @ f.axis
            else:
                turned = f.rotation @ f.cross @ f.cross
                fixed[:3, :3] += turned
                sine[:3, :3], cosine[:3, :3] = f.rotation @ f.cross, -turned

    def poses(self, values: Array) -> Array:
        """(F + 1, N, 4, 4) of the base and the moving frames in it; `values` (F, N) rad or m of their joints."""
        frames, count = values.shape
        steps = self._sine * np.where(self._slides, values, np.sin(values))[:, :, None, None]
        steps += self._cosine * np.cos(values)[:, :, None, None]
        steps += self._fixed
        poses = np.empty((frames + 1, count, 4, 4))
        poses[0] = np.eye(4)
        for index, parent in enumerate(self._parents):
            np.matmul(poses[parent], steps[index], out=poses[index + 1])
        return poses
