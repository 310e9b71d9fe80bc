"""Pictures of an episode that never ran: drawn from numbers alone."""

from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
from PIL import Image

from vla_bringup.episode import Episode
from vla_bringup.files import find
from vla_bringup.film import HEIGHT, RATE, WIDTH, Film, contact_sheet
from vla_contract.robot import load_robot


def placed(name, y):
    orientation = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    pose = SimpleNamespace(position=SimpleNamespace(x=0.5, y=y, z=0.02), orientation=orientation)
    return SimpleNamespace(name=name, pose=pose)


def recorded(robot):
    episode = Episode(robot.joints)
    for k in range(21):
        stamp = k * 50_000_000
        turned = [0.03 * k, *robot.home[1:]]
        episode.add_joints(stamp, list(robot.joints), turned)
        episode.add_scene(stamp, [placed("red_cube", -0.1 + 0.01 * k), placed("tray", 0.25)])
    return episode


def test_film_and_contact_sheet(tmp_path):
    robot = load_robot(find("robots", "fr3_sim"))
    film = Film(robot, recorded(robot), "a caption")
    done = []
    try:
        pictures = film.write(tmp_path / "film.mp4", lambda now, total: done.append((now, total)))
        contact_sheet(pictures, "a title", tmp_path / "sheet.png")
    finally:
        film.close()
    assert abs(len(film) - 1.0 * RATE) <= 1
    assert done[-1] == (len(film), len(film))
    assert len(pictures) == 8 and pictures[0].shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pictures[0].astype(int) - pictures[-1]).mean() > 0.5, "the robot moves in the pictures"
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    assert next(reader)["size"] == (WIDTH, HEIGHT)
    assert sum(1 for _ in reader) == len(film)
    assert Image.open(tmp_path / "sheet.png").size == (4 * WIDTH // 2, 2 * HEIGHT // 2 + 40)
