"""Several robots in one pass of a network: the answers are those that each would get alone, and nothing mixes."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from remote import FR3, observation
from tiny import PI0_OPTIONS, pi0_metadata, pi0_model, write_tokenizer

from vla_contract.chunk import ActionChunk, BaseMotion
from vla_contract.errors import ConfigError, InferenceError
from vla_contract.interpolation import Trajectory
from vla_contract.observation import Observation
from vla_policy_node.backends import BatchBackend, Question, load_backend, locate
from vla_policy_node.serving.engine import Answering, Call, Reply
from vla_policy_node.serving.ray_engine import RayEngine, RayOptions
from vla_policy_node.worker.client import WorkerSpec

pytest.importorskip("torch")
FLOW = Path(__file__).parents[1] / "models" / "flow"
SENTENCES = ("put the red cube in the tray", "the blue cube, into the tray", "put the green cube away")


@pytest.fixture(scope="module")
def pi0_folder(tmp_path_factory):
    pytest.importorskip("transformers.models.pi0", reason="this version of transformers has no π0")
    folder = tmp_path_factory.mktemp("pi0")
    pi0_model().save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "policy.json").write_text(json.dumps(pi0_metadata()))
    return folder


@pytest.fixture(params=["flow", "pi0"])
def load(request):
    """Makes copies of a policy."""
    if request.param == "flow":
        return lambda: load_backend(locate("flow"), FLOW, FR3, {"threads": 1})
    folder = request.getfixturevalue("pi0_folder")
    return lambda: load_backend(locate("pi0"), folder, FR3, PI0_OPTIONS)


def seen(robot, turn):
    """What robot `robot` sees at its inference `turn`, 0.1 s after the last."""
    now = observation(seed=10 * robot + turn, instruction=SENTENCES[robot])
    return Observation(turn * 100_000_000, now.images, now.positions, now.velocities, now.instruction)


def prefix(robot, turn):
    """None for every other robot: batches are mixed."""
    if robot % 2 or turn == 0:
        return None
    start = seen(robot, turn).positions
    return Trajectory([0.0, 0.2], np.stack([start, start + 0.01 * (np.arange(8) < 7)]))


def test_a_batch_gives_each_robot_what_it_would_get_alone(load):
    shared = load()
    assert isinstance(shared, BatchBackend)
    alone = [load() for _ in SENTENCES]
    memories = [None] * len(alone)
    for turn in range(3):
        questions = [Question(seen(r, turn), prefix(r, turn), memory) for r, memory in enumerate(memories)]
        answers = shared.infer_batch(questions)
        for robot, answer in enumerate(answers):
            expected = alone[robot].infer(seen(robot, turn), prefix(robot, turn))
            assert np.abs(answer.chunk.positions - expected.positions).max() <= 1e-5
            assert answer.chunk.instruction == SENTENCES[robot]
        memories = [answer.memory for answer in answers]


def test_a_question_without_an_answer_does_not_spoil_the_others(load):
    policy, good = load(), seen(0, 0)
    blind = Observation(0, {}, good.positions, good.velocities, good.instruction)
    first, second, third = policy.infer_batch([Question(good), Question(blind), Question(good)])
    assert isinstance(second, InferenceError) and "front" in str(second)
    assert np.abs(first.chunk.positions - third.chunk.positions).max() <= 1e-6
    assert all(isinstance(each, InferenceError) for each in policy.infer_batch([Question(blind)] * 2))


def test_calls_of_many_clients_are_answered_with_their_own_memories(load):
    policy, alone = Answering(load()), [load() for _ in SENTENCES]
    memories = [None] * len(alone)
    for turn, order in enumerate(((0, 1, 2), (2, 0, 1), (1, 0, 2))):
        replies = policy.answer([Call(f"client {r}", seen(r, turn), memories[r]) for r in order])
        for robot, reply in zip(order, replies, strict=True):
            assert reply.batch == 3
            memories[robot] = reply.memory
            expected = alone[robot].infer(seen(robot, turn), None).positions
            assert np.abs(reply.actions - expected).max() <= 1e-5


class Touchy:
    """Fails as a whole where a call of the batch is bad, as a network's kernel might."""

    metadata = None

    def __init__(self, metadata):
        self.metadata = metadata

    def infer_batch(self, questions):
        if any(question.observation.instruction == "bad" for question in questions):
            raise RuntimeError("secret of the server's memory")
        backend = load_backend(locate("flow"), FLOW, FR3, {"threads": 1})
        return backend.infer_batch(questions)

    def infer(self, observation, prefix): ...

    def reset(self): ...


def test_a_batch_that_fails_as_a_whole_is_answered_one_by_one():
    policy = Answering(Touchy(load_backend(locate("flow"), FLOW, FR3, {}).metadata))
    good, bad = policy.answer([Call("a", seen(0, 0)), Call("b", observation(instruction="bad"))])
    assert isinstance(good, Reply) and good.actions.shape == (16, 8)
    assert str(bad) == "the policy failed: RuntimeError"


class Counting:
    """Remembers by itself how often it was asked since the last reset."""

    def __init__(self, metadata):
        self.metadata, self.count = metadata, 0

    def reset(self):
        self.count = 0

    def infer(self, seen, prefix):
        self.count += 1
        rows = np.full((2, 8), float(self.count))
        return ActionChunk(seen.stamp_ns, FR3.joints, Trajectory([0.1, 0.2], rows))


def test_a_policy_that_remembers_by_itself_forgets_at_each_change_of_client_and_who_takes_turns_is_told(caplog):
    policy = Answering(Counting(load_backend(locate("flow"), FLOW, FR3, {}).metadata))
    counted = [reply.actions[0, 0] for reply in policy.answer([Call(c, seen(0, 0)) for c in "aab"])]
    assert counted == [1, 2, 1] and "take turns" not in caplog.text, "one came after the other"
    counted = [reply.actions[0, 0] for reply in policy.answer([Call(c, seen(0, 0)) for c in "aabab"])]
    assert counted == [1, 2, 1, 1, 1] and caplog.text.count("two clients take turns") == 1


class Driving(Counting):
    """Answers two rows of driving for its four of joints."""

    def __init__(self, metadata):
        names = (*metadata.action, "base.vx[m/s]", "base.vy[m/s]", "base.wz[rad/s]")
        super().__init__(metadata.model_copy(update={"action": names, "horizon": 4, "dt": 0.1}))

    def infer(self, seen, prefix):
        twists = np.array([[0.1, 0.0, 0.5], [0.2, 0.0, 0.5]])
        base = BaseMotion(0.1 * np.arange(1, 3), twists)
        return dataclasses.replace(super().infer(seen, prefix), base=base)


def test_a_base_s_motion_comes_behind_the_joints_and_ends_in_rest():
    policy = Answering(Driving(load_backend(locate("flow"), FLOW, FR3, {}).metadata))
    (reply,) = policy.answer([Call("a", seen(0, 0))])
    assert reply.actions.shape == (4, 11)
    assert np.allclose(reply.actions[:, 8:], [[0.1, 0, 0.5], [0.2, 0, 0.5], [0, 0, 0], [0, 0, 0]], atol=1e-6)


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    spec = WorkerSpec("vla_policy_node.backends.flow:load", FLOW, FR3.path)
    with pytest.raises(ConfigError, match="needs Python package 'ray.serve.'.*vla setup --with serve"):
        RayEngine(spec, RayOptions(), "test")
