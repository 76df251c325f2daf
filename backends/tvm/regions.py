"""One model for one set of input shapes: folded, split, compiled, checked, with what failed given to ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from backends import onnxruntime, reference
from backends.onnxruntime import LARGE, write_with_external_data
from backends.partition import Part, halves, part_model, partition, type_of
from backends.tvm.lower import refusals
from backends.worker import Worker
from rewriter.errors import RewriterError

HALVINGS = 4  # of a region that fails: one bad node should not cost the whole region
LEAST = 3  # nodes: a smaller region does not pay for its border
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
    model: onnx.ModelProto,
    inputs: Mapping[str, Any],
    folder: Path,
    worker: Worker,
    *,
    threads: int,
    tune: int,
    seconds: float,
) -> Plan:
    """Split and compile ``model`` for inputs of these shapes; files go to ``folder``. What fails runs on ONNX Runtime."""
    end = time.monotonic() + seconds
    compiler = _Compiler(folder, worker, threads, tune, end)
    notes: list[str] = []
    folded = _folded(model, inputs, folder, worker, notes, seconds)
    results = {output.name for output in folded.graph.output}
    weights = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer if t.name in results}
    values: dict[str, Any] = {**weights, **inputs}
    steps: list[Step] = []
    refused = refusals(folded)
    notes += _summary(refused)
    waiting = [(part, 0) for part in reversed(partition(folded, lambda node: _taken(node, refused), least=LEAST))]
    attempts = 0
    while waiting:
        part, depth = waiting.pop()
        attempts += 1
        proto = part_model(folded, part, values)
        made, kind = _runtime_results(proto, part, values), "onnxruntime"
        if part.taken:
            reason = compiler.compile(proto, [np.asarray(values[n]) for n in part.inputs], made, f"{attempts}")
            if reason is None:
                kind = "tvm"
            elif depth < HALVINGS and len(part.nodes) >= 2 * LEAST and end > time.monotonic():
                waiting += [(half, depth + 1) for half in reversed(halves(part)) if half.outputs]
                continue
            else:
                notes.append(f"{_named(part)} run on ONNX Runtime: {reason}")
        file = f"{attempts}.so" if kind == "tvm" else f"{attempts}.onnx"
        if kind == "onnxruntime":
            _write(proto, folder / file)
        steps.append(Step(kind, file, part.inputs, part.outputs))
        values.update(zip(part.outputs, made, strict=True))
    return Plan(tuple(steps), weights, tuple(notes))


def _folded(model: onnx.ModelProto, inputs: Mapping[str, Any], folder: Path, worker: Worker, notes: list[str], seconds: float) -> onnx.ModelProto:
    """``model`` with its shapes fixed and what follows from them computed; without that, most models do not import."""
    from onnx import inliner

    fixed = inliner.inline_local_functions(model) if model.functions else onnx.ModelProto.FromString(model.SerializeToString())
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in inputs:
            value.type.CopyFrom(type_of(inputs[value.name]))
    for output in fixed.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    source, result = folder / "source.onnx", folder / "folded.onnx"
    _write(fixed, source)
    try:
        worker.timeout = max(1.0, seconds)
        worker.call("fold", source=str(source), result=str(result))
        return onnx.load(result)
    except RewriterError as error:
        notes.append(f"shape arithmetic was not folded: {error}")
        return fixed
    finally:
        for path in (*folder.glob("source.onnx*"), *folder.glob("folded.onnx*")):
            path.unlink()


def _taken(node: onnx.NodeProto, refused: Mapping[str, str]) -> bool:
    return bool(node.output) and node.output[0] not in refused


def _summary(refused: Mapping[str, str]) -> list[str]:
    """One line for each reason: how many nodes, and the first of them."""
    reasons: dict[str, list[str]] = {}
    for line in refused.values():
        op, _, why = line.partition(" ")
        reasons.setdefault(f"{op}: {why.partition(': ')[2]}", []).append(line)
    return [f"{lines[0]}; it runs on ONNX Runtime" + (f", as do {len(lines) - 1} like it" if len(lines) > 1 else "") for lines in reasons.values()]


def _runtime_results(proto: onnx.ModelProto, part: Part, values: Mapping[str, Any]) -> list[Any]:
    program = onnxruntime.build(proto, optimised=False)
    return program(*[values[port.name] for port in program.inputs])


@dataclass(frozen=True)
class _Compiler:
    """Compiles regions into ``folder`` until ``end``, by the clock that never goes back."""

    folder: Path
    worker: Worker
    threads: int
    tune: int
    end: float

    def compile(self, proto: onnx.ModelProto, arrays: list[Any], want: Sequence[Any], name: str) -> str | None:
        """Compile and try one region; the reason if it cannot be used, else None.

        Fast convolutions lose some accuracy: where it is too much, smaller tiles are tried, then none.
        """
        source, library = self.folder / f"{name}.region.onnx", self.folder / f"{name}.so"
        reason: str | None = "the time for compiling was spent"
        _write(proto, source)
        with ThreadPoolExecutor(1) as pool:  # the compiler has a process of its own
            exact = pool.submit(_exact, proto, arrays, want)
            for fast in (4, 2, 0):
                try:
                    used, got = self._made(source, library, arrays, fast)
                except RewriterError as error:
                    reason = str(error)
                    break
                reason = _difference(proto, got, want, exact.result(), NEAR if used else FAR)
                if reason is None or not used:
                    break
        for path in (*self.folder.glob(f"{name}.region.onnx*"), *([] if reason is None else self.folder.glob(f"{name}.*"))):
            path.unlink(missing_ok=True)
        return reason

    def _made(self, source: Path, library: Path, arrays: list[Any], fast: int) -> tuple[bool, list[Any]]:
        left = self.end - time.monotonic()
        if left <= 0:
            raise RewriterError("the time for compiling was spent")
        self.worker.timeout = max(1.0, left)
        reply, _ = self.worker.call("compile_region", source=str(source), library=str(library), threads=self.threads, tune=self.tune, fast=fast)
        return bool(reply["fast"]), self.worker.call("try_region", arrays, library=str(library))[1]


def _exact(proto: onnx.ModelProto, inputs: Sequence[Any], otherwise: Sequence[Any]) -> Sequence[Any]:
    """The region's results in float64, where that can be computed."""
    try:
        return reference.build(proto, float64=True)(*inputs)
    except RewriterError:
        return otherwise


