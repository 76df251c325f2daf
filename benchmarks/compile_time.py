"""From ``rewriter.compile(module, inputs)`` to the callable, for MiniLM with LoRA; PyTorch's own export is measured apart."""

from __future__ import annotations

import time
from typing import Any

import click

import rewriter
from benchmarks.table import show
from zoo import minilm
from zoo.recordings import SENTENCES


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


@click.command()
@click.option("--times", default=2, show_default=True, help="Repetitions; the table has the least.")
def main(times: int) -> None:
    """Seconds from module to callable."""
    columns = {}
    for count in (2, len(SENTENCES)):
        runs = [measure(minilm.tokens(SENTENCES[:count], 32)) for _ in range(times)]
        columns[f"{count} sentences"] = {name: min(run[name] for run in runs) for name in runs[0]}
    steps = next(iter(columns.values()))
    rows = [[name, *(f"{column[name]:.2f}" for column in columns.values())] for name in steps]
    show("MiniLM with LoRA, from module to callable, by example inputs", ["seconds", *columns], rows)


if __name__ == "__main__":
    main()
