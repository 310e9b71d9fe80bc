"""Policy files, preflight, recordings: what is wrong is refused with its name before anything starts."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import JOINTS, write_policy, write_recording

from vla_contract.errors import ConfigError, MismatchError
from vla_contract.observation import Observation
from vla_policy_node.backends import BUILT_IN, Backend, load_backend, locate
from vla_policy_node.backends.replay import load
from vla_policy_node.config import load_policy_file
from vla_policy_node.preflight import ImageFormat, image_misfits, main, preflight

S = 10**9


def test_a_policy_file(tmp_path, recording):
    policy = load_policy_file(write_policy(tmp_path, schedule={"blend": 0.3}, observation={"image_age": 1.0}))
    assert policy.timing.blend == 0.3 and policy.timing.margin == 0.1 and policy.tolerances.image_age == 1.0
    spec = policy.worker(tmp_path / "two.yaml")
    assert spec.backend == "vla_policy_node.backends.replay:load" and spec.checkpoint == recording


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chekpoint": "x"}, "chekpoint"),
        ({"schedule": {"blend": -1}}, r"schedule.blend \(is -1\)"),
        ({"schedule": {"margn": 1}}, "schedule.margn"),
        ({"done": {"progress": 2}}, "done.progress"),
    ],
)
def test_a_wrong_policy_file(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        load_policy_file(write_policy(tmp_path, **values))


def test_backends_are_found_by_name():
    for name in BUILT_IN:
        assert locate(name) == BUILT_IN[name]
    assert locate("my.module:load") == "my.module:load"
    with pytest.raises(ConfigError, match=r"unknown backend 'flwo'; known: .*flow.*replay"):
        locate("flwo")


METADATA = {
    "name": "tiny",
    "cameras": {"front": {"height": 8, "width": 8}, "left": {"height": 8, "width": 8}},
    "joints": ["j2", "j1", "grip"],
    "state": ["a", "b", "c"],
    "action_space": "ee_delta_position",
    "action": ["x"],
    "horizon": 4,
    "dt": 0.1,
    "tool_frame": "gripper",
    "statistics": {"state": {"mean": [0, 0], "std": [1, 1]}},
}


def test_every_misfit_is_named_before_anything_starts(robot, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "policy.json").write_text(json.dumps(METADATA))
    (folder / "model.safetensors").write_bytes(b"weights")
    path = write_policy(tmp_path, backend="flow", checkpoint="checkpoint", options={})
    with pytest.raises(MismatchError) as caught:
        preflight(robot, load_policy_file(path))
    text = "\n".join(caught.value.misfits)
    for words in (
        "camera 'left'",
        "joints: the policy expects ['j2', 'j1', 'grip']",
        "tool_frame: the policy moves 'gripper'",
        "statistics.state.mean: 2 entries, expected 3",
        "statistics.action: missing",
    ):
        assert words in text
    assert main([str(robot.path), str(path)]) == 2
    assert "camera 'left'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"checkpoint": "nothing.npz"}, "'nothing.npz' does not exist"),
        ({"backend": "none"}, "unknown backend 'none'"),
        ({"interpreter": "/no/python"}, "interpreter '/no/python' does not exist"),
        ({"interpreter": "venv/bin/python"}, "'venv/bin/python' does not exist"),
    ],
)
def test_what_is_missing_is_refused(robot, recording, tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        preflight(robot, load_policy_file(write_policy(tmp_path, **values)))


def test_the_command(robot, recording, tmp_path):
    command = [sys.executable, "-m", "vla_policy_node.preflight", robot.path, write_policy(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "fits robot two" in done.stdout, done.stderr


def test_images_that_are_not_as_announced(robot):
    assert image_misfits(robot, "front", ImageFormat(48, 32, "rgb8", "front_frame")) == []
    assert image_misfits(robot, "front", ImageFormat(32, 48, "yuv422", "camera")) == [
        "camera front: size 32x48, two.yaml says 48x32",
        "camera front: unknown encoding 'yuv422'; known: bgr8, bgra8, mono8, rgb8, rgba8",
        "camera front: frame 'camera', two.yaml says 'front_frame'",
    ]


class TestReplay:
    def observe(self, t, positions=(0.0, 0.5, 0.04)):
        return Observation(round(t * S), {}, np.array(positions), np.zeros(3))

    def test_plays_what_was_recorded(self, robot, recording):
        backend = load_backend("vla_policy_node.backends.replay:load", recording, robot, {})
        assert isinstance(backend, Backend) and backend.metadata.name == "replay:wave"
        for start in (5.0, 100.0):
            first = backend.infer(self.observe(start), None)
            later = backend.infer(self.observe(start + 1.0), None)
            np.testing.assert_allclose(first.positions[:, 0], 0.4 * np.sin(0.1 * np.arange(1, 17)), atol=1e-12)
            np.testing.assert_allclose(later.positions[0, 0], 0.4 * np.sin(1.1), atol=1e-12)
            assert first.progress == 0.0 and later.progress == pytest.approx(0.89 / 3)
            assert backend.infer(self.observe(start + 9), None).progress == 1.0
            backend.reset()

    def test_leads_in_from_where_the_robot_is(self, robot, recording):
        backend = load(recording, robot, {"lead_in": 0.5, "horizon": 100})
        chunk = backend.infer(self.observe(0.0, (1.0, 0.5, 0.04)), None)
        steps = np.abs(np.diff(chunk.positions[:, 0])) / 0.1
        assert chunk.positions[0, 0] == pytest.approx(1.0, abs=0.05) and steps.max() <= 0.5 + 1e-6
        assert abs(chunk.positions[-1, 0] - 0.4 * np.sin(3.0)) < 1e-9

    def test_reads_yaml_in_any_joint_order(self, robot, tmp_path):
        content = {"joint_names": ["grip", "j2", "j1"], "times": [0, 1], "positions": [[0.04, 0.5, 0.0], [0, 0.6, 0.1]]}
        path = tmp_path / "two_points.yaml"
        path.write_text(yaml.safe_dump(content))
        recording = load(path, robot, {}).recording.motion
        np.testing.assert_allclose(recording.positions, [[0.0, 0.5, 0.04], [0.1, 0.6, 0.0]])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"joint_names": np.array(["j1", "j2", "hand"])}, r"moves \['j1', 'j2', 'hand'\], the robot has"),
            ({"times": np.array([0.0, 0.0])}, "does not come after"),
            ({"positions": np.array([[0, 0, np.nan], [0, 0, 0]])}, "expected a finite number"),
            ({"positions": np.zeros(2)}, "malformed"),
            ({"more": np.zeros(1)}, r"holds \['joint_names', 'more'"),
            ({"positions": np.array([None, None])}, "allow_pickle"),
        ],
    )
    def test_malformed_recordings(self, robot, tmp_path, change, words):
        content = {"joint_names": np.array(JOINTS), "times": np.array([0.0, 1.0]), "positions": np.zeros((2, 3))}
        path = tmp_path / "bad.npz"
        np.savez(path, **{**content, **change})
        with pytest.raises(ConfigError, match=words):
            load(path, robot, {})

    def test_options(self, robot, recording, tmp_path):
        with pytest.raises(ConfigError, match="speeed"):
            load(recording, robot, {"speeed": 1})
        with pytest.raises(ConfigError, match="unknown camera 'left'; known: front, wrist"):
            load(recording, robot, {"cameras": ["left"]})
        assert write_recording(tmp_path, name="other.npz").is_file()
