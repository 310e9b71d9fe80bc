"""The command line's contract: help, exit codes, and where the JSON goes. No system is started here."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from vla_bringup.cli.console import Console, reported
from vla_bringup.cli.operate import _policy, parse_words
from vla_contract.errors import ConfigError
from vla_node_base.domains import free_domain

COMMANDS = (
    "setup", "demo", "eval", "train", "test", "bench", "interop", "import-policy", "audit", "campaign", "run", "serve",
    "doctor", "status", "instruct", "tool", "reduced", "arm", "disarm", "estop", "reset", "retreat",
)  # fmt: skip


def vla(*words, domain=None):
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "120"}
    if domain is not None:
        environment["ROS_DOMAIN_ID"] = str(domain)
    return subprocess.run(
        [sys.executable, "-m", "vla_bringup.cli", *words], capture_output=True, text=True, timeout=180, env=environment
    )


def test_help_lists_every_command_and_the_exit_codes():
    answer = vla("--help")
    assert answer.returncode == 0
    assert all(f" {command} " in answer.stdout for command in COMMANDS)
    assert "130 Ctrl-C" in answer.stdout


@pytest.mark.parametrize(
    "command",
    [
        c
        for c in COMMANDS
        if c not in ("setup", "train", "test", "bench", "interop", "import-policy", "audit", "campaign")
    ],
)
def test_every_command_explains_itself(command):
    answer = vla(command, "--help")
    assert answer.returncode == 0
    assert "Usage: vla" in answer.stdout


def test_help_imports_nothing_heavy():
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vla_bringup.cli", "--help"], capture_output=True, text=True
    )
    heavy = {"numpy", "scipy", "rclpy", "mujoco", "torch", "yaml", "pydantic"}
    imported = {line.rsplit("|", 1)[-1].strip() for line in answer.stderr.splitlines() if "|" in line}
    assert not heavy & imported


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--no-such-option"),
        ("demo", "--seed", "-1"),
        ("demo", "--instruction", "put it away"),
        ("demo", "--robot", "no_such_robot"),
        ("eval", "--trials", "0"),
        ("eval", "--trials", "1", "--instruction", "put it away"),
        ("run",),
        ("run", "robot=fr3"),
        ("run", "robot=no_such_robot", "policy=flow"),
        ("bench", "no_such_benchmark"),
        ("no_such_command",),
    ],
)
def test_wrong_usage_ends_with_2(words):
    answer = vla(*words)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.strip()
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("command", ["demo", "eval"])
def test_json_is_the_last_line_of_stdout_even_of_a_failure(command):
    answer = vla(command, "--json", "--instruction", "put it away")
    (line,) = answer.stdout.splitlines()
    report = json.loads(line)
    assert "names no colour" in report["error"]
    required = {
        "demo": {"success", "placed", "duration_s", "startup_s", "decisions"},
        "eval": {
            "trials",
            "successes",
            "success_rate",
            "ci95",
            "wrong_object",
            "per_instruction",
            "seed",
            "policy_digest",
        },
    }
    assert required[command] <= report.keys()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("demo", "--seed", "-1"), 2, "--seed"),
        (("eval", "--trials", "0"), 2, "--trials"),
        (("no_such_command",), 2, "no_such_command"),
        (("demo", "--out", "/proc/x"), 2, "'/proc/x': "),
        (("doctor", "--policy", "flow"), 2, "write policy=…"),
        (("bench", "no_such_benchmark"), 2, "known: inference"),
        (("audit", "verify", "no_such_file"), 1, "no_such_file"),
    ],
)
def test_every_error_has_its_json(words, code, error):
    answer = vla(*words, "--json")
    report = json.loads(answer.stdout.splitlines()[-1])
    assert answer.returncode == report["exit_code"] == code
    assert error in report["error"] and "Traceback" not in answer.stderr


def test_an_interruption_says_so(capsys):
    with pytest.raises(SystemExit) as end, reported(Console(True), {"success": False}):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert json.loads(capsys.readouterr().out) == {"success": False, "error": "interrupted", "exit_code": 130}


def test_a_policy_is_imported_for_a_robot_by_name(tmp_path):
    answer = vla("import-policy", str(tmp_path), "--robot", "fr4", "--policy", "p.yaml")
    assert answer.returncode == 2 and "unknown robot file 'fr4'; known: fr3, fr3_sim" in answer.stderr
    answer = vla("import-policy", str(tmp_path / "none"), "--robot=fr3", "--policy", "p.yaml")
    assert answer.returncode == 2 and f"folder '{tmp_path / 'none'}' does not exist" in answer.stderr


@pytest.mark.parametrize("words", [("status",), ("arm",), ("instruct", "put the red cube in the tray")])
def test_without_a_system_the_answer_is_3(words):
    with free_domain() as domain:
        answer = vla(*words, "--json", domain=domain)
    assert answer.returncode == 3
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["exit_code"] == 3
    assert f"This is ROS domain {domain}; --domain N looks into another" in report["error"]


def test_status_names_streams_that_never_came():
    status = MagicMock(streams=["front", "joints"], stream_ages=[math.inf, 0.1])
    found = _policy(SimpleNamespace(status=status, policy_state="WAITING"))
    assert found["missing_streams"] == ["front"] and found["state"] == "WAITING"


def test_words_of_run():
    assert parse_words(["robot=fr3", "policy=a=b"]) == {"robot": "fr3", "policy": "a=b"}


@pytest.mark.parametrize("words", [["robot"], ["robot="], ["robot=a", "robot=b"], ["speed=1"], ["policy=a"]])
def test_wrong_words_are_named(words):
    with pytest.raises(ConfigError):
        parse_words(words)
