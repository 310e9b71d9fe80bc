"""Momentum and its change, by formulas on paper: a link that turns, one that slides on it, and what hangs on them."""

import numpy as np
import pytest

from vla_contract.errors import ConfigError
from vla_safety.core.dynamics import Dynamics
from vla_safety.core.tools import ToolShape, ToolSpec, with_links
from vla_safety.core.urdf import Load, parse_urdf

# `turn` around z; behind it `slide` along x, and `follower` that does what `slide` does, twice.
MASS, INERTIA = 2.0, 0.5  # kg at a metre from the axis, and kg m^2
CAR, TAIL = 3.0, 5.0  # kg


def inertial(mass, center, izz=0.0):
    return (
        f'<inertial><origin xyz="{center}"/><mass value="{mass}"/>'
        f'<inertia ixx="{izz}" iyy="{izz}" izz="{izz}" ixy="0" ixz="0" iyz="0"/></inertial>'
    )


def robot(turn="revolute", friction="", car=CAR):
    return f"""<robot name="r">
      <link name="base"/>
      <link name="beam">{inertial(MASS, "1 0 0", INERTIA)}</link>
      <link name="car">{inertial(car, "0 0 0")}</link>
      <link name="tail">{inertial(TAIL, "0 0 0")}</link>
      <joint name="turn" type="{turn}">
        <parent link="base"/><child link="beam"/><axis xyz="0 0 1"/>{friction}
        <limit lower="-9" upper="9" effort="9" velocity="9"/>
      </joint>
      <joint name="slide" type="prismatic">
        <parent link="beam"/><child link="car"/><axis xyz="1 0 0"/><limit lower="-9" upper="9" effort="9" velocity="9"/>
      </joint>
      <joint name="follower" type="prismatic">
        <parent link="beam"/><child link="tail"/><axis xyz="1 0 0"/><mimic joint="slide" multiplier="2" offset="0.5"/>
        <limit lower="-9" upper="9" effort="9" velocity="9"/>
      </joint>
    </robot>"""


def make(text=None, observed=("turn",), joints=("turn", "slide"), tools=None, payloads=None, **options):
    text = text or robot()
    description = with_links(parse_urdf(text), tools or {}, payloads or {})
    return Dynamics(text, description, joints, observed, **{"gravity": (0.0, 0.0, 0.0), **options})


def about_the_axis(q):
    """kg m^2 at slide position q."""
    return INERTIA + MASS + CAR * q**2 + TAIL * (2 * q + 0.5) ** 2


@pytest.mark.parametrize("kind", ["revolute", "continuous"])
@pytest.mark.parametrize("angle", [0.0, 0.7, -2.0])
def test_momentum_is_inertia_times_speed_whatever_the_joint_is_called(kind, angle):
    found = make(robot(kind)).momentum(np.array([angle, 0.25]), np.array([1.5, 0.0]))
    np.testing.assert_allclose(found.value, [1.5 * about_the_axis(0.25)], rtol=1e-12)
    np.testing.assert_allclose(found.rate, [0.0], atol=1e-12)


def test_names_may_come_in_any_order():
    found = make(joints=("slide", "turn")).momentum(np.array([0.25, 0.7]), np.array([0.0, 1.5]))
    np.testing.assert_allclose(found.value, [1.5 * about_the_axis(0.25)], rtol=1e-12)


@pytest.mark.parametrize("kind", ["revolute", "continuous"])
@pytest.mark.parametrize("angle", [0.0, 0.7, -2.0])
def test_weight_pulls_where_gravity_points(kind, angle):
    """Gravity along -y: the torque around z is that of all masses at their distance along x."""
    found = make(robot(kind), gravity=(0.0, -10.0, 0.0)).momentum(np.array([angle, 0.25]), np.zeros(2))
    lever = MASS * 1.0 + CAR * 0.25 + TAIL * 1.0
    np.testing.assert_allclose(found.rate, [-10.0 * lever * np.cos(angle)], rtol=1e-12)
    np.testing.assert_allclose(found.value, [0.0])


@pytest.mark.parametrize(("speed", "dry"), [(0.01, np.tanh(1.0)), (-0.02, np.tanh(-2.0)), (1.0, 1.0), (0.0, 0.0)])
def test_friction_is_viscous_and_dry_and_turns_within_a_creep(speed, dry):
    found = make(robot(friction='<dynamics damping="4" friction="7"/>')).momentum(np.zeros(2), np.array([speed, 0.0]))
    np.testing.assert_allclose(found.rate, [-(4 * speed + 7 * dry)], rtol=1e-9, atol=1e-12)


def test_rotors_behind_gears_count_by_joint():
    dynamics = make(armature={"turn": 0.25, "slide": 100.0})
    found = dynamics.momentum(np.zeros(2), np.array([2.0, 0.0]))
    np.testing.assert_allclose(found.value, [2.0 * (about_the_axis(0.0) + 0.25)], rtol=1e-12)


TOOL = ToolSpec(
    parent="car",
    xyz=(0.0, 3.0, 0.0),
    rpy=(0.0, 0.0, np.pi / 2),
    shapes=(ToolShape(sphere={"center": (0, 0, 0), "radius": 0.1}),),
    mass=1.0,
)
POINTER = TOOL.model_copy(update={"parent": "tool", "xyz": (0.0, 0.0, 2.0), "rpy": (0.0, 0.0, 0.0)})


@pytest.mark.parametrize(
    ("link", "center", "distance"),
    [
        ("beam", (3.0, 4.0, 7.0), 5.0),
        ("car", (2.0, 0.0, 0.0), 3.0),
        ("tool", (0.0, 0.0, 0.0), np.hypot(1, 3)),
        ("tool", (1.0, 0.0, 0.0), np.hypot(1, 4)),
        ("tool", (0.0, 1.0, 0.0), np.hypot(0, 3)),
        ("pointer", (1.0, 0.0, 0.0), np.hypot(1, 4)),
    ],
)
def test_a_load_counts_where_its_link_is_even_if_only_the_filter_knows_the_link(link, center, distance):
    """The car is at 1 m; the tool 3 m beside it and turned by a quarter, the pointer 2 m above the tool."""
    loads = [Load(link, 10.0, np.array(center))]
    dynamics = make(tools={"tool": TOOL}, payloads={"pointer": POINTER}, loads=loads)
    found = dynamics.momentum(np.array([0.3, 1.0]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(found.value, [about_the_axis(1.0) + 10.0 * distance**2], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": ("nope",)}, "unknown joint 'nope'; known: follower, slide, turn"),
        ({"observed": ("slide",)},
         "joint 'slide' is mimicked by another, so its torque cannot be told apart; leave it out of "
         "external_torque.limits"),
        ({"armature": {"nope": 1.0}}, "armature: unknown joint 'nope'; known: follower, slide, turn"),
        ({"loads": [Load("nope", 1.0, np.zeros(3))]}, "unknown link 'nope'; known: base, beam, car, tail"),
        ({"text": robot(car=0.0)}, "URDF joint 'slide' moves no mass; give the link behind it an <inertial>"),
    ],
)  # fmt: skip
def test_i07_what_cannot_be_computed_is_refused_by_name(options, message):
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert str(error.value) == message


def test_i07_what_pinocchio_cannot_read_is_refused():
    with pytest.raises(ConfigError, match="^Pinocchio cannot read the URDF: ."):
        Dynamics("<robot", parse_urdf(robot()), ("turn", "slide"), ("turn",))
