"""MiniLM in fewer bits, against what others make of it: latency and weight bytes at the correlation with human judgement that is left.

Everybody gets the same network (with pooling; one text of 128 tokens at a time) and the same calibration texts. Latencies are of one comparison, a
process each, alternating rounds; correlations are Pearson's on Lee's documents and Spearman's on WordSim353, which nobody calibrates on.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

import rewriter
from backends.measure import Candidate, Timing, compare
from benchmarks.table import show
from rewriter.errors import RewriterError
from zoo import labelled
from zoo.onnx_models import Feed

Array = np.ndarray
TOKENS = 128
CALIBRATED = 96
"""Texts that scales are chosen and errors measured on."""
BUDGET = 3e-4
"""Of the correlation of similarities with the float network's, r: one with human judgement, h, moves by up to sqrt((1 - h²)(1 - r²)) and usually
by a third of that, which is meant to be at most 1 % of h."""
SMALL: dict[str, float] = {"metric": 0.002, "weight_bytes": 0.26}
"""8 bits for all weights, and scales; what all of them together lose."""


@dataclass(frozen=True)
class Contender:
    """``load``: what runs, for correlations; ``candidate``: the same, for timing; ``bytes``: of the weights."""

    candidate: Candidate
    load: Callable[[], Callable[[Feed], Array]]
    bytes: int


def module() -> Any:
    """Ids and mask [1, TOKENS] to a normalised embedding [1, 384]: mean over tokens, as the network was trained."""
    import torch

    from zoo import minilm

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = minilm.embedder(minilm.plain())

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.network(input_ids, attention_mask)
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1)
            return torch.nn.functional.normalize(pooled, dim=1)

    return Embedding().eval()


def feeds(texts: Sequence[str]) -> list[Feed]:
    from zoo import minilm

    made = {name: value.numpy() for name, value in minilm.tokens(texts, TOKENS).items()}
    return [{name: value[k : k + 1] for name, value in made.items()} for k in range(len(texts))]


def calibration() -> list[Feed]:
    """News, in pieces of one to six sentences: texts of all lengths."""
    sentences, random = labelled.news(), np.random.default_rng(0)
    texts: list[str] = []
    place = 0
    while len(texts) < CALIBRATED:
        count = int(random.integers(1, 7))
        texts.append(". ".join(sentences[place : place + count]))
        place += count
    return feeds(texts)


def correlation_lost(outputs: Any, reference: Any) -> float:
    """1 - Pearson's correlation of all similarities between embeddings [n, d] with those of the reference."""
    above = np.triu_indices(len(outputs), 1)
    return float(1 - np.corrcoef((outputs @ outputs.T)[above], (reference @ reference.T)[above])[0, 1])


def judged(run: Callable[[Feed], Array]) -> tuple[float, float]:
    """(Pearson on Lee's documents, Spearman on WordSim353)."""
    documents, human = labelled.lee()
    embedded = np.concatenate([run(feed) for feed in feeds(documents)])
    above = np.triu_indices(len(documents), 1)
    pairs, scores = labelled.wordsim()
    words = {w: k for k, w in enumerate(dict.fromkeys(w for pair in pairs for w in pair))}
    vectors = np.concatenate([run(feed) for feed in feeds(list(words))])
    similar = np.array([vectors[words[a]] @ vectors[words[b]] for a, b in pairs])
    lee = float(np.corrcoef((embedded @ embedded.T)[above], human[above])[0, 1])
    return lee, float(np.corrcoef(_ranks(similar), _ranks(scores))[0, 1])


def _ranks(values: Array) -> Array:
    """Equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places])


# Contenders


def on_onnxruntime(path: Path) -> Contender:
    def load() -> Callable[[Feed], Array]:
        from backends import onnxruntime

        program = onnxruntime.build(path)
        return lambda feed: np.asarray(program(*feed.values())[0])

    return Contender(Candidate("onnxruntime", path), load, _weight_bytes(path))


def dynamic(plain: Path, folder: Path) -> Contender:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped, unused-ignore]

    target = folder / "dynamic.onnx"
    quantize_dynamic(str(_prepared(plain, folder)), str(target), per_channel=True, weight_type=QuantType.QInt8)
    return on_onnxruntime(target)


def static(plain: Path, folder: Path, *, percentile: bool = False) -> Contender:
    from onnxruntime.quantization import (  # type: ignore[import-untyped, unused-ignore]
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(calibration()[:64])

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    target = folder / f"static{percentile}.onnx"
    method = CalibrationMethod.Percentile if percentile else CalibrationMethod.MinMax
    quantize_static(
        str(_prepared(plain, folder)), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, calibrate_method=method,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return on_onnxruntime(target)


def _prepared(plain: Path, folder: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped, unused-ignore]

    target = folder / "prepared.onnx"
    if not target.exists():
        quant_pre_process(str(plain), str(target), skip_symbolic_shape=True)
    return target


def openvino_plain(plain: Path, folder: Path) -> Contender:
    return _on_openvino(plain)


def openvino_nncf(plain: Path, folder: Path) -> Contender:
    """NNCF's post-training quantisation for transformers, with its own defaults."""
    import nncf

    model = nncf.quantize(onnx.load(plain), nncf.Dataset(calibration()), model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATED)
    target = folder / "nncf.onnx"
    onnx.save(model, target)
    return _on_openvino(target)


