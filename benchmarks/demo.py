"""The main job: a trained sentence network that carries LoRA goes in, the plain network comes out."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import rewriter
from backends.measure import Candidate, compare
from zoo import minilm
from zoo.recordings import SENTENCES
from zoo.renamed import renamed

console = Console()


def main() -> None:
    """About a minute."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    console.print("[bold]MiniLM-L6[/] (trained weights) with LoRA r=8 on query, key, value and both dense layers of every block.\n")
    tokens = minilm.tokens(SENTENCES, 32)
    lora = minilm.with_lora()
    want = minilm_outputs(lora, tokens)
    with tempfile.TemporaryDirectory() as name, console.status("starting") as status:
        folder = Path(name)

        def run(label: str, model: Any, inputs: Any = None) -> rewriter.Optimized:
            result = rewriter.optimize(model, inputs, step=lambda step: status.update(f"{label}: {step}"))
            result.save(folder / f"{label}.onnx")
            return result

        status.update("exporting the network with LoRA to ONNX, all names replaced by t0, t1, ...")
        unmerged = renamed(onnx.load(minilm.export(lora, folder / "lora.onnx")))
        onnx.save(unmerged, folder / "unmerged.onnx")
        results = {
            "from PyTorch": run("from PyTorch", lora, tokens),
            "from renamed ONNX": run("from renamed ONNX", unmerged),
            "plain network": run("plain network", renamed(onnx.load(minilm.export(minilm.plain(), folder / "plain.onnx")))),
        }
        status.update("measuring latency in alternating rounds, a process each")
        files = {"with LoRA, unmerged": "unmerged", **{label: label for label in results}}
        candidates = {label: Candidate("onnxruntime", folder / f"{file}.onnx") for label, file in files.items()}
        times = compare(candidates, [np.asarray(t) for t in tokens.values()], rounds=10, threads=2, seconds=8)

    show_counts(results)
    console.print(f"\nOn {len(SENTENCES)} sentences, {results['from PyTorch'].report.after.macs / 1e9:.2f} G multiply-accumulates:")
    table = Table("", "median ms", "least ms", "largest difference from PyTorch with LoRA")
    for label, timing in times.items():
        result = results.get(label)
        error = "the adapter's effect" if label == "plain network" else f"{difference(result, tokens, want):.1e}" if result else ""
        table.add_row(label, f"{timing.median_ms:.1f}", f"{timing.min_ms:.1f}", error)
    console.print(table)


def show_counts(results: dict[str, rewriter.Optimized]) -> None:
    table = Table("operators", *(heading for label in results for heading in (label, "after")))
    summaries = [s for result in results.values() for s in (result.report.before, result.report.after)]
    for op in ("MatMul", "Gemm", "Add", "Mul", "Transpose", "Reshape", "Gelu", "LayerNormalization", "Softmax"):
        table.add_row(op, *(str(s.ops.get(op, 0)) for s in summaries))
    table.add_row("all nodes", *(str(s.nodes) for s in summaries))
    table.add_row("weight MB", *(f"{s.weight_bytes / 1e6:.1f}" for s in summaries))
    console.print(table)
    for label, result in results.items():
        laws = ", ".join(f"{r['rule']} x{r['count']}" for r in result.report.rewrites) or "none needed"
        console.print(f"{label}: {sum(result.report.seconds.values()):.1f} s; laws: {laws}")


def minilm_outputs(module: Any, tokens: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return module(**tokens).last_hidden_state.numpy()


def difference(result: rewriter.Optimized, tokens: dict[str, Any], want: Any) -> float:
    """On real tokens; what stands at padding is read by nobody."""
    from zoo import ort

    got = ort.run(result.model, ort.feed_of(result.model, tokens.values()))[0]
    return float(np.abs(got - want)[tokens["attention_mask"].numpy().astype(bool)].max())


if __name__ == "__main__":
    main()
