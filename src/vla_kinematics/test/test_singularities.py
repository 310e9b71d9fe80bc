"""Where a small motion of the tool would need a large one of the joints: stretched arms, aligned axes, far points."""

import numpy as np
import pytest
from fr3_urdf import HOME, NAMES, fr3_urdf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vla_kinematics import ToolKinematics

# An industrial arm with a spherical wrist, the axes 4 and 6 of which are one line at joint 5 = 0; no joint to spare.
SIX = tuple(f"j{k}" for k in range(1, 7))
_AXES = (
    ((0, 0, 0.3), (0, 0, 1)),
    ((0, 0, 0.1), (0, 1, 0)),
    ((0, 0, 0.4), (0, 1, 0)),
    ((0.1, 0, 0.03), (1, 0, 0)),
    ((0.3, 0, 0), (0, 1, 0)),
    ((0.05, 0, 0), (1, 0, 0)),
)


def six_axes() -> str:
    mass = '<inertial><mass value="1"/><inertia ixx="0.1" iyy="0.1" izz="0.1" ixy="0" ixz="0" iyz="0"/></inertial>'
    links = "".join(f'<link name="l{k}">{mass}</link>' for k in range(7))
    joints = "".join(
        f'<joint name="{name}" type="revolute"><parent link="l{k}"/><child link="l{k + 1}"/>'
        f'<origin xyz="{xyz[0]} {xyz[1]} {xyz[2]}"/><axis xyz="{axis[0]} {axis[1]} {axis[2]}"/>'
        '<limit lower="-2.9" upper="2.9" velocity="3" effort="50"/></joint>'
        for k, (name, (xyz, axis)) in enumerate(zip(SIX, _AXES, strict=True))
    )
    tool = '<link name="tool"/><joint name="f" type="fixed"><parent link="l6"/><child link="tool"/></joint>'
    return f'<robot name="six">{links}{joints}{tool}</robot>'


ARMS = {
    "fr3": ToolKinematics(fr3_urdf(), NAMES, "tool", HOME),
    "six": ToolKinematics(six_axes(), SIX, "tool", np.array([0.0, 0.3, 0.3, 0.0, 0.9, 0.0])),
}
POSTURES = {
    "elbow stretched": ("fr3", (0.0, 0.6, 0.0, -0.467, 0.0, 2.0, 0.785, 0.04)),
    "beyond the stretched elbow": ("fr3", (0.0, 0.6, 0.0, -0.16, 0.0, 2.0, 0.785, 0.04)),
    "wrist over the base": ("fr3", (0.0, 0.0, 0.0, -0.467, 0.0, 1.8, 0.785, 0.04)),
    "wrist aligned": ("six", (0.0, 0.3, 0.3, 0.0, 0.0, 0.0)),
    "wrist nearly aligned": ("six", (0.0, 0.3, 0.3, 0.2, 1e-3, -0.2)),
    "arm straight": ("six", (0.0, 0.5, np.arctan2(-0.4, 0.03), 0.0, 0.0, 0.0)),
}
ways = st.tuples(*[st.floats(-0.4, 0.4)] * 3)
turns = st.tuples(*[st.floats(-1.0, 1.0)] * 3)


def turned(rotation, vector):
    """`rotation` (3, 3) turned by a rotation vector."""
    angle = np.linalg.norm(vector)
    x, y, z = np.asarray(vector) / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ rotation


def lead(name, way, turn, points):
    """Follows a straight line of `points` from a posture of the table; also what is allowed for each step."""
    arm, start = POSTURES[name]
    kinematics, start = ARMS[arm], np.array(start)
    place, rotation = kinematics.forward(start)
    shares = np.linspace(0, 1, points + 1)[1:]
    path = place + shares[:, None] * np.array(way)
    rotations = np.stack([turned(rotation, share * np.array(turn)) for share in shares])
    followed = kinematics.follow(start, path, rotations)
    steps = np.abs(np.diff(np.vstack([start, followed.positions]), axis=0)).max(axis=1)
    allowed = 0.05 + (12 * np.linalg.norm(way) + 4 * np.linalg.norm(turn)) / points
    return kinematics, path, rotations, followed, steps, allowed


@given(st.sampled_from(sorted(POSTURES)), ways, turns, st.integers(4, 24))
@example("beyond the stretched elbow", (-0.2, 0.0, 0.0), (0.0, 0.0, 0.0), 19)
@example("wrist nearly aligned", (0.0, 0.2, 0.0), (0.0, 0.0, 0.0), 20)
@settings(max_examples=60, deadline=None)
def test_joints_move_no_more_than_a_share_of_what_the_tool_is_asked_to(name, way, turn, points):
    """So their speed is bounded by the tool's; and what the tool falls short of is what is said."""
    kinematics, path, rotations, followed, steps, allowed = lead(name, way, turn, points)
    assert steps.max() <= allowed + 1e-9
    for joints, point, rotation, residual, tilt in zip(
        followed.positions, path, rotations, followed.residuals, followed.tilts, strict=True
    ):
        reached, facing = kinematics.forward(joints)
        assert residual == pytest.approx(np.linalg.norm(reached - point), abs=1e-9)
        cosine = (np.trace(facing.T @ rotation) - 1) / 2
        assert tilt == pytest.approx(np.arccos(np.clip(cosine, -1, 1)), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("elbow stretched", (-0.3, 0.0, -0.1)),
        ("wrist over the base", (0.0, 0.3, -0.3)),
        ("wrist aligned", (0.0, 0.2, -0.1)),
        ("wrist nearly aligned", (0.0, 0.2, -0.1)),
        ("arm straight", (-0.2, 0.0, -0.1)),
    ],
)
def test_a_tool_leaves_a_singularity_and_catches_up(name, way):
    kinematics, path, rotations, followed, _, _ = lead(name, way, (0.0, 0.0, 0.0), 30)
    rest = kinematics.follow(followed.positions[-1], np.tile(path[-1], (20, 1)), rotations[-1])
    assert rest.residuals[-1] < 1e-3 and rest.tilts[-1] < 1e-3


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_a_tool_goes_to_the_end_of_its_reach_says_so_and_comes_back(arm):
    kinematics = ARMS[arm]
    home = np.array(HOME if arm == "fr3" else (0.0, 0.3, 0.3, 0.0, 0.9, 0.0))
    place, rotation = kinematics.forward(home)
    out = place + np.linspace(0, 1, 41)[1:, None] * (place * [2.0, 0.0, 0.0])
    path = np.concatenate([out, out[::-1], np.tile(place, (20, 1))])
    followed = kinematics.follow(home, path, rotation)
    assert followed.residuals[len(out) - 1] > 0.05
    assert followed.residuals[-1] < 1e-3 and followed.tilts[-1] < 1e-3
    steps = np.abs(np.diff(followed.positions, axis=0)).max(axis=1)
    assert steps.max() <= 0.05 + 12 * np.linalg.norm(path[1] - path[0]) + 1e-9
    # At the end of the reach the joints rest: they do not go to and fro between two postures that are equally near.
    stay = kinematics.follow(followed.positions[len(out) - 1], np.tile(out[-1], (30, 1)), rotation)
    assert np.abs(np.diff(stay.positions[-5:], axis=0)).max() < 0.01
