"""The live view of a running task: one panel on a terminal, plain lines elsewhere."""

import math
import time
from types import TracebackType
from typing import Any

from vla_bringup.cli.console import Console
from vla_bringup.operator import Operator, Task
from vla_bringup.session import Session

PLAIN_PERIOD = 2.0  # s between plain lines


class Panel:
    """Shows what a session does. Use it as a context manager; call it as the session's tick."""

    def __init__(self, console: Console, title: str, instruction: str):
        self._console, self._title, self._instruction = console, title, instruction
        self._live: Any = None
        self._last = 0.0

    def __enter__(self) -> "Panel":
        if self._console.live:
            from rich.live import Live

            self._live = Live(console=self._console.rich, auto_refresh=False, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def __call__(self, session: Session, task: Task) -> None:
        rows = facts(session.operator, task, self._instruction)
        if self._live is not None:
            self._live.update(_panel(self._title, rows), refresh=True)
        elif time.monotonic() - self._last >= PLAIN_PERIOD:
            self._last = time.monotonic()
            wanted = ("phase", "sim time", "chunks", "inference", "mode", "verdicts", "clearance")
            self._console.say(" · ".join(f"{key} {rows[key]}" for key in wanted))


def facts(operator: Operator, task: Task, instruction: str) -> dict[str, str]:
    """What is worth knowing of a running task, as text by name."""
    state, status, episode = operator.state, operator.status, operator.episode
    progress = task.feedback.progress
    shown = "" if math.isnan(progress) else f" ({progress:.0%})"
    in_tray = [o.name for o in operator.scene.objects if o.in_tray] if operator.scene else []
    held = [o.name for o in operator.scene.objects if o.held] if operator.scene else []
    verdicts = ", ".join(f"{n} {k}" for k, n in sorted(episode.decisions.items())) if episode else ""
    return {
        "phase": f"{task.feedback.phase or 'starting'}{shown}",
        "instruction": instruction or "(blank)",
        "sim time": _number(operator.time_s, "s", 1),
        "ground truth": f"in tray: {', '.join(in_tray) or 'nothing'}; held: {', '.join(held) or 'nothing'}",
        "chunks": f"{task.feedback.chunks} at {_number(status.chunk_rate, 'Hz', 1)}" if status else "-",
        "inference": (
            f"p50 {_number(status.inference_p50 * 1e3, 'ms', 0)}, p95 {_number(status.inference_p95 * 1e3, 'ms', 0)}"
            if status
            else "-"
        ),
        "mode": operator.mode_and_reason,
        "verdicts": verdicts or "none yet",
        "clearance": f"{_number(state.zone_clearance * 1e3, 'mm', 0)} to zones" if state else "-",
        "tracking": _number(state.tracking_error * 1e3, "mrad", 1) if state else "-",
    }


def _panel(title: str, rows: dict[str, str]) -> Any:
    from rich.panel import Panel as RichPanel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, min_width=12)
    table.add_column()
    for key, value in rows.items():
        table.add_row(key, value)
    return RichPanel(table, title=title, border_style="cyan", width=88)


def _number(value: float, unit: str, digits: int) -> str:
    return f"{value:.{digits}f} {unit}" if math.isfinite(value) else "-"
