"""Keep-in and keep-out volumes, and how far each body of the robot is from them.

Distances are lower bounds that are never too large: for a keep-out box, the largest gap along the box's own axes
separates box and body, so the true distance is at least that gap. (Exact towards faces; towards edges and corners it
may be smaller than the truth, which blocks too early, never too late.) For a keep-in box the bound is exact, because a
box is convex: a body lies inside when its points do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vla_contract.errors import ConfigError, unknown
from vla_contract.robot import Finite, Positive
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.motion import Array
from vla_safety.core.urdf import rpy_matrix

_NEAR = 0.1  # m; zones that are further away from every body are not looked at closely

Vector = tuple[Finite, Finite, Finite]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Box(_Strict):
    """m and rad, in the zone's frame."""

    center: Vector
    size: tuple[Positive, Positive, Positive]
    rpy: Vector = (0.0, 0.0, 0.0)


class ZoneSpec(_Strict):
    """One zone of the safety file.

    Attributes:
        kind: `keep_in`: bodies stay inside; `keep_out`: bodies stay outside.
        frame: link that the zone moves with; empty: the robot's base.
        links: those that the zone is for; empty: all. `except_links`: those that it is not for.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    kind: Literal["keep_in", "keep_out"]
    box: Box
    frame: str = ""
    links: tuple[str, ...] = ()
    except_links: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_selection(self) -> "ZoneSpec":
        if self.links and self.except_links:
            raise ValueError(f"zone '{self.name}' has links and except_links; give one of them")
        return self


@dataclass(frozen=True)
class _Group:
    """Boxes whose axes are parallel in one frame, so that one bounding box of each body serves them all.

    `centers`, `halves` (Z, 3); `inside` (Z,) marks keep-in; `applies` (Z, B); `index` (Z,) into the zones.
    """

    link: str
    rotation: Array
    centers: Array
    halves: Array
    inside: NDArray[np.bool_]
    applies: NDArray[np.bool_]
    index: NDArray[np.int64]


class ZoneSet:
    """All zones of a cell, for one robot.

    Attributes:
        reach: (B, n), that of the robot's bodies; margin: m, that every body keeps from every zone.

    Raises:
        ConfigError: on a duplicate name or an unknown link; no zone is taken then.
    """

    def __init__(self, zones: Sequence[ZoneSpec], model: RobotModel, margin: float):
        self.zones = tuple(zones)
        self.margin = margin
        self.reach = model.reach
        self._model = model
        names = [zone.name for zone in zones]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"zone '{name}' is defined {names.count(name)} times; give each zone a name of its own"
                )
        grouped: dict[tuple[str, tuple[float, ...]], list[int]] = {}
        for index, zone in enumerate(zones):
            for link in (*zone.links, *zone.except_links, *([zone.frame] if zone.frame else [])):
                if link not in model.links:
                    raise ConfigError(f"zone '{zone.name}': {unknown('link', link, model.links)}")
            grouped.setdefault((zone.frame, zone.box.rpy), []).append(index)
        self._groups = [self._group(frame, rpy, members) for (frame, rpy), members in grouped.items()]

    def __len__(self) -> int:
        return len(self.zones)

    def describe(self, column: int, label: int) -> tuple[str, str]:
        """Reason and subject of a finding for body `column` and zone `label`."""
        return f"zone:{self.zones[label].name}", self._model.body_links[column]

    def _group(self, frame: str, rpy: tuple[float, ...], members: list[int]) -> _Group:
        zones = [self.zones[i] for i in members]
        rotation = rpy_matrix(np.array(rpy))
        return _Group(
            link=frame,
            rotation=rotation,
            centers=np.array([zone.box.center for zone in zones]) @ rotation,
            halves=np.array([zone.box.size for zone in zones]) / 2,
            inside=np.array([zone.kind == "keep_in" for zone in zones]),
            applies=np.array([[_selects(zone, link) for link in self._model.body_links] for zone in zones]),
            index=np.array(members),
        )

    def clearances(self, placement: Placement) -> tuple[Array, NDArray[np.int64]]:
        """How far each body is from the nearest violation.

        Returns:
            (N, B) m, lower bounds, negative inside the forbidden space, inf where no zone applies; and (N, B) indices
            of the zones. Beyond `_NEAR` the bound may be the smallest of all N configurations.
        """
        count, bodies = len(placement.points), len(self._model.body_links)
        best = np.full((count, bodies), np.inf)
        which = np.full((count, bodies), -1)
        for group in self._groups:
            low, high = self._extents(group, placement)
            coarse = _gaps(group, low.min(axis=1), high.max(axis=1))
            coarse = np.where(group.applies, coarse, np.inf)
            near: NDArray[np.bool_] = ~np.all(coarse >= _NEAR, axis=1)  # NaN counts as near
            far = np.where(near[:, None], np.inf, coarse)
            nearest = far.argmin(axis=0)
            bound = far[nearest, np.arange(bodies)]
            which = np.where(bound < best, group.index[nearest], which)
            best = np.minimum(best, bound)
            for z in np.flatnonzero(near).tolist():
                gaps = np.where(group.applies[z], _gap(group, z, low, high), np.inf)
                closer = ~(gaps >= best)  # NaN counts as closer, and stays NaN
                best = np.where(closer, gaps, best)
                which[closer] = group.index[z]
        return best, which

    def _extents(self, group: _Group, placement: Placement) -> tuple[Array, Array]:
        """Bounding boxes of all bodies along the group's axes: lowest and highest coordinates, each (3, N, B)."""
        points = placement.points
        if group.link:
            rotation, origin = self._model.link_pose(group.link, placement)
            points = (points - origin[:, None]) @ (rotation @ group.rotation)
        elif not np.array_equal(group.rotation, np.eye(3)):
            points = points @ group.rotation
        axes = np.ascontiguousarray(points.transpose(2, 0, 1))
        low = np.minimum.reduceat(axes, self._model.starts, axis=2) - self._model.body_radii
        high = np.maximum.reduceat(axes, self._model.starts, axis=2) + self._model.body_radii
        return low, high


def _gaps(group: _Group, low: Array, high: Array) -> Array:
    """Signed distances (Z, B) of bounding boxes (3, B) from the forbidden space of every zone of a group."""
    top, bottom = (group.centers + group.halves)[:, :, None], (group.centers - group.halves)[:, :, None]
    outside = np.maximum(low - top, bottom - high).max(axis=1)
    within = np.minimum(top - high, low - bottom).min(axis=1)
    return np.where(group.inside[:, None], within, outside)


def _gap(group: _Group, z: int, low: Array, high: Array) -> Array:
    """Signed distance of bounding boxes (3, …) from the forbidden space of zone `z`, without a look at `applies`."""
    top = group.centers[z] + group.halves[z]
    bottom = group.centers[z] - group.halves[z]
    if group.inside[z]:
        rooms = [np.minimum(top[i] - high[i], low[i] - bottom[i]) for i in range(3)]
        return np.asarray(np.minimum(np.minimum(rooms[0], rooms[1]), rooms[2]))
    gaps = [np.maximum(low[i] - top[i], bottom[i] - high[i]) for i in range(3)]
    return np.asarray(np.maximum(np.maximum(gaps[0], gaps[1]), gaps[2]))


def _selects(zone: ZoneSpec, link: str) -> bool:
    return link in zone.links if zone.links else link not in zone.except_links
