"""I18: what a checkpoint folder holds is known before any of it is read as a model."""

import shutil
import subprocess

import pytest

from vla_contract.errors import ConfigError
from vla_contract.manifest import MANIFEST_FILE, check_files, write_manifest

FILES = {"model-1.safetensors": b"one", "model-2.safetensors": b"two", "config.json": b"{}", "tokens/vocab.json": b"[]"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("for people")
    write_manifest(tmp_path)
    return tmp_path


def test_i18_an_untouched_folder_is_taken(folder):
    digest = check_files(folder)
    assert len(digest) == 64 and digest == check_files(folder)
    (folder / "README.md").write_text("other words")
    assert check_files(folder) == digest


def test_i18_every_flipped_bit_of_every_file_is_found(folder):
    for name, content in FILES.items():
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(bytes(flipped))
            with pytest.raises(ConfigError, match=f"{name} has sha256"):
                check_files(folder)
        (folder / name).write_bytes(content)
    check_files(folder)


def test_i18_every_flipped_bit_of_the_manifest_is_found(folder):
    path = folder / MANIFEST_FILE
    content = path.read_bytes()
    before = check_files(folder)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        try:
            assert check_files(folder) != before
        except (ConfigError, UnicodeDecodeError):
            continue


@pytest.mark.parametrize("name", list(FILES))
def test_i18_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"'{name}' is missing"):
        check_files(folder)


@pytest.mark.parametrize("name", ["extra.safetensors", "modeling.py", "tokens/more.json"])
def test_i18_a_file_that_is_not_listed_is_named(folder, name):
    (folder / name).write_text("x")
    with pytest.raises(ConfigError, match=f"'{name}' is not in {MANIFEST_FILE}"):
        check_files(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt", "policy.pkl"])
def test_i18_pickles_are_refused_with_and_without_a_manifest(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    for act in (check_files, write_manifest):
        with pytest.raises(ConfigError, match="safetensors"):
            act(tmp_path)


def test_a_folder_without_a_manifest_may_be_loaded(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert check_files(tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "lists no file"), ("abc  config.json\n", "line 1"), (f"{'0' * 64}  ../secret\n", "line 1"), ("\n", "line 1")],
)
def test_a_malformed_manifest_is_refused(folder, text, words):
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(ConfigError, match=words):
        check_files(folder)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_it(folder):
    answer = subprocess.run(["sha256sum", "-c", MANIFEST_FILE], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
