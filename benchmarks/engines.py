"""Whole models on every engine that a user would otherwise run: a process each, alternating rounds.

Rivals get the model as it is, an ONNX file of fixed shapes; PyTorch's engines get the program that it was exported from, or the torch
backend's module of the file where there is none. Ours get the same file. The ratio is the best rival's time over ours: above 1, ours
is faster.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import rewriter
from backends.measure import Candidate, Timing, compare
from benchmarks.subjects import GROWTH, INT8, STRUCTURED, WHOLE, Files, Subject
from benchmarks.table import show
from rewriter.errors import RewriterError
from zoo.packages import Missing

Engine = Callable[[Files], Candidate]


def _exported(**options: Any) -> Engine:
    """``options`` of ``benchmarks.exported.build``."""

    def candidate(files: Files) -> Candidate:
        if files.program is not None:
            return Candidate("exported", files.program, options=options, package="benchmarks")
        return Candidate("inductor" if options.get("compiled") else "torch", files.model)

    return candidate


RIVALS: dict[str, Engine] = {
    "ONNX Runtime": lambda files: Candidate("onnxruntime", files.model),
    "OpenVINO": lambda files: Candidate("openvino", files.model),
    "torch.compile": _exported(compiled=True),
    "PyTorch": _exported(),
}
OURS = {"TVM alone": "tvm", "auto: TVM and ONNX Runtime": "onnxruntime,tvm", "auto: all": "onnxruntime,tvm,openvino"}
"""By heading: the ``backend`` of ``rewriter.compile``."""


@dataclass(frozen=True)
class Row:
    """``chosen``: by heading of ours, the backend that runs; ``failures``: of those that could not be compiled."""

    name: str
    times: dict[str, Timing]
    chosen: dict[str, str]

    def best(self, key: str) -> float:
        """Of the rivals, in ms; ``key``: ``median_ms`` or ``min_ms``."""
        return min((getattr(t, key) for name, t in self.times.items() if name in RIVALS), default=math.inf)

    def ratio(self, name: str, key: str) -> float:
        """Not a number where ours did not run."""
        return math.nan if self.times[name].failure is not None else self.best(key) / getattr(self.times[name], key)

    def cells(self) -> list[str]:
        shown = [_cell(t) + (f" ({self.chosen[n]})" if n in self.chosen else "") for n, t in self.times.items()]
        return [self.name, *shown, *(_times(self.ratio(n, key)) for n in self.times if n in OURS for key in ("median_ms", "min_ms"))]


def measure(subject: Subject, cache: Path, engines: Sequence[str], rounds: int, seconds: float, threads: int) -> Row:
    """``seconds``: of timed calls, by engine."""
    files = subject.files(cache)
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        candidates = {name: RIVALS[name](files) for name in engines if name in RIVALS}
        chosen, failures = {}, {}
        for name in (n for n in engines if n in OURS):
            try:
                candidates[name] = _ours(OURS[name], files, Path(folder, name), threads)
                chosen[name] = candidates[name].backend
            except RewriterError as failure:
                failures[name] = Timing(math.inf, math.inf, 0, str(failure))
        times = compare(candidates, list(files.feed.values()), rounds=rounds, threads=threads, seconds=seconds * len(candidates), timeout=300)
    for name, timing in {**times, **failures}.items():
        if timing.failure is not None:
            print(f"{subject.name}, {name}: {timing.failure}", file=sys.stderr, flush=True)
    return Row(subject.name, {name: {**times, **failures}[name] for name in engines}, chosen)


def _ours(backend: str, files: Files, folder: Path, threads: int) -> Candidate:
    compiled = rewriter.compile(files.model, files.feed, backend=backend, threads=threads)
    compiled.save(folder)
    return Candidate(compiled.backend, saved=folder)


def rows_of(rows: Sequence[Row], engines: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the table, the geometric means of the ratios last."""
    ours = [name for name in engines if name in OURS]
    head = ["median (min) ms", *engines, *(f"{kind}, {name}" for name in ours for kind in ("ratio", "of minima"))]
    means = [_times(_geometric([row.ratio(name, key) for row in rows])) for name in ours for key in ("median_ms", "min_ms")]
    return head, [*(row.cells() for row in rows), *([["geometric mean", *([""] * len(engines)), *means]] if ours else [])]


