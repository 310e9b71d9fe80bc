"""The documentation's tables of all reasons and of the node's parameters: `python -m vla_safety.reasons_table [FILE]`.

With a file, the parts of it between their marks are replaced; without one, the table of reasons is printed.
"""

import sys
from pathlib import Path

from vla_safety.core.reasons import REASONS
from vla_safety.core.ways import way_out

REASONS_PART, PARAMETERS_PART = "reasons", "parameters"


def markdown() -> str:
    """A Markdown table, one row for each reason."""
    rows = ["| reason | it means | remedy | way out | unit |", "|---|---|---|---|---|"]
    rows += [f"| `{k}` | {r.meaning} | {r.remedy} | {way_out(k).value} | {r.unit} |" for k, r in REASONS.items()]
    return "\n".join(rows) + "\n"


def replaced(text: str, table: str, part: str = REASONS_PART) -> str:
    """`text` with the part between the marks of `part` replaced.

    Raises:
        ValueError: when a mark is missing.
    """
    marks = f"<!-- {part}: generated -->", f"<!-- /{part} -->"
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"the file lacks '{marks[0]}' or '{marks[1]}'")
    return f"{before}{begin}\n{table}{end}{after}"


def main() -> None:
    """Entry point."""
    if len(sys.argv) < 2:
        print(markdown(), end="")
        return
    path = Path(sys.argv[1])
    from vla_node_base import parameters
    from vla_safety.parameters import Parameters

    text = replaced(path.read_text(), markdown())
    path.write_text(replaced(text, parameters.markdown(Parameters), PARAMETERS_PART))


if __name__ == "__main__":
    main()
