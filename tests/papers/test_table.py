"""The table of papers: one line for each of the 77, whatever the tests recorded."""

from __future__ import annotations

import json
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


BEFORE, AFTER = Summary(9, {"MatMul": 3, "Add": 6}, 3000, 400), Summary(2, {"MatMul": 1, "Add": 1}, 1000, 200)


def test_a_paper_with_tests_shows_what_they_saw() -> None:
    record = Record()
    record.met("test_05_perp.py::test_x[a]", Row(5, "merges", ("matmul/maps-add",), BEFORE, AFTER, 2.5e-7))
    record.met("test_05_perp.py::test_x[b]", Row(5, "merges", ("scale/biases-add",), BEFORE, AFTER, 4e-6))
    record.missing("test_06_unified_peft.py::test_x", "reason: not yet written")
    found = lines(record)
    assert "merges" in found[5] and "matmul/maps-add, scale/biases-add" in found[5]
    assert "9 -> 2" in found[5] and "3,000 -> 1,000" in found[5] and "400 -> 200" in found[5] and "< 1e-5" in found[5]
    assert "not yet: not yet written" in found[6]


def test_a_run_of_a_part_keeps_what_other_runs_saw() -> None:
    earlier = Record()
    for test in ("test_05_perp.py::old", "test_05_perp.py::gone", "test_06_unified_peft.py::other"):
        earlier.met(test, Row(int(test[5:7]), "before", (), BEFORE, AFTER, 0.0))
    earlier.missing("test_05_perp.py::now", "reason: not there")
    now = Record(known={"test_05_perp.py::old", "test_05_perp.py::now"}, ran={"test_05_perp.py::now"})
    now.met("test_05_perp.py::now", Row(5, "after", (), BEFORE, AFTER, 0.0))
    now.join(json.loads(json.dumps(earlier.kept())))
    assert list(now.rows) == ["test_05_perp.py::old", "test_05_perp.py::now", "test_06_unified_peft.py::other"]
    assert now.not_yet == {}, "it passes now"
