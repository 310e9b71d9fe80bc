"""Pictures show what the truth says, at the size asked for."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vla_contract.errors import ConfigError
from vla_contract.resampling import resize_image
from vla_sim.core import CUBES, ObjectPose, SceneConfig, rendering
from vla_sim.core.rendering import RenderingUnavailable, choose_backend


def coloured(image, name):
    """Mask (H, W) of the pixels of a cube's hue."""
    wanted = int(np.argmax(CUBES[name]))
    rest = [channel for channel in range(3) if channel != wanted]
    pixels = image.astype(int)
    return (pixels[..., wanted] > 60) & (pixels[..., wanted] > 2 * pixels[..., rest].max(axis=-1))


def project(cell, camera, point, width, height):
    number = cell.camera_id(camera)
    local = cell.data.cam_xmat[number].reshape(3, 3).T @ (np.asarray(point) - cell.data.cam_xpos[number])
    matrix = cell.intrinsics(camera, width, height)
    return matrix[:2, :2] @ (local[:2] * [1, -1] / -local[2]) + matrix[:2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_front_camera_sees_every_cube_where_it_is(cell, seed):
    cell.reset(seed)
    image = cell.render("front")
    assert image.dtype == np.uint8 and image.shape == (192, 192, 3)
    for name, truth in cell.truth().items():
        if name in CUBES:
            rows, columns = np.nonzero(coloured(image, name))
            expected = project(cell, "front", truth.position, 192, 192)
            np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=4)


def test_a_cube_is_wide_enough_for_the_policy(cell):
    far = SceneConfig(
        {
            "red_cube": ObjectPose(0.36, 0.0, 0.0),
            "green_cube": ObjectPose(0.6, 0.24, 0.0),
            "blue_cube": ObjectPose(0.6, -0.24, 0.0),
        },
        ObjectPose(0.45, 0.22, 0),
    )
    cell.reset(far)
    image = resize_image(cell.render("front"), 96, 96)
    widths = {name: np.nonzero(coloured(image, name).any(axis=0))[0].size for name in CUBES}
    assert min(widths.values()) >= 6, widths


def test_wrist_camera_sees_the_cube_between_the_fingers(cell, robot):
    cell.reset(0)
    position, _ = cell.tool_pose()
    cell.pose(np.array(robot.home), {"red_cube": (position, np.array([1.0, 0, 0, 0]))})
    mask = coloured(cell.render("wrist"), "red_cube")
    assert 0.02 < mask.mean() < 0.3
    assert abs(np.nonzero(mask)[1].mean() - 95.5) < 8, "in the middle, between left and right finger"


def test_size_can_be_chosen_and_is_bounded(cell):
    assert cell.render("overview", 320, 240).shape == (240, 320, 3)
    with pytest.raises(RenderingUnavailable, match="4000x100"):
        cell.render("front", 4000, 100)


def test_refuses_unknown_cameras_and_missing_sizes(cell):
    with pytest.raises(ConfigError, match="unknown camera 'back'.*front.*wrist"):
        cell.render("back")
    with pytest.raises(ConfigError, match="give width and height"):
        cell.render("overview")


def test_same_state_same_picture(cell):
    np.testing.assert_array_equal(cell.render("front"), cell.render("front"))


def test_falls_back_to_osmesa(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(rendering, "_loads", lambda library: "OSMesa" in library)
    assert choose_backend() == "osmesa"
    monkeypatch.setattr(rendering, "_loads", lambda library: True)
    assert choose_backend() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert choose_backend() == "osmesa"


def test_says_what_to_install_where_nothing_draws(monkeypatch):
    monkeypatch.setattr(rendering, "_loads", lambda library: False)
    with pytest.raises(RenderingUnavailable, match="apt-get install libegl1"):
        choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "directx")
    with pytest.raises(RenderingUnavailable, match="'directx'.*unset"):
        choose_backend()


@pytest.mark.skipif(not any(map(rendering._loads, rendering._LIBRARIES["osmesa"])), reason="OSMesa is not installed")
def test_osmesa_draws(robot):
    program = (
        "import sys; from vla_contract.robot import load_robot; from vla_sim.core import Cell; "
        "sys.exit(int(Cell(load_robot(sys.argv[1])).render('front').std() < 10))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | {"MUJOCO_GL": "osmesa"}
    subprocess.run([sys.executable, "-c", program, str(robot.path)], env=environment, check=True, timeout=60)
