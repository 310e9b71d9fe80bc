"""Looks at audit files and folders: `python -m vla_safety.audit verify|replay FILE... [--json]`; exit code 1: wrong."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from vla_safety.core.audit import AuditError, Soundness, files_of, verify_all
from vla_safety.recording import Replay, replay


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="vla audit", description=__doc__)
    parser.add_argument("action", choices=("verify", "replay"))
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of records, or folders of them")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args(arguments)
    try:
        if options.action == "verify":
            return _verify(verify_all(options.files), options.json)
        return _replay(_records(files_of(options.files)), options.json)
    except AuditError as error:
        print(json.dumps({"error": str(error)}) if options.json else f"error: {error}")
        return 1


def _records(files: list[Path]) -> list[list[Path]]:
    """Files that belong to one record together: a name, and its parts."""
    records: dict[str, list[Path]] = {}
    for file in files:
        records.setdefault(file.name.removesuffix(".jsonl").partition(".part")[0], []).append(file)
    return list(records.values())


def _verify(found: list[tuple[Path, Soundness]], as_json: bool) -> int:
    wrong = any(sound.broken for _, sound in found)
    for path, sound in found if not as_json else []:
        state = f"broken at line {sound.broken}" if sound.broken else "whole"
        print(f"{path}: {sound.records} records, chain {state}{', last line cut off' * sound.partial}")
        print(f"newest hash {sound.head}")
    if as_json:
        files = [{"file": str(path), **asdict(sound)} for path, sound in found]
        print(json.dumps({**asdict(found[-1][1]), "broken": next((f["broken"] for f in files if f["broken"]), None),
                          "records": sum(sound.records for _, sound in found), "files": files}))  # fmt: skip
    return 1 if wrong else 0


def _replay(records: list[list[Path]], as_json: bool) -> int:
    found: list[tuple[Path, Replay]] = [(files[0], replay(files)) for files in records]
    wrong = next((result.different for _, result in found if result.different is not None), None)
    for path, result in found if not as_json else []:
        different = result.different is not None
        state = f"record {result.different} differs" if different else "the same answers, bit for bit"
        print(f"{path}: {result.records} records, {result.decisions} decisions: {state}")
    if as_json:
        totals = {"records": sum(r.records for _, r in found), "decisions": sum(r.decisions for _, r in found)}
        print(json.dumps({**totals, "different": wrong}))
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