def _cell(timing: Timing) -> str:
    return "-" if timing.failure is not None else f"{timing.median_ms:.3g} ({timing.min_ms:.3g})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if math.isfinite(ratio) else "-"


def _geometric(ratios: Sequence[float]) -> float:
    known = [math.log(r) for r in ratios if math.isfinite(r) and r > 0]
    return math.exp(sum(known) / len(known)) if known else math.inf


def _versions() -> dict[str, str]:
    found = {}
    for name in ("onnxruntime", "openvino", "torch", "apache-tvm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor() -> str:
    """Its name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _record(rows: Sequence[Row], threads: int) -> dict[str, Any]:
    results = [{"model": r.name, "chosen": r.chosen, "times": {n: _plain(asdict(t)) for n, t in r.times.items()}} for r in rows]
    return {"processor": processor(), "threads": threads, "versions": _versions(), "models": results}


def _plain(timing: Mapping[str, Any]) -> dict[str, Any]:
    """Infinite times as null: JSON has none."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in timing.items()}


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option("--quick", is_flag=True, help="A tenth of the time: to see that it runs.")
@click.option("--structured", is_flag=True, help="Models that carry adapters and branches of training.")
@click.option("--int8", is_flag=True, help="Models in 8 bits (QDQ), and with weights alone in 8 and 4.")
@click.option("--growth", is_flag=True, help="By batch, sequence length and image size.")
@click.option("--only", metavar="ENGINE,...", help=f"Some of the engines: {', '.join((*RIVALS, *OURS))} (or 'rivals', 'ours').")
@click.option("--threads", default=2, show_default=True, help="Of every engine.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Keep the models' files here, and use those that are there.")
@click.option("--json", "record", type=click.Path(dir_okay=False, path_type=Path), help="Write the results to this file, too.")
def main(
    names: Sequence[str], quick: bool, structured: bool, int8: bool, growth: bool, only: str | None, threads: int, cache: Path | None,
    record: Path | None,
) -> None:
    """Time the models whose names contain one of MODEL; all without."""
    subjects = STRUCTURED if structured else INT8 if int8 else GROWTH if growth else WHOLE
    engines = _engines(only)
    rows: list[Row] = []
    with nullcontext(cache) if cache else tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for subject in subjects:
            if names and not any(n.lower() in subject.name for n in names):
                continue
            try:
                rows.append(measure(subject, Path(folder), engines, *((3, 0.2) if quick else (10, 2.0)), threads))
            except Missing as missing:
                print(f"{subject.name}: {missing}", file=sys.stderr)
                continue
            print(" | ".join(rows[-1].cells()), file=sys.stderr, flush=True)
            if record is not None:
                record.write_text(json.dumps(_record(rows, threads), indent=1))
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    show(f"{threads} threads, {processor()}; {versions}", *rows_of(rows, engines))


def _engines(only: str | None) -> list[str]:
    every = [*RIVALS, *OURS]
    if importlib.util.find_spec("openvino") is None:
        every.remove("OpenVINO")
    groups = {"rivals": list(RIVALS), "ours": list(OURS)}
    wanted = every if only is None else [e for name in only.split(",") for e in groups.get(name.strip(), [name.strip()])]
    unknown = [name for name in wanted if name not in (*RIVALS, *OURS)]
    if unknown:
        raise click.BadParameter(f"no engine {unknown[0]!r}; there are {', '.join((*RIVALS, *OURS))}")
    return [name for name in every if name in wanted]


if __name__ == "__main__":
    main()
