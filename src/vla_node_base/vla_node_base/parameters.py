"""Parameters declared once, from a frozen dataclass: type, default, range, unit, description, read-only.

    @dataclass(frozen=True)
    class Parameters:
        rate: float = parameter(50.0, "control rate", unit="Hz", low=1.0, high=200.0)

`declare(node, Parameters)` declares them and returns the values; `markdown(Parameters)` is the table for the README.
"""

import dataclasses
from typing import Any, TypeVar, get_type_hints

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException, ParameterException
from rclpy.node import Node

from vla_contract.errors import ConfigError

T = TypeVar("T")


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = True,
) -> Any:
    """A dataclass field that is a ROS parameter. `low` and `high` are inclusive; lists are given as tuples."""
    metadata = {
        "description": description,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": choices,
        "read_only": read_only,
    }
    return dataclasses.field(default=default, metadata=metadata)


def declare(node: Node, parameters: type[T]) -> T:
    """Declares every field of `parameters` on `node` and returns an instance with the values in force.

    Raises:
        ConfigError: naming parameter, value and what was expected.
    """
    values = {}
    for field in dataclasses.fields(parameters):  # type: ignore[arg-type]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        try:
            value = node.declare_parameter(field.name, default, _descriptor(field)).value
        except (InvalidParameterTypeException, InvalidParameterValueException, ParameterException) as error:
            raise ConfigError(
                f"parameter '{field.name}' of node '{node.get_name()}': {error}; {_expected(field)}"
            ) from error
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(f"parameter '{field.name}' of node '{node.get_name()}' is {value!r}; {_expected(field)}")
        values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    return parameters(**values)


def markdown(parameters: type) -> str:
    """A Markdown table of the parameters, for the README of their package."""
    hints = get_type_hints(parameters)
    rows = ["| parameter | type | default | range | unit | meaning |", "|---|---|---|---|---|---|"]
    for field in dataclasses.fields(parameters):
        meta = field.metadata
        kind = getattr(hints[field.name], "__name__", str(hints[field.name]))
        change = "" if meta["read_only"] else " (changeable at run time)"
        rows.append(
            f"| `{field.name}` | {kind} | `{field.default!r}` | {_range(field)} | {meta['unit']} | "
            f"{meta['description']}{change} |"
        )
    return "\n".join(rows) + "\n"


def _range(field: dataclasses.Field) -> str:  # type: ignore[type-arg]
    meta = field.metadata
    if meta["choices"]:
        return ", ".join(f"`{c}`" for c in meta["choices"])
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"


def _expected(field: dataclasses.Field) -> str:  # type: ignore[type-arg]
    bounds = _range(field)
    return (
        f"expected {type(field.default).__name__}{f' in {bounds}' if bounds else ''} {field.metadata['unit']}".rstrip()
    )


def _descriptor(field: dataclasses.Field) -> ParameterDescriptor:  # type: ignore[type-arg]
    meta = field.metadata
    descriptor = ParameterDescriptor(
        description=f"{meta['description']}{' [' + meta['unit'] + ']' if meta['unit'] else ''}",
        additional_constraints=_range(field) if meta["choices"] else "",
        read_only=meta["read_only"],
    )
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return descriptor
    if isinstance(field.default, float):
        bound = 1.7e308
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=-bound if low is None else float(low),
                to_value=bound if high is None else float(high),
                step=0.0,
            )
        ]
    elif isinstance(field.default, int):
        bound = 2**62
        descriptor.integer_range = [
            IntegerRange(
                from_value=-bound if low is None else int(low), to_value=bound if high is None else int(high), step=1
            )
        ]
    return descriptor
