"""Keep-in and keep-out volumes, and how far each body of the robot is from them.

Distances are lower bounds that are never too large; `shapes.py` says how tight. What is further away than `_NEAR` is
judged by bounding boxes over all configurations at once.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.kinematics import Placement, RobotModel
from vla_safety.core.meshes import Planes
from vla_safety.core.motion import Array
from vla_safety.core.shapes import (
    Box,
    Capsule,
    Cylinder,
    Mesh,
    Room,
    Rounded,
    Shape,
    Sphere,
    bounding_ball,
    hull_gaps,
    keep_in,
    keep_out,
    rounded_gaps,
    stacked,
)

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NEAR = 0.1  # m; zones that are further away from every body are not looked at closely

SHAPES = ("box", "sphere", "cylinder", "capsule", "mesh")
_KEEP_IN = ("box", "cylinder", "mesh")


class ZoneSpec(BaseModel):
    """One zone of the safety file: exactly one of its shapes is given.

    Attributes:
        kind: `keep_in`: bodies stay inside; `keep_out`: bodies stay outside; `slow`: inside none moves faster than
            `max_speed` m/s; `shared`: inside none moves faster than contact with a person allows.
        frame: link that the zone moves with; empty: the robot's base.
        links: those that the zone is for; empty: all. `except_links`: those that it is not for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    kind: Literal["keep_in", "keep_out", "slow", "shared"]
    max_speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    box: Box | None = None
    sphere: Sphere | None = None
    cylinder: Cylinder | None = None
    capsule: Capsule | None = None
    mesh: Mesh | None = None
    frame: str = ""
    links: tuple[str, ...] = ()
    except_links: tuple[str, ...] = ()
    _origin: str = PrivateAttr("")

    @model_validator(mode="after")
    def _one_selection(self) -> "ZoneSpec":
        given = [key for key in SHAPES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"zone '{self.name}' has {len(given)} shapes ({', '.join(given) or 'none'}); "
                f"give it one of {', '.join(SHAPES)}"
            )
        if self.kind == "keep_in" and given[0] not in _KEEP_IN:
            raise ValueError(
                f"zone '{self.name}' is keep_in with a {given[0]}; a keep-in zone is one of {', '.join(_KEEP_IN)}"
            )
        if (self.kind == "slow") != (self.max_speed is not None):
            raise ValueError(f"zone '{self.name}' is {self.kind}; give max_speed to slow zones, and to no others")
        if self.links and self.except_links:
            raise ValueError(f"zone '{self.name}' has links and except_links; give one of them")
        return self

    @property
    def shape(self) -> Shape:
        """The one that is given."""
        found = [value for key in SHAPES if (value := getattr(self, key)) is not None]
        return found[0]  # type: ignore[no-any-return]

    @property
    def title(self) -> str:
        """Name, and where it stands in which file, if it came from one."""
        return f"zone '{self.name}'{self._origin}"

    def came_from(self, origin: str) -> None:
        """Remembers file and line for messages."""
        self._origin = f" ({origin})"

    def applies_to(self, link: str) -> bool:
        """Whether the zone is for a link."""
        return link in self.links if self.links else link not in self.except_links


