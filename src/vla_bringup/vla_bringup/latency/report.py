"""What `./vla bench latency` says: JSON, a table for people, a table for docs/benchmarks.md, a picture."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from vla_bringup.latency.figures import Sample, overheads, quantiles


@dataclass(frozen=True)
class Target:
    """One line of PERFORMANCE targets: `key` of the result, and what it must and should be at most (or least)."""

    name: str
    key: str
    what: str
    must: float
    aim: float
    at_least: bool = False
    unit: str = ""

    def met(self, result: Mapping[str, Any]) -> bool:
        """Whether the result is as it must be; a figure that is missing is not."""
        value = result.get(self.key)
        if value is None or not np.isfinite(value):
            return False
        return bool(value >= self.must if self.at_least else value <= self.must)


TARGETS = (
    Target("P1", "p50_ms", "stamp → filtered command without the model, p50", 3.5, 1.5, unit="ms"),
    Target("P1", "p99_ms", "the same, p99", 6.0, 2.5, unit="ms"),
    Target("P1", "default_ratio", "default transport / shipped, p50", 4.0, 4.0, True),
    Target("P2", "overhead_sleeping", "whole stack over a 76 ms model that waits, p50", 0.06, 0.03),
    Target("P2", "overhead_burning", "whole stack over a 76 ms model that computes, p50", 0.06, 0.03),
    Target("P3", "delivered", "three cameras 640×480 at 30 Hz: share that arrives", 1.0, 1.0, True),
    Target("P4", "starved_ticks", "ticks without a valid setpoint", 0, 0),
    Target("P10", "stack_cpu_share", "policy node and filter, share of one core", 0.6, 0.3),
    Target("P10", "stack_rss_mb", "policy node and filter, resident", 600.0, 300.0, unit="MB"),
    Target("P10", "memory_growth_mb", "growth of memory in the second half", 10.0, 1.0, unit="MB"),
)


def machine() -> dict[str, Any]:
    """Where and when; `load` is the average of the last minute before the benchmark began."""
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def lines(result: Mapping[str, Any]) -> list[str]:
    """For people."""
    shown = [f"{result['machine']}, {result['cores']} cores, load {result['load']:.1f} before, {result['date']}"]
    for target in TARGETS:
        relation = "≥" if target.at_least else "≤"
        verdict = "met" if target.met(result) else "MISSED"
        value = result.get(target.key)
        measured = f"{_number(value):>8} {target.unit:3}{relation} {target.must:g}"
        shown.append(f"  {target.name:4} {target.what:56} {measured}  {verdict}")
    shown.append("  model               transport  p50 ms  p90 ms  p99 ms  chunks")
    for row in result["rows"]:
        figures = "  ".join(f"{_number(row[key]):>6}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        shown.append(f"  {row['instruction']:19} {row['transport']:9}  {figures}  {row['count']:6}")
    shown.append(
        f"  the way alone, through processes that compute nothing: p50 {_number(result['way_p50_ms'])} ms, "
        f"p99 {_number(result['way_p99_ms'])} ms; the stack takes {_number(result['way_ratio'])} times as long"
    )
    if result["stops"]:
        shown.append(f"  the filter stopped the robot {result['stops']} times: streams were late, the machine was busy")
    share = ", ".join(f"{key} {_number(value)} ms" for key, value in result["breakdown_p50_ms"].items())
    shown.append(f"  where the time goes, p50: {share}")
    for name, used in result["processes"].items():
        shown.append(f"  {name:12} {used['cpu_share']:.1%} of a core, {used['rss_mb']:.0f} MB")
    return shown


def markdown(result: Mapping[str, Any]) -> str:
    """The tables for docs/benchmarks.md."""
    loaded = result["load"] > 0.5
    text = [
        f"Measured on {result['date']}, {result['machine']}, {result['cores']} cores, "
        + (f"beside other load (average {result['load']:.1f}): upper bounds" if loaded else "nothing else running")
        + ". `./vla bench latency`",
        "",
        "| target | what | measured | must | aim |",
        "|---|---|---|---|---|",
    ]
    for target in TARGETS:
        relation = "≥" if target.at_least else "≤"
        value = f"{_number(result.get(target.key))} {target.unit}".strip()
        text.append(f"| {target.name} | {target.what} | {value} | {relation} {target.must:g} | {target.aim:g} |")
    text += ["", "| model | transport | p50 | p90 | p99 | chunks |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        figures = " | ".join(f"{_number(row[key])} ms" for key in ("p50_ms", "p90_ms", "p99_ms"))
        text.append(f"| {row['instruction']} ms | {row['transport']} | {figures} | {row['count']} |")
    return "\n".join(text) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def breakdown(found: Sequence[Sample]) -> dict[str, float]:
    """Medians of the parts, ms: policy node with the way to it, filter, and the rest (two more ways and queues)."""
    if not found:
        return {}
    rest = [sample.arrived - sample.policy - sample.filter for sample in found]
    parts = {"policy": [s.policy for s in found], "filter": [s.filter for s in found], "rest": rest}
    return {name: float(np.median(values)) for name, values in parts.items()}


def plot(by_transport: Mapping[str, Sequence[Sample]], title: str, path: Path) -> None:
    """How the latency is distributed, one curve for each transport; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for name, found in by_transport.items():
        values = np.sort(overheads(found))
        if not len(values):
            continue
        p50 = quantiles(values)["p50_ms"]
        share = np.arange(1, len(values) + 1) / len(values)
        axis.plot(values, share, label=f"{name} transport: p50 {p50:.1f} ms, {len(values)} chunks")
    axis.set_xscale("log")
    axis.set_xlabel("camera stamp → filtered command, without the model [ms]")
    axis.set_ylabel("share of the chunks")
    axis.set_title(title, fontsize="medium")
    axis.grid(alpha=0.3, which="both")
    if axis.lines:
        axis.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
