"""What is left of a quantiser's scales in ready-made QDQ models, and that no code changes.

Three networks are quantised by ONNX Runtime's static quantiser, every operator that it knows (which is where its pairs meet): PP-OCR's
recogniser, MiniLM and ResNet-18. Each is optimised, and both graphs run on ONNX Runtime as they are written (without its own graph
optimisations, which reassociate floats): the outputs must have the same bits, and with them every code that they rest on.

What is left is counted by why it cannot go:

- *rounds*: a QuantizeLinear whose input is no set of codes with the same scale: it makes codes of numbers, which is no equality;
- *stored*: a DequantizeLinear of a stored weight: the weight is kept in 8 bits, and an integer kernel takes it so;
- *numbers*: a DequantizeLinear of codes that were computed, for an operator on numbers (or for a kernel that takes both as one);
- *identities*: a pair that is the identity on codes, perhaps around a move: what algebra can remove. There must be none.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]

import rewriter
from benchmarks.quantised import crops, noisy, quantised
from benchmarks.subjects import PP_OCR, Subject, from_onnx, from_torch, image, minilm
from benchmarks.table import show
from passes.fold_quantisation import fold_quantisation
from rewriter.edit import is_op, tensor
from zoo.packages import Missing

SUBJECTS = (
    Subject("resnet18", quantised(from_torch(image("resnet18", size=64)), noisy, None)),
    Subject("ppocr_rec", quantised(from_onnx(PP_OCR["ppocr_rec"]), crops, None)),
    Subject("minilm_32", quantised(from_torch(minilm(32)), noisy, None)),
)
COUNTED = ["model", "nodes", "after", "Quantize", "after", "Dequantize", "after", "Mul, Div", "after"]
REASONS = ["rounds", "stored", "numbers", "identities"]


def left(model: ir.Model) -> Counter[str]:
    """The quantisers of a graph by why they are there."""
    found: Counter[str] = Counter()
    for node in model.graph:
        if is_op(node, "QuantizeLinear"):
            found["rounds"] += 1
        elif is_op(node, "DequantizeLinear"):
            found["stored" if tensor(node.inputs[0]) is not None else "numbers"] += 1
    found["identities"] = fold_quantisation(model.clone()).count
    return found


def same_bits(before: Path, after: Path, feed: dict[str, np.ndarray]) -> bool:
    """Of all outputs, with every operator run as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    results = [ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed) for path in (before, after)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*results, strict=True))


def measure(subject: Subject, folder: Path) -> list[str]:
    """One row of the table."""
    files = subject.files(folder)
    result = rewriter.optimize(files.model)
    saved = folder / f"{subject.name}.after.onnx"
    result.save(saved)
    before, after = result.report.before, result.report.after
    kinds = (("QuantizeLinear",), ("DequantizeLinear",), ("Mul", "Div"))
    counts = [str(sum(summary.ops.get(op, 0) for op in each)) for each in kinds for summary in (before, after)]
    why = left(result.ir_model)
    reasons = [str(why[reason]) for reason in REASONS]
    equal = same_bits(files.model, saved, files.feed)
    return [subject.name, str(before.nodes), str(after.nodes), *counts, *reasons, "equal" if equal else "DIFFER"]


@click.command()
@click.argument("names", nargs=-1)
def main(names: Sequence[str]) -> None:
    """The models whose names contain one of NAMES; all without. Exit status 1 if a code changed or a pair was left."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        for subject in SUBJECTS:
            if names and not any(n in subject.name for n in names):
                continue
            try:
                rows.append(measure(subject, Path(folder)))
            except Missing as missing:
                print(f"{subject.name}: {missing}", file=sys.stderr)
    show("QDQ models: quantisers before and after, and why the rest is there", [*COUNTED, *REASONS, "bits"], rows)
    if any(row[-1] != "equal" or row[-2] != "0" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
