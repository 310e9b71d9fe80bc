"""Policies that look back see what they were trained on: instants at a fixed distance, whenever they are asked."""

import math
import os
import queue
from pathlib import Path

import numpy as np
import pytest
from conftest import CAMERAS, JOINTS, write_policy
from hypothesis import given
from hypothesis import strategies as st
from looking_back import ON_THE_GPU

from vla_contract.policy import History
from vla_policy_node.config import load_policy_file
from vla_policy_node.core.observations import ObservationBuffer, StreamError, Tolerances
from vla_policy_node.runtime import Result, Runtime, State

S = 10**9
MS = 10**6


def filled(history, times, cameras=("front",), state_period=5, begins=None):
    """A buffer after images at `times` [ms] of all cameras (of some from another time on: `begins`), with joint states
    all the time; joint a is where t says."""
    buffer = ObservationBuffer(cameras, ("a",), Tolerances(), history)
    events = [(t, name) for t in times for name in cameras if t >= (begins or {}).get(name, 0)]
    events += [(t, "") for t in range(min(times), max(times) + 1, state_period)]
    for t, name in sorted(events):
        if name:
            buffer.add_image(name, t * MS, t * MS, (name, t), t)
        else:
            buffer.add_joints(t * MS, t * MS, ["a"], [t / 1000], [1.0])
    return buffer


