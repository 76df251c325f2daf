"""The record of the papers' tests, and docs/papers.md made from it: ``pytest tests/papers --papers-table docs/papers.md``.

What a test saw is kept in pytest's cache, so that the table can be made from several runs of parts of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from papers.table import Record, Row

RECORD = Record()
KEPT = "papers/record"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--papers-table", metavar="FILE", help="write the table of papers, of this run and of earlier ones where a test did not run")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``record(PAPER, outcome)`` at the end of a test: its figure is met by this outcome."""
    return lambda paper, outcome: RECORD.met(request.node.nodeid, Row.of(paper, outcome))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    RECORD.known |= {item.nodeid for item in items}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    result = yield
    report = result.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        RECORD.ran.add(item.nodeid)
        if getattr(report, "wasxfail", "") and report.skipped:
            RECORD.missing(item.nodeid, report.wasxfail)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or session.config.cache is None:
        return
    RECORD.join(session.config.cache.get(KEPT, {}))
    session.config.cache.set(KEPT, RECORD.kept())
    path = session.config.getoption("--papers-table", default=None)
    if path:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(RECORD.table())
