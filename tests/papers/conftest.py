"""The record of the papers' tests, and docs/papers.md made from it: ``pytest tests/papers --papers-table docs/papers.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from papers.table import Record, Row

RECORD = Record()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--papers-table", metavar="FILE", help="write the table of papers; run the whole folder, in one process")


@pytest.fixture(scope="session")
def record() -> Callable[..., None]:
    """``record(PAPER, outcome)`` at the end of a test: its figure is met by this outcome."""
    return lambda paper, outcome: RECORD.rows.append(Row.of(paper, outcome))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    result = yield
    report = result.get_result()  # type: ignore[attr-defined]
    if report.when == "call" and getattr(report, "wasxfail", "") and report.skipped:
        RECORD.missing(item.path.name, item.name, report.wasxfail)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--papers-table", default=None)
    if path:
        Path(path).write_text(RECORD.table())
