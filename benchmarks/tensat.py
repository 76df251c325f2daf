"""TENSAT's seven networks: how long the search takes, and what it gains when both graphs run on ONNX Runtime.

TENSAT's own figures (Yang et al., MLSys 2021) stand beside. They are the gain of a sum of kernels' times on a GPU, over a graph in which
nothing is fused; here whole graphs are timed, and ONNX Runtime fuses activations into convolutions in the original too. Gains are
``before / after - 1``. The search is everything between the normalised graph and the chosen one; its process is started before, as the
pipeline does while it reads.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from backends.measure import Candidate, Comparison
from benchmarks.table import show
from benchmarks.tensat_models import MODELS


@dataclass(frozen=True)
class Published:
    """TENSAT's and TASO's search in seconds, and their gains in percent."""

    seconds: float
    gain: float
    taso_seconds: float
    taso_gain: float


PUBLISHED = {
    "BERT": Published(1.4, 9.2, 13.6, 8.5),
    "ResNeXt-50": Published(0.7, 8.8, 25.3, 5.5),
    "NasNet-A": Published(10.6, 7.3, 1226, 1.9),
    "NasRNN": Published(0.5, 68.9, 177.3, 45.4),
    "Inception-v3": Published(5.1, 10.0, 68.6, 6.3),
    "SqueezeNet": Published(0.3, 24.5, 16.4, 6.7),
    "VGG-19": Published(0.4, 8.9, 8.9, 8.9),
}
FUSING = "what is gained on a GPU is starting fewer kernels and fusing ReLU into convolutions: the original is fused here too"
LOWER = {
    "BERT": "",
    "ResNeXt-50": FUSING,
    "NasNet-A": f"{FUSING}; convolutions of one input that are merged must be split again, which costs a copy",
    "NasRNN": "a product of one row takes as long as its matrix takes to be read: 84 MB, of which the first step's can be folded",
    "Inception-v3": f"{FUSING}; convolutions of one input that are merged must be split again, which costs a copy",
    "SqueezeNet": "TENSAT widens 1x1 kernels to 3x3 to merge them, nine times the arithmetic: free on an idle GPU, not on a CPU",
    "VGG-19": FUSING,
}
"""Why a gain is below TENSAT's, where it is."""
LOADS, ROUNDS = 5, 4
ORDERS = (("original", "optimised"), ("optimised", "original"))


def search(name: str) -> dict[str, float]:
    """Seconds of encode + saturate + extract, and of merging maps, of one network."""
    from passes import normalise
    from passes.saturate import saturate
    from passes.share_weights import share_weights
    from rewriter.egraph import Saturator
    from rewriter.infer_onnx import infer
    from rules import ALL

    model = MODELS[name]()
    with Saturator() as saturator:
        plain = normalise(model)
        share_weights(plain)
        infer(plain)
        time.sleep(1.5)  # the child's imports
        started = time.perf_counter()
        _, found = saturate(plain.graph, ALL, saturator)
        return {"seconds": time.perf_counter() - started, "e-nodes": found.nodes}


def measure(name: str, seconds: float) -> dict[str, Any]:
    """The network before and after on ONNX Runtime: nodes, multiply-accumulates, milliseconds (medians), ratio."""
    import rewriter
    from rewriter.write_onnx import write_onnx

    model = MODELS[name]()
    random = np.random.default_rng(1)
    inputs = [random.normal(size=v.shape.numpy()).astype(np.float32) for v in model.graph.inputs]  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        write_onnx(model, before)
        result = rewriter.optimize(before)
        result.save(after)
        report = result.report
        if not report.verification.passed:
            raise SystemExit(f"{name}: {report.verification}")
        candidates = {"original": Candidate("onnxruntime", before), "optimised": Candidate("onnxruntime", after)}
        times: list[tuple[float, float]] = []
        for load in range(LOADS):
            with Comparison({label: candidates[label] for label in ORDERS[load % 2]}, threads=2) as comparison:
                both = comparison.run(inputs, rounds=ROUNDS, seconds=seconds / LOADS)
                times.append((both["original"].median_ms, both["optimised"].median_ms))
    ratio = statistics.median(b / a for b, a in times)
    if not math.isfinite(ratio):
        raise SystemExit(f"{name}: did not run")
    least = [min(t[i] for t in times) for i in (0, 1)]
    return {
        "nodes": report.before.nodes, "after": report.after.nodes, "macs": report.before.macs, "macs after": report.after.macs,
        "before ms": least[0], "after ms": least[1], "gain": 100 * (ratio - 1), "rules": [r["rule"] for r in report.rewrites],
    }  # fmt: skip


@click.command()
@click.argument("names", nargs=-1)
@click.option("--one", help="Search this network and print JSON (what the table is made of).")
@click.option("--seconds", default=8.0, show_default=True, help="Seconds of timed calls a network.")
@click.option("--searches-only", is_flag=True, help="Time no network, only searches.")
def main(names: Sequence[str], one: str | None, seconds: float, searches_only: bool) -> None:
    """The networks whose names contain one of NAMES; all without."""
    if one is not None:
        print(json.dumps(search(one)))
        return
    rows, notes = [], []
    for name, published in PUBLISHED.items():
        if names and not any(n.lower() in name.lower() for n in names):
            continue
        took = min(_child(name)["seconds"] for _ in range(2))
        cells = [name, f"{took:.2f}", f"{published.seconds:g}", f"{published.taso_seconds:g}"]
        if not searches_only:
            m = measure(name, seconds)
            cells += [f"{m['nodes']} -> {m['after']}", f"{m['macs'] / 1e6:,.0f} -> {m['macs after'] / 1e6:,.0f}"]
            cells += [f"{m['before ms']:.2f}", f"{m['after ms']:.2f}", f"{m['gain']:+.1f}", f"+{published.gain:g}", f"+{published.taso_gain:g}"]
            if m["gain"] < published.gain:
                notes.append(f"{name}: {LOWER[name]}. Laws: {', '.join(m['rules']) or 'none'}")
        rows.append(cells)
        print(" ".join(cells), file=sys.stderr, flush=True)
    head = ["network", "search s", "TENSAT s", "TASO s", "nodes", "million MACs", "before ms", "after ms", "gain %", "TENSAT %", "TASO %"]
    show("TENSAT's networks on ONNX Runtime, 2 threads", head[:4] if searches_only else head, rows)
    if notes:
        print("\nWhere the gain is lower than TENSAT's:\n" + "\n".join(f"- {note}" for note in notes))


def _child(name: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.tensat", "--one", name], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
