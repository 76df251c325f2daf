"""Resident memory of a process that runs one model: ours from an artefact, ONNX Runtime from the file that we were given.

    python -m benchmarks.memory [MODEL]...

Each is a fresh process that loads the model, runs it some times, and reports what its resident size grew by since the imports, in MB,
at the end and at its largest. "all weights" are the file's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.subjects import INT8, WHOLE, Files
from benchmarks.table import show
from zoo.packages import Missing

THREADS, RUNS = 2, 5


def measure(how: str, model: Path, inputs: Path) -> list[float]:
    """In this process, which is fresh: megabytes more than before the model was loaded, now and at most."""
    with np.load(inputs) as stored:
        feed = dict(stored)
    if how == "onnxruntime":
        from backends import onnxruntime

        before = resident()
        program: Any = onnxruntime.build(model, threads=THREADS)
    else:
        import rewriter

        _runtime()
        before = resident()
        program = rewriter.load(model, threads=THREADS)
    for _ in range(RUNS):
        program(*feed.values())
    return [resident() - before, resident("VmHWM") - before]


def _runtime() -> None:
    """Import what runs artefacts: it is no part of a model's memory."""
    import onnx_ir  # noqa: F401

    from backends import onnxruntime  # noqa: F401
    from backends.tvm.runtime import ffi

    ffi(THREADS)


def resident(what: str = "VmRSS") -> float:
    """Megabytes of this process (Linux); "VmHWM": at most, so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) / 1024


def row(name: str, files: Files, folder: Path) -> list[str]:
    """The model's row."""
    import rewriter

    artefact = folder / f"{name}.artefact"
    rewriter.compile(files.model, files.feed, backend="tvm", threads=THREADS).save(artefact)
    inputs = files.model.with_suffix(".npz")
    found = {how: _run(how, model, inputs) for how, model in (("onnxruntime", files.model), ("ours", artefact))}
    theirs, ours = found["onnxruntime"], found["ours"]
    sizes = [files.model.stat().st_size / 2**20, *theirs, *ours]
    return [name, *(f"{size:.0f}" for size in sizes), f"{ours[0] / theirs[0]:.2f}", f"{ours[1] / theirs[1]:.2f}"]


def _run(how: str, model: Path, inputs: Path) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", how, str(model), str(inputs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Keep the models' files here, and use those that are there.")
@click.option("--one", is_flag=True, hidden=True)
def main(names: Sequence[str], cache: Path | None, one: bool) -> None:
    """Megabytes of the models whose names contain one of MODEL; all without."""
    if one:
        how, model, inputs = names
        print(json.dumps(measure(how, Path(model), Path(inputs))))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder, nullcontext(cache) if cache else nullcontext(Path(folder)) as kept:
        kept.mkdir(parents=True, exist_ok=True)
        for subject in (*WHOLE, *INT8):
            if names and not any(name in subject.name for name in names):
                continue
            try:
                rows.append(row(subject.name, subject.files(kept), Path(folder)))
            except Missing as missing:
                print(f"{subject.name}: {missing}", file=sys.stderr)
                continue
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["MB", "all weights", "ONNX Runtime", "at most", "ours", "at most", "ratio", "of what is most"]
    show("Resident memory beyond the imports", head, rows)


if __name__ == "__main__":
    main()
