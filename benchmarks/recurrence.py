"""Gated linear attention over growing lengths: a Scan as it is written, and the operator that it becomes, on ONNX Runtime.

    python -m benchmarks.recurrence
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import onnx
from onnx import parser

import rewriter
from backends import onnxruntime
from benchmarks.table import show

LENGTHS = (256, 1024, 4096, 8192)
KEYS = VALUES = 32
LONGEST_SCAN = 4096
"""Beyond it, the Scan's step by step takes too long to wait for."""
SCAN = """<ir_version: 9, opset_import: ["": 20]>
main (float[t,{k}] q, float[t,{k}] k, float[t,{v}] v, float[t,{k}] g) => (float[t,{v}] o) <int64[1] axis = {{1}}, int64[1] row = {{0}}> {{
    last, o = Scan <num_scan_inputs = 4, body = step (float[{k},{v}] s, float[{k}] qt, float[{k}] kt, float[{v}] vt, float[{k}] gt)
            => (float[{k},{v}] next, float[{v}] ot) {{
        d = Exp(gt)
        dk = Unsqueeze(d, axis)
        kk = Unsqueeze(kt, axis)
        vv = Unsqueeze(vt, row)
        kept = Mul(dk, s)
        new = Mul(kk, vv)
        next = Add(kept, new)
        ot = MatMul(qt, next)
    }}> (zero, q, k, v, g)
}}"""


def scan() -> onnx.ModelProto:
    """o[t] = q[t] S[t], S[t] = exp(g[t]) S[t - 1] + k[t] v[t]ᵀ, one head."""
    model = parser.parse_model(SCAN.format(k=KEYS, v=VALUES))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((KEYS, VALUES), np.float32), "zero"))
    return model


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
    model = scan()
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
