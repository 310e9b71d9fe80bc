"""Every finding that any test ever brings about must be whole (I21), whoever makes it and whatever becomes of it."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from vla_safety.core.findings import Finding
from vla_safety.core.reasons import REASONS

# Reasons whose number may be NaN: it is what was found, or there is none.
NUMBERLESS = {
    "state_invalid", "not_finite", "times", "start_jump", "stop_failed", "advice",
    "joint_position", "joint_velocity", "joint_acceleration", "joint_jerk",
}  # fmt: skip
NAMELESS = {"authority", "joint_names"}  # a source, a joint without a name
_made = Finding.__init__
_wrong: list[str] = []


def _fault(finding: Finding) -> str | None:
    reason = REASONS.get(str(finding.reason).partition(":")[0])
    if reason is None:
        return "unknown reason"
    if not isinstance(finding.subject, str):
        return "the subject is no text"
    for name in ("value", "limit", "at"):
        number = getattr(finding, name)
        if isinstance(number, bool) or not isinstance(number, int | float):
            return f"{name} is no number"
        needed = f"{{{name}}}" in reason.sentence and finding.reason not in NUMBERLESS
        if needed and math.isnan(number):
            return f"{name} is missing, the sentence names it"
    if "{subject}" in reason.sentence and not finding.subject and finding.reason not in NAMELESS:
        return "the subject is missing, the sentence names it"
    return None


def _make(self: Finding, *args: object, **options: object) -> None:
    _made(self, *args, **options)  # type: ignore[arg-type]
    ours = str(sys._getframe(1).f_globals.get("__name__", "")).startswith("vla_safety.")
    fault = _fault(self) if ours else None  # what a test makes for itself is its own affair
    if fault is not None:
        _wrong.append(f"{self!r}: {fault}")


Finding.__init__ = _make  # type: ignore[method-assign]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The filter's process, in a domain of its own."""
    from node_bench import running

    with running(tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture(autouse=True)
def findings_are_whole():
    _wrong.clear()
    yield
    assert not _wrong, _wrong[:5]