class ZoneSet:
    """All zones of a cell, for one robot.

    A column is a body together with the zones of one frame: every body for the zones in the base frame, then for each
    link that zones move with, the bodies that they are for.

    Attributes:
        reach: (C, n), how fast the distance of a column can shrink with the joints' speeds; margin: m, that every body
            keeps from every zone.

    Raises:
        ConfigError: on a duplicate name or an unknown link; no zone is taken then.
    """

    def __init__(self, zones: Sequence[ZoneSpec], model: RobotModel, margin: float):
        self.zones = tuple(zones)
        self.margin = margin
        self._model = model
        names = [zone.name for zone in zones]
        for zone in zones:
            if names.count(zone.name) > 1:
                raise ConfigError(
                    f"{zone.title} is defined {names.count(zone.name)} times; give each zone a name of its own"
                )
            for link in (*zone.links, *zone.except_links, *([zone.frame] if zone.frame else [])):
                if link not in model.links:
                    raise ConfigError(f"{zone.title}: {unknown('link', link, model.links)}")
        grouped: dict[str, list[int]] = {"": []}
        for index, zone in enumerate(zones):
            if zone.kind in ("keep_in", "keep_out"):
                grouped.setdefault(zone.frame, []).append(index)
        self._fences = [
            (link, _Fence([(k, zones[k]) for k in members], model), self._columns(link, members))
            for link, members in grouped.items()
        ]
        self._bodies: NDArray[np.int64] = np.concatenate([columns for _, _, columns in self._fences])
        self.reach: Array = np.concatenate([self._reach(link, columns) for link, _, columns in self._fences])

    def __len__(self) -> int:
        return len(self.zones)

    @property
    def bodies(self) -> NDArray[np.int64]:
        """(C,): which body each column is."""
        return self._bodies

    def describe(self, column: int, label: int) -> tuple[str, str]:
        """Reason and subject of a finding for a column and zone `label`."""
        return f"zone:{self.zones[label].name}", self._model.body_links[self._bodies[column]]

    def parts(self, placement: Placement) -> "Sequence[ZoneSet]":
        """One for all fences that are kept in a configuration, and one for each that is not."""

        def broken(zones: ZoneSet) -> bool:
            return not (zones.clearances(placement)[0] >= self.margin).all()

        if not broken(self):
            return [self]
        fences = [zone for zone in self.zones if zone.kind in ("keep_in", "keep_out")]
        singles = [ZoneSet([zone], self._model, self.margin) for zone in fences]
        apart = [single for single in singles if broken(single)]
        kept = [single.zones[0] for single in singles if single not in apart]
        return [ZoneSet(kept, self._model, self.margin), *apart]

    def _columns(self, link: str, members: list[int]) -> NDArray[np.int64]:
        links = self._model.body_links
        chosen = [b for b in range(len(links)) if not link or any(self.zones[k].applies_to(links[b]) for k in members)]
        return np.array(chosen, dtype=np.int64)

    def _reach(self, link: str, columns: NDArray[np.int64]) -> Array:
        if not link:
            return self._model.reach[columns]
        balls = [bounding_ball(zone.shape) for zone in self.zones if zone.frame == link]
        furthest = max(float(np.linalg.norm(center)) + radius for center, radius in balls)
        reach = [self._model.approach(int(b), link, furthest) for b in columns]
        return np.array(reach).reshape(len(columns), len(self._model.joints))

    def clearances(self, placement: Placement) -> tuple[Array, NDArray[np.int64]]:
        """How far each column's body is from the nearest violation.

        Returns:
            (N, C) m, lower bounds, negative inside the forbidden space, inf where no zone applies; and (N, C) indices
            of the zones. Beyond `_NEAR` the bound may be the smallest of all N configurations.
        """
        results = []
        for link, fence, columns in self._fences:
            points = placement.points
            if link:
                rotation, origin = self._model.link_pose(link, placement)
                points = (points - origin[:, None]) @ rotation
            values, labels = fence.clearances(points)
            results.append((values[:, columns], labels[:, columns]) if link else (values, labels))
        if len(results) == 1:
            return results[0]
        return np.concatenate([r[0] for r in results], axis=1), np.concatenate([r[1] for r in results], axis=1)


