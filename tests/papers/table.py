"""docs/papers.md: one row a paper, from what its tests recorded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

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

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """The inverse of ``asdict``, also after JSON."""
        summaries = {which: Summary(**data[which]) for which in ("before", "after")}
        return cls(**{**data, **summaries, "laws": tuple(data["laws"])})


@dataclass
class Record:
    """By test: the figures that were met, and why one that cannot pass yet cannot. ``known``: tests that there are; ``ran``: in this run."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    not_yet: dict[str, str] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    ran: set[str] = field(default_factory=set)

    def met(self, test: str, row: Row) -> None:
        self.rows.setdefault(test, []).append(row)

    def missing(self, test: str, reason: str) -> None:
        self.not_yet[test] = reason.removeprefix("reason: ")

    def kept(self) -> dict[str, Any]:
        """What another run can join."""
        return {"rows": {test: [asdict(row) for row in rows] for test, rows in self.rows.items()}, "not_yet": self.not_yet}

    def join(self, earlier: dict[str, Any]) -> None:
        """Take over what earlier runs saw of tests that did not run now and that still exist."""
        files = {test.partition("::")[0] for test in self.known}

        def stands(test: str) -> bool:
            return test not in self.ran and (test in self.known or test.partition("::")[0] not in files)

        rows = {test: [Row.from_dict(row) for row in found] for test, found in earlier.get("rows", {}).items() if stands(test)}
        self.rows = dict(sorted((rows | self.rows).items(), key=lambda item: (item[0].partition("::")[0], "[onnx" in item[0])))
        self.not_yet = {test: reason for test, reason in earlier.get("not_yet", {}).items() if stands(test)} | self.not_yet

    def table(self) -> str:
        return HEAD + "".join(self._line(n) + "\n" for n in sorted(PAPERS))

    def _line(self, number: int) -> str:
        entry, rows = PAPERS[number], [row for found in self.rows.values() for row in found if row.number == number]
        reasons = "; ".join(sorted({reason for test, reason in self.not_yet.items() if f"test_{number:02}_" in test}))
        if not rows:
            said = f"not yet: {reasons}" if reasons else entry.line or "its tests have not run"
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
