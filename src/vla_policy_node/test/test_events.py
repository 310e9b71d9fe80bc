"""What is made of a worker's answer: whatever it holds, the node hears a chunk or a reason."""

import numpy as np
import pytest

from vla_policy_node.worker.events import Answer, Refusal, event_of


def answer(points=4, driven=None, **changes):
    times = 0.01 * np.arange(1, 1 + points)
    trajectory = {"times": times, "positions": np.zeros((points, 2)), "velocities": None, "accelerations": None}
    base = None if driven is None else {"times": 0.01 * np.arange(1, 1 + driven), "twists": np.zeros((driven, 3))}
    chunk = {"stamp_ns": 7, "joint_names": ["a", "b"], "trajectory": trajectory, "base": base, "shortened": ""}
    return {"seconds": 0.1, "chunk": {**chunk, "confidence": 0.5, "progress": 0.5, "inference_time": 0.1, **changes}}


@pytest.mark.parametrize(("points", "driven"), [(1, None), (2000, None), (4, 2000)])
def test_a_chunk_may_have_some_points(points, driven):
    event = event_of(3, answer(points, driven))
    assert isinstance(event, Answer) and event.id == 3 and len(event.chunk.trajectory) == points


@pytest.mark.parametrize(
    ("points", "driven", "words"),
    [(2001, None, "trajectory has 2001 points"), (300_000, 4, "trajectory has 300000"), (4, 2001, "base has 2001")],
)
def test_a_chunk_may_not_have_any_number_of_points(points, driven, words):
    reason = event_of(3, answer(points, driven)).reason
    assert words in reason and "(> 2000); lower the policy's horizon" in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trajectory": None}, "there is no trajectory"),
        ({"trajectory": {"times": 1.0}}, "has no len()"),
        ({"trajectory": {"times": [1.0], "positions": "far"}}, "could not convert"),
        ({"trajectory": {"times": [0.1, 0.1], "positions": [[0.0], [1.0]]}}, "does not come after"),
        ({"base": {"times": [0.1], "twists": [[0.0, 0.0, 0.0]]}}, "AttributeError"),
        ({"base": {}}, "KeyError: 'times'"),
    ],
)
def test_a_chunk_that_is_none_is_a_refusal(changes, words):
    event = event_of(3, answer(**changes))
    assert isinstance(event, Refusal) and not event.unavailable
    assert event.reason.startswith("the backend's chunk is malformed: ") and words in event.reason
