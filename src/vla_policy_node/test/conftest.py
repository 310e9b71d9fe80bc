"""A small robot and recordings for it; files only, no ROS."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, settings

from vla_contract.robot import load_robot

# A busy machine is no error of the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="starvation: 1e6 control ticks for each case")


URDF = """<robot name="two"><link name="base"/><link name="a"/><link name="hand"/><link name="finger"/>
<joint name="j1" type="revolute"><parent link="base"/><child link="a"/><axis xyz="0 0 1"/>
<limit lower="-2" upper="2" velocity="2" effort="1"/></joint>
<joint name="j2" type="revolute"><parent link="a"/><child link="hand"/><origin xyz="0.5 0 0"/><axis xyz="0 0 1"/>
<limit lower="-2" upper="2" velocity="2" effort="1"/></joint>
<joint name="grip" type="prismatic"><parent link="hand"/><child link="finger"/><axis xyz="0 1 0"/>
<limit lower="0" upper="0.04" velocity="0.15" effort="1"/></joint></robot>"""

JOINTS = ("j1", "j2", "grip")
CAMERAS = {"front": (32, 48), "wrist": (24, 24)}


def limit(low, high, velocity, acceleration, jerk):
    values = {"min_position": low, "max_position": high, "max_velocity": velocity}
    values |= {"max_acceleration": acceleration, "max_jerk": jerk}
    return values | {f"has_{kind}_limits": True for kind in ("position", "velocity", "acceleration", "jerk")}


def write_robot(folder: Path) -> Path:
    (folder / "two.urdf").write_text(URDF)
    (folder / "two.srdf").write_text("<robot name='two'/>")
    limits = {j: limit(-2.0, 2.0, 2.0, 10.0, 5000.0) for j in JOINTS[:2]} | {"grip": limit(0.0, 0.04, 0.15, 2.0, 200.0)}
    (folder / "limits.yaml").write_text(yaml.safe_dump({"joint_limits": limits}))
    robot = {
        "name": "two",
        "description": {"urdf": "two.urdf", "srdf": "two.srdf", "joint_limits": "limits.yaml"},
        "base_frame": "base",
        "tool_frame": "hand",
        "joints": list(JOINTS),
        "gripper": {"joint": "grip", "open": 0.04, "closed": 0.0},
        "home": [0.0, 0.5, 0.04],
        "cameras": {
            name: {
                "topic": f"/camera/{name}/image_raw",
                "frame": f"{name}_frame",
                "width": w,
                "height": h,
                "rate": 15.0,
            }
            for name, (h, w) in CAMERAS.items()
        },
        "safety": "cell.yaml",
    }
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(robot))
    return path


def write_recording(folder: Path, duration: float = 3.0, name: str = "wave.npz") -> Path:
    times = np.arange(0.0, duration + 1e-9, 0.1)
    positions = np.stack(
        [0.4 * np.sin(times), 0.5 + 0.3 * np.sin(1.3 * times), np.where(times < 1.5, 0.04, 0.0)], axis=1
    )
    path = folder / name
    np.savez(path, joint_names=np.array(JOINTS), times=times, positions=positions)
    return path


def write_policy(folder: Path, **values) -> Path:
    content = {"backend": "replay", "checkpoint": "wave.npz", "options": {"cameras": ["front", "wrist"]}} | values
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def robot(tmp_path):
    return load_robot(write_robot(tmp_path))


@pytest.fixture
def recording(tmp_path):
    return write_recording(tmp_path)
