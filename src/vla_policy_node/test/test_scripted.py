"""Scripts: where they lead, how fast, and what is refused before anything moves."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from remote import FR3, HOME

from vla_contract.errors import ConfigError
from vla_contract.observation import Observation
from vla_kinematics import ToolKinematics
from vla_policy_node.backends import Backend, load_backend, locate
from vla_policy_node.backends.scripted import load

S = 10**9
KINEMATICS = ToolKinematics(FR3.urdf(), FR3.joints, FR3.tool_frame, FR3.home)
ARM = np.asarray(HOME)[:7].tolist()


def script(folder: Path, *waypoints, robot=FR3, **values):
    path = folder / "script.yaml"
    path.write_text(yaml.safe_dump({"waypoints": list(waypoints), **values}))
    return load(path, robot, {})


def walk(backend, start=HOME, until=None):
    """Positions every 0.1 s, as a robot that follows exactly would go; ends with the script."""
    positions, k, progress = [np.array(start, dtype=np.float64)], 0, 0.0
    while progress < 1.0 and k < 600:
        chunk = backend.infer(Observation(k * S // 10, {}, positions[-1], np.zeros(8)))
        positions.append(chunk.positions[0])
        progress, k = chunk.progress, k + 1
        if until is not None and k >= until:
            break
    return np.stack(positions)


def test_it_is_a_backend(tmp_path):
    script(tmp_path, {"joints": ARM})
    backend = load_backend(locate("scripted"), tmp_path / "script.yaml", FR3, {"cameras": ["front"], "horizon": 8})
    assert isinstance(backend, Backend)
    assert backend.metadata.horizon == 8 and list(backend.metadata.cameras) == ["front"]
    assert backend.metadata.name == "scripted:script" and len(backend.metadata.digest) == 64


def test_joints_tool_and_gripper_in_their_order(tmp_path):
    turned = [0.3, *ARM[1:]]
    backend = script(
        tmp_path, {"tool": [0.5, 0.1, 0.25], "gripper": 0.0, "wait": 0.6}, {"joints": turned, "duration": 1.0}
    )
    path = walk(backend)
    tool = np.stack([KINEMATICS.forward(q)[0] for q in path])
    reached = int(np.argmin(np.linalg.norm(tool - [0.5, 0.1, 0.25], axis=1)))
    assert np.linalg.norm(tool[reached] - [0.5, 0.1, 0.25]) < 2e-3
    # A straight line, at no more than 0.15 m/s.
    line = tool[: reached + 1] - tool[0]
    along = line @ line[-1] / np.linalg.norm(line[-1])
    assert np.linalg.norm(line - along[:, None] * line[-1] / np.linalg.norm(line[-1]), axis=1).max() < 2e-3
    assert np.linalg.norm(np.diff(tool[: reached + 1], axis=0), axis=1).max() <= 0.0151
    closing = int(np.argmax(path[:, 7] < 0.02))
    assert closing > reached and np.abs(path[closing, :7] - path[reached, :7]).max() < 1e-3, (
        "it closes when it is there"
    )
    np.testing.assert_allclose(path[-1], [*turned, 0.0], atol=1e-6)
    assert np.abs(np.diff(path[:, :7], axis=0)).max() <= 0.06


def test_it_starts_where_the_robot_is_and_again_after_a_reset(tmp_path):
    backend = script(tmp_path, {"joints": ARM})
    away = np.array(HOME) + [0.4, 0, 0, 0, 0, 0, 0, 0]
    path = walk(backend, away)
    assert np.abs(path[1] - away).max() < 0.02
    np.testing.assert_allclose(path[-1][:7], ARM, atol=1e-9)
    backend.reset()
    np.testing.assert_array_equal(walk(backend, away), path)


def test_it_may_repeat(tmp_path):
    backend = script(tmp_path, {"joints": [0.2, *ARM[1:]]}, {"joints": ARM}, repeat=True)
    path = walk(backend, until=80)
    turning = (np.diff(np.sign(np.diff(path[:, 0]))) < 0).sum()
    assert turning >= 2, "there and back more than once"


@pytest.mark.parametrize(
    ("waypoints", "values", "words"),
    [
        ([], {}, "waypoints"),
        ([{"joints": [0.0]}], {}, "waypoints.0 has 1 joints, the arm 7"),
        ([{"joints": ARM, "tool": [0.5, 0, 0.2]}], {}, "joints and tool"),
        ([{"joints": [9.0, *ARM[1:]]}], {}, "from home: waypoint 0: fr3_joint1 at 9.0000 is beyond"),
        ([{"tool": [2.0, 0.0, 0.2]}], {}, r"waypoint 0: on the way to \[2.0, 0.0, 0.2\] m the tool stays"),
        ([{"joints": ARM, "speed": 1}], {}, "speed"),
        ([{"joints": ARM}], {"tool_speed": 7.0}, "tool_speed"),
    ],
)
def test_scripts_that_are_refused(tmp_path, waypoints, values, words):
    with pytest.raises(ConfigError, match=words):
        script(tmp_path, *waypoints, **values)