def _on_openvino(path: Path) -> Contender:
    def load() -> Callable[[Feed], Array]:
        from backends import openvino

        program = openvino.build(path)
        return lambda feed: np.asarray(program(*feed.values())[0])

    return Contender(Candidate("openvino", path), load, _weight_bytes(path))


def ours(plain: Path, folder: Path, backend: str, **options: Any) -> Contender:
    compiled = rewriter.compile(plain, calibration()[0], backend=backend, **options)
    for note in compiled.report.notes:
        print(f"rewriter, {backend}: {note}", file=sys.stderr)
    saved = Path(tempfile.mkdtemp(dir=folder), "model")
    compiled.save(saved)
    return Contender(Candidate(compiled.backend, saved=saved), lambda: lambda feed: np.asarray(compiled(feed)), compiled.report.after.weight_bytes)


APPROXIMATE: dict[str, Any] = {"budget": BUDGET, "metric": correlation_lost}
CONTENDERS: dict[str, Callable[[Path, Path], Contender]] = {
    "ONNX Runtime, float": lambda plain, _: on_onnxruntime(plain),
    "ONNX Runtime, dynamic int8": dynamic,
    "ONNX Runtime, static int8": static,
    "OpenVINO, float": openvino_plain,
    "OpenVINO, NNCF int8": openvino_nncf,
    "ours, exact": lambda plain, folder: ours(plain, folder, "onnxruntime,tvm"),
    "ours within 1 %, ONNX Runtime": lambda plain, folder: ours(plain, folder, "onnxruntime", calibration=calibration(), **APPROXIMATE),
    "ours within 1 %": lambda plain, folder: ours(plain, folder, "onnxruntime,tvm", calibration=calibration(), **APPROXIMATE),
    "ours, a quarter of the bytes": lambda plain, folder: ours(
        plain, folder, "onnxruntime,tvm", calibration=calibration(), **APPROXIMATE | {"budget": SMALL}
    ),
}
HEAD = ("", "median ms", "min ms", "weight MB", "Lee", "WordSim", "worst drop")


def row(name: str, timing: Timing, stored: int, scores: tuple[float, float], base: tuple[float, float]) -> list[str]:
    drop = max(1 - s / b for s, b in zip(scores, base, strict=True))
    return [name, f"{timing.median_ms:.2f}", f"{timing.min_ms:.2f}", f"{stored / 1e6:.1f}", *(f"{s:.4f}" for s in scores), f"{drop:.2%}"]


def _weight_bytes(path: Path) -> int:
    from rewriter.graph import weight_bytes
    from rewriter.read_onnx import read_onnx

    return weight_bytes(read_onnx(path)) if path.suffix == ".onnx" else path.stat().st_size


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", default=8, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of timed calls, each.")
def main(names: Sequence[str], rounds: int, seconds: float) -> None:
    """Compare the contenders whose names contain one of NAMES; all without."""
    import torch

    with tempfile.TemporaryDirectory(prefix="rewriter-") as temporary:
        folder = Path(temporary)
        plain = folder / "plain.onnx"
        example = feeds(["A sentence for the tracer."])[0]
        torch.onnx.export(
            module(), tuple(torch.from_numpy(a) for a in example.values()), str(plain), dynamo=True, opset_version=20, input_names=list(example),
            external_data=False, verbose=False,
        )  # fmt: skip
        found: dict[str, Contender] = {}
        for name, make in CONTENDERS.items():
            if names and not any(n.lower() in name.lower() for n in names):
                continue
            if "NNCF" in name and importlib.util.find_spec("nncf") is None:
                print(f"{name}: nncf is not installed", file=sys.stderr)
                continue
            try:
                found[name] = make(plain, folder)
            except (RewriterError, RuntimeError, ValueError, onnx.checker.ValidationError) as failure:
                print(f"{name}: {failure}", file=sys.stderr)
        scores = {name: judged(c.load()) for name, c in found.items()}
        base = scores.get("ONNX Runtime, float") or judged(on_onnxruntime(plain).load())
        inputs = list(calibration()[3].values())
        times = compare({n: c.candidate for n, c in found.items()}, inputs, rounds=rounds, seconds=seconds * len(found), timeout=300)
    rows = [row(name, times[name], c.bytes, scores[name], base) for name, c in found.items() if math.isfinite(times[name].median_ms)]
    show(f"MiniLM-L6, one text of {TOKENS} tokens", HEAD, rows)


if __name__ == "__main__":
    main()
