"""Which graph, the model's or the result's, on which engine is fastest: measured, and its results compared, before it is chosen.

A process for each candidate, so that thread pools do not meet. They start while the model is still being read, and the model itself is
loaded while the search runs. The engines that build quickly run both graphs; those that take seconds (TVM, Inductor) run the result
only, unless the user allows time for tuning. A candidate that is clearly slower than the best after some rounds drops out. What an engine
computes may be wrong (it has its own reading of the standard): the fastest is compared with the original's outputs on every input
that the result was verified on, and gives way to the next one if it differs.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backends
from backends.measure import Candidate, Comparison, Timing
from rewriter.errors import InvalidInput, RewriterError

AUTO = ("onnxruntime", "tvm", "openvino")
"""What competes under "auto", where it is installed."""
PATIENT = ("inductor", "torch")
"""What competes too when the user allows time for tuning."""
QUICK = ("onnxruntime", "openvino")
"""Engines that build in well under a second: they run the model itself as well."""
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tvm": "tvm", "inductor": "torch", "torch": "torch"}
SLOWER = 1.05
"""How many times the best latency on the model itself, median and minimum, the result must take before it is given up: below that is noise."""
GAIN = 0.97
"""An engine must take less than this times ONNX Runtime's latency to be chosen in its place."""
LOST = 1.5
"""A candidate that takes this many times the best's least latency in the first rounds is not measured further."""
SECONDS = 0.3
"""Of timed calls, for each candidate, ..."""
ROUNDS = 24
"""... in many short turns: a machine may be two times as slow for some seconds, and each should be seen when it is not."""
BRIEF = 1.0
"""Milliseconds of a call below which a result is timed once more, in other processes, before it is given up: where a process happens to lie in
memory makes a tenth of the time of a small graph."""
OURS = 1.1
"""How many times the fastest engine's latency our kernels may take to be what approximations are timed on."""
COPIES = 2
"""How often an engine holds the weights: as they were, and packed for its kernels."""
BEFORE, AFTER = "before", "after"
Outputs = Callable[[Mapping[str, Any]], list[Any]]
Differs = Callable[[Outputs, Outputs | None], str]
"""``differs(run, usual)``: why what ``run`` gives for a feed is not what the original gives, or nothing; ``usual``: ONNX Runtime, if it ran."""


def parse(backend: str, tune: int = 0) -> tuple[str, ...]:
    """The engines that compete: of "auto", of one name, or of a list "onnxruntime,tvm". Raises ``InvalidInput``."""
    if backend == "auto":
        names = (*AUTO, *(PATIENT if tune > 0 else ()))
        return tuple(n for n in dict.fromkeys(names) if importlib.util.find_spec(PACKAGES[n]) is not None)
    names = tuple(dict.fromkeys(n.strip() for n in backend.split(",") if n.strip())) if isinstance(backend, str) else ()
    for name in names or (backend,):
        if name not in backends.NAMES:
            raise InvalidInput(f"no backend {name!r}; there are 'auto', {', '.join(map(repr, backends.NAMES))}, and lists of them: 'onnxruntime,tvm'")
    return names


@dataclass(frozen=True)
class Outcome:
    """``latency``: by engine, ``before_ms`` and ``after_ms`` (medians), null where one was not measured. ``kept``: why the model itself
    is to be used and not the result; empty where the result is. ``program``: a folder that the engine restores, where it was saved.
    """

    engine: str
    kept: str = ""
    latency: dict[str, dict[str, float | None]] | None = None
    notes: list[str] = field(default_factory=list)
    saved: str | None = None


