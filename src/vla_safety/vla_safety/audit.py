"""Looks at audit files: `python -m vla_safety.audit verify|replay FILE [--json]`. Exit code 1: something is wrong."""

import argparse
import json
import sys
from dataclasses import asdict

from vla_safety.core.audit import AuditError, verify
from vla_safety.recording import replay


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="vla audit", description=__doc__)
    parser.add_argument("action", choices=("verify", "replay"))
    parser.add_argument("file")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args(arguments)
    try:
        found = verify(options.file) if options.action == "verify" else replay(options.file)
    except AuditError as error:
        print(json.dumps({"error": str(error)}) if options.json else f"error: {error}")
        return 1
    result = asdict(found)
    wrong = result.get("broken") or result.get("different")
    if options.json:
        print(json.dumps(result))
    elif options.action == "verify":
        state = f"broken at line {wrong}" if wrong else "whole"
        print(f"{options.file}: {result['records']} records, chain {state}{', last line cut off' * result['partial']}")
        print(f"newest hash {result['head']}")
    else:
        state = f"record {wrong} differs" if wrong else "the same answers, bit for bit"
        print(f"{options.file}: {result['records']} records, {result['decisions']} decisions: {state}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