def _difference(proto: onnx.ModelProto, got: Sequence[Any], want: Sequence[Any], exact: Sequence[Any], factor: float) -> str | None:
    """Why ``got`` is not what the region computes, or None: whole numbers are equal, and floats are at most ``factor``
    times as far from the float64 result as ONNX Runtime's own."""
    for port, mine, theirs, right in zip(proto.graph.output, got, want, exact, strict=True):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return f"{port.name} is {mine.dtype}{list(mine.shape)}, not {theirs.dtype}{list(theirs.shape)}"
        if mine.dtype.kind != "f":
            if not np.array_equal(mine, theirs):
                return f"{port.name} differs"
            continue
        if not np.array_equal(np.isfinite(mine), np.isfinite(theirs)):
            return f"{port.name} differs in where it is not finite"
        finite = np.isfinite(mine) & np.isfinite(right)
        scale = np.abs(right[finite]).max(initial=0.0)
        error, allowed = (np.abs(v[finite] - right[finite]).max(initial=0.0) for v in (mine, theirs))
        if error > factor * (allowed + np.finfo(mine.dtype).eps * scale):
            return f"{port.name} is {error:.2g} off where ONNX Runtime is {allowed:.2g} off"
    return None


def _write(proto: onnx.ModelProto, path: Path) -> None:
    if proto.ByteSize() < LARGE:
        path.write_bytes(proto.SerializeToString())
    else:
        write_with_external_data(proto, path)


def _named(part: Part) -> str:
    first, last = part.nodes[0], part.nodes[-1]
    return f"{len(part.nodes)} nodes from {first.op_type} {first.output[0]!r} to {last.op_type} {last.output[0]!r}"
