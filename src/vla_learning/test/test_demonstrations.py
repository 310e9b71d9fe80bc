"""Frames: written and read again, made by the expert on the real cell."""

import numpy as np
import pytest

from vla_contract.errors import ConfigError
from vla_learning.demonstrations import Recipe, make
from vla_learning.frames import Frames


def test_frames_survive_the_disk(frames, tmp_path):
    frames.save(tmp_path / "a")
    frames.save(tmp_path / "b")
    loaded = Frames.load(tmp_path / "a")
    assert all(np.array_equal(getattr(frames, name), getattr(loaded, name)) for name in vars(frames))
    opened = Frames.open([tmp_path / "a", tmp_path / "b"])
    rows = np.array([0, 63, 64, 127])
    assert np.array_equal(opened.images[rows], frames.images[[0, 63, 0, 63]])
    assert len(opened) == len(opened.images) == 128


def test_an_incomplete_folder_is_refused(frames, tmp_path):
    frames.save(tmp_path / "a")
    (tmp_path / "a" / "held.npy").unlink()
    with pytest.raises(ConfigError, match="incomplete"):
        Frames.open([tmp_path / "a"])


@pytest.fixture(scope="module")
def episodes(robot_file):
    return make(Recipe(robot_file), range(5, 9), 1, lambda _: None)


def test_labels_fit_what_is_seen(episodes):
    assert episodes.images.std() > 10, "the pictures show something"
    assert not np.array_equal(episodes.images[:, 0], episodes.images[:, 1])
    assert set(np.unique(episodes.episode)) == {5, 6, 7, 8}
    assert (episodes.held >= 0).any() and (episodes.held < 0).any()
    steps = np.diff(np.concatenate([np.zeros_like(episodes.chunks[:, :, :1, :3]), episodes.chunks[..., :3]], 2), axis=2)
    assert np.linalg.norm(steps, axis=-1).max() < 0.0285, "no faster than the expert"
    free = (episodes.held < 0) & ~episodes.placed.any(1)
    toward = (episodes.cubes[free] - episodes.tool[free, None])[..., :2]
    left = toward - episodes.chunks[free][:, :, -1, :2]
    far = np.linalg.norm(toward, axis=-1) > 0.2  # too far to arrive and turn to the tray within the chunk
    assert far.any()
    nearer = np.linalg.norm(left, axis=-1) < np.linalg.norm(toward, axis=-1)
    assert nearer[far].mean() > 0.95, "each colour's chunk leads to its cube"


def test_the_same_seed_makes_the_same_episode_in_any_number_of_processes(robot_file, episodes):
    again = make(Recipe(robot_file), range(5, 9), 2, lambda _: None)
    assert np.allclose(again.joints, episodes.joints)
    assert np.array_equal(again.episode, episodes.episode)
