"""A wide residual stream that is only added to and read linearly need not exist (R3, R1; paper 48).

``z = x·P + a0·W0 + a1·W1 + ...`` read by ``z·A`` is ``[x|a0|a1|...]·([P;W0;W1;...]·A)``: where the summands are narrower than the
stream this is less work, and the product of weights is free. Under a norm it holds too: the mean square of ``u·B`` is ``u (B B') u'``,
and the number for each row that a norm divides by moves behind the map (R4).

In an e-graph the law that does it, a map of a sum is a sum of maps, applies to every residual stream there is, most of which it makes
dearer, and gives all of their partial sums a form of their own. So it is one step here, taken as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, is_op, operand, required, static, tensor
from rewriter.functions import DOMAIN
from rewriter.weights import LAW

NAME = "stream/collapse"
WORTH = 0.8
"""Of the multiplications before: what is left must be at most this share, for the concatenations cost something too."""


@dataclass(frozen=True)
class _Affine:
    """x·W + b. ``nodes`` compute it."""

    source: ir.Value
    weight: ir.Value
    turned: bool
    bias: ir.Value | None
    width: tuple[int, int]


@dataclass
class _Reader:
    """A linear map of a stream's value, maybe behind a norm."""

    output: ir.Value
    map: _Affine
    norm: ir.Node | None


@dataclass
class _Stream:
    sums: list[ir.Value] = field(default_factory=list)
    parts: dict[ir.Value, list[ir.Value]] = field(default_factory=dict)
    """Each sum's summands that are maps, in order."""
    readers: dict[ir.Value, list[_Reader]] = field(default_factory=dict)


def collapse_stream(model: ir.Model) -> int:
    """Read every collapsible stream of the main graph from its narrow summands; how many there were.

    before                                after
        z = x·P + Gelu(x·P·A + a)·W           h = Gelu(x·(P·A) + a)
        y = z·B                               y = [x|h]·([P;W]·B)
    """
    count = 0
    for stream in _streams(model.graph):
        if _pays(stream):
            _Collapse(model, stream).write()
            count += 1
    return count


def _affine(value: ir.Value | None) -> _Affine | None:
    node = value.producer() if value is not None else None
    if node is None or value is None:
        return None
    if is_op(node, "Add"):
        for place in (0, 1):
            inner, bias = _affine(node.inputs[place]), node.inputs[1 - place]
            if inner is not None and inner.bias is None and bias is not None and static(bias) == inner.width[1:] and tensor(bias) is not None:
                return _Affine(inner.source, inner.weight, inner.turned, bias, inner.width)
        return None
    weight = operand(node, 1) if is_op(node, "MatMul", "Gemm") else None
    shape = static(weight)
    bias = operand(node, 2)
    if weight is None or tensor(weight) is None or shape is None or len(shape) != 2 or tensor(node.inputs[0]) is not None:
        return None
    turned = bool(node.attributes.get_int("transB", 0))
    width = (shape[1], shape[0]) if turned else (shape[0], shape[1])
    plain = not node.attributes.get_int("transA", 0) and all(node.attributes.get_float(a, 1.0) == 1.0 for a in ("alpha", "beta"))
    if not plain or (bias is not None and (static(bias) != width[1:] or tensor(bias) is None)):
        return None
    return _Affine(required(node, 0), weight, turned, bias, width)


def _streams(graph: ir.Graph) -> list[_Stream]:
    """Connected sums all of whose summands are maps and all of whose readers are maps."""
    owner: dict[ir.Value, _Stream] = {}
    for node in graph:
        out = node.outputs[0]
        if not is_op(node, "Add") or _affine(out) is not None or static(node.inputs[0]) != static(node.inputs[1]):
            continue
        parts, joined = [], []
        for value in node.inputs:
            if value in owner:
                joined.append(owner[value])
                parts += owner[value].parts[value]
            elif value is not None and _affine(value) is not None:
                parts.append(value)
            else:
                break
        else:
            stream = joined[0] if joined else _Stream()
            for other in joined[1:]:
                if other is not stream:
                    stream.sums += other.sums
                    stream.parts |= other.parts
            stream.sums.append(out)
            stream.parts[out] = parts
            for value in stream.sums:
                owner[value] = stream
    found = {id(s): s for s in owner.values()}
    return [s for s in found.values() if _closed(s)]


