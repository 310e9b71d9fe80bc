"""Systems to test."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from vla_bringup.files import find
from vla_bringup.session import Session
from vla_bringup.system import demo_system
from vla_system_tests.motion import Fence

DEAD = 3.0  # s of wall time after which the simulator's clock goes on without a node that was killed


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Starts nodes of the demo by name; all are ended with the test."""
    with ExitStack() as stack:

        def starter(*names: str, **options: object) -> Session:
            chosen = {"lockstep": True, **options}  # a busy machine makes a test slow, not wrong
            system = [spec for spec in demo_system(**chosen) if spec.name in names]  # type: ignore[arg-type]
            for index, spec in enumerate(system):
                if spec.name == "vla_sim":
                    system[index] = replace(spec, parameters={**spec.parameters, "lockstep_timeout": DEAD})
            return stack.enter_context(Session(tuple(system), tmp_path / "log"))

        yield starter


@pytest.fixture(scope="session")
def fence() -> Fence:
    """The workspace box of config/safety/cell.yaml and the table."""
    return Fence(str(find("robots", "fr3_sim")), low=(-0.6, -0.75, -0.35), high=(1.0, 0.75, 1.35))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random instants; the seed is shown when a test fails."""
    seed = random.SystemRandom().randrange(2**32)
    request.node.add_report_section("setup", "seed", f"chance = random.Random({seed})")
    return random.Random(seed)
