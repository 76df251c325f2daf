"""How the search grows: a transformer with LoRA of 1 to 80 blocks, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.table import show
from benchmarks.transformer import transformer

BLOCKS = (1, 2, 4, 8, 16, 32, 64, 80)
Row = dict[str, float]


def measure(blocks: int) -> Row:
    """Seconds of the search alone (its process is started before, as the pipeline does while it reads), then of all of ``optimize``."""
    import rewriter
    from passes import normalise
    from passes.saturate import select
    from passes.share_weights import share_weights
    from rewriter.cost import Prices
    from rewriter.egraph import Limits, Program, Saturator
    from rewriter.encode import encode
    from rewriter.infer_onnx import infer
    from rules import ALL

    model = transformer(blocks)
    row: Row = {"blocks": blocks, "nodes": len(model.graph)}
    with Saturator() as saturator:
        plain = normalise(model.clone())
        share_weights(plain)
        infer(plain)
        time.sleep(1)  # the child's imports
        started = time.perf_counter()
        encoding = encode(plain.graph)
        encoded = time.perf_counter()
        frozen = saturator.saturate(Program(encoding.lines, ALL, Limits(), encoding.rows))
        saturated = time.perf_counter()
        _, extraction = select(frozen, encoding, encoding.roots(plain.graph), Prices.for_objective("latency"), {})
        ended = time.perf_counter()
        child = saturator._child
        assert child is not None
        row["search MB"] = peak(child.pid)
    row |= {"encode": encoded - started, "saturate": saturated - encoded, "extract": ended - saturated, "search": ended - started}
    row |= {"e-nodes": len(frozen.nodes), "gap": extraction.gap}
    started = time.perf_counter()
    os.environ["REWRITER_DATABASE"] += "2"  # which would know the search by now
    result = rewriter.optimize(model)
    row |= {"total": time.perf_counter() - started, "after": result.report.after.nodes}
    row["own MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not result.report.verification.passed or result.report.after.ops["MatMul"] != 8 * blocks:
        raise SystemExit(f"{blocks} blocks: LoRA was not merged everywhere: {result.report}")
    return row


def peak(process: int) -> float:
    """The most memory that a running process ever held, in MB (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{process}/status tells no peak memory")


@click.command()
@click.option("--one", type=int, help="Measure this many blocks and print JSON (what the table is made of).")
@click.option("--times", default=2, show_default=True, help="Repetitions; the table has the least.")
def main(one: int | None, times: int) -> None:
    """Seconds of encode + saturate + extract, and peak memory."""
    if one is not None:
        print(json.dumps(measure(one)))
        return
    rows = []
    for blocks in BLOCKS:
        runs = [_child(blocks) for _ in range(times)]
        rows.append({key: min(run[key] for run in runs) for key in runs[0]})
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["blocks", "nodes", "after", "e-nodes", "encode", "saturate", "extract", "search", "total", "search MB", "own MB"]
    cells = [[f"{r[k]:.2f}" if k in head[4:9] else f"{r[k]:,.0f}" for k in head] for r in rows]
    show("Transformer with LoRA: seconds and peak memory (imports, some 180 MB, included)", head, cells)


def _child(blocks: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:  # nothing is remembered from the run before
        environment = os.environ | {"REWRITER_DATABASE": str(Path(folder, "empty.sqlite"))}
        command = [sys.executable, "-m", "benchmarks.scale", "--one", str(blocks)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
