"""What the command line shows: tables, plain text when piped, and progress on anything that takes over two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rewriter.report import Report

PATIENCE = 2.0
"""Seconds before progress is shown."""
DECLINED = 10
"""How many declined rewrites a terminal is shown; ``--report`` has all."""


class Progress:
    """The current step on standard error, if that is a terminal and the work goes on for more than two seconds.

    Call it with a step's name, as ``optimize(step=...)`` does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._status, self._ended = "starting", None, False
        self._timer: threading.Timer | None = None
        self._live: Any = None

    def __call__(self, step: str) -> None:
        with self._lock:
            self._text = step
            if self._live is not None:
                self._live.update(f"{step} ...")

    def _show(self) -> None:
        from rich.console import Console

        with self._lock:
            if not self._ended:
                self._live = Console(stderr=True).status(f"{self._text} ...")
                self._live.start()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer = threading.Timer(PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            if self._live is not None:
                self._live.stop()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Rows on standard output; the first ``left`` columns are words, the others numbers. Piped: aligned text, two spaces apart."""
    if sys.stdout.isatty():
        _rich_table(headings, rows, left)
        return
    widths = [max(len(row[k]) for row in [headings, *rows]) for k in range(len(headings))]
    for row in [headings, *rows]:
        cells = [cell.ljust(w) if k < left else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(header_style="bold", box=None, pad_edge=False)
    for k, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))  # Text: brackets in names are no markup
    Console().print(shown)


def summary(report: Report) -> None:
    """Before and after, then what was applied, declined, verified and measured."""
    table(("", "before", "after"), report.rows())
    for r in report.rewrites:
        print(f"{r['count']:>4} x {r['rule']}")
    for d in report.declined[:DECLINED]:
        print(f"declined {d['rule']} at {d['site']}: {d['reason']}")
    if len(report.declined) > DECLINED:
        print(f"declined {len(report.declined) - DECLINED} more: --report FILE lists all")
    print(_verified(report))
    from rewriter.front import HEAD, rows

    front = (report.budget or {}).get("front")
    if front:
        table(HEAD, rows(front))
    for backend, ms in (report.latency or {}).items():
        print(f"{backend}: {_ms(ms['before_ms'])} -> {_ms(ms['after_ms'])}")
    for note in report.notes:
        print(note)


def picture(report: Report) -> str:
    """The front of an approximate compile as SVG; without points where there is none."""
    from rewriter.front import plot

    return plot((report.budget or {}).get("front", []))


def _ms(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:.4g} ms"


def _verified(report: Report) -> str:
    v = report.verification
    if v.passed is None:
        return f"not verified: {v.reason}"
    if not v.passed:
        return f"DIFFERS from the original: {v.reason}"
    return f"equal to the original: max error {v.max_abs_error:.3g} on {v.inputs} inputs" if v.inputs else f"equal to the original: {v.reason}"
