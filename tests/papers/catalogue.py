"""All 77 papers (papers.tsv): number, class, title, and for those without a test what there is and what is not yet."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """``klass``: EXACT, APPROX, MODEL, SEARCH or NONE. ``line``: what to say where no test speaks."""

    title: str
    klass: str
    line: str


def _read() -> dict[int, Entry]:
    with (Path(__file__).parent / "papers.tsv").open(newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return {int(number): Entry(title, klass, line) for number, klass, title, line in rows}


PAPERS = _read()
