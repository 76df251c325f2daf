"""The cost table: what the exact part of a graph and its approximate stand-in take here, measured apart from the rest.

One rewrite of parts that differ only in names and in the values of large weights is measured once. A part that reads or leaves codes is measured on
codes; what it takes to encode and decode a value is measured by the value's shape, and paid on the edge where it happens.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded
from passes.drop_dead import drop_dead
from rewriter.cut import cut_out, kind
from rewriter.edit import is_op
from rewriter.errors import RewriterError
from rewriter.trial import Trials

Array = np.ndarray
CHANNELS_LAST = ("tvm",)
"""Engines that keep images channels last between operators, where a transpose moves nothing. Parts of a graph are given to them so, or each would
be timed with two copies that the whole does not make."""
IMAGES = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
Example = tuple[ir.Model, list[Array]]


class UnitCosts:
    """Times on one machine, of parts of one exact graph (as ``Trials.stored`` gave it)."""

    def __init__(self, model: ir.Model, recorded: Mapping[str, Recorded], trials: Trials) -> None:
        self._model, self._recorded, self._trials = model, recorded, trials
        self._exact: dict[tuple[tuple[str, ...], str], tuple[Example, str]] = {}
        self._known: dict[tuple[str, str], float | Exception] = {}
        self._conversions: dict[tuple[int, ...], tuple[float, float]] = {}

    def measure(self, candidates: Iterable[Candidate], seconds: float, seen: Callable[[int, int], None] = lambda place, count: None) -> None:
        """Time what ``gain`` will be asked for, for so many seconds, kinds of parts that weigh most in the whole first. All stand-ins of one
        part are compared at once. ``seen``: which part of how many."""
        groups: dict[str, dict[str, Candidate]] = {}
        weights: dict[str, int] = {}
        for candidate in candidates:
            with contextlib.suppress(Exception):  # ``gain`` will say what is wrong with it
                if candidate.unit is not None and (key := self._key(candidate)) not in self._known:
                    groups.setdefault(key[1], {}).setdefault(key[0], candidate)
                    weights[key[1]] = weights.get(key[1], 0) + abs(candidate.bytes)
        end = time.monotonic() + seconds
        for place, name in enumerate(sorted(groups, key=lambda name: -weights[name])):
            seen(place, len(groups))
            if time.monotonic() < end:
                self._compare(list(groups[name].values()))

    def known(self, candidate: Candidate) -> bool:
        """Has it been timed, or one like it?"""
        return candidate.unit is None or self._key(candidate) in self._known

    def gain(self, candidate: Candidate) -> float:
        """Microseconds more than the exact part (negative: fewer); infinite where the candidate does not run by itself."""
        if candidate.unit is None:
            return math.inf
        key = self._key(candidate)
        if key not in self._known:
            self._compare([candidate])
        found = self._known[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _key(self, candidate: Candidate) -> tuple[str, str]:
        """One rewrite of one kind of part takes the same time everywhere."""
        assert candidate.unit is not None
        if candidate.unit not in self._exact:
            part = self._example(self._model, *candidate.unit)
            self._exact[candidate.unit] = part, kind(part[0])
        return candidate.timed_as or candidate.rewrite, self._exact[candidate.unit][1]

    def _compare(self, candidates: Sequence[Candidate]) -> None:
        """Time stand-ins of equal parts beside one of these parts."""
        units = [c.unit for c in candidates if c.unit is not None]
        variants = {"exact": self._exact[units[0]][0]}
        for candidate in candidates:
            try:
                variants[candidate.rewrite] = self._stand_in(candidate)
            except Exception as failure:  # noqa: BLE001 - a candidate that cannot be put in does not compete
                self._known[self._key(candidate)] = failure
        times = self._trials.times(variants)
        for candidate in candidates:
            if candidate.rewrite in times:
                self._known[self._key(candidate)] = self._left(candidate) or times[candidate.rewrite] - times["exact"]

    def _left(self, candidate: Candidate) -> RewriterError | None:
        """Where the engine takes the exact part and leaves the other to another engine: by itself that may be faster, but it would cut the
        graph in pieces, each of them with copies at its ends."""
        left = self._trials.left
        if "exact" in left or candidate.rewrite not in left:
            return None
        return RewriterError(f"{self._trials.engine} takes the exact part, but not this: {left[candidate.rewrite]}")

    def _stand_in(self, candidate: Candidate) -> Example:
        assert candidate.unit is not None
        inputs, output = candidate.unit
        changed, now = _applied(self._model, candidate, output)
        if now in inputs:
            return _idle(self._exact[candidate.unit][0][1][0])
        return self._example(changed, _ports(candidate, inputs), now, candidate, coded=output in candidate.writes)

    def conversion(self, name: str) -> tuple[float, float]:
        """(encode, decode) of a value, in microseconds: at the end and at the start of other element-wise work, with which an engine may do it at
        once."""
        sample = self._recorded[name].samples[0]
        if sample.shape not in self._conversions:
            codes = np.zeros(sample.shape, np.uint8)
            times = self._trials.times({
                "idle": (_conversion(sample.shape), [sample]), "encode": (_conversion(sample.shape, encode=True), [sample]),
                "decode": (_conversion(sample.shape, decode=True), [codes]),
            })  # fmt: skip
            known = [max(0.0, times[what] - times["idle"]) if math.isfinite(times[what]) else 0.0 for what in ("encode", "decode")]
            self._conversions[sample.shape] = known[0], known[1]
        return self._conversions[sample.shape]

    def _example(self, model: ir.Model, inputs: Iterable[str], output: str, candidate: Candidate | None = None, *, coded: bool = False) -> Example:
        """``coded``: its result is wanted as codes."""
        target = _codes_of(model, output) if coded else output
        shapes = {n: s.samples[0].shape for n, s in self._recorded.items() if s.samples}
        read = {_codes_of(model, n): n for n in candidate.reads} if candidate is not None else {}
        part = cut_out(model, {*inputs}, target, shapes | {c: shapes[n] for c, n in read.items() if n in shapes})
        example = part, [self._array(v, read.get(v.name or "", v.name or "")) for v in part.graph.inputs]
        images = any(is_op(node, *IMAGES) for node in part.graph)
        return _channels_last(*example) if images and self._trials.engine in CHANNELS_LAST else example

    def _array(self, port: ir.Value, name: str) -> Array:
        if name not in self._recorded or not self._recorded[name].samples:
            raise RewriterError(f"{name!r} was not recorded")
        sample = self._recorded[name].samples[0]
        wanted = port.dtype.numpy() if port.dtype is not None else sample.dtype
        return sample if sample.dtype == wanted else np.full(sample.shape, 100, wanted)


def _channels_last(part: ir.Model, arrays: Sequence[Array]) -> Example:
    """The part with images [N, ..., C] at its ends."""
    graph = part.graph
    ports, turned = list(graph.inputs), list(arrays)
    graph.inputs.clear()
    for place, port in enumerate(ports):
        if turned[place].ndim < 3:
            graph.inputs.append(port)
            continue
        turned[place] = np.ascontiguousarray(np.moveaxis(turned[place], 1, -1))
        fresh = ir.Value(name=f"{port.name}_channels_last", type=port.type, shape=ir.Shape(turned[place].shape))
        graph.inputs.append(fresh)
        first = ir.Node("", "Transpose", [fresh], [ir.AttrInt64s("perm", [0, arrays[place].ndim - 1, *range(1, arrays[place].ndim - 1)])])
        first.outputs[0].name, first.outputs[0].type, first.outputs[0].shape = f"{port.name}_channels_first", port.type, port.shape
        port.replace_all_uses_with(first.outputs[0])
        graph.insert_before(graph[0], first)
    (result,) = graph.outputs
    if result.shape is not None and len(result.shape) >= 3:
        last = ir.Node("", "Transpose", [result], [ir.AttrInt64s("perm", [0, *range(2, len(result.shape)), 1])])
        last.outputs[0].name, last.outputs[0].type = f"{result.name}_channels_last", result.type
        graph.append(last)
        graph.outputs.clear()
        graph.outputs.append(last.outputs[0])
    return part, turned


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


def _conversion(shape: tuple[int, ...], *, encode: bool = False, decode: bool = False) -> ir.Model:
    """Something element-wise on floats, and a conversion after it or before it."""

    def value(name: str, kind: ir.DataType) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))

    parameters = [
        ir.Value(name=n, type=ir.TensorType(t.dtype), shape=ir.Shape(()), const_value=t)
        for n, t in (("s", ir.Tensor(np.array(0.05, np.float32))), ("z", ir.Tensor(np.array(128, np.uint8))))
    ]
    kinds = [ir.DataType.UINT8 if decode else ir.DataType.FLOAT, *[ir.DataType.FLOAT] * (1 + decode), *[ir.DataType.UINT8] * encode]
    values = [value(f"v{k}", kind) for k, kind in enumerate(kinds)]
    ops = [*["DequantizeLinear"] * decode, "Abs", *["QuantizeLinear"] * encode]
    nodes = [ir.Node("", op, [v, *(parameters if op != "Abs" else [])], outputs=[w]) for op, v, w in zip(ops, values[:-1], values[1:], strict=True)]
    used = parameters if encode or decode else []
    graph = ir.Graph(values[:1], values[-1:], nodes=nodes, initializers=used, opset_imports={"": 20}, name="conversion")
    return ir.Model(graph, ir_version=10)
