"""Channels that nobody reads, or that are always zero, are cut out of every weight that makes or reads them (R14).

An e-graph has no names for parts of a tensor's channels that many operators share, so this is dataflow: values whose channels must
stay aligned (through element-wise operators, residual sums, pooling, depthwise convolutions) form a group, and a channel goes if every
operator that leaves the group multiplies it by zero weights or finds zeros in it. A channel that is a constant other than zero stays:
at the border of a padded convolution it would be missed (papers 42, 72).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, is_op, operand, required, static, tensor
from rewriter.weights import LAW

NAME = "channels/dead-channels"
KEEPS_ZERO = {"Relu", "LeakyRelu", "Gelu", "Tanh", "Abs", "Neg", "Sqrt", "Sin", "Erf", "Elu", "Celu", "Selu", "Swish", "HardSwish", "Softsign",
              "Identity", "Sign", "Round", "Ceil", "Floor", "Mish", "PRelu"}  # fmt: skip
"""Element-wise functions with f(0) = 0."""
ELEMENTWISE = KEEPS_ZERO | {"Sigmoid", "Exp", "HardSigmoid", "Softplus", "Cos", "Reciprocal", "Log"}
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min"}
POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}

Array = np.ndarray[Any, Any]


@dataclass
class Shrunk:
    """``count``: channels that went. ``rests``: weights whose zeros they rest on."""

    count: int = 0
    rests: list[str] = field(default_factory=list)


def drop_dead_channels(model: ir.Model) -> Shrunk:
    """The model with fewer channels where some are dead; its weights are folded, and what is taken of them is to be folded again.

    before (channel 1 of B's input is zero)      after
        h = Relu(Conv(x, A))                         h = Relu(Conv(x, A[kept]))
        y = Conv(h, B)                               y = Conv(h, B[:, kept])
    """
    analysis = _Channels(model.graph)
    shrunk = Shrunk()
    for group in analysis.groups():
        kept = group.kept()
        if kept is not None and len(kept) < len(group.dead):
            _shrink(model, group, kept, shrunk)
            shrunk.count += len(group.dead) - len(kept)
    return shrunk


@dataclass
class _Reader:
    """An operator that mixes the channels of ``value``; ``unread``: those that its weight is zero for."""

    node: ir.Node
    value: ir.Value
    axis: int
    unread: Array


@dataclass
class _Group:
    axis: int
    dead: Array
    makers: list[ir.Node]
    inner: list[ir.Node]
    readers: list[_Reader]
    values: list[ir.Value]

    def kept(self) -> Array | None:
        """Indices of the channels that stay, if some go; one stays in any case."""
        if not self.dead.any():
            return None
        kept = np.flatnonzero(~self.dead)
        return kept if kept.size else np.zeros(1, np.int64)


class _Channels:
    """Which values have aligned channels, and which channels are zero or unread."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.axis: dict[ir.Value, int] = {}
        self.root: dict[ir.Value, ir.Value] = {}
        self.zero: dict[ir.Value, Array] = {}
        self.blocked: set[ir.Value] = set()
        self.makers: list[ir.Node] = []
        self.inner: list[ir.Node] = []
        self.readers: list[_Reader] = []
        for node in graph:
            self._visit(node)
        for value in graph.outputs:
            self._block(value)

    def groups(self) -> Iterator[_Group]:
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in self.axis:
            members.setdefault(self._find(value), []).append(value)
        blocked = {self._find(v) for v in self.blocked if v in self.axis}
        for root, values in members.items():
            inside = set(values)
            readers = [r for r in self.readers if r.value in inside]
            lengths = {self.zero[v].size for v in values}
            makers = [n for n in self.makers if n.outputs[0] in inside]
            if root in blocked or len(lengths) != 1 or not readers or not makers:
                continue
            dead = np.ones(lengths.pop(), bool)
            for r in readers:
                dead &= r.unread | self.zero[r.value]
            inner = [n for n in self.inner if n.outputs[0] in inside]
            yield _Group(self.axis[root], dead, makers, inner, readers, values)

    def _find(self, value: ir.Value) -> ir.Value:
        while self.root[value] is not value:
            value = self.root[value]
        return value

    def _put(self, value: ir.Value, axis: int, zero: Array) -> None:
        self.axis[value], self.root[value], self.zero[value] = axis, value, zero

    def _join(self, a: ir.Value, b: ir.Value) -> None:
        self.root[self._find(a)] = self._find(b)

    def _block(self, value: ir.Value | None) -> None:
        if value is not None:
            self.blocked.add(value)

    def _visit(self, node: ir.Node) -> None:
        mixes = _mixing(node)
        if mixes is not None:
            self._mixed(node, *mixes)
        elif not self._carried(node):
            for value in node.inputs:
                self._block(value)
            for a in node.attributes.values():
                if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    self.blocked.update(self.axis)  # a subgraph may read anything

    def _mixed(self, node: ir.Node, axis: int, made: Array, read: Array, bias: Array | None) -> None:
        """``made``: [channels out, rest], ``read``: [channels in, rest] of its weight."""
        x = required(node, 0)
        if x in self.axis:
            if self.axis[x] == axis and self.zero[x].size == read.shape[0]:
                self.readers.append(_Reader(node, x, axis, np.logical_not(read.any(axis=1))))
            else:
                self._block(x)
        zero: Array = np.logical_and(~made.any(axis=1), True if bias is None else bias == 0)
        self._put(node.outputs[0], axis, zero)
        self.makers.append(node)

    def _carried(self, node: ir.Node) -> bool:
        """An operator that treats every channel by itself."""
        live = [v for v in node.inputs if v is not None and v in self.axis]
        shape = static_rank(node.outputs[0])
        if not live or len(node.outputs) != 1 or shape is None or any(self.axis[v] != self.axis[live[0]] for v in live):
            return False
        axis, zero = self.axis[live[0]], self.zero[live[0]]
        found = self._zero_of(node, live, axis, zero.size, shape)
        if found is None:
            return False
        self._put(node.outputs[0], axis, found)
        self.inner.append(node)
        for v in live:
            self._join(v, node.outputs[0])
        return True

    def _zero_of(self, node: ir.Node, live: list[ir.Value], axis: int, n: int, rank: int) -> Array | None:
        """Which channels of the result are zero; None if its channels are not its operands'."""
        zeros = [self.zero[v] for v in live]
        same = all(static_rank(v) == rank for v in live) and all(z.size == n for z in zeros)
        none = np.zeros(n, bool)
        if is_op(node, *ELEMENTWISE) and len(node.inputs) == 1:
            return zeros[0] if node.op_type in KEEPS_ZERO else none
        if is_op(node, *BINARY) and len(node.inputs) == 2 and same:
            if len(live) == 2:
                if static(live[0]) != static(live[1]):
                    return None
                both, either = zeros[0] & zeros[1], zeros[0] | zeros[1]
                return both if node.op_type in ("Add", "Sub", "Max", "Min") else either if node.op_type == "Mul" else none
            constant = next(tensor(v) for v in node.inputs if v is not live[0])
            spread = None if constant is None else _along(constant.numpy(), axis, rank, n)
            if spread is None:
                return None
            silent = ~spread.any(axis=0)
            first = node.inputs[0] is live[0]
            if node.op_type == "Mul":
                return zeros[0] | silent
            return zeros[0] & silent if node.op_type in ("Add", "Sub") else zeros[0] if node.op_type == "Div" and first else none
        if axis != 1 or not same:
            return self._flattened(node, zeros[0], axis)
        if is_op(node, *POOLS):
            return zeros[0]
        if is_op(node, "Conv") and live == [node.inputs[0]] and node.attributes.get_int("group", 1) == n:
            return self._depthwise(node, zeros[0], n)
        return self._flattened(node, zeros[0], axis)

    @staticmethod
    def _depthwise(node: ir.Node, zero: Array, n: int) -> Array | None:
        kernel, bias = tensor(node.inputs[1]), tensor(operand(node, 2)) if operand(node, 2) is not None else None
        if kernel is None or kernel.shape[0] != n or (operand(node, 2) is not None and bias is None):
            return None
        silent = zero | ~kernel.numpy().reshape(n, -1).any(axis=1)
        return silent if bias is None else silent & (bias.numpy() == 0)

    @staticmethod
    def _flattened(node: ir.Node, zero: Array, axis: int) -> Array | None:
        """[n, c, 1, 1] as [n, c]"""
        shape, out = static_tail(required(node, 0)), static_tail(node.outputs[0])
        plain = is_op(node, "Flatten", "Reshape", "Squeeze") and axis == 1 and shape is not None and out is not None
        return zero if plain and shape is not None and all(d == 1 for d in shape[1:]) and out == shape[:1] else None


def static_rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def static_tail(value: ir.Value) -> tuple[int, ...] | None:
    """The shape after the first axis, if it is known."""
    dims = None if value.shape is None else list(value.shape)[1:]
    return tuple(d for d in dims if isinstance(d, int)) if dims is not None and all(isinstance(d, int) for d in dims) else None


def _mixing(node: ir.Node) -> tuple[int, Array, Array, Array | None] | None:
    """Of a product with a constant matrix or kernel: channel axis, its weight by output channel and by input channel, its bias."""
    weight = tensor(node.inputs[1]) if is_op(node, "Conv", "Gemm", "MatMul") and len(node.inputs) > 1 else None
    third = operand(node, 2)
    bias = tensor(third) if third is not None else None
    if weight is None or (third is not None and bias is None) or required(node, 0).const_value is not None:
        return None
    array, vector = weight.numpy(), None if bias is None else bias.numpy()
    if node.op_type == "Conv":
        if node.attributes.get_int("group", 1) != 1:
            return None
        return 1, array.reshape(array.shape[0], -1), np.moveaxis(array, 1, 0).reshape(array.shape[1], -1), vector
    rank = static_rank(node.outputs[0])
    if array.ndim != 2 or rank is None or node.attributes.get_int("transA", 0) != 0 or (vector is not None and vector.ndim != 1):
        return None
    array = array.T if _by_output(node) else array
    if vector is not None and vector.size != array.shape[1]:
        return None
    return rank - 1, array.T, array, vector


def _by_output(node: ir.Node) -> bool:
    """Is the first axis of its weight that of the outputs?"""
    return node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1


def _along(constant: Array, axis: int, rank: int, n: int) -> Array | None:
    """A constant operand as [rest, channels]; None if its channels are more than the group's."""
    if constant.ndim > rank:
        return None
    wide = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    if wide.shape[axis] not in (1, n):
        return None
    moved = np.moveaxis(wide, axis, -1).reshape(-1, wide.shape[axis])
    return np.broadcast_to(moved, (moved.shape[0], n))


def _shrink(model: ir.Model, group: _Group, kept: Array, shrunk: Shrunk) -> None:
    n = len(group.dead)
    cutter = _Cutter(Editor(model), kept, shrunk)
    for node in group.makers:
        cutter.cut(node, 1, 0 if _by_output(node) else 1)
        if operand(node, 2) is not None:
            cutter.cut(node, 2, 0)
    for node in group.inner:
        if node.op_type == "Conv":
            cutter.cut(node, 1, 0)
            if operand(node, 2) is not None:
                cutter.cut(node, 2, 0)
            node.attributes["group"] = ir.AttrInt64("group", int(kept.size))
        for place, value in enumerate(node.inputs if node.op_type in BINARY else ()):
            constant = tensor(value) if value is not None else None
            rank = static_rank(node.outputs[0]) or 0
            where = group.axis - rank + (0 if constant is None else len(constant.shape))
            if constant is not None and where >= 0 and constant.shape[where] == n:
                cutter.cut(node, place, where)
    for reader in group.readers:
        cutter.cut(reader.node, 1, 1 if _by_output(reader.node) else 0, rests=True)
    for value in group.values:
        if value.shape is not None:
            value.shape = ir.Shape([len(kept) if k == group.axis else d for k, d in enumerate(value.shape)])


class _Cutter:
    """Replaces a node's constant by the part of it that is kept."""

    def __init__(self, editor: Editor, kept: Array, shrunk: Shrunk) -> None:
        self.editor, self.shrunk = editor, shrunk
        self.places = editor.constant(kept.astype(np.int64), "kept")

    def cut(self, node: ir.Node, place: int, axis: int, *, rests: bool = False) -> None:
        """``rests``: the removal rests on this weight's zeros."""
        weight = required(node, place)
        if rests and weight.name is not None:
            self.shrunk.rests.append(weight.name)
        part = self.editor.emit(node, "Gather", [weight, self.places], {"axis": axis}, dtype=weight.dtype)
        maker = part.producer()
        assert maker is not None
        maker.metadata_props[LAW] = "1"
        node.replace_input_with(place, part)
