"""`vla demo` and `vla eval` as a user runs them, and what they leave behind: nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image

from vla_bringup.files import find
from vla_contract.robot import load_robot
from vla_system_tests.processes import alive, children, marked, new_mark, until
from vla_system_tests.recordings import policy_file, solve

SEED = 7
SHIPPED = Path(find("policies", "flow"))


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "vla_bringup.cli", *words]


@pytest.fixture(scope="module")
def expert(tmp_path_factory) -> str:
    """A policy file that replays the scripted expert in the scene of SEED, red cube."""
    robot = load_robot(find("robots", "fr3_sim"))
    return str(policy_file(tmp_path_factory.mktemp("expert"), robot, solve(robot, SEED, "red"), tuple(robot.cameras)))


@pytest.mark.slow
def test_demo_of_the_shipped_policy_succeeds(tmp_path):
    """The promise of the README. In lockstep, so that what else the machine does cannot break it."""
    mark = new_mark()
    answer = subprocess.run(
        command("demo", "--seed", str(SEED), "--lockstep", "--json", "--out", str(tmp_path)),
        capture_output=True, text=True, timeout=300, env={**os.environ, **mark},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["success"] is True
    assert report["placed"] == "red_cube"
    assert report["decisions"]["accepted"] > 5
    assert not marked(mark)


def test_the_whole_chain_moves_the_cube_and_leaves_pictures_but_no_process(expert, tmp_path):
    mark = new_mark()
    answer = subprocess.run(
        command("demo", "--policy", expert, "--seed", str(SEED), "--lockstep", "--json", "--out", str(tmp_path)),
        capture_output=True, text=True, timeout=180, env={**os.environ, **mark},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    (line,) = answer.stdout.splitlines()
    report = json.loads(line)
    assert {"success", "placed", "duration_s", "startup_s", "decisions"} <= report.keys()
    assert (report["success"], report["placed"], report["outcome"]) == (True, "red_cube", "SUCCEEDED")
    assert report["decisions"]["refused"] == report["decisions"]["stopped"] == 0
    assert json.loads((tmp_path / "report.json").read_text())["placed"] == "red_cube"
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 1000
    frames = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "demo.mp4"))[0]
    assert frames == pytest.approx(15 * report["duration_s"], rel=0.3)
    assert not marked(mark)


def test_the_wrong_cube_is_a_failure_whatever_the_policy_says(expert, tmp_path):
    words = ("--policy", expert, "--seed", str(SEED), "--lockstep", "--json", "--no-film", "--out", str(tmp_path))
    answer = subprocess.run(
        command("demo", *words, "--instruction", "put the blue cube in the tray"),
        capture_output=True,
        text=True,
        timeout=180,
    )
    report = json.loads(answer.stdout.splitlines()[-1])
    assert answer.returncode == 1
    assert (report["success"], report["placed"], report["outcome"]) == (False, "red_cube", "SUCCEEDED")


def test_evaluation_counts_and_repeats(expert, tmp_path):
    words = ("eval", "--trials", "2", "--seed", "3", "--policy", expert, "--timeout", "10", "--films", "1", "--json")
    answer = subprocess.run(command(*words, "--out", str(tmp_path)), capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["trials"] == 2
    assert report["successes"] == sum(row["successes"] for row in report["per_instruction"].values())
    assert len(report["policy_digest"]) == 64
    failed = [o for o in report["outcomes"] if not o["success"]]
    assert len(list(tmp_path.glob("failure-*.mp4"))) == min(1, len(failed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(expert, tmp_path, number):
    mark = new_mark()
    demo = subprocess.Popen(
        command("demo", "--policy", expert, "--seed", str(SEED), "--json", "--out", str(tmp_path)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **mark},
    )  # fmt: skip
    try:
        assert demo.stderr is not None
        for line in demo.stderr:
            if line.startswith("phase"):
                break
        nodes = {pid: text for pid, text in marked(mark).items() if pid != demo.pid}
        workers = [worker for pid in nodes for worker in children(pid)]
        assert len(nodes) >= 3 and workers
        demo.send_signal(number)
        out, err = demo.communicate(timeout=30)
        until(lambda: not marked(mark), 5.0, lambda: f"left over: {marked(mark)}")
        until(lambda: not any(map(alive, workers)), 5.0, lambda: f"workers {workers} are left over")
    finally:
        demo.kill()
        demo.wait()
    if number != signal.SIGKILL:
        assert demo.returncode == 130, err
        assert json.loads(out.splitlines()[-1])["exit_code"] == 130


def test_a_node_that_dies_ends_the_demo_with_its_name(expert, tmp_path):
    mark = new_mark()
    demo = subprocess.Popen(
        command("demo", "--policy", expert, "--seed", str(SEED), "--json", "--out", str(tmp_path)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **mark},
    )  # fmt: skip
    assert demo.stderr is not None
    for line in demo.stderr:
        if line.startswith("phase"):
            break
    (simulator,) = [pid for pid, text in marked(mark).items() if "__node:=vla_sim " in text]
    os.kill(simulator, signal.SIGKILL)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == 3
    assert "vla_sim was ended by SIGKILL" in err
    assert "vla_sim" in json.loads(out.splitlines()[-1])["error"]
    assert not marked(mark)
