"""docs/papers.md: one row a paper, from what its tests recorded."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

from papers.catalogue import PAPERS
from papers.fixture import Outcome, Paper
from rewriter.graph import Summary

HEAD = """# The papers

What becomes of the structure that each of 77 papers leaves in a trained model. Made by `make docs` from `tests/papers/`: a row is what its tests
saw, each module in several spellings and through both front doors (PyTorch; ONNX with meaningless names). Before -> after is the first
spelling; the error is the largest of all, relative to the largest output, against the module in float64.

Classes: EXACT, an algebraic identity; MODEL, an architecture to be read and lowered; APPROX, changes the function and needs an error budget;
SEARCH, a technique for the compiler; NONE, nothing of it reaches the graph.

| # | paper | class | figure | laws that fired | nodes | multiply-accumulates | weight bytes | error |
|--:|---|---|---|---|--:|--:|--:|--:|
"""


@dataclass(frozen=True)
class Row:
    """One outcome that met a paper's figure."""

    number: int
    figure: str
    laws: tuple[str, ...]
    before: Summary
    after: Summary
    error: float

    @classmethod
    def of(cls, paper: Paper, outcome: Outcome) -> Row:
        report = outcome.result.report
        return cls(paper.number, paper.figure, tuple(r["rule"] for r in report.rewrites), report.before, report.after, outcome.error)


@dataclass
class Record:
    """``rows``: figures that were met. ``not_yet``: by paper, why some tests cannot pass yet."""

    rows: list[Row] = field(default_factory=list)
    not_yet: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def missing(self, file: str, test: str, reason: str) -> None:
        number = re.match(r"test_(\d+)_", file)
        if number is not None:
            self.not_yet[int(number[1])].add(reason.removeprefix("reason: "))

    def table(self) -> str:
        return HEAD + "".join(self._line(n) + "\n" for n in sorted(PAPERS))

    def _line(self, number: int) -> str:
        entry, rows = PAPERS[number], [r for r in self.rows if r.number == number]
        reasons = "; ".join(sorted(self.not_yet.get(number, ())))
        if not rows:
            said = f"not yet: {reasons}" if reasons else entry.line
            return f"| {number} | {entry.title} | {entry.klass} | {said} | | | | | |"
        first = rows[0]
        laws = ", ".join(sorted({law for r in rows for law in r.laws})) or "folding of constants alone"
        figure = first.figure + (f"; not yet: {reasons}" if reasons else "")
        b, a = first.before, first.after
        return (
            f"| {number} | {entry.title} | {entry.klass} | {figure} | {laws} | {b.nodes} -> {a.nodes} | {b.macs:,} -> {a.macs:,} "
            f"| {b.weight_bytes:,} -> {a.weight_bytes:,} | {_magnitude(max(r.error for r in rows))} |"
        )


def _magnitude(error: float) -> str:
    """An upper bound that does not change from machine to machine: the next power of ten."""
    return "0" if error == 0 else f"< 1e{math.floor(math.log10(error)) + 1}"
