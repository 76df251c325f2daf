"""Latency of optimised models on ONNX Runtime against the originals: a process each, alternating rounds.

Both models are loaded anew ``LOADS`` times, so that the luck of one memory layout does not decide, and each time measured in both orders:
who goes first starts cold more often, which alone is worth some 3 %. Each load gives the geometric mean of its two ratios of medians; the
table's ratio is the median of those: a neighbour on the machine who disturbs one load does not move it. ``--same`` measures every
original against itself: how far from 1 those ratios are is what the benchmark cannot see.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

import rewriter
from backends.measure import Candidate, Comparison, Timing
from benchmarks.table import show
from zoo import onnx_models
from zoo.packages import Missing

LOADS, ROUNDS = 6, 4
ORDERS = (("original", "optimised"), ("optimised", "original"))


@dataclass(frozen=True)
class Result:
    """``times``: (original, optimised), two pairs a load, one for each order."""

    name: str
    before: int
    after: int
    seconds: float
    times: list[tuple[Timing, Timing]]

    def row(self) -> list[str]:
        medians = [statistics.median(t[i].median_ms for t in self.times) for i in (0, 1)]
        least = [min(t[i].min_ms for t in self.times) for i in (0, 1)]
        ratios = [after.median_ms / before.median_ms for before, after in self.times]
        ratio = statistics.median(math.sqrt(a * b) for a, b in zip(ratios[::2], ratios[1::2], strict=True))
        cells = [f"{ms:.3f}" for ms in (*medians, *least)]
        return [self.name, str(self.before), str(self.after), f"{self.seconds:.1f}", *cells, f"{ratio:.3f}", f"{least[1] / least[0]:.3f}"]


HEAD = ["model", "nodes", "after", "optimise s", "median ms", "after", "min ms", "after", "ratio", "ratio of minima"]


def measure(name: str, file: Path, feed: dict[str, Any], folder: Path, seconds: float, same: bool) -> Result:
    """``seconds``: of timed calls, both models together."""
    started = time.perf_counter()
    result = rewriter.optimize(file, feed if set(feed) == set(inputs(file)) else None)
    took = time.perf_counter() - started
    saved = folder / f"{name.replace(' ', '_')}.onnx"
    result.save(saved)
    candidates = {"original": Candidate("onnxruntime", file), "optimised": Candidate("onnxruntime", file if same else saved)}
    values = [feed[n] for n in inputs(file)]
    times = []
    with ExitStack() as stack:
        both_orders = [stack.enter_context(Comparison({label: candidates[label] for label in order}, threads=2)) for order in ORDERS]
        for _ in range(LOADS):
            for comparison in both_orders:
                both = comparison.run(values, rounds=ROUNDS, seconds=seconds / LOADS / len(ORDERS))
                failed = [f"{name}, {label}: {timing.failure}" for label, timing in both.items() if timing.failure]
                if failed:
                    raise RuntimeError("; ".join(failed))
                times.append((both["original"], both["optimised"]))
    return Result(name, result.report.before.nodes, result.report.after.nodes, took, times)


def inputs(file: Path) -> list[str]:
    graph = onnx.load(file, load_external_data=False).graph
    weights = {w.name for w in graph.initializer}
    return [i.name for i in graph.input if i.name not in weights]


def models() -> dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]]:
    """By name: given a folder for temporary files, where the model lies and what goes in."""
    found: dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]] = {}
    for model in onnx_models.NAMED:
        found[model.name] = lambda folder, m=model: (m.file(), m.feed())  # type: ignore[misc]
    found["SmolLM2-135M step"] = _smollm
    return found


def _smollm(folder: Path) -> tuple[Path, dict[str, Any]]:
    from zoo import smollm

    return smollm.export(folder / "smollm.onnx")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--same", is_flag=True, help="Measure the original against itself.")
@click.option("--seconds", default=8.0, show_default=True, help="Seconds of timed calls a model.")
def main(names: Sequence[str], seconds: float, same: bool) -> None:
    """Time the models whose names contain one of NAMES; all without."""
    rows = []
    for name, make in models().items():
        if names and not any(n.lower() in name.lower() for n in names):
            continue
        with tempfile.TemporaryDirectory() as folder, suppress(Missing):
            file, feed = make(Path(folder))
            feed = {k: np.asarray(v) for k, v in feed.items()}
            rows.append(measure(name, file, feed, Path(folder), seconds, same).row())
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    show("Latency on ONNX Runtime, 2 threads (real inputs where there are any)", HEAD, rows)


if __name__ == "__main__":
    main()
