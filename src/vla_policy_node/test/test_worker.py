"""The worker with real processes: it answers, and everything that can go wrong with it is noticed and named."""

import os
import queue
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CAMERAS, JOINTS

from vla_contract.errors import InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_policy_node.worker.client import Worker, WorkerSpec
from vla_policy_node.worker.events import Answer, Down, Ready, Refusal

HERE = Path(__file__).parent


def observation(instruction="", stamp=10**9):
    images = {name: np.full((*size, 3), 7, np.uint8) for name, size in CAMERAS.items()}
    return Observation(stamp, images, np.array([0.0, 0.5, 0.04]), np.zeros(3), instruction)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait_for(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.fixture
def start(robot, recording, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    made = []

    def make(ready=True, **changes):
        spec = replace(WorkerSpec("naughty:load", recording, robot.path, backoff=0.05), **changes)
        events = queue.Queue()
        worker = Worker(spec, CAMERAS, events.put)
        made.append(worker)
        worker.start()
        if ready:
            assert isinstance(events.get(timeout=30), Ready)
        return worker, lambda: events.get(timeout=30)

    yield make
    for worker in made:
        worker.close()


def test_answers(start):
    worker, event = start()
    prefix = Trajectory([0.0, 0.1], np.zeros((2, 3)))
    identifier = worker.infer(observation(), prefix)
    answer = event()
    assert isinstance(answer, Answer) and answer.id == identifier and 0 < answer.seconds < 5
    assert answer.chunk.joint_names == JOINTS and answer.chunk.stamp_ns == 10**9
    assert len(answer.chunk.trajectory) == 16 and answer.chunk.progress == 0.0


def test_sees_the_pixels(start, capfd):
    worker, event = start()
    worker.infer(observation("sum"))
    assert isinstance(event(), Answer)
    seen = []
    wait_for(lambda: seen.append(capfd.readouterr().err) or "pixels {'front': 32256, 'wrist': 12096}" in "".join(seen))


def test_an_image_that_came_early_is_not_copied_again(start, capfd):
    worker, event = start()
    asked = observation("sum")
    worker.expect("front", asked.images["front"])
    asked.images["front"][:] = 0  # nobody changes a picture; here it tells whether it was copied before
    worker.infer(asked)
    assert isinstance(event(), Answer)
    seen = []
    wait_for(lambda: seen.append(capfd.readouterr().err) or "pixels {'front': 32256, 'wrist': 12096}" in "".join(seen))


def test_another_image_than_the_expected_one_is_copied(start, capfd):
    worker, event = start()
    worker.expect("front", np.zeros((*CAMERAS["front"], 3), np.uint8))
    worker.infer(observation("sum"))
    assert isinstance(event(), Answer)
    seen = []
    wait_for(lambda: seen.append(capfd.readouterr().err) or "pixels {'front': 32256, 'wrist': 12096}" in "".join(seen))


def test_nothing_is_copied_under_an_inference(start):
    worker, event = start()
    worker.infer(observation("slow 0.2"))
    with pytest.raises(InferenceError, match="under way"):
        worker.expect("front", np.zeros((*CAMERAS["front"], 3), np.uint8))
    assert isinstance(event(), Answer)
    with pytest.raises(InferenceError, match="camera 'left' was not announced; announced are front, wrist"):
        worker.expect("left", np.zeros((*CAMERAS["front"], 3), np.uint8))


@pytest.mark.parametrize("wanted", [False, True])
def test_where_the_tool_goes_is_told_who_asks(start, wanted):
    worker, event = start()
    worker.infer(observation(), path=wanted)
    path = event().path
    assert path.shape == (16, 3) if wanted else path is None


def test_a_reset_and_an_inference_in_one_breath(start):
    worker, event = start()
    for _ in range(20):
        worker.reset()
        identifier = worker.infer(observation())
        answer = event()
        assert isinstance(answer, Answer) and answer.id == identifier
    assert worker.restarts == 0


def test_one_at_a_time(start):
    worker, event = start()
    worker.infer(observation("slow 0.2"))
    assert worker.busy
    with pytest.raises(InferenceError, match="under way"):
        worker.infer(observation())
    assert isinstance(event(), Answer) and not worker.busy


def test_wrong_image_size(start):
    worker, _ = start()
    bad = replace(observation(), images={"front": np.zeros((5, 5, 3), np.uint8)})
    with pytest.raises(InferenceError, match=r"camera 'front' has shape \(5, 5, 3\), expected \(32, 48, 3\)"):
        worker.infer(bad)


def test_refuses_and_lives(start):
    worker, event = start()
    pid = worker.pid
    worker.infer(observation("refuse"))
    refusal = event()
    assert isinstance(refusal, Refusal) and refusal.reason == "the picture is too dark"
    worker.infer(observation("bug"))
    refusal = event()
    assert "ZeroDivisionError: float division by zero" in refusal.reason and "naughty.py" in refusal.reason
    worker.infer(observation())
    assert isinstance(event(), Answer) and worker.pid == pid and worker.restarts == 0


def test_crash_is_named_and_mended(start, tmp_path):
    worker, event = start()
    worker.infer(observation(f"crash-once {tmp_path / 'flag'}"))
    down = event()
    assert isinstance(down, Down) and "worker ended during inference (exit status 7)" in down.reason
    assert down.restart_in == pytest.approx(0.05)
    assert isinstance(event(), Ready)
    worker.infer(observation())
    assert isinstance(event(), Answer) and worker.restarts == 1


def test_crash_while_idle(start):
    worker, event = start()
    os.kill(worker.pid, signal.SIGKILL)
    assert "killed by signal 9" in event().reason
    assert isinstance(event(), Ready)


def test_gives_up(start):
    worker, event = start(restarts=2)
    waits = []
    while True:
        worker.infer(observation("crash"))
        down = event()
        waits.append(down.restart_in)
        if down.restart_in is None:
            break
        assert isinstance(event(), Ready)
    assert waits == [pytest.approx(0.05), pytest.approx(0.1), None] and "signal 11" in down.reason


def test_hang_is_noticed(start):
    worker, event = start(inference_timeout=0.3)
    pid = worker.pid
    worker.infer(observation("hang"))
    assert "worker hangs: no answer for 0.3 s during inference" in event().reason
    assert isinstance(event(), Ready)
    assert gone(pid)


def test_an_outage_is_told_apart_from_a_failure(start):
    worker, event = start()
    worker.infer(observation("away"))
    refusal = event()
    assert refusal.unavailable and refusal.reason == "server://far: cannot connect; next attempt in 0.5 s"
    worker.infer(observation("refuse"))
    assert not event().unavailable
    assert worker.health.server == "" and worker.restarts == 0


def test_a_backend_that_waits_within_its_own_time_outs_does_not_hang(start, tmp_path):
    worker, event = start(options={"away": str(tmp_path / "away")}, inference_timeout=0.1)
    wait_for(lambda: not worker.health.trouble)
    worker.infer(observation("slow 1.5"))
    wait_for(lambda: "server://far: no answer for 1." in worker.health.trouble)
    assert "given up after 30 s" in worker.health.trouble
    assert isinstance(event(), Answer) and worker.restarts == 0 and worker.health.trouble == ""


def test_a_server_is_watched_while_nobody_asks_anything(start, tmp_path):
    away = tmp_path / "away"
    away.touch()
    worker, event = start(options={"away": str(away)})
    wait_for(lambda: worker.health.trouble == "server://far: cannot connect; next attempt in 0.5 s")
    for outage in (0, 1):
        away.unlink()
        wait_for(lambda: not worker.health.trouble)
        assert worker.health.outages == outage
        away.touch()
        wait_for(lambda: worker.health.trouble)
    worker.infer(observation())
    assert event().unavailable
    away.unlink()
    worker.infer(observation())
    assert isinstance(event(), Answer) and worker.health.trouble == "" and worker.restarts == 0


def test_a_server_that_answers_nonsense_is_away_until_it_is_mended(start, tmp_path):
    away = tmp_path / "away"
    away.write_text("3 of 7 bytes")
    worker, event = start(options={"away": str(away)}, backoff=0.0)
    words = "server://far: its answer cannot be used: ValueError: 3 of 7 bytes; mend it, or correct the policy file"
    for _ in range(2):
        wait_for(lambda: worker.health.trouble == words)  # in the warm-up, and then when it is looked after
        away.unlink()
        wait_for(lambda: not worker.health.trouble)
        away.write_text("3 of 7 bytes")
    wait_for(lambda: worker.health.trouble == words)
    away.unlink()
    worker.infer(observation())
    assert isinstance(event(), Answer) and worker.restarts == 0


def test_why_paths_cannot_be_drawn_is_known(start):
    worker, _ = start()
    assert worker.no_paths == ""
    # A module that cannot be imported stands for an interpreter without it.
    worker, event = start(environment={"PYTHONPATH": str(HERE)}, options={"blind": True})
    assert "lacks what they take" in worker.no_paths and sys.executable in worker.no_paths
    worker.infer(observation(), path=True)
    assert event().path is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"refuse_to_load": True}}, "the checkpoint is of another year"),
        ({"options": {"need": "torch"}}, "No module named 'a_module_that_nobody_has'"),
        ({"backend": "nowhere.at_all:load"}, "backend 'nowhere.at_all:load' cannot be imported"),
        ({"backend": "naughty:loaf"}, "has no function 'loaf'"),
        ({"interpreter": "/no/python"}, "interpreter '/no/python' does not exist"),
    ],
)
def test_what_cannot_load_is_not_tried_again(start, changes, words):
    _, event = start(ready=False, **changes)
    down = event()
    assert isinstance(down, Down) and words in down.reason and down.restart_in is None


def test_the_environment_stays_out(start, monkeypatch, capfd):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    worker, _ = start(environment={"MINE": "1"})
    environment = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert b"MINE=1" in environment and not any(e.startswith((b"ROS_", b"LD_LIBRARY_PATH")) for e in environment)


def test_close_ends_everything(start):
    worker, _ = start()
    pid = worker.pid
    worker.infer(observation("hang"))
    worker.close()
    assert gone(pid)
    worker.reset()
    with pytest.raises(InferenceError, match="closed with its worker; make a new worker"):
        worker.infer(observation())


@pytest.mark.parametrize("busy", [False, True])
def test_dies_with_its_parent(robot, recording, busy):
    script = f"""
        import queue, sys, time
        from pathlib import Path
        sys.path.insert(0, {str(HERE)!r})
        from test_worker import *
        events = queue.Queue()
        spec = WorkerSpec("naughty:load", Path({str(recording)!r}), Path({str(robot.path)!r}))
        worker = Worker(spec, CAMERAS, events.put)
        worker.start()
        events.get()
        if {busy}:
            worker.infer(observation("hang"))
        print(worker.pid, flush=True)
        time.sleep(3600)
    """
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(pid), 5.0)
