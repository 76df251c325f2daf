"""The table of papers: one line for each of the 77, whatever the tests recorded."""

from __future__ import annotations

import re

from papers.catalogue import PAPERS
from papers.table import Record, Row
from rewriter.graph import Summary


def lines(record: Record) -> dict[int, str]:
    found = {int(m[1]): m[0] for m in re.finditer(r"^\| (\d+) \|.*\|$", record.table(), re.M)}
    assert list(found) == sorted(PAPERS), "a line for each paper, in order"
    return found


def test_papers_without_a_test_say_what_is_there() -> None:
    for number, line in lines(Record()).items():
        assert PAPERS[number].title in line and (not PAPERS[number].line or PAPERS[number].line in line)
    assert len(PAPERS) == 77
    assert [n for n, p in PAPERS.items() if p.klass == "NONE" and not p.line] == [14], "14 has a test"


def test_a_paper_with_tests_shows_what_they_saw() -> None:
    before, after = Summary(9, {"MatMul": 3, "Add": 6}, 3000, 400), Summary(2, {"MatMul": 1, "Add": 1}, 1000, 200)
    record = Record([Row(5, "merges", ("matmul/maps-add",), before, after, 2.5e-7), Row(5, "merges", ("scale/biases-add",), before, after, 4e-6)])
    record.missing("test_06_unified_peft.py", "test_x", "reason: not yet written")
    found = lines(record)
    assert "merges" in found[5] and "matmul/maps-add, scale/biases-add" in found[5]
    assert "9 -> 2" in found[5] and "3,000 -> 1,000" in found[5] and "400 -> 200" in found[5] and "< 1e-5" in found[5]
    assert "not yet: not yet written" in found[6]
