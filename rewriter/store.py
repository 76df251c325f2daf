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
_TABLE = "CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, used INTEGER, code BLOB)"
_NEXT = "(SELECT coalesce(max(used), 0) + 1 FROM {})"


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


def recall(connection: sqlite3.Connection, table: str, digest: str) -> bytes | None:
    """What a table (digest, used, code) has under that digest, which now was used last."""
    row = connection.execute(f"SELECT code FROM {table} WHERE digest = ?", (digest,)).fetchone()
    if row:
        connection.execute(f"UPDATE {table} SET used = {_NEXT.format(table)} WHERE digest = ?", (digest,))
    return bytes(row[0]) if row else None


def remember(connection: sqlite3.Connection, table: str, digest: str, code: bytes, room: int) -> None:
    """Keep it; what was not used for longest makes room, in bytes."""
    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, {_NEXT.format(table)}, ?)", (digest, code))
    total = 0
    for name, size in connection.execute(f"SELECT digest, length(code) FROM {table} ORDER BY used DESC").fetchall():
        total += size
        if total > room:
            connection.execute(f"DELETE FROM {table} WHERE digest = ?", (name,))


class Answers:
    """Texts by the texts that they answer."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_path()

    def find(self, question: str) -> str | None:
        """What was kept for this question."""
        with opened(self._path, _TABLE) as connection:
            packed = recall(connection, "answers", _digest(question)) if connection is not None else None
            if packed is not None:
                with contextlib.suppress(zlib.error, UnicodeDecodeError):
                    return zlib.decompress(packed).decode()
        return None

    def keep(self, question: str, answer: str) -> None:
        """Remember an answer."""
        with opened(self._path, _TABLE) as connection:
            if connection is not None:
                remember(connection, "answers", _digest(question), zlib.compress(answer.encode(), 1), ROOM)


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()
