"""How long compiling takes: from a module or an ONNX file to the callable; and what it takes in memory.

    python -m benchmarks.compile_time [module] [files]

``module``: MiniLM with LoRA, by steps; PyTorch's own export is measured apart. ``files``: ONNX files for our own kernels, a fresh process
each time: *cold* with an empty database of kernels, *other weights* with one that has seen the network but not its weights, *warm* with one
that has seen the model; the backend alone, and all of ``rewriter.compile`` (search, verification, the backend). Memory is the largest
resident size of the process that compiles and of its children together, seen ten times a second: pages that they share count twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import click
import numpy as np

import rewriter
from benchmarks.subjects import WHOLE, Files
from benchmarks.table import show
from zoo import minilm
from zoo.recordings import SENTENCES

MODELS = ("resnet50", "minilm_128")
THREADS = 2


def measure(tokens: dict[str, Any]) -> dict[str, float]:
    """Seconds by step. ``torch's export`` is the time inside ``torch.export`` and ``torch.onnx`` while the model is read."""
    import torch

    module = minilm.with_lora()
    spent = 0.0

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent += time.perf_counter() - started

        return call

    kept = torch.export.export, torch.onnx.export
    torch.export.export, torch.onnx.export = timed(kept[0]), timed(kept[1])
    try:
        started = time.perf_counter()
        compiled = rewriter.compile(module, tokens)
        total = time.perf_counter() - started
    finally:
        torch.export.export, torch.onnx.export = kept
    steps = {name: seconds for name, seconds in compiled.report.seconds.items() if name != "reading"}
    return {"torch's export": spent, "reading beside it": compiled.report.seconds["reading"] - spent, **steps, "all but the export": total - spent}


def compile_once(how: str, model: Path, inputs: Path) -> dict[str, Any]:
    """In this process, which is fresh: seconds from the file to the callable."""
    with np.load(inputs) as stored:
        feed = dict(stored)
    steps: dict[str, float] = {}
    started = time.perf_counter()
    if how == "backend":
        import backends

        backends.backend("tvm").build(model, threads=THREADS, example_inputs=list(feed.values()))
    else:
        steps = rewriter.compile(model, feed, backend="tvm", threads=THREADS).report.seconds
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "steps": steps}


def files_table(names: Sequence[str], cache: Path, times: int) -> list[list[str]]:
    """A row for each model and for each of the two ways."""
    rows = []
    for subject in (s for s in WHOLE if s.name in names):
        files = subject.files(cache)
        other = _other_weights(files.model)
        for how in ("backend", "compile"):
            with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
                database = Path(folder, "kernels.sqlite")
                cold = _run(how, files, files.model, database)
                fresh = _run(how, files, other, database)
                warm = min((_run(how, files, files.model, database) for _ in range(times)), key=lambda r: r["seconds"])
            steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in warm["steps"].items() if seconds >= 0.05)
            seconds = [f"{run['seconds']:.1f}" for run in (cold, fresh, warm)]
            rows.append([subject.name, how, *seconds, steps, f"{files.model.stat().st_size / 2**20:.0f}", f"{cold['mb']:.0f}"])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _run(how: str, files: Files, model: Path, database: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.compile_time", "--one", how, str(model), str(files.model.with_suffix(".npz"))]
    environment = {**os.environ, "REWRITER_DATABASE": str(database)}
    most = 0.0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, _together(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    return {**found, "mb": most}


def _together(pid: int) -> float:
    """Megabytes of a process and all below it."""
    import psutil

    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total / 2**20


def _other_weights(model: Path) -> Path:
    """The model with every large weight a trifle larger, beside it."""
    import onnx
    from onnx import numpy_helper

    target = model.with_name(f"{model.stem}.other.onnx")
    if not target.exists():
        proto = onnx.load(model)
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 4096:
                scaled = numpy_helper.to_array(tensor) * np.float32(1 + 2**-16)
                tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
        onnx.save(proto, target)
    return target


@click.command()
@click.argument("tables", nargs=-1, metavar="[module] [files]")
@click.option("--times", default=2, show_default=True, help="Repetitions; the tables have the least.")
@click.option("--model", "models", multiple=True, help=f"For files, instead of {', '.join(MODELS)}: a name of those that engines are compared on.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Keep the models' files here, and use those that are there.")
@click.option("--one", is_flag=True, hidden=True)
def main(tables: Sequence[str], times: int, models: Sequence[str], cache: Path | None, one: bool) -> None:
    """Seconds from a module or a file to the callable."""
    if one:
        how, model, inputs = tables
        print(json.dumps(compile_once(how, Path(model), Path(inputs))))
        return
    if not tables or "module" in tables:
        columns = {}
        for count in (2, len(SENTENCES)):
            runs = [measure(minilm.tokens(SENTENCES[:count], 32)) for _ in range(times)]
            columns[f"{count} sentences"] = {name: min(run[name] for run in runs) for name in runs[0]}
        steps = next(iter(columns.values()))
        rows = [[name, *(f"{column[name]:.2f}" for column in columns.values())] for name in steps]
        show("MiniLM with LoRA, from module to callable, by example inputs", ["seconds", *columns], rows)
    if not tables or "files" in tables:
        with nullcontext(cache) if cache else tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            rows = files_table(models or MODELS, Path(folder), times)
        head = ["model", "", "cold s", "other weights s", "warm s", "of it", "file MB", "MB"]
        show("ONNX files, for our own kernels: seconds, and resident memory when cold", head, rows)


if __name__ == "__main__":
    main()
