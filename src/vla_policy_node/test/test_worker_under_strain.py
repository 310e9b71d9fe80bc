"""The worker under strain: long requests to a process that does not listen, answers that are none, late failures."""

import hashlib
import os
import queue
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import test_worker
from conftest import CAMERAS
from test_worker import gone, observation, wait_for

from vla_contract.errors import InferenceError
from vla_policy_node.worker.backend import WorkerBackend
from vla_policy_node.worker.client import Worker, WorkerSpec
from vla_policy_node.worker.events import Answer, Down, Ready

start = test_worker.start

LONG = 5_000_000  # bytes; a socket holds some hundred thousand


def come_back(function, *arguments):
    """What it returns; it must not wait for the process."""
    returned = []
    thread = threading.Thread(target=lambda: returned.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(20.0)
    assert returned, "whoever asks waits for the process"
    return returned[0]


@pytest.fixture
def deafened(start, tmp_path):
    """A worker whose process does not listen until the file is gone: worker, events, process, file."""

    def make(inference_timeout):
        deaf = tmp_path / "deaf"
        worker, event = start(options={"deaf": str(deaf)}, inference_timeout=inference_timeout)
        deaf.touch()
        worker.reset()
        return worker, event, worker.pid, deaf

    return make


def test_nobody_waits_for_a_process_that_hangs_however_much_is_to_be_said(deafened):
    worker, event, pid, deaf = deafened(1.0)
    come_back(worker.infer, observation("x" * LONG))
    come_back(worker.reset)
    down = event()
    assert "worker hangs: no answer for 1 s during reset" in down.reason and down.restart_in is not None
    deaf.unlink()
    assert isinstance(event(), Ready)
    assert gone(pid) and not worker.busy
    identifier = worker.infer(observation())
    answer = event()
    assert isinstance(answer, Answer) and answer.id == identifier and worker.restarts == 1


def test_what_a_busy_process_cannot_take_at_once_arrives_whole(deafened):
    worker, event, _, deaf = deafened(30.0)
    said = "digest " + "x" * LONG
    identifier = come_back(worker.infer, observation(said))
    come_back(worker.reset)
    deaf.unlink()
    answer = event()
    assert answer.id == identifier and answer.chunk.shortened == hashlib.sha256(said.encode()).hexdigest()
    worker.infer(observation())
    assert isinstance(event(), Answer) and worker.restarts == 0


def test_a_process_that_does_not_listen_is_closed_like_others(deafened):
    worker, _, pid, _ = deafened(600.0)
    come_back(worker.infer, observation("x" * LONG))
    worker.close()
    assert gone(pid)


@pytest.mark.parametrize("extras", [{"thing": object()}, {"number": 2**70}, {"bytes": bytes(2**26)}])
def test_an_observation_that_cannot_be_sent_is_refused(start, extras):
    worker, event = start()
    with pytest.raises(InferenceError, match="the observation cannot be sent: it h"):
        worker.infer(replace(observation(), extras=extras))
    assert not worker.busy
    worker.infer(observation())
    assert isinstance(event(), Answer)


@pytest.mark.parametrize(("what", "words"), [("stamp", str(2**70)), ("text", "surrogates"), ("thing", "a object")])
def test_an_answer_that_cannot_be_sent_is_a_refusal(start, what, words):
    worker, event = start()
    worker.infer(observation(f"unsendable {what}"))
    reason = event().reason
    assert reason.startswith("the backend's answer cannot be sent: ") and words in reason
    worker.infer(observation())
    assert isinstance(event(), Answer) and worker.restarts == 0


def test_a_chunk_of_too_many_points_is_refused(start):
    worker, event = start(inference_timeout=30.0)
    worker.infer(observation("points 300000"), path=True)
    assert "trajectory has 300000 points (> 2000)" in event().reason and worker.restarts == 0
    worker.infer(observation("points 2000"))
    assert len(event().chunk.trajectory) == 2000


def test_what_loaded_once_is_tried_again_however_it_fails_to(start, tmp_path):
    full = tmp_path / "full"
    worker, event = start(options={"full": str(full)})
    full.touch()
    worker.infer(observation("crash"))
    assert "signal 11" in event().reason
    down = event()
    assert "CUDA error: out of memory" in down.reason and down.restart_in == pytest.approx(0.1)
    full.unlink()
    while isinstance(down := event(), Down):
        assert "CUDA error: out of memory" in down.reason and down.restart_in is not None
    worker.infer(observation())
    assert isinstance(event(), Answer)


def test_what_loaded_once_and_never_again_is_given_up_too(start, tmp_path):
    full = tmp_path / "full"
    worker, event = start(options={"full": str(full)}, restarts=2)
    full.touch()
    worker.infer(observation("crash"))
    assert [event().restart_in for _ in range(3)] == [pytest.approx(0.05), pytest.approx(0.1), None]


@pytest.mark.parametrize("how", ["answers", "hangs", "cannot load", "never starts"])
def test_a_worker_that_is_closed_leaves_no_file_open(start, robot, how):
    def cycle():
        if how == "never starts":
            Worker(WorkerSpec("naughty:load", Path(), robot.path), CAMERAS, print).close()
            return
        broken = how == "cannot load"
        worker, event = start(ready=not broken, options={"refuse_to_load": broken})
        if not broken:
            worker.infer(observation("hang" if how == "hangs" else ""))
        if how != "hangs":
            event()
        worker.close()
        worker.close()

    cycle()  # what is imported late stays open
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_policy_that_is_closed_in_mid_inference_fails_the_call(recording, robot, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(test_worker.HERE), os.environ.get("PYTHONPATH", "")]))
    policy, failed = WorkerBackend(WorkerSpec("naughty:load", recording, robot.path), robot), queue.Queue()

    def ask():
        try:
            policy.infer(observation("hang"), None)
        except InferenceError as error:
            failed.put(str(error))

    threading.Thread(target=ask, daemon=True).start()
    wait_for(lambda: policy._worker.busy)
    policy.close()
    assert "has ended for good" in failed.get(timeout=20.0)


def test_options_that_cannot_be_sent_are_named(start):
    _, event = start(ready=False, options={"since": date(2026, 1, 1)})
    down = event()
    assert "options of backend 'naughty:load': the request cannot be sent: it holds a date" in down.reason
    assert down.restart_in is None