def _closed(stream: _Stream) -> bool:
    """Does nobody need the stream's values but its own sums and maps? Notes the maps."""
    inside = {*stream.sums, *(p for parts in stream.parts.values() for p in parts)}
    for value in inside:
        if value.is_graph_output():
            return False
        for node in value.consumers():
            if node.outputs[0] in stream.parts:
                continue
            norm = _norm(node, value)
            targets = [(n, norm) for n in node.outputs[0].consumers()] if norm is not None else [(node, None)]
            if norm is not None and (node.outputs[0].is_graph_output() or not targets):
                return False
            for reader, behind in targets:
                found = _reader(reader, behind.outputs[0] if behind is not None else value)
                if found is None or reader.graph is not node.graph:
                    return False
                stream.readers.setdefault(value, []).append(_Reader(found[0], found[1], behind))
    return bool(stream.readers)


def _reader(node: ir.Node, value: ir.Value) -> tuple[ir.Value, _Affine] | None:
    """A map of the value: with the bias that is added to it, if that is its only use."""
    out = node.outputs[0]
    found = _affine(out)
    if found is None or found.source is not value:
        return None
    users = list(out.consumers())
    if len(users) == 1 and not out.is_graph_output():
        wider = _affine(users[0].outputs[0])
        if wider is not None and wider.source is value:
            return users[0].outputs[0], wider
    return out, found


def _norm(node: ir.Node, value: ir.Value) -> ir.Node | None:
    layer = is_op(node, "LayerNormalization") and node.attributes.get_int("axis", -1) in (-1, len(value.shape or ()) - 1)
    rms = node.domain == DOMAIN and node.op_type == "RMSNorm"
    if not (layer or rms) or node.inputs[0] is not value or len(node.outputs) != 1:
        return None
    return node if all(v is None or tensor(v) is not None for v in node.inputs[1:]) else None


def _pays(stream: _Stream) -> bool:
    """Fewer multiplications for each row, maps into and out of the stream counted, by ``WORTH``."""
    leaves = {p for parts in stream.parts.values() for p in parts}
    before = after = 0
    for p in leaves:
        found = _affine(p)
        assert found is not None
        before += found.width[0] * found.width[1]
    for value, readers in stream.readers.items():
        parts = stream.parts.get(value, [value])
        width = sum(a.width[0] for a in map(_affine, parts) if a is not None)
        for r in readers:
            before += r.map.width[0] * r.map.width[1]
            after += width * r.map.width[1]
        after += width * width * len({id(r.norm) for r in readers if r.norm is not None})
    return after <= WORTH * before


