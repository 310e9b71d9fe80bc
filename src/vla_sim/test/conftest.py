from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vla_contract.robot import load_robot
from vla_node_base.domains import free_domain
from vla_sim.core import Cell

# A busy machine is no error of the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

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
    """A ROS domain that nobody else uses."""
    with free_domain() as number:
        yield number