class Race:
    """Candidates are ``(engine, BEFORE or AFTER)``; ``before`` and ``after`` are the ONNX files, written by the time they are loaded.

    ``saved``: a folder, made when it is needed, for a winner that takes long to build a second time. ``small``: the result is wanted for its
    bytes, and is not given up for its time.
    """

    def __init__(
        self, engines: Sequence[str], before: str, after: str, saved: str, *, threads: int | None, tune: int, small: bool = False
    ) -> None:
        self._engines, self._small = engines, small
        self._alone = len(engines) == 1
        both = [e for e in engines if e in QUICK or (tune > 0 and not self._alone)]
        measured = [] if self._alone and not both else list(engines)
        candidates = {_key(e, BEFORE): Candidate(e, before) for e in both}
        candidates |= {_key(e, AFTER): Candidate(e, after, options=build_options(e, tune)) for e in measured}
        self._processes: dict[str, Any] = {"threads": threads, "timeout": 120.0 if tune == 0 else 600.0}
        self._comparison = Comparison(candidates, **self._processes) if candidates else None
        self._candidates = candidates
        self._before, self._folder = before, saved
        self._notes: list[str] = []

    @property
    def measures(self) -> bool:
        """Is there anything to compare? Then ``run`` needs the file ``after``."""
        return self._comparison is not None

    def load_before(self) -> None:
        """Let the engines load the model itself, in the background: its file is there."""
        if self._comparison is not None:
            self._spare_memory(self._comparison)
            self._comparison.load(*(key for key in self._candidates if key.endswith(BEFORE)))

    def run(self, example: Sequence[Any] | None, differs: Differs) -> Outcome:
        """``example``: arrays in graph order, None where nothing could be run."""
        if self._comparison is None:
            return Outcome(self._engines[0])
        if example is None:
            nothing = "nothing was measured: the model could not be run on made-up inputs; give example_inputs"
            return Outcome(self._engines[0], notes=[*self._notes, nothing])
        count = len(self._candidates)
        timings = self._comparison.run(example, rounds=ROUNDS, seconds=SECONDS * count, drop=LOST if count > 2 else None)
        timings |= self._once_more(timings, example)
        failed = {key for key, t in timings.items() if t.failure is not None}
        absent = [] if self._alone else [e for e in self._engines if _key(e, AFTER) in failed]
        notes = self._notes + [f"{e} did not compete: {timings[_key(e, AFTER)].failure}" for e in absent]
        if len(failed) == count:
            return Outcome(self._engines[0], latency={}, notes=notes)
        running = [key for key in timings if key not in failed]
        if self._small:
            running = [key for key in running if key.endswith(AFTER)] or running
        chosen = self._chosen(timings, running, differs, notes)
        engine, which = chosen.rsplit(" ", 1)
        latency = self._latency(timings)
        why = self._why(timings, engine, running) if which == BEFORE else ""
        return Outcome(engine, why, latency, notes, self._saved(chosen))

    def _once_more(self, timings: Mapping[str, Timing], example: Sequence[Any]) -> dict[str, Timing]:
        """The result and the model in other processes, where the result seems to be slower and calls are short."""
        after, before = _finalists(timings, [key for key, timing in timings.items() if timing.failure is None])
        if self._small or after is None or before is None or not _slower(timings[after], timings[before]) or timings[before].min_ms > BRIEF:
            return {}
        with Comparison({key: self._candidates[key] for key in (before, after)}, **self._processes) as others:
            found = others.run(example, rounds=ROUNDS, seconds=SECONDS * 2)
        return found if all(timing.failure is None for timing in found.values()) else {}

    def close(self) -> None:
        """End the processes."""
        if self._comparison is not None:
            self._comparison.close()

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spare_memory(self, comparison: Comparison) -> None:
        """A model that is too large for the memory to be held by every candidate is measured on the first engine alone."""
        size = sum(f.stat().st_size for f in Path(self._before).parent.glob(f"{Path(self._before).name}*"))
        if size * COPIES * len(self._candidates) < _free_memory() or self._alone:
            return
        out = [key for key in self._candidates if not key.startswith(f"{self._engines[0]} ")]
        comparison.leave_out(*out)
        self._candidates = {key: c for key, c in self._candidates.items() if key not in out}
        others = ", ".join(self._engines[1:])
        self._notes.append(f"{others} did not compete: {size / 1e9:.1f} GB of model in {len(out)} more processes is too much memory")
        self._engines = self._engines[:1]

    def _chosen(self, timings: Mapping[str, Timing], running: list[str], differs: Differs, notes: list[str]) -> str:
        """The key of the winner, its results compared; what had to give way is noted, and leaves ``running``."""
        usual = next((key for key in running if key.startswith("onnxruntime")), None)
        while True:
            key = _fastest(timings, running)
            problem = "" if key.startswith("onnxruntime") else self._problem(key, usual, differs)
            if not problem:
                return key
            running.remove(key)
            notes.append(f"{key.rsplit(' ', 1)[0]} was fastest and was not used: {problem}")
            if not running:
                return _key(self._engines[0], AFTER)

    def _problem(self, key: str, usual: str | None, differs: Differs) -> str:
        assert self._comparison is not None
        comparison = self._comparison

        def of(name: str) -> Outputs:
            return lambda feed: comparison.outputs(name, list(feed.values()))

        try:
            return differs(of(key), of(usual) if usual is not None else None)
        except RewriterError as failure:
            return str(failure)

    def _why(self, timings: Mapping[str, Timing], engine: str, running: Sequence[str]) -> str:
        afters = [timings[key] for e in self._engines if (key := _key(e, AFTER)) in running] or [timings[_key(e, AFTER)] for e in self._engines]
        best = min(afters, key=_typical)
        return best.failure or f"it took {best.median_ms:.3g} ms where the model takes {timings[_key(engine, BEFORE)].median_ms:.3g}"

    def _latency(self, timings: Mapping[str, Timing]) -> dict[str, dict[str, float | None]]:
        found = {}
        for engine in self._engines:
            pair = {f"{which}_ms": _milliseconds(timings.get(_key(engine, which))) for which in (BEFORE, AFTER)}
            if any(pair.values()):
                found[engine] = pair
        return found

    def _saved(self, key: str) -> str | None:
        """The winner's program in a folder, where building it again takes long and reading it does not."""
        if self._comparison is None or not key.startswith("tvm"):
            return None
        os.mkdir(self._folder)
        try:
            self._comparison.save(key, self._folder)
        except RewriterError:
            return None
        return self._folder


