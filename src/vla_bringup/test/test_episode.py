"""Recorded episodes: alignment in time, and pictures of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla_bringup.episode import Episode

JOINTS = ("a", "b")


def scene(x):
    position = SimpleNamespace(x=x, y=0.0, z=0.0)
    return [
        SimpleNamespace(
            name="red_cube",
            pose=SimpleNamespace(position=position, orientation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)),
        )
    ]


@pytest.fixture
def episode():
    recorded = Episode(JOINTS)
    for k in range(101):  # 1 s at 100 Hz; names in the other order
        recorded.add_joints(k * 10_000_000, ["b", "a"], [-k, k])
    for k in range(31):
        recorded.add_scene(round(k * 1e9 / 30), scene(k / 30))
    return recorded


def test_frames_are_evenly_spaced_and_nearest_in_time(episode):
    frames = episode.frames(10.0)
    np.testing.assert_allclose(frames.times, np.arange(11) / 10)
    np.testing.assert_allclose(frames.joint_positions[:, 0], np.arange(11) * 10, atol=0.5)
    np.testing.assert_allclose(frames.joint_positions[:, 1], -frames.joint_positions[:, 0])
    np.testing.assert_allclose(frames.poses["red_cube"][:, 0], frames.times, atol=1 / 60)


def test_a_state_without_all_joints_is_not_recorded(episode):
    episode.add_joints(2_000_000_000, ["a"], [1.0])
    assert len(episode.joint_times) == 101


@pytest.mark.parametrize("empty", ["joints", "scene", "both"])
def test_an_episode_without_data_has_no_frames(empty):
    recorded = Episode(JOINTS)
    if empty == "scene":
        recorded.add_joints(0, list(JOINTS), [0.0, 0.0])
    if empty == "joints":
        recorded.add_scene(0, scene(0.0))
    assert len(recorded.frames(10.0)) == 0


def test_one_sample_makes_one_frame():
    recorded = Episode(JOINTS)
    recorded.add_joints(5, list(JOINTS), [1.0, 2.0])
    recorded.add_scene(5, scene(0.5))
    assert recorded.frames(10.0).joint_positions.tolist() == [[1.0, 2.0]]


def test_decisions_are_counted_by_verdict_and_reason(episode):
    episode.add_decision(0, "", "")
    episode.add_decision(3, "joint_velocity", "a")
    episode.add_decision(3, "joint_velocity", "a")
    assert episode.decisions == {"accepted": 1, "refused": 2}
    assert episode.facts()["reasons"] == [
        {"verdict": "refused", "reason": "joint_velocity", "subject": "a", "count": 2}
    ]


def test_saved_episodes_can_be_read(episode, tmp_path):
    episode.save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as saved:
        assert saved["joint_positions"].shape == (101, 2)
        assert saved["pose_red_cube"].shape == (31, 7)
