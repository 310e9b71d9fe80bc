from pathlib import Path

import pytest

from vla_safety.core.reasons import REASONS
from vla_safety.core.ways import WAYS
from vla_safety.reasons_table import markdown, replaced

README = Path(__file__).resolve().parents[1] / "README.md"


def test_i20_every_reason_has_a_way_out():
    assert set(WAYS) == set(REASONS), "name the way out of each reason in core/ways.py"


def test_the_readme_has_the_table_of_reasons_of_the_code():
    text = README.read_text()
    assert replaced(text, markdown()) == text, "run: python -m vla_safety.reasons_table src/vla_safety/README.md"


def test_the_readme_has_the_table_of_parameters_of_the_code():
    pytest.importorskip("rclpy")
    from vla_node_base import parameters
    from vla_safety.parameters import Parameters

    text, table = README.read_text(), parameters.markdown(Parameters)
    assert replaced(text, table, "parameters") == text, (
        "run: python -m vla_safety.reasons_table src/vla_safety/README.md"
    )
