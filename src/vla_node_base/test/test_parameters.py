"""Parameters: declared with their range, refused by name."""

from dataclasses import dataclass

import pytest
import rclpy
from rclpy.parameter import Parameter

from vla_contract.errors import ConfigError
from vla_node_base.parameters import declare, markdown, parameter


@dataclass(frozen=True)
class Parameters:
    rate: float = parameter(50.0, "control rate", unit="Hz", low=1.0, high=200.0)
    count: int = parameter(3, "points", low=1)
    mode: str = parameter("sync", "how", choices=("sync", "async"))
    names: tuple[str, ...] = parameter(("a", "b"), "who", read_only=False)


def node(**values):
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return rclpy.create_node("clerk", parameter_overrides=overrides)


def test_values_in_force(context):
    assert declare(node(), Parameters) == Parameters()
    assert declare(node(rate=20.0, names=["c"]), Parameters) == Parameters(rate=20.0, names=("c",))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": 500.0}, r"'rate' of node 'clerk'.*expected float in 1..200 Hz"),
        ({"rate": "fast"}, "'rate' of node 'clerk'"),
        ({"count": 0}, "'count' of node 'clerk'"),
        ({"mode": "maybe"}, "is 'maybe'; expected str in `sync`, `async`"),
    ],
)
def test_refused_by_name(context, values, words):
    with pytest.raises(ConfigError, match=words):
        declare(node(**values), Parameters)


def test_read_only_and_changeable(context):
    made = node()
    declare(made, Parameters)
    assert not made.set_parameters([Parameter("rate", value=10.0)])[0].successful
    assert made.set_parameters([Parameter("names", value=["z"])])[0].successful


def test_table():
    table = markdown(Parameters)
    assert "| `rate` | float | `50.0` | 1..200 | Hz | control rate |" in table
    assert "`sync`, `async`" in table and "changeable at run time" in table
