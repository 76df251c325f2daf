"""ONNX Runtime in a process that may die: valid models have ended it with SIGSEGV and SIGFPE, and the compiler must live."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from backends.arrays import as_numpy
from backends.worker import CrashedError, RuntimeRefused, TimedOut, Worker

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]


class Isolated:
    """A persistent child that loads ONNX models and runs them; it starts in the background on ``start`` or ``with``."""

    def __init__(self, *, threads: int | None = None, timeout: float = 300.0, memory: int | None = None) -> None:
        """``timeout`` bounds each model load and each run (seconds); ``memory`` the child's address space (bytes)."""
        self._threads = threads
        self._worker = Worker("onnxruntime", threads=threads, timeout=timeout, memory=memory or _physical_memory())

    def start(self) -> None:
        """Start the child now, without waiting for it."""
        self._worker.start()

    def run(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        inputs: Sequence[Mapping[str, Any]],
        *,
        optimised: bool,
    ) -> list[list[Array]]:
        """Load ``model`` and return its outputs, in graph order, for each of ``inputs`` (name to array).

        ``optimised=False`` switches the runtime's own graph optimiser off. Raises RuntimeRefused with the runtime's
        reason, CrashedError with the signal's name, TimedOut; after any of them the next call works again.
        """
        options = {"optimised": optimised, "threads": self._threads}
        names = self._worker.load("model", model, options=options)["inputs"]
        try:
            return [self._run_once(names, feed) for feed in inputs]
        finally:
            self._drop()

    def close(self) -> None:
        """End the child."""
        self._worker.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_once(self, names: list[str], feed: Mapping[str, Any]) -> list[Array]:
        missing, unknown = [n for n in names if n not in feed], [n for n in feed if n not in names]
        if missing or unknown:
            raise RuntimeRefused(f"the model takes inputs {names}; missing {missing}, not known {unknown}")
        values = [_plain(feed[name]) for name in names]
        return self._worker.ask({"do": "run", "key": "model"}, values)[1]

    def _drop(self) -> None:
        if self._worker.alive:
            self._worker.ask({"do": "drop", "key": "model"})


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, dict)) else as_numpy(value)


def _physical_memory() -> int:
    """The machine's memory in bytes: a model whose constants ask for more is refused, not swapped."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


__all__ = ["CrashedError", "Isolated", "RuntimeRefused", "TimedOut"]
