"""A stop that does not arrive deactivates the controller: asked at once, without waiting, until it said yes."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from vla_safety.core.escalation import RETRY, Deactivation
from vla_safety.escalation import TYPE, deactivation_request, switch_type

S = 1_000_000_000


@dataclass
class Answer:
    ok: bool


class Asked:
    """The manager's side: futures to be answered."""

    def __init__(self, there=True):
        self.there = there
        self.calls: list[Future] = []

    def __call__(self):
        if not self.there:
            return None
        self.calls.append(Future())
        return self.calls[-1]


def test_it_is_asked_in_the_cycle_of_the_escalation_and_not_before():
    asked = Asked()
    deactivation = Deactivation(asked)
    deactivation.step(False, 0)
    assert not asked.calls
    deactivation.step(True, S)
    assert len(asked.calls) == 1 and deactivation.state == "asked"
    deactivation.step(True, S + S // 25)
    assert len(asked.calls) == 1, "it does not ask again while it may still be answered"
    asked.calls[0].set_result(Answer(True))
    deactivation.step(True, S + 2 * S // 25)
    assert deactivation.state == "done"
    deactivation.step(True, 100 * S)
    assert len(asked.calls) == 1


@pytest.mark.parametrize("answer", ["no", "error", "silence", "nobody"])
def test_a_refusal_an_error_or_silence_is_asked_again(answer):
    asked = Asked(there=answer != "nobody")
    deactivation = Deactivation(asked)
    deactivation.step(True, 0)
    if answer == "no":
        asked.calls[0].set_result(Answer(False))
    elif answer == "error":
        asked.calls[0].set_exception(RuntimeError("gone"))
    deactivation.step(True, S // 25)
    assert deactivation.state == ("asked" if answer == "silence" else "failed")
    asked.there = True
    before = len(asked.calls)
    deactivation.step(True, round(RETRY * S))
    assert len(asked.calls) == before + 1
    asked.calls[-1].set_result(Answer(True))
    deactivation.step(True, round(RETRY * S) + 1)
    assert deactivation.state == "done"


def test_a_yes_that_comes_as_late_as_the_next_question_is_due_is_a_yes():
    asked = Asked()
    deactivation = Deactivation(asked)
    assert deactivation.state == ""
    deactivation.step(True, 0)
    asked.calls[0].set_result(Answer(True))
    deactivation.step(True, round(RETRY * S))
    assert deactivation.state == "done" and len(asked.calls) == 1


def test_an_answer_that_says_neither_yes_nor_no_is_a_no():
    asked = Asked()
    deactivation = Deactivation(asked)
    deactivation.step(True, 0)
    asked.calls[0].set_result(object())
    deactivation.step(True, 1)
    assert deactivation.state == "failed"


def test_the_end_of_the_escalation_forgets_and_activates_nothing():
    asked = Asked()
    deactivation = Deactivation(asked)
    deactivation.step(True, 0)
    deactivation.step(False, 1)
    assert deactivation.state == "" and len(asked.calls) == 1
    deactivation.step(True, 2)
    assert len(asked.calls) == 2, "the next escalation is asked for at once"


def test_the_request_names_the_controller_and_nothing_else():
    """The fields of ros2_control's SwitchController, as its interface documents them."""

    @dataclass
    class Request:
        BEST_EFFORT: ClassVar[int] = 1
        activate_controllers: list = field(default_factory=list)
        deactivate_controllers: list = field(default_factory=list)
        strictness: int = 0

    class Service:
        pass

    Service.Request = Request
    request = deactivation_request(Service, "joint_trajectory_controller")
    assert request == Request([], ["joint_trajectory_controller"], 1)


def test_the_request_fits_the_real_type():
    service = switch_type()
    if service is None:
        pytest.skip(f"{TYPE[0]} is not installed here: ros2_control is not among the wheels")
    request = deactivation_request(service, "joint_trajectory_controller")
    assert list(request.deactivate_controllers) == ["joint_trajectory_controller"]
