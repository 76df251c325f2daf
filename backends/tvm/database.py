"""What was measured, and what was compiled, remembered for the next time: one SQLite file for all models.

A kernel is known by its description, the processor, the number of threads and the versions of everything that has a part
in its machine code; a library by the digest of all its functions. A database that cannot be opened or written is done
without: nothing depends on it but time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from backends.tvm.kernel import Config, Kernel, Machine
from backends.tvm.rates import speed_of
from rewriter.store import default_path, opened, recall, remember

FORMAT = 1  # of the measurements: to be raised when other configurations would be the best
_ROOM = 512 << 20  # bytes of libraries that are kept
_TABLES = """
CREATE TABLE IF NOT EXISTS kernels (
    kernel TEXT, machine TEXT, versions TEXT, config TEXT, microseconds REAL, trials INTEGER,
    PRIMARY KEY (kernel, machine, versions)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS libraries (digest TEXT PRIMARY KEY, used INTEGER, code BLOB);
CREATE TABLE IF NOT EXISTS checks (region TEXT, library TEXT, verdict TEXT, PRIMARY KEY (region, library)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS speeds (
    kernel TEXT, machine TEXT, versions TEXT, kind TEXT, operations REAL, sizes TEXT, microseconds REAL,
    PRIMARY KEY (kernel, machine, versions)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT, versions TEXT, value TEXT, PRIMARY KEY (name, versions)) WITHOUT ROWID;
"""


class Database:
    """One file; every operation is a transaction of its own, so processes can share it."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = Path(path) if path is not None else default_path()

    def find(self, kernel: Kernel, machine: Machine, trials: int) -> Config | None:
        """The best configuration that was measured, if at least as many were tried as now would be."""
        query = "SELECT config, trials FROM kernels WHERE kernel = ? AND machine = ? AND versions = ?"
        row = None
        with self._open() as connection:
            row = connection.execute(query, (repr(kernel), _name(machine), _versions())).fetchone() if connection else None
        return tuple(json.loads(row[0])) if row and row[1] >= trials else None

    def keep(self, kernel: Kernel, machine: Machine, config: Config, seconds: float, trials: int) -> None:
        """Remember the best of ``trials`` configurations and its time."""
        key = (repr(kernel), _name(machine), _versions())
        with self._open() as connection:
            if connection:
                connection.execute("INSERT OR REPLACE INTO kernels VALUES (?, ?, ?, ?, ?, ?)", (*key, json.dumps(config), seconds * 1e6, trials))
                connection.execute("INSERT OR REPLACE INTO speeds VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, *speed_of(kernel), seconds * 1e6))

    def speeds(self, machine: Machine) -> list[tuple[str, float, str, float]]:
        """Of every kernel that was measured there: what ``speed_of`` says, and microseconds; in a fixed order."""
        query = "SELECT kind, operations, sizes, microseconds FROM speeds WHERE machine = ? AND versions = ? ORDER BY kernel"
        with self._open() as connection:
            rows: list[tuple[str, float, str, float]] = connection.execute(query, (_name(machine), _versions())).fetchall() if connection else []
            return rows
        return []

    def library(self, digest: str) -> bytes | None:
        """The machine code of that digest."""
        with self._open() as connection:
            return recall(connection, "libraries", digest) if connection else None
        return None

    def keep_library(self, digest: str, code: bytes) -> None:
        """Remember machine code; what was not used for longest makes room."""
        with self._open() as connection:
            if connection:
                remember(connection, "libraries", digest, code, _ROOM)

    def checks(self, region: str) -> dict[str, str]:
        """What came of comparing the region of that digest (graph and weights) with float64: by the digest of the machine code
        that computed it, why it was not used, or nothing if it was right."""
        rows: list[tuple[str, str]] = []
        with self._open() as connection:
            rows = connection.execute("SELECT library, verdict FROM checks WHERE region = ?", (region,)).fetchall() if connection else []
        return dict(rows)

    def keep_check(self, region: str, library: str, verdict: str) -> None:
        """Remember what came of a comparison."""
        with self._open() as connection:
            if connection:
                connection.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", (region, library, verdict))

    def fact(self, name: str) -> str | None:
        """What was found out about the machine under that name, with these versions."""
        query = "SELECT value FROM facts WHERE name = ? AND versions = ?"
        row = None
        with self._open() as connection:
            row = connection.execute(query, (name, _versions())).fetchone() if connection else None
        return str(row[0]) if row else None

    def keep_fact(self, name: str, value: str) -> None:
        """Remember something about the machine."""
        with self._open() as connection:
            if connection:
                connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, _versions(), value))

    def _open(self) -> contextlib.AbstractContextManager[sqlite3.Connection | None]:
        return opened(self._path, _TABLES)


def digest(*parts: object) -> str:
    """A name for what is made from ``parts``."""
    return hashlib.sha256("\n".join(map(repr, (_versions(), _templates(), *parts))).encode()).hexdigest()


def _name(machine: Machine) -> str:
    return json.dumps(asdict(machine))


@cache
def _versions() -> str:
    return f"{FORMAT} tvm {version('apache-tvm')}"


@cache
def _templates() -> str:
    """What writes the code: when that changes, no old code may be taken for the new."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()
