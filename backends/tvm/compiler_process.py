"""The compiler's process: kept for a moment after each use, since importing TVM takes longer than compiling a small model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backends.worker import Worker

IDLE = 5.0
"""Seconds for which it waits for another model."""
Key = tuple[int, frozenset[tuple[str, str]]]

_lock = threading.Lock()
_waiting: dict[Key, tuple[Worker, threading.Timer]] = {}


def started(threads: int) -> Worker:
    """One that waits, or a new one that starts in the background. It is the caller's: to be closed, or used in ``lent``."""
    with _lock:
        worker, timer = _waiting.pop(_key(threads), (None, None))
    if timer is not None:
        timer.cancel()
    worker = worker or Worker("tvm.compiler", threads=threads)
    worker.start()
    return worker


@contextmanager
def lent(worker: Worker, threads: int) -> Iterator[Worker]:
    """Use what ``started`` gave. After it, it waits for the next model; after an error it is closed."""
    try:
        yield worker
    except BaseException:
        worker.close()
        raise
    _wait(worker, _key(threads))


def _key(threads: int) -> Key:
    """A process has the environment that it was started in."""
    return threads, frozenset(os.environ.items())


def _wait(worker: Worker, key: Key) -> None:
    timer = threading.Timer(IDLE, _end, (key, worker))
    timer.daemon = True
    with _lock:
        taken = key in _waiting or not worker.alive
        if not taken:
            _waiting[key] = worker, timer
    if taken:
        worker.close()
    else:
        timer.start()


def _end(key: Key, worker: Worker) -> None:
    with _lock:
        if _waiting.get(key, (None, None))[0] is not worker:
            return
        del _waiting[key]
    worker.close()