def seen(buffer, since=0):
    """Times [ms] of what the buffer gives, the present last."""
    newest = buffer.newest_stamp()
    present = buffer.pair(newest, newest)
    return [one.stamp_ns // MS for one in (*buffer.earlier(present.stamp_ns, since * MS), present)]


@pytest.mark.parametrize("fps", [10, 20, 30])
def test_the_history_is_spaced_as_in_training(fps):
    period = 1000 // 60
    buffer = filled(History(steps=4, dt=1 / fps), range(10_000, 13_000, period))
    stamps = seen(buffer)
    wanted = stamps[-1] - 1000 / fps * np.arange(4, -1, -1)
    assert np.abs(np.array(stamps) - wanted).max() <= period / 2 + 1e-9


def test_fast_joint_states_do_not_shorten_the_past():
    buffer = filled(History(steps=4, dt=0.2), range(10_000, 13_000, 50), state_period=1)
    assert seen(buffer) == [12_150, 12_350, 12_550, 12_750, 12_950]


def test_each_instant_has_its_own_pictures_and_joint_state():
    buffer = filled(History(steps=2, dt=0.1), range(10_000, 12_000, 33), ("front", "wrist"))
    newest = buffer.newest_stamp()
    for one in buffer.earlier(newest):
        t = one.stamp_ns // MS
        assert one.images == {"front": ("front", t), "wrist": ("wrist", t)}
        np.testing.assert_allclose(one.positions, [t / 1000], atol=1e-9)


def test_without_a_history_there_is_none_and_nothing_more_is_kept():
    buffer = filled(None, range(10_000, 12_000, 33))
    assert buffer.earlier(buffer.newest_stamp()) == ()
    assert len(buffer._images["front"]) == 4


def test_a_young_stream_shows_its_first_instant_instead():
    assert seen(filled(History(steps=4, dt=0.05), [10_000])) == [10_000] * 5
    assert seen(filled(History(steps=4, dt=0.05), [10_000, 10_050])) == [10_000] * 4 + [10_050]


def test_the_camera_that_came_last_says_where_the_streams_begin():
    late = filled(History(steps=2, dt=0.1), range(10_000, 10_400, 50), ("front", "wrist"), begins={"wrist": 10_300})
    assert seen(late) == [10_300, 10_300, 10_350]


def test_an_episode_does_not_look_back_at_the_one_before():
    buffer = filled(History(steps=3, dt=0.1), range(10_000, 12_000, 50))
    assert seen(buffer) == [11_650, 11_750, 11_850, 11_950]
    assert seen(buffer, since=11_760) == [11_800, 11_800, 11_850, 11_950]


def test_a_gap_in_the_past_is_named():
    times = [t for t in range(10_000, 12_000, 50) if not 11_600 < t < 11_850]
    buffer = filled(History(steps=4, dt=0.05), times)
    newest = buffer.newest_stamp()
    with pytest.raises(StreamError, match=r"camera front: a gap 0\.\d\d s ago, where the policy looks back to"):
        buffer.earlier(newest)
    times += range(12_000, 12_300, 50)
    assert seen(filled(History(steps=4, dt=0.05), times))[0] == 12_050


@given(
    period=st.integers(1, 60),
    steps=st.integers(1, 6),
    dt=st.integers(20, 200),
    delay=st.integers(0, 200),
)
def test_what_is_kept_is_enough_and_not_more(period, steps, dt, delay):
    """For the present of any camera that is behind, at any rate of the images."""
    history = History(steps=steps, dt=dt / 1000)
    times = range(10_000, 13_000, period)
    buffer = filled(history, times, state_period=20)
    present = times[-1] - delay // period * period
    found = [one.stamp_ns / MS for one in buffer.earlier(present * MS)] if period <= max(50, dt) else []
    for k, stamp in zip(range(steps, 0, -1), found, strict=False):
        assert abs(stamp - (present - k * dt)) <= period / 2 + dt / 8
    span = steps * dt + 400
    assert len(buffer._images["front"]) <= span / max(period, dt / 8) + 8


@pytest.fixture
def runtime(robot, recording, tmp_path, monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    policy = write_policy(tmp_path, backend="looking_back:load", options={"cameras": ["front"]})
    told = queue.Queue()
    made = Runtime(robot, load_policy_file(policy), lambda image: image, lambda: told.put(None))
    made.simulated = True
    assert math.isnan(made.gpu_memory)
    made.start()
    while made.state != State.READY:
        told.get(timeout=60)
        made.take_events()
        assert not made.broken, made.broken
    yield made, told
    made.close()


def shown(made, told, t, since=0):
    """What the policy sees at `t` ms: rows of ms before, joint position, picture."""
    assert made.try_infer(t * MS, t * MS, since * MS, "look")
    while True:
        told.get(timeout=60)
        for event in made.take_events():
            assert isinstance(event, Result), event
            return event.answer.chunk.positions


def test_a_policy_sees_the_past_at_its_own_spacing_whenever_it_is_asked(runtime):
    made, told = runtime
    pixels = 3 * np.prod(CAMERAS["front"])
    for t in range(10_000, 11_001, 10):
        made.buffer.add_joints(t * MS, t * MS, JOINTS, [t / 10_000, 0.5, 0.04], [0.1, 0.0, 0.0])
        if t % 50 == 0:
            image = np.full((*CAMERAS["front"], 3), t // 50 - 200, np.uint8)
            made.buffer.add_image("front", t * MS, t * MS, image, t)
        # Between two inferences lie 0.3 s or 0.7 s, never the policy's 0.05 s.
        if t in (10_000, 10_300, 11_000):
            rows = shown(made, told, t)
            ago = [0, 0, 0] if t == 10_000 else [-100, -50, 0]
            np.testing.assert_allclose(rows[:, 0] * 1000, ago, atol=1e-6)
            np.testing.assert_allclose(rows[:, 1], [(t + back) / 10_000 for back in ago])
            np.testing.assert_allclose(rows[:, 2], [((t + back) // 50 - 200) * pixels for back in ago])


def test_a_task_begins_without_a_past(runtime):
    made, told = runtime
    for t in range(10_000, 10_501, 50):
        made.buffer.add_joints(t * MS, t * MS, JOINTS, [0.0, 0.5, 0.04], [0.0] * 3)
        made.buffer.add_image("front", t * MS, t * MS, np.full((*CAMERAS["front"], 3), 1, np.uint8), t)
    rows = shown(made, told, 10_500, since=10_430)
    np.testing.assert_allclose(rows[:, 0] * 1000, [-50, -50, 0], atol=1e-6)


def test_the_gpu_memory_of_a_loaded_model_is_known_before_it_has_answered_anything(runtime):
    made, told = runtime
    assert made.gpu_memory == ON_THE_GPU and made.meter.chunks == 0
    os.kill(made.worker.pid, 9)
    while made.state == State.READY:
        told.get(timeout=60)
        made.take_events()
    assert math.isnan(made.gpu_memory), "there is no process"
    while made.state != State.READY:
        told.get(timeout=60)
        made.take_events()
    assert made.gpu_memory == ON_THE_GPU
