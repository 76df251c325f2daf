"""One model for one set of input shapes: folded, split, compiled, checked, with what failed given to ONNX Runtime."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from backends import onnxruntime, reference
from backends.onnxruntime import LARGE, write_with_external_data
from backends.partition import Part, halves, part_model, partition, type_of
from backends.tvm.operators import FIXED, peculiar, refusal
from backends.worker import Worker
from rewriter.errors import RewriterError

HALVINGS = 4  # of a region that fails: one bad node should not cost the whole region
LEAST = 3  # nodes: a smaller region does not pay for its border
_KINDS = ("float32", "float64", "int8", "uint8", "int32", "int64", "bool")  # what is trusted across a region's border


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
    seconds: float,
) -> Plan:
    """Split and compile ``model`` for inputs of these shapes; files go to ``folder``. What fails runs on ONNX Runtime."""
    end = time.monotonic() + seconds
    notes: list[str] = []
    folded = _folded(model, inputs, folder, worker, notes, seconds)
    results = {output.name for output in folded.graph.output}
    weights = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer if t.name in results}
    values: dict[str, Any] = {**weights, **inputs}
    steps: list[Step] = []
    waiting = [(part, 0) for part in reversed(partition(folded, _taker(folded), least=LEAST))]
    attempts = 0
    while waiting:
        part, depth = waiting.pop()
        attempts += 1
        proto = part_model(folded, part, values)
        made, kind = _runtime_results(proto, part, values), "onnxruntime"
        if part.taken:
            left = end - time.monotonic()
            reason = _compiled(proto, part, values, made, folder, f"{attempts}", worker, threads, left)
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


def _folded(
    model: onnx.ModelProto, inputs: Mapping[str, Any], folder: Path, worker: Worker, notes: list[str], seconds: float
) -> onnx.ModelProto:
    """``model`` with its shapes fixed and what follows from them computed; without that, most models do not import."""
    from onnx import inliner

    fixed = (
        inliner.inline_local_functions(model)
        if model.functions
        else onnx.ModelProto.FromString(model.SerializeToString())
    )
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


def _taker(model: onnx.ModelProto) -> Any:
    """Whether a node may go into a compiled region: its operator, its types, and that its shapes are known now."""
    known = {t.name for t in model.graph.initializer}
    known |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    small = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) <= 1}
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    # without types, only the operators decide, and the check of the region
    with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError):
        inferred = onnx.shape_inference.infer_shapes(model).graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            kinds[value.name] = value.type.tensor_type.elem_type
    numbers = {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in _KINDS}

    def takes(node: onnx.NodeProto) -> bool:
        if refusal(node.domain, node.op_type, len([o for o in node.output if o])) is not None:
            return False
        if peculiar(node, small):
            return False
        fixed = [node.input[i] for i in FIXED.get(node.op_type, ()) if i < len(node.input) and node.input[i]]
        touched = [kinds.get(name, 1) for name in (*node.input, *node.output) if name]
        return all(name in known for name in fixed) and all(kind in numbers for kind in touched)

    return takes


def _runtime_results(proto: onnx.ModelProto, part: Part, values: Mapping[str, Any]) -> list[Any]:
    program = onnxruntime.build(proto, optimised=False)
    return program(*[values[port.name] for port in program.inputs])


def _compiled(
    proto: onnx.ModelProto,
    part: Part,
    values: Mapping[str, Any],
    want: Sequence[Any],
    folder: Path,
    name: str,
    worker: Worker,
    threads: int,
    seconds: float,
) -> str | None:
    """Compile and try one region; the reason if it cannot be used, else None."""
    if seconds <= 0:
        return "the time for compiling was spent"
    source, library = folder / f"{name}.region.onnx", folder / f"{name}.so"
    arrays = [np.asarray(values[n]) for n in part.inputs]
    _write(proto, source)
    try:
        worker.timeout = max(1.0, seconds)
        worker.call("compile_region", source=str(source), library=str(library), threads=threads)
        got = worker.call("try_region", arrays, library=str(library), outputs=len(part.outputs))[1]
        reason = _difference(proto, arrays, got, want)
    except RewriterError as error:
        reason = str(error)
    finally:
        for path in folder.glob(f"{name}.region.onnx*"):
            path.unlink()
    if reason is not None:
        library.unlink(missing_ok=True)
    return reason


def _difference(proto: onnx.ModelProto, inputs: Sequence[Any], got: Sequence[Any], want: Sequence[Any]) -> str | None:
    """Why ``got`` is not what the region computes, or None: whole numbers are equal, and floats are not much farther
    from the float64 result than ONNX Runtime's own."""
    try:
        exact: Sequence[Any] = reference.build(proto, float64=True)(*inputs)
    except RewriterError:
        exact = want
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
        if error > 8 * allowed + 1e-5 * scale:
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
