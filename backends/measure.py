"""Which of several programs is fastest: a process each, so that thread pools do not meet, in alternating rounds."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from backends.arrays import as_numpy, dtype_named
from backends.program import Port
from backends.worker import Worker
from rewriter.errors import InvalidInput, RewriterError

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

SEEN = 4
"""Rounds after which a candidate may be left out."""
FEWEST = 6
"""Rounds that there are in any case, of those that are asked for; the others only in twice the time."""


@dataclass(frozen=True)
class Candidate:
    """A model on a backend, or a program that was saved; ``options`` go to the backend's ``build`` or ``restore``.

    ``package``: where the backend's module lies.
    """

    backend: str
    model: onnx.ModelProto | str | os.PathLike[str] | None = None
    saved: str | os.PathLike[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str = "backends"


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call; both are infinite, and ``failure`` says why, where the candidate did not run."""

    median_ms: float
    min_ms: float
    calls: int = 0
    failure: str | None = None


def compare(
    candidates: Mapping[str, Candidate],
    inputs: Sequence[Any],
    *,
    rounds: int = 5,
    threads: int | None = None,
    seconds: float = 1.0,
    timeout: float = 120.0,
) -> dict[str, Timing]:
    """Time every candidate on ``inputs`` (arrays in graph order).

    The candidates take turns, ``rounds`` times, or fewer where calls take long; ``seconds`` is the time for all timed calls together
    (each turn makes at least one call), loading and warm-up come on top. A candidate that fails, crashes or takes longer than ``timeout``
    for one step does not stop the others.
    """
    with Comparison(candidates, threads=threads, timeout=timeout) as comparison:
        return comparison.run(inputs, rounds=rounds, seconds=seconds)


class Comparison:
    """The processes of one comparison. They start when this is made, so that their imports can overlap other work."""

    def __init__(
        self, candidates: Mapping[str, Candidate], *, threads: int | None = None, timeout: float = 120.0
    ) -> None:
        if not candidates:
            raise InvalidInput("there is nothing to compare; give at least one candidate")
        self._candidates = dict(candidates)
        self._threads = threads
        self._workers = {
            name: Worker(candidate.backend, threads=threads, timeout=timeout, package=candidate.package)
            for name, candidate in self._candidates.items()
        }
        self._pool = ThreadPoolExecutor(len(self._candidates))  # loading is not timed, and mostly one thread's work
        self._loading: dict[str, Future[None]] = {}
        for worker in self._workers.values():
            worker.start()

    def load(self, *names: str) -> None:
        """Begin to load these candidates now, in the background; ``run`` loads the others."""
        for name in names:
            if name not in self._loading:
                self._loading[name] = self._pool.submit(self._load, name)

    def leave_out(self, *names: str) -> None:
        """These candidates are not to be measured: their processes end."""
        for name in names:
            self._candidates.pop(name, None)
            self._loading.pop(name, None)
            self._workers.pop(name).close()

    def run(self, inputs: Sequence[Any], *, rounds: int = 5, seconds: float = 1.0, drop: float | None = None) -> dict[str, Timing]:
        """As ``compare``; every call loads anew. A candidate whose least time in the first ``SEEN`` rounds is more than ``drop`` times the best's
        is not measured further."""
        values = [value if isinstance(value, list) else as_numpy(value) for value in inputs]
        taken: dict[str, list[float]] = {name: [] for name in self._candidates}
        turn = seconds / (max(1, rounds) * len(self._candidates))
        failures = self._loaded()
        for name in self._candidates:
            self._try(name, failures, lambda n: self._time(n, values, turn))  # warm-up: its times are dropped
        names = list(self._candidates)
        end = time.monotonic() + 2 * seconds
        for number in range(max(1, rounds)):
            if number >= FEWEST and time.monotonic() > end:
                break
            for name in names if number % 2 == 0 else reversed(names):  # nobody is always the one after a pause
                times = self._try(name, failures, lambda n: self._time(n, values, turn)) or []
                # The first call of a turn finds the caches as the other candidate left them: whoever goes first would look slower.
                taken[name] += times[1:] or times
            if number + 1 == SEEN and drop is not None:
                names = _near(names, taken, drop)
        return {name: _timing(taken[name], failures.get(name)) for name in self._candidates}

    def outputs(self, name: str, inputs: Sequence[Any]) -> list[Any]:
        """What the candidate, loaded by ``run``, gives. Raises RewriterError as its worker does."""
        return self._workers[name].ask({"do": "run", "key": "model"}, list(inputs))[1]

    def save(self, name: str, directory: str | os.PathLike[str]) -> None:
        """Let the candidate, loaded by ``run``, save its program for ``restore``."""
        self._workers[name].ask({"do": "save", "key": "model", "directory": os.path.abspath(directory)})

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers.values():
            worker.close()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loaded(self) -> dict[str, str]:
        """Wait for every candidate to be loaded; who failed, and why."""
        self.load(*self._candidates)
        loading, self._loading = self._loading, {}
        failures: dict[str, str] = {}
        for name, future in loading.items():
            self._try(name, failures, lambda _, future=future: future.result())
        return failures

    def _try(self, name: str, failures: dict[str, str], step: Any) -> Any:
        if name in failures:
            return None
        try:
            return step(name)
        except RewriterError as error:
            failures[name] = str(error)
            return None

    def _load(self, name: str) -> None:
        candidate = self._candidates[name]
        options = {**candidate.options, "threads": self._threads}
        saved = os.path.abspath(candidate.saved) if candidate.saved is not None else None
        self._workers[name].load("model", candidate.model, restore=saved, options=options)

    def _time(self, name: str, values: list[Any], seconds: float) -> list[float]:
        message = {"do": "time", "key": "model", "repeat": 1000, "seconds": seconds}
        times: list[float] = self._workers[name].ask(message, values)[0]["ms"]
        return times


def example_arrays(ports: Sequence[Port], dims: Mapping[str, int] | None = None, seed: int = 0) -> list[Array]:
    """Random inputs that fit ``ports``: normal floats, ones and zeros for integers and bools.

    A symbolic dimension takes its size from ``dims``, else 1; so does a nameless one.
    """
    random = np.random.default_rng(seed)
    arrays: list[Array] = []
    for port in ports:
        if port.shape is None or not port.dtype or port.dtype == "str":
            raise InvalidInput(f"input {port.name!r} has no tensor type of known rank; give example inputs")
        shape = [d if isinstance(d, int) and d >= 0 else (dims or {}).get(str(d), 1) for d in port.shape]
        dtype = dtype_named(port.dtype)
        integral = dtype.kind in "iub" or "int" in dtype.name
        arrays.append((random.integers(0, 2, shape) if integral else random.normal(size=shape)).astype(dtype))
    return arrays


def _near(names: Sequence[str], taken: Mapping[str, list[float]], most: float) -> list[str]:
    """Those whose least time is at most ``most`` times the best's."""
    least = {name: min(taken[name]) for name in names if taken[name]}
    best = min(least.values(), default=0.0)
    return [name for name in least if least[name] <= most * best]


def _timing(times: list[float], failure: str | None) -> Timing:
    if failure is not None or not times:
        return Timing(math.inf, math.inf, 0, failure or "it was never run")
    return Timing(statistics.median(times), min(times), len(times))
