"""What the robot carries: tools that are screwed on and payloads that are held, switched while it runs.

Every tool and payload of the safety file is a link of the robot, fixed to its parent, whether it is mounted or not:
zones and allowed contacts may name it at any time. Only what is mounted has bodies and mass.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vla_contract.errors import ConfigError, unknown
from vla_safety.core.shapes import Box, Capsule, Cylinder, Sphere, Vector
from vla_safety.core.urdf import Description, Joint, Load, Shape, rpy_matrix

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolShape(_Strict):
    """One of the four, in the tool's frame. A cylinder counts as the capsule around it."""

    box: Box | None = None
    sphere: Sphere | None = None
    cylinder: Cylinder | None = None
    capsule: Capsule | None = None

    @model_validator(mode="after")
    def _one(self) -> "ToolShape":
        if sum(shape is not None for shape in (self.box, self.sphere, self.cylinder, self.capsule)) != 1:
            raise ValueError("give one of box, sphere, cylinder, capsule")
        return self

    def body(self, link: str) -> Shape:
        """Its points and radius, in the tool's frame."""
        if self.sphere is not None:
            return Shape(link, np.array([self.sphere.center]), self.sphere.radius)
        if self.box is not None:
            corners = _CORNERS * np.array(self.box.size) / 2
            return Shape(link, corners @ self.box.rotation.T + np.array(self.box.center), 0.0)
        shape = self.cylinder or self.capsule
        assert shape is not None
        half = shape.rotation @ np.array([0.0, 0.0, shape.length / 2])
        return Shape(link, np.array([shape.center - half, shape.center + half]), shape.radius)


class ToolSpec(_Strict):
    """A tool or a payload of the safety file. Its frame is `xyz` [m] and `rpy` [rad] in its parent's.

    Attributes:
        parent: link that it is fixed to; a payload may name a tool.
        mass: kg. center_of_mass: m, in its frame; its turning inertia is neglected.
        allowed_contacts: links besides the parent that it may touch, e.g. the fingers that hold it.
    """

    parent: str
    xyz: Vector = (0.0, 0.0, 0.0)
    rpy: Vector = (0.0, 0.0, 0.0)
    shapes: Annotated[tuple[ToolShape, ...], Field(min_length=1)]
    mass: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    center_of_mass: Vector = (0.0, 0.0, 0.0)
    allowed_contacts: tuple[str, ...] = ()


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
ToolTable = dict[Name, ToolSpec]


def with_links(description: Description, tools: ToolTable, payloads: ToolTable) -> Description:
    """A robot with a link for each tool and payload; without their bodies.

    Raises:
        ConfigError: when a name is used twice, or a parent is unknown.
    """
    for kind, table, known in (
        ("tool", tools, description.links),
        ("payload", payloads, (*description.links, *tools)),
    ):
        for name, spec in table.items():
            if name in known:
                raise ConfigError(f"{kind} '{name}' has the name of a link or of a tool; give it another")
            if spec.parent not in known:
                raise ConfigError(f"{kind} '{name}': parent: {unknown('link', spec.parent, known)}")
    added = {**tools, **payloads}
    joints = [
        Joint(
            name=f"{name}_mount",
            kind="fixed",
            parent=spec.parent,
            child=name,
            rotation=rpy_matrix(np.array(spec.rpy)),
            translation=np.array(spec.xyz),
            axis=np.array([1.0, 0.0, 0.0]),
            mimic=None,
            travel=0.0,
        )
        for name, spec in added.items()
    ]
    return replace(description, links=(*description.links, *added), joints=(*description.joints, *joints))


def mounted(tools: ToolTable, payloads: ToolTable, tool: str, payload: str) -> dict[str, ToolSpec]:
    """What is carried, by name.

    Raises:
        ConfigError: when a name is unknown, or the payload hangs on a tool that is not mounted.
    """
    found = {}
    for kind, name, table in (("tool", tool, tools), ("payload", payload, payloads)):
        if not name:
            continue
        if name not in table:
            raise ConfigError(unknown(kind, name, table))
        found[name] = table[name]
    if payload and payloads[payload].parent in tools and payloads[payload].parent != tool:
        raise ConfigError(
            f"payload '{payload}' hangs on tool '{payloads[payload].parent}', but "
            f"{f'tool {tool!r}' if tool else 'no tool'} is mounted; mount that tool, or choose another payload"
        )
    return found


def bodies(carried: Mapping[str, ToolSpec]) -> tuple[Shape, ...]:
    """Bodies of what is carried, in the frames of its links."""
    return tuple(shape.body(name) for name, spec in carried.items() for shape in spec.shapes)


def loads(carried: Mapping[str, ToolSpec]) -> tuple[Load, ...]:
    """Masses of what is carried."""
    return tuple(Load(name, spec.mass, np.array(spec.center_of_mass)) for name, spec in carried.items())


def contacts(tools: ToolTable, payloads: ToolTable, links: tuple[str, ...]) -> set[frozenset[str]]:
    """Pairs of links that may touch because a tool or payload says so.

    Raises:
        ConfigError: when an unknown link is named.
    """
    pairs = set()
    for name, spec in {**tools, **payloads}.items():
        for link in spec.allowed_contacts:
            if link not in links:
                raise ConfigError(f"tool or payload '{name}': allowed_contacts: {unknown('link', link, links)}")
        pairs |= {frozenset((name, link)) for link in (spec.parent, *spec.allowed_contacts) if link != name}
    return pairs
