"""The compiler's process: used again by the next model, and gone a moment later."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("tvm_ffi")

from backends.tvm import compiler_process
from backends.tvm.compiler_process import lent, started


def test_the_next_model_gets_the_same_process() -> None:
    first = started(3)
    with lent(first, 3):
        pass
    again, other = started(3), started(3)
    try:
        assert again is first and other is not first, "it is lent to one at a time"
    finally:
        again.close()
        other.close()


def test_it_ends_when_nobody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_process, "IDLE", 0.05)
    worker = started(3)
    with lent(worker, 3):
        assert worker.alive
    end = time.monotonic() + 20
    while worker.alive and time.monotonic() < end:
        time.sleep(0.05)
    assert not worker.alive


def test_another_environment_gets_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = started(3)
    with lent(first, 3):
        pass
    monkeypatch.setenv("REWRITER_TEST", "1")
    other = started(3)
    try:
        assert other is not first
    finally:
        other.close()
        first.close()


def test_after_an_error_it_is_closed() -> None:
    worker = started(3)
    with pytest.raises(ValueError), lent(worker, 3):
        raise ValueError("no")
    assert not worker.alive
