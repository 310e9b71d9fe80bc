"""The mobile base: apart from the arm, inside its limits, at rest when nobody wants anything."""

import numpy as np
import pytest
import yaml
from conftest import JOINTS, write_recording, write_robot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from worlds import T0, limits, wish

from vla_contract.chunk import ActionChunk, BaseMotion
from vla_contract.errors import ChunkError, ConfigError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_contract.robot import MobileBase, load_robot
from vla_policy_node.backends.replay import load
from vla_policy_node.core.action_encoding import ActionEncoder
from vla_policy_node.core.action_spaces import ActionDecoder, ActionLayout
from vla_policy_node.core.base import BaseDriver, alongside
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule
from vla_policy_node.worker.wire import chunk_map, chunk_of

S = 10**9
PERIOD = S // 20
BASE = MobileBase(max_velocity=(0.5, 0.0, 1.0), max_acceleration=(1.0, 1.0, 2.0))
TWISTS = st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=12)


@pytest.fixture
def driving(tmp_path):
    """The small robot, on wheels."""
    path = write_robot(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["base"] = {"max_velocity": [0.5, 0.0, 1.0], "max_acceleration": [1.0, 1.0, 2.0]}
    path.write_text(yaml.safe_dump(content))
    return load_robot(path)


def motion(twists, dt=0.1):
    return BaseMotion(dt * np.arange(1, len(twists) + 1), np.array(twists, dtype=np.float64))


def drive(driver, start, seconds):
    """(m, 3) commands, one each period from `start` ns on."""
    return np.stack([driver.command(start + k * PERIOD) for k in range(round(seconds * S / PERIOD))])


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), TWISTS)), min_size=1, max_size=5))
def test_whatever_is_wanted_the_limits_are_kept(chunks):
    driver, now, said = BaseDriver(BASE), S, [np.zeros(3)]
    for periods, twists in chunks:
        driver.take(None if twists is None else motion(twists), now, now)
        for _ in range(periods):
            now += PERIOD
            said.append(driver.command(now))
    said = np.stack(said)
    assert (np.abs(said) <= np.array(BASE.max_velocity) + 1e-9).all()
    assert (np.abs(np.diff(said, axis=0)) <= np.array(BASE.max_acceleration) * 0.1 + 1e-9).all()


@given(TWISTS)
def test_it_rests_when_the_chunk_ends(twists):
    driver = BaseDriver(BASE)
    driver.take(motion(twists), S, S)
    last = drive(driver, S, 0.1 * len(twists) + 1.2)[-1]
    assert not last.any()