def fastest_as_it_is(engines: Sequence[str], model: str, example: Sequence[Any] | None, *, threads: int | None) -> str:
    """The engine, of those that build in seconds, that runs this file fastest: a graph made for another one may still be slower than that. Ours
    where they take hardly longer, since they gain most from what approximations do."""
    quick = [e for e in engines if e in (*QUICK, "tvm")] or list(engines[:1])
    if len(quick) == 1 or example is None:
        return quick[0]
    with Comparison({e: Candidate(e, model) for e in quick}, threads=threads) as comparison:
        timings = comparison.run(example, rounds=ROUNDS, seconds=SECONDS * len(quick))
    typical = {e: _typical(timings[e]) / (OURS if e == "tvm" else 1.0) for e in quick}
    return min(quick, key=lambda e: typical[e])


def _free_memory() -> float:
    """Bytes that processes can still have (Linux; infinite where that is not known)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))


def build_options(engine: str, tune: int) -> dict[str, Any]:
    """What ``build`` of this engine is told of the user's time."""
    return {"tune": tune} if engine == "tvm" and tune else {}


def _key(engine: str, which: str) -> str:
    return f"{engine} {which}"


def _fastest(timings: Mapping[str, Timing], keys: Sequence[str]) -> str:
    """The result on the best engine for it, or the model on the best engine for that where the result is clearly slower. ONNX Runtime
    where it is as good."""
    after, before = _finalists(timings, keys)
    if after is None or before is None:
        chosen = after or before
        assert chosen is not None
        return chosen
    return before if _slower(timings[after], timings[before]) else after


def _finalists(timings: Mapping[str, Timing], keys: Sequence[str]) -> tuple[str | None, str | None]:
    """The result and the model, each on the best engine for it."""
    after, before = (_best(timings, [key for key in keys if key.endswith(which)]) for which in (AFTER, BEFORE))
    return after, before


def _slower(a: Timing, b: Timing) -> bool:
    return a.median_ms > SLOWER * b.median_ms and a.min_ms > SLOWER * b.min_ms


def _best(timings: Mapping[str, Timing], keys: Sequence[str]) -> str | None:
    if not keys:
        return None
    best = min(keys, key=lambda key: _typical(timings[key]))
    plain = next((key for key in keys if key.startswith("onnxruntime")), best)
    return best if _typical(timings[best]) < GAIN * _typical(timings[plain]) else plain


def _typical(timing: Timing) -> float:
    """Between the median, which a busy machine moves, and the least time, which one lucky call makes."""
    return math.sqrt(timing.median_ms * timing.min_ms)


def _milliseconds(timing: Timing | None) -> float | None:
    return None if timing is None or timing.failure is not None else round(timing.median_ms, 4)
