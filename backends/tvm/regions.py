"""One model for one set of input shapes: folded, split, compiled, checked, with what failed given to ONNX Runtime."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from backends import onnxruntime, reference
from backends.onnxruntime import LARGE, size, write_with_external_data
from backends.partition import Part, halves, part_model, partition, type_of
from backends.tvm.database import Database
from backends.tvm.lower import refusals
from backends.worker import Worker
from rewriter.errors import RewriterError

Progress = Callable[[str], None]
FOLDED, FIXED = "folded.onnx", "fixed.onnx"
HALVINGS = 4  # of a region that fails: one bad node should not cost the whole region
LEAST = 3  # nodes: a smaller region does not pay for its border
APART = 2e-3  # root of the mean square, of the results', that codes rounded the other way may be off
NEAR, FAR = 4.0, 16.0  # how many times as far from the float64 result as ONNX Runtime's: by fast algorithms, and by others


@dataclass(frozen=True)
class Step:
    """One region, ready to run: a library, or an ONNX file (both names are relative to the plan's folder)."""

    kind: str  # "tvm" or "onnxruntime"
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The steps in order; ``weights`` are outputs of the model that no node makes."""

    steps: tuple[Step, ...]
    weights: Mapping[str, Any]
    notes: tuple[str, ...]


def plan(
    model: Path,
    inputs: Mapping[str, Any],
    folder: Path,
    worker: Worker,
    *,
    threads: int,
    tune: int,
    seconds: float,
    as_declared: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Split and compile the file ``model`` for inputs of these shapes; files go to ``folder``. What fails runs on ONNX Runtime.

    ``progress`` is told how far measuring is, every second. ``as_declared``: the shapes are those that the model gives, and it has no
    functions of its own.
    """
    end = time.monotonic() + seconds
    notes: list[str] = []
    folded, digest = _folded(model, None if as_declared else inputs, folder, worker, notes, seconds)
    compiler = _Compiler(folder, worker, Database(), digest, threads, tune, end, progress)
    results = {output.name for output in folded.graph.output}
    weights = {t.name: numpy_helper.to_array(t, base_dir=str(folder)) for t in folded.graph.initializer if t.name in results}
    values: dict[str, Any] = {**weights, **inputs}
    steps: list[Step] = []
    refused = refusals(folded, folder)
    notes += _summary(refused)
    least = LEAST if refused else 1  # a region that is all there is has no border
    waiting = [(part, 0) for part in reversed(partition(folded, lambda node: _taken(node, refused), least=least))]
    attempts = 0
    while waiting:
        part, depth = waiting.pop()
        attempts += 1
        with Region(folder, f"{attempts}", part_model(folded, part, values), [values[name] for name in part.inputs]) as region:
            reason = compiler.compile(region) if part.taken else ""
            if reason and depth < HALVINGS and len(part.nodes) >= 2 * LEAST and end > time.monotonic():
                waiting += [(half, depth + 1) for half in reversed(halves(part)) if half.outputs]
                continue
            if reason:
                notes.append(f"{_named(part)} run on ONNX Runtime: {reason}")
            if reason is not None:
                _write(region.whole(), region.path)
            steps.append(Step("tvm" if reason is None else "onnxruntime", region.library.name if reason is None else region.path.name,
                              part.inputs, part.outputs))  # fmt: skip
            if waiting:
                values.update(zip(part.outputs, region.results(), strict=True))
    for path in (*folder.glob("*.region.onnx"), *folder.glob("folded.*")):
        path.unlink()
    return Plan(tuple(steps), weights, tuple(notes))


def _folded(
    source: Path, inputs: Mapping[str, Any] | None, folder: Path, worker: Worker, notes: list[str], seconds: float
) -> tuple[onnx.ModelProto, str]:
    """The model ``source`` with its shapes fixed to those of ``inputs`` (None: they are) and what follows from them computed; without
    that, most models do not import. Large weights stay in a file of ``folder``, whose digest comes with it.

    Raises RewriterError for a model that ONNX Runtime refuses.
    """
    fixed = source.with_name(FIXED)
    worker.timeout = max(1.0, seconds)
    try:
        digest = fold_model(source, inputs, folder / FOLDED, worker)
        return onnx.load(folder / FOLDED, load_external_data=False), digest
    except RewriterError as error:
        onnxruntime.build(source, optimised=False)  # which says what is wrong with it, if anything is
        notes.append(f"shape arithmetic was not folded: {error}")
        return onnx.load(fixed if fixed.exists() else source), ""
    finally:
        fixed.unlink(missing_ok=True)


def fold_model(source: Path, inputs: Mapping[str, Any] | None, result: Path, worker: Worker) -> str:
    """Fold the file ``source`` into ``result``, as ``_folded``; the digest of its large weights. Raises RewriterError."""
    kinds = None if inputs is None else {name: _type(array) for name, array in inputs.items()}
    reply, _ = worker.call("fold", source=str(source), result=str(result), types=kinds, fixed=str(source.with_name(FIXED)))
    return str(reply["weights"])


def wrong(model: Path, inputs: list[Any], got: Sequence[Any]) -> str | None:
    """Why ``got`` is not what the file ``model``, of fixed shapes, computes, or None."""
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder, Region(Path(folder), "whole", onnx.load(model), inputs) as region:
        return _difference(region.proto, got, region.results(), region.exact(), FAR)


def _type(array: Any) -> tuple[int, list[int]]:
    tensor = type_of(array).tensor_type
    return tensor.elem_type, [d.dim_value for d in tensor.shape.dim]


def _taken(node: onnx.NodeProto, refused: Mapping[str, str]) -> bool:
    return bool(node.output) and not any(name in refused for name in node.output)


def _summary(refused: Mapping[str, str]) -> list[str]:
    """One line for each reason: how many nodes, and the first of them."""
    reasons: dict[str, list[str]] = {}
    for line in refused.values():
        op, _, why = line.partition(" ")
        reasons.setdefault(f"{op}: {why.partition(': ')[2]}", []).append(line)
    return [f"{lines[0]}; it runs on ONNX Runtime" + (f", as do {len(lines) - 1} like it" if len(lines) > 1 else "") for lines in reasons.values()]


@dataclass
class Region:
    """A part of the folded model as a model of its own, whose large weights may lie in the folded model's file.

    It gets a file when this is made; its results are computed when they are asked for, in the background if ``begin`` was called.
    """

    folder: Path
    name: str
    proto: onnx.ModelProto
    inputs: list[Any]

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._made: Future[list[Any]] | None = None
        self._exact: Future[Sequence[Any]] | None = None
        self.source, self.path, self.library = (self.folder / f"{self.name}{end}" for end in (".region.onnx", ".onnx", ".so"))
        _write(self.proto, self.source)

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def digest(self, weights: str) -> str:
        """A name for what it computes; ``weights``: the digest of the folded model's."""
        return hashlib.sha256(weights.encode() + self.source.read_bytes()).hexdigest()

    def whole(self) -> onnx.ModelProto:
        """With its weights."""
        return onnx.load(self.source)

    def begin(self) -> None:
        """Compute what it gives, by ONNX Runtime and in float64."""
        self._made = self._made or self._pool.submit(self._run)
        self._exact = self._exact or self._pool.submit(self._in_float64)

    def results(self) -> list[Any]:
        """By ONNX Runtime, not optimised."""
        self._made = self._made or self._pool.submit(self._run)
        return self._made.result()

    def exact(self) -> Sequence[Any]:
        """In float64, where that can be computed."""
        self.begin()
        assert self._exact is not None
        return self._exact.result()

    def _run(self) -> list[Any]:
        program = onnxruntime.build(self.source, optimised=False)
        given = dict(zip((v.name for v in self.proto.graph.input), self.inputs, strict=True))
        return program(*[given[port.name] for port in program.inputs])

    def _in_float64(self) -> Sequence[Any]:
        try:
            return reference.build(self.whole(), float64=True)(*self.inputs)
        except RewriterError:
            return self.results()


@dataclass(frozen=True)
class _Compiler:
    """Compiles regions into ``folder`` until ``end``, by the clock that never goes back. ``weights``: the digest of the model's."""

    folder: Path
    worker: Worker
    database: Database
    weights: str
    threads: int
    tune: int
    end: float
    progress: Progress | None = None

    def compile(self, region: Region) -> str | None:
        """Compile and try one region; the reason if it cannot be used, else None.

        Fast convolutions lose some accuracy: where it is too much, smaller tiles are tried, then none. What came of trying the same
        machine code on the same graph and weights before is remembered.
        """
        reason: str | None = "the time for compiling was spent"
        digest = region.digest(self.weights)
        known = self.database.checks(digest)
        if not known:
            region.begin()  # the compiler has a process of its own
        try:
            for fast in (4, 2, 0):
                used, code = self._made(region, fast)
                if code not in known:
                    known[code] = self._tried(region, NEAR if used else FAR) or ""
                    self.database.keep_check(digest, code, known[code])
                reason = known[code] or None
                if reason is None or not used:
                    break
        except RewriterError as error:
            reason = str(error)
        if reason is not None:
            for path in self.folder.glob(f"{region.name}.*"):
                if path != region.source:
                    path.unlink()
        return reason

    def _made(self, region: Region, fast: int) -> tuple[bool, str]:
        """Whether it has fast convolutions, and the digest of its machine code."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise RewriterError("the time for compiling was spent")
        self.worker.timeout = max(1.0, left)
        said = self.folder / f"{region.name}.progress"
        with _telling(said, self.progress):
            reply, _ = self.worker.call(
                "compile_region", source=str(region.source), library=str(region.library), threads=self.threads, tune=self.tune,
                fast=fast, progress=str(said),
            )  # fmt: skip
        return bool(reply["fast"]), reply["digest"]

    def _tried(self, region: Region, factor: float) -> str | None:
        got = self.worker.call("try_region", [np.asarray(value) for value in region.inputs], library=str(region.library))[1]
        return _difference(region.proto, got, region.results(), region.exact(), factor)


@contextmanager
def _telling(path: Path, progress: Progress | None) -> Iterator[None]:
    """Pass on what the compiler writes to ``path`` meanwhile."""
    ended = threading.Event()

    def watch() -> None:
        before = ""
        while not ended.wait(1.0):
            text = path.read_text() if path.exists() else ""
            if text != before and progress is not None:
                progress(text)
            before = text

    watcher = threading.Thread(target=watch, daemon=True)
    if progress is not None:
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if progress is not None:
            watcher.join()
        path.unlink(missing_ok=True)


def _difference(proto: onnx.ModelProto, got: Sequence[Any], want: Sequence[Any], exact: Sequence[Any], factor: float) -> str | None:
    """Why ``got`` is not what the region computes, or None: whole numbers are equal, and floats are at most ``factor``
    times as far from the float64 result as ONNX Runtime's own. Where numbers are rounded to codes, a few of them may be others."""
    rounds = any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in proto.graph.node)
    for port, mine, theirs, right in zip(proto.graph.output, got, want, exact, strict=True):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return f"{port.name} is {mine.dtype}{list(mine.shape)}, not {theirs.dtype}{list(theirs.shape)}"
        if mine.dtype.kind != "f":
            codes = rounds and mine.dtype.itemsize == 1 and mine.dtype.kind in "iu"
            if not np.array_equal(mine, theirs) and not (codes and _few_codes_apart(*_centred(mine, right))):
                return f"{port.name} differs"
            continue
        if not np.array_equal(np.isfinite(mine), np.isfinite(theirs)):
            return f"{port.name} differs in where it is not finite"
        finite = np.isfinite(mine) & np.isfinite(right)
        scale = np.abs(right[finite]).max(initial=0.0)
        error, allowed = (np.abs(v[finite] - right[finite]).max(initial=0.0) for v in (mine, theirs))
        if error > factor * (allowed + np.finfo(mine.dtype).eps * scale) and not (rounds and _few_codes_apart(mine[finite], right[finite])):
            return f"{port.name} is {error:.2g} off where ONNX Runtime is {allowed:.2g} off"
    return None


def _few_codes_apart(mine: Any, right: Any) -> bool:
    """Numbers half way between two codes go either way, and then are a whole step apart: rare, so that the mean square hardly shows it."""
    return bool(np.mean((mine - right) ** 2) <= APART**2 * np.mean(right**2))


def _centred(mine: Any, right: Any) -> tuple[Any, Any]:
    """Codes less their mean: where zero lies among them says nothing."""
    middle = np.mean(right, dtype=np.float64)
    return mine - middle, right - middle


def _write(proto: onnx.ModelProto, path: Path) -> None:
    if size(proto) < LARGE:
        path.write_bytes(proto.SerializeToString())
    else:
        write_with_external_data(proto, path)


def _named(part: Part) -> str:
    first, last = part.nodes[0], part.nodes[-1]
    return f"{len(part.nodes)} nodes from {first.op_type} {first.output[0]!r} to {last.op_type} {last.output[0]!r}"
