import random
import socket
from pathlib import Path

import pytest

from vla_contract.robot import load_robot
from vla_sim.core import Cell

BRINGUP = Path(__file__).parents[2] / "vla_bringup"


@pytest.fixture(scope="session")
def robot():
    return load_robot(BRINGUP / "config" / "robots" / "fr3_sim.yaml")


@pytest.fixture(scope="session")
def shared_cell(robot):
    """Building is cheap, a context for drawing is not: one cell for all tests, each of which resets it."""
    cell = Cell(robot)
    yield cell
    cell.close()


@pytest.fixture
def cell(shared_cell):
    shared_cell.reset(0)
    return shared_cell


@pytest.fixture(scope="session")
def domain():
    """A ROS domain that nobody on this machine uses: DDS listens on port 7400 + 250 d for discovery."""
    for number in random.Random().sample(range(1, 101), 100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * number))
            except OSError:
                continue
            return number
    pytest.fail("all ROS domains are in use on this machine: end other systems")
