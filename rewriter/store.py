"""What is remembered from one compile to the next: one SQLite file for all models, in the user's folder for caches.

Nothing depends on it but time: a file that cannot be opened or written is done without, and every entry is known by the digest of
all that it was made from, versions included.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOM = 64 << 20
"""Bytes of answers that are kept; what was not used for longest makes room."""
_TABLE = "CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, used INTEGER, answer BLOB)"
_NEXT = "(SELECT coalesce(max(used), 0) + 1 FROM answers)"


def default_path() -> Path:
    """``REWRITER_DATABASE``, or a file in the user's folder for caches."""
    given = os.environ.get("REWRITER_DATABASE")
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(folder, "rewriter", "kernels.sqlite")


@contextlib.contextmanager
def opened(path: Path, tables: str) -> Iterator[sqlite3.Connection | None]:
    """A connection in one transaction, or None; errors of the file are no errors of the caller."""
    began = False
    with contextlib.suppress(sqlite3.Error, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
            connection.executescript(tables)
            with connection:
                began = True
                yield connection
    if not began:
        yield None


class Answers:
    """Texts by the texts that they answer."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_path()

    def find(self, question: str) -> str | None:
        """What was kept for this question."""
        with opened(self._path, _TABLE) as connection:
            if connection is None:
                return None
            row = connection.execute("SELECT answer FROM answers WHERE digest = ?", (_digest(question),)).fetchone()
            if row is None:
                return None
            connection.execute(f"UPDATE answers SET used = {_NEXT} WHERE digest = ?", (_digest(question),))
            with contextlib.suppress(zlib.error, UnicodeDecodeError):
                return zlib.decompress(row[0]).decode()
        return None

    def keep(self, question: str, answer: str) -> None:
        """Remember an answer."""
        with opened(self._path, _TABLE) as connection:
            if connection is None:
                return
            packed = zlib.compress(answer.encode(), 1)
            connection.execute(f"INSERT OR REPLACE INTO answers VALUES (?, {_NEXT}, ?)", (_digest(question), packed))
            total = 0
            for name, size in connection.execute("SELECT digest, length(answer) FROM answers ORDER BY used DESC").fetchall():
                total += size
                if total > ROOM:
                    connection.execute("DELETE FROM answers WHERE digest = ?", (name,))


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()