class _Fence:
    """The zones of one frame. Rounded keep-outs come first, then meshes, then keep-ins."""

    def __init__(self, zones: Sequence[tuple[int, ZoneSpec]], model: RobotModel):
        rounded: list[Rounded] = []
        self._hulls: list[Planes] = []
        self._rooms: list[Room] = []
        order: list[list[tuple[int, ZoneSpec]]] = [[], [], []]
        for index, zone in zones:
            if zone.kind == "keep_in":
                self._rooms.append(keep_in(zone.shape))
                order[2].append((index, zone))
                continue
            solid = keep_out(zone.shape)
            if isinstance(solid, Planes):
                self._hulls.append(solid)
                order[1].append((index, zone))
            else:
                rounded.append(solid)
                order[0].append((index, zone))
        ordered = [item for part in order for item in part]
        self._index = np.array([index for index, _ in ordered], dtype=np.int64)
        links = model.body_links
        self._applies = np.array([[zone.applies_to(link) for link in links] for _, zone in ordered], dtype=bool)
        self._rounded = len(rounded)
        if rounded:
            self._solids = stacked(rounded)
        extents = [*(solid.extents() for solid in rounded), *(hull.extents() for hull in self._hulls)]
        self._lowest = np.array([low for low, _ in extents]).reshape(-1, 3)
        self._highest = np.array([high for _, high in extents]).reshape(-1, 3)
        self._radii, self._starts = model.body_radii, model.starts
        # Bodies by the number of their points, so that few are filled up with copies of the last one.
        self._few = model.body_sizes <= 2
        most = max(2, int(model.body_sizes.max()))
        steps = np.minimum(np.arange(most), model.body_sizes[:, None] - 1)
        self._points: NDArray[np.int64] = model.starts[:, None] + steps

    def clearances(self, points: Array) -> tuple[Array, NDArray[np.int64]]:
        """Of bodies with `points` (N, P, 3): (N, B) m and indices of zones."""
        count, bodies = len(points), len(self._radii)
        if not len(self._index):
            return np.full((count, bodies), np.inf), np.full((count, bodies), -1)
        low = np.minimum.reduceat(points.min(axis=0), self._starts, axis=0) - self._radii[:, None]
        high = np.maximum.reduceat(points.max(axis=0), self._starts, axis=0) + self._radii[:, None]
        walls = [room.of_boxes((low + high) / 2, (high - low) / 2) for room in self._rooms]
        coarse = np.concatenate(
            [
                self._apart(low, high),
                np.reshape([np.minimum(p.min(axis=1), r) for p, r in walls], (len(walls), bodies)),
            ]
        )
        coarse = np.where(self._applies, coarse, np.inf)
        close: Mask = ~(coarse >= _NEAR)  # NaN counts as close
        busy: Mask = np.any(close, axis=1)
        zones = np.flatnonzero(busy)
        if not len(zones):
            nearest = coarse.argmin(axis=0)
            values = np.broadcast_to(coarse.min(axis=0), (count, bodies))
            return values, np.broadcast_to(self._index[nearest], (count, bodies))
        # One row for each zone that is near to a body, and one for the nearest of all others.
        far = np.where(busy[:, None], np.inf, coarse)
        table = np.empty((len(zones) + 1, count, bodies))
        table[:-1] = coarse[zones, None]
        table[-1] = far.min(axis=0)
        labels = np.empty((len(zones) + 1, bodies), dtype=np.int64)
        labels[:-1] = self._index[zones, None]
        labels[-1] = self._index[far.argmin(axis=0)]
        by_point = np.ascontiguousarray(points.transpose(1, 0, 2))
        self._rounded_rows(table, zones, close, by_point)
        self._hull_rows(table, zones, close, by_point)
        self._room_rows(table, zones, close, walls, points)
        nearest = table.argmin(axis=0)
        return table.min(axis=0), np.take_along_axis(labels, nearest, axis=0)

    def _apart(self, low: Array, high: Array) -> Array:
        """(Z, B): distances of bodies' boxes (B, 3) from keep-out zones' boxes; negative where they overlap."""
        gaps = np.maximum(low - self._highest[:, None], self._lowest[:, None] - high)
        outside = np.sqrt((np.maximum(gaps, 0.0) ** 2).sum(axis=2))
        return np.where(outside > 0, outside, gaps.max(axis=2))

    def _rounded_rows(self, table: Array, zones: Rows, close: Mask, points: Array) -> None:
        chosen = zones[zones < self._rounded]
        if not len(chosen):
            return
        rows, bodies = np.nonzero(close[chosen])
        for few in (True, False):
            part = self._few[bodies] == few
            if part.any():
                r, b = rows[part], bodies[part]
                members = self._points[b, :2] if few else self._points[b]
                gaps = rounded_gaps(self._solids.take(chosen[r]), points[members], self._radii[b])
                table[r, :, b] = gaps

    def _hull_rows(self, table: Array, zones: Rows, close: Mask, points: Array) -> None:
        for row in np.flatnonzero((zones >= self._rounded) & (zones < len(self._lowest))):
            bodies = np.flatnonzero(close[zones[row]])
            for few in (True, False):
                b = bodies[self._few[bodies] == few]
                if len(b):
                    members = self._points[b, :2] if few else self._points[b]
                    hull = self._hulls[zones[row] - self._rounded]
                    table[row, :, b] = hull_gaps(hull, points[members], self._radii[b])

    def _room_rows(
        self, table: Array, zones: Rows, close: Mask, walls: list[tuple[Array, Array]], points: Array
    ) -> None:
        for row in np.flatnonzero(zones >= len(self._lowest)):
            k = zones[row] - len(self._lowest)
            bodies = np.flatnonzero(close[zones[row]])
            planes = walls[k][0][bodies]
            near: Mask = np.any(~(planes >= _NEAR), axis=0)
            members = self._points[bodies]
            room = self._rooms[k].of_points(points[:, members], np.flatnonzero(near)).min(axis=2)
            others = np.where(near, np.inf, planes).min(axis=1)
            table[row][:, bodies] = np.minimum(room - self._radii[bodies], others)
