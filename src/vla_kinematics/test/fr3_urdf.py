"""A bare FR3 with a gripper joint: the vendor's published link frames, no geometry."""

import math

_HALF = math.pi / 2
# parent frame -> joint: xyz m, rpy rad, lower and upper limit rad
_JOINTS = (
    ((0, 0, 0.333), (0, 0, 0), -2.7437, 2.7437),
    ((0, 0, 0), (-_HALF, 0, 0), -1.7837, 1.7837),
    ((0, -0.316, 0), (_HALF, 0, 0), -2.9007, 2.9007),
    ((0.0825, 0, 0), (_HALF, 0, 0), -3.0421, -0.1518),
    ((-0.0825, 0.384, 0), (-_HALF, 0, 0), -2.8065, 2.8065),
    ((0, 0, 0), (_HALF, 0, 0), 0.5445, 4.5169),
    ((0.088, 0, 0), (_HALF, 0, 0), -3.0159, 3.0159),
)
NAMES = tuple(f"fr3_joint{i}" for i in range(1, 8)) + ("fr3_finger_joint1",)
HOME = (0.0, -0.569, 0.0, -2.81, 0.0, 2.241, 0.785, 0.04)  # the tool points straight down
LOWER = tuple(j[2] for j in _JOINTS)
UPPER = tuple(j[3] for j in _JOINTS)
_MASS = '<inertial><mass value="1"/><inertia ixx="0.01" iyy="0.01" izz="0.01" ixy="0" ixz="0" iyz="0"/></inertial>'


def fr3_urdf() -> str:
    """URDF text."""
    links = "".join(f'<link name="link{i}">{_MASS}</link>' for i in range(8))
    joints = "".join(
        f'<joint name="fr3_joint{i + 1}" type="revolute"><parent link="link{i}"/><child link="link{i + 1}"/>'
        f'<origin xyz="{_text(xyz)}" rpy="{_text(rpy)}"/><axis xyz="0 0 1"/>'
        f'<limit lower="{low}" upper="{high}" velocity="2.62" effort="87"/></joint>'
        for i, (xyz, rpy, low, high) in enumerate(_JOINTS)
    )
    tool = (
        '<link name="tool"/><joint name="tool_fix" type="fixed"><parent link="link7"/><child link="tool"/>'
        f'<origin xyz="0 0 0.2104" rpy="0 0 {-math.pi / 4}"/></joint>'
        f'<link name="finger">{_MASS}</link><joint name="fr3_finger_joint1" type="prismatic"><parent link="link7"/>'
        '<child link="finger"/><origin xyz="0 0 0.165"/><axis xyz="0 1 0"/>'
        '<limit lower="0" upper="0.04" velocity="0.15" effort="20"/></joint>'
    )
    return f'<robot name="bare_fr3">{links}{joints}{tool}</robot>'


def _text(numbers: tuple[float, ...]) -> str:
    return " ".join(map(str, numbers))