def test_it_drives_by_the_time_of_the_chunk():
    driver = BaseDriver(BASE)
    ramp = motion([(0.02 * k, 0, 0) for k in range(1, 17)])
    driver.take(ramp, S, S)
    for k, twist in enumerate(drive(driver, S, 1.5)):
        assert twist[0] == pytest.approx(max(ramp.sample(k / 20)[0], 0.02), abs=0.051)
    # A new chunk counts from its own stamp, and from the arm's splice on.
    now = S + round(1.5 * S)
    driver.take(motion([(0.1, 0, 0.2)] * 16), now - S // 5, now + S // 10)
    before = driver.command(now + S // 20)
    assert before[2] == 0.0 and before[0] > 0.25
    after = drive(driver, now + S // 10, 0.6)[-1]
    assert after == pytest.approx([0.1, 0, 0.2])


def test_a_wish_that_is_too_fast_keeps_its_curve():
    driver = BaseDriver(BASE)
    driver.take(motion([(1.0, 0.0, 1.0)] * 30), S, S)
    twist = drive(driver, S, 2.0)[-1]
    assert twist == pytest.approx([0.5, 0.0, 0.5]) and driver.limited
    driver.take(motion([(0.1, 0.3, 0.0)] * 30), 4 * S, 4 * S)
    assert drive(driver, 4 * S, 2.0)[-1] == pytest.approx([0.1, 0.0, 0.0]) and driver.limited, "it cannot go sideways"


def test_released_it_comes_to_rest_in_the_shortest_time():
    driver = BaseDriver(BASE)
    driver.take(motion([(0.5, 0, 0)] * 30), S, S)
    drive(driver, S, 1.0)
    driver.release()
    stop = drive(driver, 2 * S, 0.6)
    assert stop[0, 0] == pytest.approx(0.45) and not stop[-1].any() and (np.diff(stop[:, 0]) <= 0).all()


@pytest.mark.parametrize(
    ("times", "twists", "words"),
    [
        ([0.1, 0.2], [[0, 0, 0]], "expected \\(K,\\) and \\(K, 3\\)"),
        ([0.1, 0.1], [[0, 0, 0]] * 2, "do not increase"),
        ([0.1], [[0, np.nan, 0]], "not finite"),
        ([], np.zeros((0, 3)), "K >= 1"),
    ],
)
def test_malformed_motion(times, twists, words):
    with pytest.raises(ChunkError, match=words):
        BaseMotion(np.array(times), np.array(twists, dtype=np.float64))


class TestLayout:
    LAYOUT = {
        "space": "joint_position",
        "gripper": {},
        "base": {"axes": ["vx", "wz"], "scale": [0.5, 2.0]},
    }

    def test_the_base_is_passed_apart(self, driving):
        decoder = ActionDecoder(ActionLayout.model_validate(self.LAYOUT), driving)
        assert decoder.names == ("j1", "j2", "gripper", "base.vx[m/s]", "base.wz[rad/s]")
        decoded = decoder.decode([[0.1, 0.2, 0.5, 1.0, 0.3]] * 3, driving.home)
        np.testing.assert_allclose(decoded.positions, [[0.1, 0.2, 0.02]] * 3)
        np.testing.assert_allclose(decoded.twists, [[0.5, 0.0, 0.6]] * 3)
        base = decoded.base_motion(2, 0.1)
        np.testing.assert_allclose(base.times, [0.1, 0.2])

    def test_a_joint_motion_says_nothing_of_the_base(self, driving):
        encoded = ActionEncoder(ActionLayout.model_validate(self.LAYOUT), driving).encode(
            [driving.home] * 2, driving.home
        )
        assert encoded.rows.shape == (2, 5) and not encoded.rows[:, 3:].any()
        assert encoded.comparable.tolist() == [True, True, True, False, False]

    def test_a_robot_without_a_base_is_refused(self, robot):
        with pytest.raises(ConfigError, match="robot 'two' has no mobile base"):
            ActionDecoder(ActionLayout.model_validate(self.LAYOUT), robot)

    @pytest.mark.parametrize(
        ("base", "words"),
        [
            ({"axes": ["vx", "vx"]}, "duplicates"),
            ({"scale": [1.0, 2.0]}, "2 values for 3 axes"),
            ({"axes": []}, "axes"),
        ],
    )
    def test_layouts_that_make_no_sense(self, base, words):
        with pytest.raises(ValidationError, match=words):
            ActionLayout.model_validate({"space": "joint_position", "base": base})


def test_it_passes_from_the_worker_to_the_node():
    trajectory = Trajectory([0.1, 0.2], np.zeros((2, 3)))
    chunk = ActionChunk(5, JOINTS, trajectory, base=motion([(0.1, 0, 0.2)] * 2))
    back = chunk_of(chunk_map(chunk))
    np.testing.assert_array_equal(back.base.twists, chunk.base.twists)
    assert chunk.with_trajectory(Trajectory([0.3], np.zeros((1, 3)))).base is chunk.base
    assert chunk_of(chunk_map(ActionChunk(5, JOINTS, trajectory))).base is None


def test_a_recording_may_drive(driving, robot, tmp_path):
    path = write_recording(tmp_path)
    with np.load(path) as archive:
        content = dict(archive)
    np.savez(path, **content, base_twists=np.tile([0.2, 0.0, 0.1], (len(content["times"]), 1)))
    backend = load(path, driving, {})
    away = np.array(driving.home) + [0.2, 0, 0]
    first, later = (backend.infer(Observation(stamp, {}, away, np.zeros(3)), None).base for stamp in (0, 2 * S))
    assert not first.twists[0].any(), "it stands while the arm goes to the first point"
    np.testing.assert_allclose(later.twists[0], [0.2, 0, 0.1])
    with pytest.raises(ConfigError, match="holds base_twists, robot 'two' has no mobile base"):
        load(path, robot.model_copy(update={"base": None}), {})


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 5), st.floats(0.2, 3))
def test_beside_an_arm_that_waits_or_is_slowed_the_base_goes_as_far_and_as_long(shift, at, stretch, until):
    wanted = motion([(0.1 * k, 0.0, -0.2 * k) for k in range(12)])
    found = alongside(wanted, shift, at, stretch, until)
    last = min(wanted.times[-1] + shift, until)
    if found is None:
        assert last <= at
        return
    assert found.times[0] == pytest.approx(at) and found.times[-1] == pytest.approx(at + (last - at) * stretch)
    for u in np.linspace(0.0, last - at, 9)[:-1]:
        # What is left out lies closer together than stamps are told apart.
        np.testing.assert_allclose(found.sample(at + u * stretch) * stretch, wanted.sample(at + u - shift), atol=0.01)


def spliced(strategy, latency, points, twists):
    """The first splice of a task: the arm's points at each 0.1 s, and the base's twists."""
    times = 0.1 * np.arange(1, len(points) + 1)
    chunk = ActionChunk(T0, JOINTS, Trajectory(times, points), base=BaseMotion(times, twists))
    scheduler = ChunkScheduler(limits(), 2, Schedule(strategy=strategy))
    start = wish(0.0)[0]
    scheduler.begin(T0)
    return scheduler.splice(chunk, start, T0 + round(latency * S), Reality(start)).chunk


def driven(chunk):
    """m, forward, from the first twist to the last."""
    times = np.arange(chunk.base.times[0], chunk.base.times[-1], 1e-3)
    return sum(float(chunk.base.sample(time)[0]) for time in times) * 1e-3


def test_who_rested_for_the_answer_drives_all_of_what_the_arm_plays_from_its_beginning():
    times = 0.1 * np.arange(1, 17)
    twists = np.tile([0.1, 0.0, 0.0], (16, 1))
    chunk = spliced("sync", 0.5, wish(0.2 * times), twists)
    assert chunk.base.times[0] == pytest.approx(0.6) and driven(chunk) == pytest.approx(0.1 * 0.4, rel=0.05)


def test_beside_an_arm_that_cannot_keep_up_the_base_drives_as_long_as_the_arm_and_no_farther():
    times = 0.1 * np.arange(1, 17)
    far = wish(0.0)[0] + np.outer(times, [3.0, 0.0, 0.0])  # rad/s: the joint may do 2
    far[:, 0] = np.clip(far[:, 0], -1.9, 1.9)
    twists = np.tile([0.1, 0.0, 0.0], (16, 1))
    chunk = spliced("async", 0.1, far, twists)
    assert chunk.trajectory.end > 1.7, "it was slowed"
    assert chunk.base.times[-1] == pytest.approx(chunk.trajectory.end, abs=0.01)
    assert driven(chunk) == pytest.approx(0.1 * (1.6 - 0.2), rel=0.05)
