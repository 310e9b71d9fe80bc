"""Options of backends that run in process are refused before activation, in the words that loading uses."""

import subprocess
import sys

import pytest
import yaml
from remote import BRINGUP, FR3
from tiny import PI0_OPTIONS

from vla_contract.errors import ConfigError
from vla_policy_node.backends import BUILT_IN, load_backend
from vla_policy_node.backends.declared import REMOTE
from vla_policy_node.backends.options import OPTIONS
from vla_policy_node.config import load_policy_file
from vla_policy_node.preflight import main, preflight

MEANT = {key: PI0_OPTIONS[key] for key in ("inputs", "action")}
TIMED = {**MEANT, "dt": 0.1}
WRONG = [
    ("flow", {"setps": 3}, r"setps \(is 3\): .*; known options: guidance, seed, steps, threads"),
    ("flow", {"steps": 0, "guidance": 101}, r"steps \(is 0\): .*; guidance \(is 101\): .* equal to 100"),
    ("flow", {"threads": True}, r"threads \(is True\): .* valid integer"),
    ("replay", {"leadin": 0.1}, r"leadin \(is 0.1\): .*; known options: at_end, cameras, dt, horizon, lead_in"),
    ("replay", {"cameras": ["top"]}, "options of the replay backend: unknown camera 'top'; known: front, wrist"),
    ("scripted", {"lead_in": 0.1}, r"lead_in \(is 0.1\): .*; known options: cameras, dt, horizon"),
    ("scripted", {"cameras": ["top"]}, "options of the scripted backend: unknown camera 'top'"),
    ("pi0", {**MEANT, "steps": 3, "dtype": "float8"}, r"dtype \(is 'float8'\): .*; steps \(is 3\): .*num_steps"),
    ("pi0", {"inputs": MEANT["inputs"]}, "options of the pi0 backend: action: Field required"),
    ("openvla", {**TIMED, "horzion": 8, "crop": 1.5}, r"crop \(is 1.5\): .*; horzion \(is 8\): .*horizon"),
    ("openvla", {**TIMED, "prompt": "Do it!"}, "expected the place of the sentence, {instruction}, once"),
    ("openvla", {**TIMED, "trust_remote_code": True}, r"trust_remote_code \(is True\)"),
    ("lerobot", {**TIMED, "chunk": 3}, r"chunk \(is 3\): .*; known options: action, backbone"),
    ("lerobot", {**TIMED, "device": "tpu"}, r"device \(is 'tpu'\)"),
]


def written(folder, backend, options, **keys):
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump({"backend": backend, "options": options, **keys}))
    return load_policy_file(path)


@pytest.mark.parametrize(("kind", "options", "words"), WRONG)
def test_loading_and_preflight_refuse_with_the_same_words(kind, options, words, tmp_path):
    with pytest.raises(ConfigError, match=words) as before:
        preflight(FR3, written(tmp_path, kind, options))
    if kind not in ("replay", "scripted"):
        pytest.importorskip("torch")
    with pytest.raises(ConfigError) as loading:
        load_backend(BUILT_IN[kind], tmp_path, FR3, options)
    assert str(before.value) == str(loading.value)


def test_every_backend_that_ships_is_checked():
    assert {*OPTIONS, *REMOTE} == {*BUILT_IN}


def test_options_that_are_right_pass(tmp_path):
    for kind, options in (("replay", {"lead_in": 0.1, "cameras": ["front"]}), ("scripted", {"horizon": 8})):
        assert preflight(FR3, written(tmp_path, kind, options)) is None
    assert preflight(FR3, load_policy_file(BRINGUP / "config" / "policies" / "flow.yaml")).horizon > 1


@pytest.mark.parametrize("key", ["crop", "compile"])
def test_options_of_openvla_s_own_checkpoints_are_for_no_other(key, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "paligemma", "norm_stats": {"bridge": {"action": {"q01": [0, 0, 0], "q99": [1, 1, 1]}}}}'
    )
    inputs = {"image": {"camera": "front", "height": None, "width": None}, "told": {"text": "instruction"}}
    options = {"inputs": inputs, "action": {"space": "ee_delta_position"}, "dt": 0.2}
    assert preflight(FR3, written(tmp_path, "openvla", options)).horizon == 1
    with pytest.raises(ConfigError, match=f"option {key} is for OpenVLA checkpoints; leave it out"):
        preflight(FR3, written(tmp_path, "openvla", {**options, key: {"crop": 0.9, "compile": "default"}[key]}))


def test_the_command_says_so_too(tmp_path, capsys):
    assert main([str(FR3.path), str(written(tmp_path, "flow", {"setps": 3}).path)]) == 2
    assert "options of the flow backend: setps (is 3)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", OPTIONS)
def test_they_are_read_without_any_library_of_models(kind, tmp_path):
    path = written(tmp_path, kind, {**TIMED, "setps": 3}).path
    code = (
        "import sys; from vla_policy_node.preflight import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'safetensors', 'rclpy'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(FR3.path), str(path)], capture_output=True, text=True)
    assert done.returncode == 2 and "setps (is 3)" in done.stderr, done.stderr
