"""The campaign in small: it counts, goes on where it was, reports, and its mutants are small changes of functions."""

import json
import os
import subprocess
import sys

import pytest

from vla_safety.proof.tally import Tally
from vla_system_tests.campaign import report
from vla_system_tests.campaign.mutation import Source
from vla_system_tests.campaign.state import Progress, begin, load

CODE = '''"""A module."""

LIMIT = 5


def within(value: float, limit: float = 3.0) -> bool:
    """Not this one."""
    assert limit > 0
    if value <= limit and value != 0:
        return True
    return value == LIMIT
'''


def campaign(folder, *words):
    command = [sys.executable, "-m", "vla_system_tests.campaign", "safety", "--out", str(folder), "--json", *words]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ})
    return answer.returncode, json.loads(answer.stdout.splitlines()[-1]), answer.stderr


@pytest.mark.slow
def test_a_small_campaign_counts_goes_on_and_reports(tmp_path):
    words = ("--only", "cases,adversary", "--cycles", "30", "--jobs", "1")
    code, first, _ = campaign(tmp_path, *words, "--cases", "1000")
    assert code == 0 and first["violations"] == first["fence_exits"] == 0
    assert first["cases"] == 1000 and first["cycles"] >= 30
    assert {"kills", "kills_at_rest", "mutants", "mutants_killed"} <= first.keys()
    code, second, said = campaign(tmp_path, *words, "--cases", "2000")
    assert code == 0 and second["cases"] == 2000 and "1000 of 2000 cases done" in said
    assert "adversary: done already" in said
    text = (tmp_path / "report.md").read_text()
    assert "2000 cases in blocks" in text and "No violation." in text
    assert json.loads((tmp_path / "report.json").read_text())["cases"] == 2000


def test_other_code_or_another_seed_begins_anew(tmp_path):
    progress = begin(tmp_path, Progress("cases", "cases", 1, 10), resume=True)
    progress.done = 7
    (tmp_path / "cases.json").write_text(json.dumps(progress.record()))
    assert load(tmp_path, "cases").done == 7
    assert begin(tmp_path, Progress("cases", "cases", 1, 20), resume=True).done == 7
    assert begin(tmp_path, Progress("cases", "cases", 2, 20), resume=True).done == 0
    assert begin(tmp_path, Progress("cases", "cases", 1, 20), resume=False).done == 0
    changed = {**progress.record(), "code": "other"}
    (tmp_path / "cases.json").write_text(json.dumps(changed))
    assert begin(tmp_path, Progress("cases", "cases", 1, 20), resume=True).done == 0


def test_mutants_are_programs_that_differ_in_one_place_of_a_function(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(CODE)
    source = Source(path)
    mutants = [m for m in map(source.mutant, range(len(source))) if m is not None]
    changes = {(m.before, m.after) for m in mutants}
    assert ("if value <= limit and value != 0:", "if value < limit and value != 0:") in changes
    assert ("if value <= limit and value != 0:", "if value <= limit or value != 0:") in changes
    assert ("return True", "return False") in changes
    assert not [m for m in mutants if "LIMIT = " in m.before or "assert" in m.before or "def" in m.before]
    assert {m.function for m in mutants} == {"within"} and len({m.key for m in mutants}) == len(mutants)
    for mutant in mutants:
        compile(mutant.source, "module.py", "exec")
        assert mutant.source != CODE and mutant.key.startswith("module.within: ")


def test_a_violation_is_shown_with_what_repeats_it():
    tally = Tally()
    tally.counts["cases"] = 5
    tally.violated("too fast", {"seed": 3, "block": 4})
    progress = Progress("cases", "cases", 3, 10, 5, tally=tally)
    text = report.markdown({"cases": progress})
    assert "1 violations" in text and '"block": 4' in text and "too fast" in text
    assert report.figures({"cases": progress})["violations"] == 1
    assert report.interval(0, 0) == (0.0, 1.0) and report.interval(10, 10)[0] == pytest.approx(0.6915, abs=1e-3)
