"""The documentation's table of all reasons: `python -m vla_safety.reasons_table [FILE]`.

With a file, the part of it between the two marks is replaced; without one, the table is printed.
"""

import sys
from pathlib import Path

from vla_safety.core.reasons import REASONS

BEGIN, END = "<!-- reasons: generated -->", "<!-- /reasons -->"


def markdown() -> str:
    """A Markdown table, one row for each reason."""
    rows = ["| reason | it means | remedy | unit |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {r.meaning} | {r.remedy} | {r.unit} |" for name, r in REASONS.items()]
    return "\n".join(rows) + "\n"


def replaced(text: str, table: str) -> str:
    """`text` with the part between the marks replaced.

    Raises:
        ValueError: when a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the file lacks '{BEGIN}' or '{END}'")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main() -> None:
    """Entry point."""
    if len(sys.argv) < 2:
        print(markdown(), end="")
        return
    path = Path(sys.argv[1])
    path.write_text(replaced(path.read_text(), markdown()))


if __name__ == "__main__":
    main()
