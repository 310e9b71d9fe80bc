"""No obstacle is lost by any order of questions, answers and diffs, nor by diffs that were dropped."""

from types import SimpleNamespace

import numpy as np
import pytest
from rig import MS
from test_planning_scene import ADD, MOVE, REMOVE, adapter, item, pose, scene  # noqa: F401

from vla_safety.core.watchdogs import Instant

FAR = 3.0  # m away from the robot, so that every scene is taken


class MoveGroup:
    """What holds the true scene: publishes its changes by a topic that may drop them, and answers when it is told to.

    Attributes:
        truth: x of each object; waiting: messages on their way, with their numbers; questions: that wait.
    """

    def __init__(self, made):
        self.adapter, self.truth, self.waiting, self.questions, self.number = made, {}, [], [], 0
        self.heard = 0
        made._request, made._client = None, self
        self.now = made.host.rig.now

    # -- as rclpy's client

    def service_is_ready(self):
        return True

    def call_async(self, _):
        question = SimpleNamespace(add_done_callback=lambda act: setattr(question, "act", act), picture=None)
        self.questions.append(question)
        return question

    def remove_pending_request(self, question):
        """The answer may be on its way all the same."""

    # -- what happens

    def whole(self):
        return scene(*(item(name, at=pose(FAR + x)) for name, x in self.truth.items()))

    def publish(self, message):
        self.number += 1
        self.waiting.append((self.number, message))

    def add(self, name, x=0.0):
        if name in self.truth and x % 2:
            made = item(name, [], at=pose(FAR + x), operation=MOVE)
        else:
            made = item(name, at=pose(FAR + x), operation=ADD)
        self.truth[name] = x
        self.publish(scene(made, diff=True))

    def remove(self, name):
        del self.truth[name]
        self.publish(scene(item(name, [], operation=REMOVE), diff=True))

    def look(self, question):
        """Takes the picture that the answer will be."""
        question.picture = question.picture or self.whole()

    def answer(self, question):
        self.look(question)
        self.questions.remove(question)
        question.result = lambda: SimpleNamespace(scene=question.picture)
        question.act(question)

    def deliver(self):
        self.heard, message = self.waiting.pop(0)
        self.adapter.receive(message, {"publication_sequence_number": self.heard})

    def wait(self, seconds):
        self.now += round(seconds * 1000) * MS
        self.adapter.check(Instant(self.now, self.now))

    # -- what is known

    @property
    def stopped(self):
        return "planning_scene" in self.adapter.host.told

    def known(self):
        zones = self.adapter.host.parts.setup.obstacles
        return {zone.name.split("_")[-1]: round(zone.box.center[0] - FAR, 6) for zone in zones}

    def settle(self):
        """Everything arrives, and every question is answered."""
        for _ in range(5):
            while self.waiting:
                self.deliver()
            while self.questions:
                self.answer(self.questions[0])
            self.wait(1.1)
        while self.questions:
            self.answer(self.questions[0])


@pytest.fixture
def group(adapter):  # noqa: F811
    return MoveGroup(adapter)


@pytest.mark.parametrize("pictured", ["before", "after"])
def test_a_diff_between_question_and_answer_is_not_lost(group, pictured):
    """Whether the answer is a picture from before it or from after it."""
    group.wait(1.1)
    (question,) = group.questions
    if pictured == "before":
        group.look(question)
    group.add("post")
    group.deliver()
    assert group.stopped
    group.answer(question)
    assert not group.stopped and group.known() == group.truth == {"post": 0.0}


def test_only_the_answer_to_the_last_question_counts(group):
    group.wait(1.1)
    group.wait(1.1)
    assert len(group.questions) == 1, "no second question while an answer is waited for"
    group.look(group.questions[0])
    group.wait(11.0)
    first, second = group.questions
    group.answer(second)
    group.add("post")
    group.deliver()
    group.answer(first)
    assert not group.stopped and group.known() == group.truth == {"post": 0.0}


def test_a_dropped_diff_stops_until_the_whole_scene_is_known_again(group):
    group.add("first")
    group.settle()
    assert not group.stopped
    group.add("dropped")
    group.waiting.clear()
    group.add("heard")
    group.deliver()
    assert "were missed" in group.adapter.host.told["planning_scene"].sentence
    group.wait(0.0)
    assert group.stopped and len(group.questions) == 1, "asked at once"
    group.answer(group.questions[0])
    assert not group.stopped and group.known() == group.truth and len(group.truth) == 3


def test_an_answer_to_a_question_before_the_gap_does_not_count(group):
    group.add("first")
    group.settle()
    group.adapter._objects.known = False
    group.wait(1.1)
    (question,) = group.questions
    group.look(question)
    group.add("dropped")
    group.waiting.clear()
    group.add("heard")
    group.deliver()
    group.answer(question)
    assert group.stopped
    group.settle()
    assert not group.stopped and group.known() == group.truth


def test_what_was_dropped_before_the_first_message_that_is_heard_is_asked_for(group):
    group.wait(1.1)
    group.answer(group.questions[0])
    group.add("dropped")
    group.waiting.clear()
    group.add("heard")
    group.deliver()
    group.wait(1.1)
    group.answer(group.questions[0])
    assert group.known() == group.truth and len(group.truth) == 2
    group.wait(20.0)
    assert not group.questions, "what is counted need not be asked for again"


def test_without_numbers_the_whole_scene_is_asked_for_now_and_then(group):
    group.wait(1.1)
    group.answer(group.questions[0])
    for name in ("a", "b"):
        group.add(name)
        group.waiting.clear()
        group.adapter.receive(scene(diff=True), {"publication_sequence_number": None})
        group.wait(5.1)
        group.answer(group.questions[0])
        assert not group.stopped and group.known() == group.truth


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_anything_loses_an_obstacle(group, seed):
    """Whenever the newest message has been heard, every object is where it is, or the robot is stopped."""
    rng = np.random.default_rng(seed)
    group.add("o0")
    group.settle()
    seen = set()
    for k in range(400):
        act = rng.random()
        if act < 0.25:
            group.add(f"o{rng.integers(4)}", float(rng.integers(8)))
        elif act < 0.32 and group.truth:
            group.remove(str(rng.choice(sorted(group.truth))))
        elif act < 0.6 and group.waiting:
            group.deliver()
        elif act < 0.64 and group.waiting:
            del group.waiting[int(rng.integers(len(group.waiting)))]
        elif act < 0.68 and group.questions:
            group.look(group.questions[int(rng.integers(len(group.questions)))])
        elif act < 0.78 and group.questions:
            group.answer(group.questions[int(rng.integers(len(group.questions)))])
        elif act < 0.79:
            group.publish(group.whole())
        elif act < 0.87:
            while group.waiting:
                group.deliver()
        else:
            group.wait(float(rng.choice([0.04, 0.5, 1.1, 11.0])))
        if group.heard == group.number:
            assert group.stopped or group.known() == group.truth, k
            seen.add(group.stopped)
    assert seen == {True, False}
    group.add("last")  # by its number what was dropped before is noticed
    group.settle()
    assert not group.stopped and group.known() == group.truth
