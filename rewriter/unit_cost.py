"""The cost table: what the exact part of a graph and its approximate stand-in take here, measured apart from the rest.

One rewrite of parts that differ only in names and in the values of large weights is measured once. A part that reads or leaves codes is measured on
codes; what it takes to encode and decode a value is measured by the value's shape, and paid on the edge where it happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded
from passes.drop_dead import drop_dead
from rewriter.cut import cut_out, kind
from rewriter.errors import RewriterError
from rewriter.trial import Trials

Array = np.ndarray
Example = tuple[ir.Model, list[Array]]


class UnitCosts:
    """Times on one machine, of parts of one exact graph (as ``Trials.stored`` gave it)."""

    def __init__(self, model: ir.Model, recorded: Mapping[str, Recorded], trials: Trials) -> None:
        self._model, self._recorded, self._trials = model, recorded, trials
        self._exact: dict[tuple[tuple[str, ...], str], tuple[Example, str]] = {}
        self._known: dict[tuple[str, str], float] = {}
        self._conversions: dict[tuple[int, ...], tuple[float, float]] = {}

    def gain(self, candidate: Candidate) -> float:
        """Microseconds more than the exact part (negative: fewer); infinite where the candidate does not run by itself."""
        if candidate.unit is None:
            return math.inf
        inputs, output = candidate.unit
        if candidate.unit not in self._exact:
            part = self._example(self._model, inputs, output)
            self._exact[candidate.unit] = part, kind(part[0])
        exact, same = self._exact[candidate.unit]
        if (key := (candidate.rewrite, same)) not in self._known:
            changed, now = _applied(self._model, candidate, output)
            other = None if now in inputs else self._example(changed, _ports(candidate, inputs), now, candidate, coded=output in candidate.writes)
            times = self._trials.times({"exact": exact, "other": other or _idle(exact[1][0])})
            self._known[key] = times["other"] - times["exact"]
        return self._known[key]

    def conversion(self, name: str) -> tuple[float, float]:
        """(encode, decode) of a value, in microseconds."""
        sample = self._recorded[name].samples[0]
        if sample.shape not in self._conversions:
            encode, decode = (_quantiser(op, sample.shape) for op in ("QuantizeLinear", "DequantizeLinear"))
            codes = np.zeros(sample.shape, np.uint8)
            idle = _quantiser("Identity", sample.shape)
            times = self._trials.times({"idle": (idle, [sample]), "encode": (encode, [sample]), "decode": (decode, [codes])})
            known = [max(0.0, times[what] - times["idle"]) if math.isfinite(times[what]) else 0.0 for what in ("encode", "decode")]
            self._conversions[sample.shape] = known[0], known[1]
        return self._conversions[sample.shape]

    def _example(self, model: ir.Model, inputs: Iterable[str], output: str, candidate: Candidate | None = None, *, coded: bool = False) -> Example:
        """``coded``: its result is wanted as codes."""
        target = _codes_of(model, output) if coded else output
        shapes = {n: s.samples[0].shape for n, s in self._recorded.items() if s.samples}
        read = {_codes_of(model, n): n for n in candidate.reads} if candidate is not None else {}
        part = cut_out(model, {*inputs}, target, shapes | {c: shapes[n] for c, n in read.items() if n in shapes})
        return part, [self._array(v, read.get(v.name or "", v.name or "")) for v in part.graph.inputs]

    def _array(self, port: ir.Value, name: str) -> Array:
        if name not in self._recorded or not self._recorded[name].samples:
            raise RewriterError(f"{name!r} was not recorded")
        sample = self._recorded[name].samples[0]
        wanted = port.dtype.numpy() if port.dtype is not None else sample.dtype
        return sample if sample.dtype == wanted else np.full(sample.shape, 100, wanted)


def _applied(model: ir.Model, candidate: Candidate, output: str) -> tuple[ir.Model, str]:
    """The model with the candidate, and the name of what now stands for ``output``."""
    copy = model.clone()
    graph = Substitution(copy)
    candidate.apply(graph)
    return drop_dead(copy), graph.value(output).name or ""


def _idle(array: Array) -> Example:
    """What takes no time but the call's."""
    kind = ir.DataType.from_numpy(array.dtype)
    x, y = (ir.Value(name=n, type=ir.TensorType(kind), shape=ir.Shape(array.shape)) for n in "xy")
    graph = ir.Graph([x], [y], nodes=[ir.Node("", "Identity", [x], outputs=[y])], opset_imports={"": 20}, name="idle")
    return ir.Model(graph, ir_version=10), [array]


def _ports(candidate: Candidate, inputs: Iterable[str]) -> set[str]:
    return {n for n in inputs if n not in candidate.reads} | {f"{n}_codes" for n in candidate.reads}


def _codes_of(model: ir.Model, name: str) -> str:
    """The codes of a value, where a quantiser reads it; else itself."""
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].name == name:
            return node.outputs[0].name or ""
    return name


def _quantiser(op: str, shape: tuple[int, ...]) -> ir.Model:
    kinds = {"QuantizeLinear": (ir.DataType.FLOAT, ir.DataType.UINT8), "DequantizeLinear": (ir.DataType.UINT8, ir.DataType.FLOAT)}
    source, made = kinds.get(op, (ir.DataType.FLOAT, ir.DataType.FLOAT))
    x = ir.Value(name="x", type=ir.TensorType(source), shape=ir.Shape(shape))
    y = ir.Value(name="y", type=ir.TensorType(made), shape=ir.Shape(shape))
    parameters = [
        ir.Value(name=n, type=ir.TensorType(t.dtype), shape=ir.Shape(()), const_value=t)
        for n, t in (("s", ir.Tensor(np.array(0.05, np.float32))), ("z", ir.Tensor(np.array(128, np.uint8))))
    ]
    node = ir.Node("", op, [x, *(parameters if op != "Identity" else [])], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=parameters if op != "Identity" else [], opset_imports={"": 20}, name="conversion")
    return ir.Model(graph, ir_version=10)
