from pathlib import Path

from vla_safety.reasons_table import markdown, replaced

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readme_has_the_table_of_reasons_of_the_code():
    text = README.read_text()
    assert replaced(text, markdown()) == text, "run: python -m vla_safety.reasons_table src/vla_safety/README.md"
