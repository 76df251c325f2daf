"""Variants of one graph, run and timed in a process of their own. Large weights are written once; a variant is a small file beside them."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnx_ir as ir

from backends.worker import Worker
from rewriter.errors import RewriterError

Array = np.ndarray
Feed = Mapping[str, Array]

LARGE = 4096
"""Bytes from which a weight lies in the common file."""
TOGETHER = 16
"""Inputs that are sent at once where only the outputs are wanted."""
ROUNDS = 16
"""Turns of each variant in a comparison: many short ones, since what disturbs a machine comes and goes; ..."""
FEWEST = 5
"""... as many at least, where single calls are longer than turns should be."""
SECONDS = 0.064
"""Of calls of one variant in a comparison."""
UNDISTURBED = 0.1
"""Quantile of its calls that counts: what disturbs only adds."""
PACE = "(pace)"
"""The variant that runs along for the pace, where it is none of those compared."""


class Trials:
    """Runs variants of a model on ONNX Runtime, and times them on ``engine``: what is measured is what a user would get."""

    def __init__(self, folder: str | os.PathLike[str], *, engine: str = "onnxruntime", threads: int | None = None, timeout: float = 120.0) -> None:
        self._folder = Path(folder)
        self.engine = engine
        self._worker = Worker("onnxruntime", threads=threads, timeout=timeout)
        self._timer = self._worker if engine == "onnxruntime" else Worker(engine, threads=threads, timeout=timeout)
        self._threads, self._timeout = threads, timeout
        self._numbers = itertools.count()
        self._kept: dict[int, tuple[ir.Model, str]] = {}
        self._notes: dict[str, list[str]] = {}
        self._pace: tuple[ir.Model, Sequence[Array]] | None = None
        self._usual: float | None = None
        self.left: dict[str, str] = {}
        """Of the last comparison's variants, what the engine leaves to another one, in its words."""

    def anew(self) -> Trials:
        """Others, of the same variants in processes of their own."""
        others = Trials(self._folder, engine=self.engine, threads=self._threads, timeout=self._timeout)
        others._numbers = self._numbers
        return others

    def stored(self, model: ir.Model) -> ir.Model:
        """A copy of the model whose large weights lie in a file of the folder."""
        return ir.external_data.unload_from_model(model.clone(), self._folder, f"{next(self._numbers)}.data", size_threshold_bytes=LARGE)

    def load(self, model: ir.Model, worker: Worker | None = None) -> str:
        """Build a variant (of what ``stored`` gave) in the child; the key that it is known by. Raises ``RewriterError``."""
        number = next(self._numbers)
        path = self._folder / f"{number}.onnx"
        ir.save(model, path)
        try:
            reply = (worker or self._worker).load(str(number), str(path), options={"threads": self._threads})
            self._notes[str(number)] = reply["notes"]
        finally:
            path.unlink(missing_ok=True)
        return str(number)

    def keep(self, model: ir.Model) -> None:
        """Build this variant for timing once, for every comparison in which it stands."""
        if id(model) not in self._kept:
            with contextlib.suppress(RewriterError):  # then it does not run in comparisons either
                self._kept[id(model)] = model, self.load(model, self._timer)

    def pace_by(self, model: ir.Model, inputs: Sequence[Array]) -> None:
        """From now on this graph runs along in every comparison, and all times are given at the pace at which it ran in the first one: a machine
        may be two times as slow for some seconds, and times of different comparisons are added and compared."""
        self.keep(model)
        self._pace = model, inputs

    def drop(self, *keys: str, worker: Worker | None = None) -> None:
        """Forget variants."""
        worker = worker or self._worker
        for key in keys:
            self._notes.pop(key, None)
        for key in keys if worker.alive else ():
            worker.ask({"do": "drop", "key": key})

    def call(self, key: str, feed: Sequence[Array], worker: Worker | None = None) -> list[Array]:
        """The outputs for inputs in graph order."""
        return (worker or self._worker).ask({"do": "run", "key": key}, [_packed(a) for a in feed])[1]

    def outputs(self, model: ir.Model, feeds: Iterable[Feed], *, timed: bool = False) -> list[list[Array]]:
        """The outputs of a variant on every feed; ``timed``: on the engine that it is timed on. Raises ``RewriterError``."""
        return [outputs for several in self.running(model, feeds, timed=timed) for outputs in several]

    def running(self, model: ir.Model, feeds: Iterable[Feed], *, timed: bool = False) -> Generator[list[list[Array]], None, None]:
        """The same, some feeds at a time, for as long as they are asked for."""
        names = [v.name or "" for v in model.graph.inputs]
        worker = self._timer if timed else self._worker
        key = self.load(model, worker)
        try:
            for several in _batched(feeds, TOGETHER):
                yield worker.ask({"do": "run each", "key": key}, [[_packed(feed[n]) for n in names] for feed in several])[1]
        finally:
            self.drop(key, worker=worker)

    def times(self, variants: Mapping[str, tuple[ir.Model, Sequence[Array]]], *, seconds: float = SECONDS) -> dict[str, float]:
        """Microseconds of each in alternating turns, a low quantile. Infinite for what does not run."""
        pace = next((name for name, (model, _) in variants.items() if self._pace is not None and model is self._pace[0]), PACE)
        every = variants if self._pace is None else {pace: self._pace, **variants}
        taken = self._compared(every, seconds)
        factor = 1.0
        if taken.get(pace):
            now = _undisturbed(taken[pace])
            self._usual = self._usual or now
            factor = self._usual / now
        return {name: factor * _undisturbed(taken[name]) for name in variants}

    def _compared(self, variants: Mapping[str, tuple[ir.Model, Sequence[Array]]], seconds: float) -> dict[str, list[float]]:
        """Milliseconds of calls of each, none for what does not run."""
        keys = {name: self._kept[id(model)][1] for name, (model, _) in variants.items() if id(model) in self._kept}
        passing: list[str] = []
        taken: dict[str, list[float]] = {name: [] for name in variants}
        for name, (model, _) in variants.items():
            if name in keys:
                continue
            try:
                keys[name] = self.load(model, self._timer)
            except RewriterError:
                continue
            passing.append(keys[name])
        self.left = {name: "; ".join(self._notes[key]) for name, key in keys.items() if self._notes[key]}
        names = list(keys)
        end = math.inf
        for number in range(ROUNDS + 1):
            for name in names if number % 2 else reversed(names):
                times = self._turn(keys[name], variants[name][1], seconds / ROUNDS)
                if number:  # the first round warms up
                    taken[name] += times[1:] or times
            if number == 0:
                end = time.monotonic() + 2 * seconds * len(names)
            elif number >= FEWEST and time.monotonic() > end:
                break
        self.drop(*passing, worker=self._timer)
        return taken

    def _turn(self, key: str, inputs: Sequence[Array], seconds: float) -> list[float]:
        message = {"do": "time", "key": key, "repeat": 500, "seconds": seconds}
        try:
            times: list[float] = self._timer.ask(message, [_packed(a) for a in inputs])[0]["ms"]
        except RewriterError:
            return []
        return times

    def close(self) -> None:
        self._worker.close()
        self._timer.close()

    def __enter__(self) -> Self:
        self._worker.start()
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _undisturbed(milliseconds: Sequence[float]) -> float:
    """In microseconds."""
    return 1e3 * float(np.quantile(milliseconds, UNDISTURBED)) if milliseconds else math.inf


def _packed(array: Array) -> Array:
    """Contiguous, of the same shape: ``ascontiguousarray`` makes a vector of a number."""
    return np.ascontiguousarray(array).reshape(array.shape)


def _batched(feeds: Iterable[Feed], size: int) -> Iterator[list[Feed]]:
    rest = iter(feeds)
    while several := list(itertools.islice(rest, size)):
        yield several
