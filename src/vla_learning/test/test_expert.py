"""The scripted expert behind the policy's seam."""

from pathlib import Path

import numpy as np
import pytest

from vla_contract.errors import ConfigError, InferenceError
from vla_contract.observation import Observation
from vla_contract.robot import load_robot, resolve_path
from vla_learning.delayed import play
from vla_learning.expert import ExpertBackend, load, named_colour
from vla_learning.instructions import COLOUR_WORDS, PLAIN
from vla_learning.stage import COLOURS, Stage
from vla_learning.strategies import ROBOT
from vla_policy_node.backends import Backend, load_backend


@pytest.fixture(scope="module")
def stage():
    made = Stage(load_robot(resolve_path(ROBOT, Path())))
    yield made
    made.close()


class Seeing:
    """The expert, told the truth by the simulator beside it."""

    def __init__(self, stage):
        self._cell, self._expert = stage.cell, ExpertBackend(stage.robot)

    def reset(self):
        self._expert.reset()

    def infer(self, seen, prefix):
        truth = {name: np.append(t.position, t.quaternion) for name, t in self._cell.truth().items()}
        told = Observation(seen.stamp_ns, {}, seen.positions, seen.velocities, seen.instruction, truth)
        return self._expert.infer(told, prefix)


@pytest.mark.parametrize(("seed", "colour", "delay"), [(20_000, "red", 0.1), (20_001, "green", 0.3)])
def test_it_does_the_task_through_the_scheduler(stage, seed, colour, delay):
    trace = play(stage, Seeing(stage), "async", delay, seed, colour)
    assert trace.success and trace.duration < 12.0 and trace.strain <= 1.0


def test_it_is_a_backend_that_admits_what_it_reads(stage):
    backend = load_backend("vla_learning.expert:load", Path(), stage.robot, {})
    assert isinstance(backend, Backend) and backend.metadata.ground_truth and not backend.metadata.cameras
    home = np.array(stage.robot.home)
    with pytest.raises(InferenceError, match="no ground truth of blue_cube, green_cube, red_cube, tray"):
        backend.infer(Observation(0, {}, home, np.zeros(8), PLAIN.format(c="red")), None)
    with pytest.raises(ConfigError, match="unknown option 'speed'"):
        load(Path(), stage.robot, {"speed": 2})


@pytest.mark.parametrize("colour", COLOURS)
def test_the_sentence_names_the_cube(colour):
    for word in COLOUR_WORDS[colour]:
        assert named_colour(f"Put the {word.upper()} cube in the tray!") == colour


@pytest.mark.parametrize("sentence", ["", "put it in the tray", "put the red cube on the blue one"])
def test_a_sentence_that_names_no_single_cube(sentence):
    with pytest.raises(InferenceError, match="name one of"):
        named_colour(sentence)
