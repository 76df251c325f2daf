"""Approximate compiles of trained networks on real data: accuracy on inputs that nobody calibrated on, time against the exact-optimised graph.

Both graphs are compiled for the same engines; times are of one comparison, a process each, alternating rounds. Where there are labels the accuracy is
against them; else the answers of the float network are the labels, which counts every changed answer as lost.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import rewriter
from backends.measure import Candidate, compare
from benchmarks.table import show
from rewriter.front import HEAD as FRONT_HEAD
from rewriter.front import rows as front_rows
from rewriter.front import write_plot
from zoo import labelled, onnx_models
from zoo.onnx_models import Feed
from zoo.packages import Missing
from zoo.recordings import Array

BUDGET = 0.005
ENGINES = "onnxruntime,tvm"
Metric = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Task:
    """``data``: feeds and their labels (None: the float network's answers), half for calibration and half for the test unless there is a ``test``.
    ``score``: of outputs and labels, larger is better. ``answers``: what of the outputs is compared where there are no labels. ``carried``: the
    input that takes the second output of the feed before, if it is not zeros."""

    model: Path
    data: list[tuple[Feed, Array | None]]
    score: Metric
    answers: Callable[[list[Array]], Array]
    test: list[tuple[Feed, Array | None]] | None = None
    carried: str = ""


def agreement(outputs: Any, labels: Any) -> float:
    """The part of samples whose largest output is the label."""
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    return float(np.mean(np.asarray(first).argmax(-1) == np.asarray(labels)))


def _largest(outputs: list[Array]) -> Array:
    return np.asarray(outputs[0].argmax(-1))


LONGEST = 24
"""Characters of a line, with zeros behind them."""


def reader(folder: Path) -> Task:
    """PP-OCR rec on rendered lines: the part of all characters that are read right, 1 - (edit distance) / (their number)."""
    import onnx

    file = onnx_models.OCR[1].file()
    properties = onnx.load(file, load_external_data=False).metadata_props
    alphabet = ["", *next(p.value for p in properties if p.key == "character").split("\n"), " "]
    codes = {character: code for code, character in enumerate(alphabet)}

    def written(text: str) -> Array:
        return np.array([[codes[c] for c in text] + [0] * (LONGEST - len(text))])

    def characters(outputs: Any, labels: Any) -> float:
        texts = [t[t != 0] for t in np.asarray(labels)]
        wrong = sum(_distance(_read(o), t) for o, t in zip(np.asarray(outputs), texts, strict=True))
        return 1 - wrong / sum(map(len, texts))

    texts = [text for text in labelled.phrases(800) if all(c in codes for c in text)]
    return Task(file, [({"x": labelled.rendered(text, k)}, written(text)) for k, text in enumerate(texts)], characters, _largest)


def _read(scores: Array) -> Array:
    """Repetitions and blanks (0) go, as CTC decodes."""
    places = scores.argmax(-1)
    changes = np.concatenate([[True], places[1:] != places[:-1]])
    return np.asarray(places[changes & (places != 0)])


def _distance(a: Array, b: Array) -> int:
    """Insertions, deletions and replacements between two sequences (Levenshtein), a row at a time."""
    row = np.arange(len(b) + 1)
    for k, x in enumerate(a):
        last, row = row, np.empty_like(row)
        row[0] = k + 1
        for n, y in enumerate(b):
            row[n + 1] = min(last[n + 1] + 1, row[n] + 1, last[n] + (x != y))
    return int(row[-1])


def turned(folder: Path) -> Task:
    """PP-OCR cls on rendered lines, half of them upside down."""
    texts = labelled.phrases(5000)
    data: list[tuple[Feed, Array | None]] = [
        ({"x": labelled.rendered(text, k, 48, 192, turned=k % 2 == 1)}, np.array([k % 2])) for k, text in enumerate(texts)
    ]
    return Task(onnx_models.OCR[2].file(), data, agreement, _largest)


def magika(folder: Path) -> Task:
    """Files, labelled by their names: several answers may agree with one, and few names are wrong."""

    def agree(outputs: Any, labels: Any) -> float:
        chosen = np.asarray(outputs).argmax(-1)
        return float(np.mean(np.asarray(labels)[np.arange(len(chosen)), chosen]))

    data: list[tuple[Feed, Array | None]] = [({"bytes": array}, label) for array, label in labelled.files(5000)]
    return Task(onnx_models.MAGIKA.file(), data, agree, _largest)


def speech(folder: Path) -> Task:
    """Silero as it hears a stream: each window with the state that the float network has come to; speech or none. In the test every network
    carries its own state through recordings that nobody calibrated on."""
    heard = rewriter.compile(onnx_models.SILERO[5].file(), _silero(np.zeros((1, 576), np.float32), None), backend="onnxruntime")
    parts: tuple[list[tuple[Feed, Array | None]], ...] = [], []
    for number, windows in enumerate(labelled.streams()):
        state: Array | None = None
        for window in windows:
            feed = _silero(window, state)
            said, state = _outputs(heard, feed)
            parts[number // 4 % 2].append((feed, _spoken([said])))

    def decided(outputs: Any, labels: Any) -> float:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return float(np.mean((np.asarray(first).reshape(-1) > 0.5) == np.asarray(labels).reshape(-1)))

    return Task(onnx_models.SILERO[5].file(), parts[0], decided, _spoken, parts[1], carried="state")


def _silero(window: Array, state: Array | None) -> Feed:
    return {"input": window, "state": np.zeros((2, 1, 128), np.float32) if state is None else state}


def _spoken(outputs: list[Array]) -> Array:
    return np.asarray(outputs[0].reshape(-1) > 0.5)


def _digits(name: str) -> Callable[[Path], Task]:
    def task(folder: Path) -> Task:
        import torch

        from zoo import digits

        module = getattr(digits, name)()
        path = folder / f"{name}.onnx"
        example = torch.zeros(1, 1, 28, 28)
        torch.onnx.export(module, (example,), str(path), dynamo=True, opset_version=20, input_names=["x"], external_data=False, verbose=False)
        parts = digits.split()
        sets = [[({"x": x[None]}, y[None]) for x, y in zip(*part, strict=True)] for part in (parts["calibration"], parts["test"])]
        return Task(path, sets[0], agreement, _largest, sets[1])

    return task


TASKS: dict[str, Callable[[Path], Task]] = {
    "PP-OCR rec": reader, "PP-OCR cls": turned, "magika": magika, "silero": speech, "CNN, digits": _digits("cnn"), "ViT, digits": _digits("vit"),
    "ViT with experts, digits": _digits("vit_with_experts"),
}  # fmt: skip
HEAD = ("", "exact ms", "approximate ms", "ratio", "of minima", "weight bytes", "after", "accuracy", "after", "drop", "engine", "chosen", "s")


def measure(name: str, make: Callable[[Path], Task], budget: float, engines: str, seconds: float, fronts: Path | None) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="rewriter-") as temporary:
        folder = Path(temporary)
        task = make(folder)
        exact = rewriter.compile(task.model, task.data[0][0], backend=engines)
        calibration, test = with_labels(task, exact)
        approximate = rewriter.compile(
            task.model, task.data[0][0], backend=engines, budget=budget, metric=task.score,
            calibration=[feed | {"targets": y} for feed, y in calibration],
        )  # fmt: skip
        candidates = {}
        for label, compiled in (("exact", exact), ("approximate", approximate)):
            compiled.save(folder / label)
            candidates[label] = Candidate(compiled.backend, saved=folder / label)
        times = compare(candidates, list(test[0][0].values()), rounds=40, seconds=seconds, timeout=300)
        accuracies = [accuracy(task, compiled, test) for compiled in (exact, approximate)]
    report = approximate.report
    _say(name, report.budget or {}, report.notes, fronts)
    ratios = [getattr(times["exact"], key) / getattr(times["approximate"], key) for key in ("median_ms", "min_ms")]
    chosen = ", ".join(f"{r['count']} {r['rule']}" for r in report.rewrites if r["equality"] == "approximate") or "none"
    return [
        name, f"{times['exact'].median_ms:.3g}", f"{times['approximate'].median_ms:.3g}", *(f"{r:.2f}" for r in ratios),
        f"{exact.report.after.weight_bytes:,}", f"{report.after.weight_bytes:,}", *(f"{a:.4f}" for a in accuracies),
        f"{accuracies[0] - accuracies[1]:+.2%}", approximate.backend, chosen, f"{sum(report.seconds.values()):.0f}",
    ]  # fmt: skip


def with_labels(task: Task, exact: rewriter.Compiled) -> tuple[list[tuple[Feed, Array]], list[tuple[Feed, Array]]]:
    """For calibration, and for the test."""

    def known(data: Sequence[tuple[Feed, Array | None]]) -> list[tuple[Feed, Array]]:
        return [(feed, task.answers(_outputs(exact, feed)) if label is None else label) for feed, label in data]

    if task.test is not None:
        return known(task.data), known(task.test)
    half = len(task.data) // 2
    return known(task.data[:half]), known(task.data[half:])


def _outputs(compiled: rewriter.Compiled, feed: Feed) -> list[Array]:
    result = compiled(feed)
    return [np.asarray(r) for r in (result if isinstance(result, (tuple, list)) else [result])]


def accuracy(task: Task, compiled: rewriter.Compiled, test: Sequence[tuple[Feed, Array]]) -> float:
    outputs: list[list[Array]] = []
    for feed, _ in test:
        goes_on = task.carried and outputs and np.any(feed[task.carried])
        outputs.append(_outputs(compiled, {**feed, task.carried: outputs[-1][1]} if goes_on else feed))
    return task.score(np.concatenate([o[0] for o in outputs]), np.concatenate([y for _, y in test]))


def _say(name: str, section: dict[str, Any], notes: Sequence[str], fronts: Path | None) -> None:
    for note in notes:
        print(f"{name}: {note}", file=sys.stderr, flush=True)
    if section.get("front"):
        said = f"{name}: the front (correlation of predicted and measured errors: {section.get('correlation')})"
        show(said, FRONT_HEAD, front_rows(section["front"]))
        if fronts is not None:
            write_plot(section["front"], fronts / f"{name.replace(' ', '_').replace(',', '')}.svg")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--budget", default=BUDGET, show_default=True, help="Of the accuracy.")
@click.option("--backend", default=ENGINES, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Of timed calls.")
@click.option("--fronts", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Folder for pictures of the fronts.")
def main(names: Sequence[str], budget: float, backend: str, seconds: float, fronts: Path | None) -> None:
    """The tasks whose names contain one of NAMES; all without."""
    rows = []
    for name, make in TASKS.items():
        if names and not any(n.lower() in name.lower() for n in names):
            continue
        try:
            rows.append(measure(name, make, budget, backend, seconds, fronts))
        except Missing as missing:
            print(f"{name}: {missing}", file=sys.stderr)
            continue
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    ratios = [math.log(float(row[3])) for row in rows if "experts" not in row[0]]  # whose training structure goes, too
    mean = [f"{math.exp(sum(ratios) / len(ratios)):.2f}"] if ratios else []
    show(f"Approximate against exact, at most {budget:.2%} of accuracy", HEAD, [*rows, ["geometric mean", "", "", *mean, *[""] * 9]])


if __name__ == "__main__":
    main()
