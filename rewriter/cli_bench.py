"""``rewriter bench``: what the compiled model takes, against other ways to run it, side by side."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from backends.isolated import Isolated
from backends.measure import Candidate, Timing, compare
from rewriter.cli_inputs import accepted
from rewriter.errors import InvalidInput
from rewriter.read_onnx import read_onnx

OURS = "rewriter"
"""The row of the compiled model."""


@dataclass(frozen=True)
class Subject:
    """``saved``: the artefact that is measured; ``model``: the ONNX file that the others run."""

    saved: str
    model: str
    backend: str


def parse_against(text: str) -> list[str]:
    """``"onnxruntime,torch"`` as names of backends. Raises ``InvalidInput``."""
    names = [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in backends.NAMES:
            raise InvalidInput(f"--against: no backend {name!r}; there are {', '.join(backends.NAMES)}")
    return list(dict.fromkeys(names))


def bench(
    source: str, against: Sequence[str], *, backend: str, threads: int | None, rounds: int, shapes: Mapping[str, Sequence[int]],
    step: Callable[[str], None],
) -> tuple[dict[str, Timing], str]:  # fmt: skip
    """Timings by name, the compiled model's first, and which backend it uses. Raises ``RewriterError``.

    An ONNX file is compiled for ``backend`` first, and the others run the file; an artefact is measured as it is, and the others run its model.
    """
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        subject = _artefact(source, shapes) if os.path.isdir(source) else _compiled(source, folder, backend, threads, shapes, step)
        step("making inputs")
        graph = read_onnx(subject.model).graph
        with Isolated(threads=threads) as isolated:
            feed = accepted(isolated, subject.model, graph)[0].feed
        candidates = {OURS: Candidate(subject.backend, saved=subject.saved)}
        candidates |= {name: Candidate(name, subject.model) for name in against}
        step("measuring")
        inputs: list[Any] = [feed[v.name or ""] for v in graph.inputs]
        return compare(candidates, inputs, rounds=rounds, threads=threads, seconds=1.0 * len(candidates)), subject.backend


def _artefact(source: str, shapes: Mapping[str, Sequence[int]]) -> Subject:
    from rewriter.artefact import read

    if shapes:
        raise InvalidInput("--input-shape is for ONNX files: an artefact's shapes were fixed when it was compiled")
    return Subject(source, str(Path(source, "model.onnx")), str(read(source).report.get("backend") or "onnxruntime"))


def _compiled(
    source: str, folder: str, backend: str, threads: int | None, shapes: Mapping[str, Sequence[int]], step: Callable[[str], None]
) -> Subject:
    from rewriter.pipeline import compile

    compiled = compile(source, backend=backend, threads=threads, input_shapes=shapes or None, step=step)
    saved = os.path.join(folder, "artefact")
    compiled.save(saved)
    model = source
    if shapes:
        # The others get the model with the same shapes fixed, or inputs would be made up for other sizes.
        from rewriter.write_onnx import write_onnx

        model = os.path.join(folder, "fixed.onnx")
        write_onnx(read_onnx(source, input_shapes=shapes), model)
    return Subject(saved, model, compiled.backend)


def rows(timings: Mapping[str, Timing], backend: str) -> list[tuple[str, str, str, str]]:
    """(name, median, minimum, median relative to ours) for a table."""
    ours = timings[OURS]
    shown = []
    for name, t in timings.items():
        label = f"{name} ({backend})" if name == OURS else name
        if t.failure is not None:
            shown.append((label, "-", "-", "-"))
        else:
            shown.append((label, f"{t.median_ms:.4g}", f"{t.min_ms:.4g}", f"{t.median_ms / ours.median_ms:.2f}x" if ours.median_ms else "-"))
    return shown
