"""Gated linear attention over growing lengths: a Scan as it is written, and the operator that it becomes, on ONNX Runtime.

    python -m benchmarks.recurrence
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

import rewriter
from backends import onnxruntime
from benchmarks.table import show
from zoo.scan import gated_linear_attention

LENGTHS = (256, 1024, 4096, 8192)
KEYS = VALUES = 32
LONGEST_SCAN = 4096
"""Beyond it, the Scan's step by step takes too long to wait for."""


def feed(tokens: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    q, k, v, g = (random.standard_normal((tokens, KEYS)).astype(np.float32) for _ in range(4))
    return [q, k, v, np.asarray(-np.logaddexp(0, -g) / 16, np.float32)]


def least_ms(run: Callable[..., Any], arrays: list[np.ndarray[Any, Any]]) -> float:
    run(*arrays)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        run(*arrays)
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Least milliseconds by length, and the difference of the results."""
    model = gated_linear_attention(KEYS, VALUES)
    result = rewriter.optimize(model)
    before, after = (onnxruntime.build(m, threads=threads) for m in (model, result.model))
    rows = []
    for tokens in LENGTHS:
        arrays = feed(tokens)
        slow = least_ms(before, arrays) if tokens <= LONGEST_SCAN else None
        apart = np.abs(before(*arrays)[0] - after(*arrays)[0]).max()
        rows.append([f"{tokens:,}", "-" if slow is None else f"{slow:.2f}", f"{least_ms(after, arrays):.2f}", f"{apart:.1g}"])
    show(f"Gated linear attention, one head of {KEYS} x {VALUES}, {threads} threads", ["tokens", "Scan ms", "operator ms", "difference"], rows)


if __name__ == "__main__":
    main()