class _Collapse:
    def __init__(self, model: ir.Model, stream: _Stream) -> None:
        self.editor, self.stream = Editor(model), stream

    def write(self) -> None:
        for value, readers in self.stream.readers.items():
            parts = [a for a in map(_affine, self.stream.parts.get(value, [value])) if a is not None]
            for norm in {id(r.norm): r.norm for r in readers}.values():
                mine = [r for r in readers if r.norm is norm]
                self._read(parts, norm, mine)

    def _emit(self, before: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: object) -> ir.Value:
        value = self.editor.emit(before, op, list(inputs), attributes, dtype=inputs[0].dtype)
        node = value.producer()
        assert node is not None
        node.metadata_props[LAW] = "1"
        return value

    def _read(self, parts: list[_Affine], norm: ir.Node | None, readers: list[_Reader]) -> None:
        first = norm or readers[0].output.producer()
        assert first is not None
        narrow = [p.source for p in parts]
        u = narrow[0] if len(narrow) == 1 else self._emit(first, "Concat", narrow, axis=-1)
        basis = [self._emit(first, "Transpose", [p.weight], perm=[1, 0]) if p.turned else p.weight for p in parts]
        b = basis[0] if len(basis) == 1 else self._emit(first, "Concat", basis, axis=0)
        biases = [p.bias for p in parts if p.bias is not None]
        c: ir.Value | None = biases[0] if biases else None
        for more in biases[1:]:
            c = self._emit(first, "Add", [c, more])  # type: ignore[list-item]
        root = None
        scale = shift = None
        if norm is not None:
            if is_op(norm, "LayerNormalization"):
                b = self._emit(first, "Sub", [b, self._emit(first, "ReduceMean", [b, self._last()], keepdims=1)])
                c = None if c is None else self._emit(first, "Sub", [c, self._emit(first, "ReduceMean", [c, self._last()], keepdims=1)])
            root = self._root(first, u, b, c, parts[0].width[1], norm.attributes.get_float("epsilon", 1e-5))
            scale, shift = operand(norm, 1), operand(norm, 2)
        for reader in readers:
            self._mapped(reader, u, b, c, root, scale, shift)

    def _last(self) -> ir.Value:
        return self.editor.constant(np.array([-1], np.int64), "axes")

    def _root(self, first: ir.Node, u: ir.Value, b: ir.Value, c: ir.Value | None, width: int, epsilon: float) -> ir.Value:
        """sqrt(mean((u·B + c)^2) + epsilon) for each row, by the Gram matrix of the basis."""
        size = self.editor.constant(np.array(1 / width, np.float32), "inverse_width")
        turned = self._emit(first, "Transpose", [b], perm=[1, 0])
        gram = self._emit(first, "Mul", [self._emit(first, "MatMul", [b, turned]), size])
        mixed = self._emit(first, "MatMul", [u, gram])
        offset = self.editor.constant(np.array(epsilon, np.float32), "epsilon")
        if c is not None:
            twice = self._emit(first, "Mul", [self._emit(first, "MatMul", [b, c]), self.editor.constant(np.array(2 / width, np.float32), "twice")])
            mixed = self._emit(first, "Add", [mixed, twice])
            square = self._emit(first, "ReduceMean", [self._emit(first, "Mul", [c, c])], keepdims=0)
            offset = self._emit(first, "Add", [square, offset])
        total = self._emit(first, "ReduceSum", [self._emit(first, "Mul", [mixed, u]), self._last()], keepdims=1)
        # Rounding must not take a sum of squares below zero.
        return self._emit(first, "Sqrt", [self._emit(first, "Add", [total, offset])])

    def _mapped(
        self, reader: _Reader, u: ir.Value, b: ir.Value, c: ir.Value | None, root: ir.Value | None, scale: ir.Value | None, shift: ir.Value | None
    ) -> None:
        node = reader.output.producer()
        assert node is not None
        a = self._emit(node, "Transpose", [reader.map.weight], perm=[1, 0]) if reader.map.turned else reader.map.weight
        constant = reader.map.bias
        if shift is not None:
            moved = self._emit(node, "MatMul", [shift, a])
            constant = moved if constant is None else self._emit(node, "Add", [moved, constant])
        if scale is not None:
            column = self._emit(node, "Unsqueeze", [scale, self._last()])
            a = self._emit(node, "Mul", [a, column])
        y = self._emit(node, "MatMul", [u, self._emit(node, "MatMul", [b, a])])
        if c is not None:
            moved = self._emit(node, "MatMul", [c, a])
            if root is None and constant is not None:
                constant = self._emit(node, "Add", [moved, constant])
            elif root is None:
                constant = moved
            else:
                y = self._emit(node, "Add", [y, moved])
        if root is not None:
            y = self._emit(node, "Div", [y, root])
        if constant is not None:
            y = self._emit(node, "Add", [y, constant])
        y.type, y.shape = reader.output.type, reader.output.shape
        self.editor.replace(reader.output, y)
