"""Channels that live and die together: the products that make them, those that read them, and all between that treats every one by itself.

Between two layers that is an activation, a depthwise convolution, a pooling, or a gate: ``h * sigmoid(h)``, ``up * silu(gate)`` of a gated
feed-forward layer, squeeze and excitation (where a small product reads the pooled channels and another makes a factor for each of them). Take a
channel away and rows of every product that makes it go, and columns of every one that reads it (the groups of DepGraph, Fang et al 2023, of which
only one result leaves).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from passes.approximate.products import Product, products
from rewriter.edit import const, is_op, static, tensor

ELEMENTWISE = {
    "Relu", "Gelu", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Clip", "Elu", "Softplus", "Mish", "Swish", "Erf", "Identity",
    "Dropout", "Abs", "Sqrt", "Exp", "Neg",
}  # fmt: skip
"""Operators of one data input that treat every number by itself."""
POOLINGS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
BINARY = {"Add", "Mul", "Sub", "Div", "Max", "Min"}
FEWEST = 16
"""Channels below which a layer is left alone."""
LARGEST = 256
"""Nodes of a part beyond which it is no layer but most of a network."""


@dataclass(frozen=True)
class Hidden:
    """``writers`` make the channels, ``readers`` read them; the last reader's result is the only one that leaves. ``between``: what treats every
    channel by itself. ``values``: all that has these channels. ``inputs``: what the part is computed from."""

    writers: tuple[Product, ...]
    readers: tuple[Product, ...]
    between: tuple[ir.Node, ...]
    values: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.writers[0].weights)

    @property
    def images(self) -> bool:
        """Channels are the second axis, and not the last."""
        return self.writers[0].is_convolution

    @property
    def output(self) -> Product:
        """The reader whose result leaves."""
        return self.readers[-1]


def hidden(model: ir.Model) -> Iterator[Hidden]:
    """Every such part of the main graph, once."""
    found = {p.output: p for p in products(model)}
    seen: set[str] = set()
    for first in found.values():
        if first.groups != 1 or len(first.weights) < FEWEST or first.output in seen:
            continue
        grown = _Grown(first, found)
        if grown.fits and (part := grown.part()) is not None:
            seen.update(w.output for w in part.writers)
            yield part


class _Grown:
    """Grows from one product, forward and backward, over everything that has its channels."""

    def __init__(self, first: Product, found: Mapping[str, Product]) -> None:
        self._found, self._channels, self._images = found, len(first.weights), first.is_convolution
        self._writers: dict[str, Product] = {}
        self._readers: dict[str, Product] = {}
        self._between: dict[ir.Node, None] = {}
        self._values: dict[ir.Value, None] = {}
        self._waiting = [first.node.outputs[0]]
        self.fits = self._grow()

    def _grow(self) -> bool:
        while self._waiting:
            value = self._waiting.pop()
            if value in self._values:
                continue
            self._values[value] = None
            if len(self._values) > LARGEST or value.is_graph_output() or not self._made(value):
                return False
            if not all(self._read(use.node, use.idx) for use in value.uses()):
                return False
        return bool(self._readers)

    def _made(self, value: ir.Value) -> bool:
        """By a product, or channel by channel from others."""
        node = value.producer()
        if node is None:
            return False
        product = self._found.get(value.name or "")
        if product is not None and product.groups == 1:
            self._writers[product.output] = product
            return product.is_convolution == self._images and len(product.weights) == self._channels
        return self._joins(node)

    def _read(self, node: ir.Node, place: int) -> bool:
        product = self._found.get(node.outputs[0].name or "")
        if product is None or product.groups != 1:
            return self._joins(node)
        self._readers[product.output] = product
        return place == 0 and product.is_convolution == self._images and product.weights.shape[1] % self._channels == 0

    def _joins(self, node: ir.Node) -> bool:
        if node in self._between:
            return True
        others = channel_wise(node, self._channels, images=self._images)
        if others is None:
            return False
        self._between[node] = None
        self._waiting += [*others, node.outputs[0]]
        return True

    def part(self) -> Hidden | None:
        """If one result leaves it and nothing else does."""
        inner = {name for name, p in self._readers.items() if self._comes_back(p)}
        leaving = [name for name in self._readers if name not in inner]
        if len(leaving) != 1:
            return None
        last = self._readers[leaving[0]]
        inside, inputs = self._inside(last)
        if inside is None or not all(name in inside for name in (*self._writers, *self._readers)):
            return None
        readers = (*(self._readers[n] for n in self._readers if n in inner), last)
        values = tuple(v.name or "" for v in self._values)
        return Hidden(tuple(self._writers.values()), readers, tuple(self._between), values, tuple(inputs))

    def _comes_back(self, reader: Product) -> bool:
        """Does whatever is computed from it end in products that make these channels?"""
        waiting, seen = [reader.node.outputs[0]], set[ir.Value]()
        if reader.output in self._writers:
            return True
        while waiting:
            value = waiting.pop()
            if value.is_graph_output() or len(seen) > LARGEST:
                return False
            seen.add(value)
            waiting += [
                o for use in value.uses() for o in use.node.outputs if o not in seen and o not in self._values and o.name not in self._writers
            ]
        return any(use.node.outputs[0].name in self._writers for v in seen for use in v.uses())

    def _inside(self, last: Product) -> tuple[set[str] | None, dict[str, None]]:
        """Values between the inputs and the result that leaves, if nobody else reads them; and those inputs: what products that make the
        channels read from elsewhere."""
        after = self._after()
        inside: set[str] = set()
        inputs: dict[str, None] = {}
        nodes: set[ir.Node] = set()
        waiting = [last.node.outputs[0]]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if (value.name or "") in inside or (node is None and value.is_initializer()):
                continue
            if node is None or len(inside) > LARGEST:
                return None, {}
            inside.add(value.name or "")
            nodes.add(node)
            product = self._writers.get(value.name or "")
            if product is not None and product.node.inputs[0] not in after:
                inputs[product.input] = None
            else:
                waiting += [v for v in node.inputs if v is not None and tensor(v) is None]
        made = [o for node in nodes for o in node.outputs if o.name != last.output]
        escapes = any(o.is_graph_output() or any(use.node not in nodes for use in o.uses()) for o in made)
        return (None, {}) if escapes else (inside, inputs)

    def _after(self) -> set[ir.Value]:
        """All that is computed from these channels."""
        seen: set[ir.Value] = set()
        waiting = list(self._values)
        while waiting and len(seen) <= 2 * LARGEST:
            value = waiting.pop()
            if value not in seen:
                seen.add(value)
                waiting += [o for use in value.uses() for o in use.node.outputs]
        return seen


def channel_wise(node: ir.Node, channels: int, *, images: bool) -> list[ir.Value] | None:
    """What of its inputs has the channels, where the node treats every channel by itself; None where it does not, or is not known to."""
    if len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return None
    if is_op(node, *ELEMENTWISE) or (images and (is_op(node, *POOLINGS) or _over_places(node))):
        return [node.inputs[0]] if all(v is None or tensor(v) is not None for v in node.inputs[1:]) else None
    if is_op(node, "Conv") and images:
        whole = all(tensor(v) is not None for v in node.inputs[1:] if v is not None)
        kernel = static(node.inputs[1])
        depthwise = kernel is not None and kernel[:2] == (channels, 1) and node.attributes.get_int("group", 1) == channels
        return [node.inputs[0]] if whole and depthwise else None
    if is_op(node, *BINARY):
        return _operands(node, channels, images=images)
    return None


def _operands(node: ir.Node, channels: int, *, images: bool) -> list[ir.Value] | None:
    """Of a sum, a product and the like: all that is computed, if the rest is a number, or a vector along the channels."""
    computed = [v for v in node.inputs if v is not None and tensor(v) is None]
    ranks = {None if v.shape is None else len(v.shape) for v in computed}
    rank = ranks.pop() if len(ranks) == 1 else None
    if rank is None:
        return None
    for value in node.inputs:
        data = tensor(value)
        if data is not None and data.size != 1 and not is_vector(tuple(data.shape.numpy()), channels, rank - 1 if images else 1):
            return None
    return computed


def _over_places(node: ir.Node) -> bool:
    """A mean over the places of images, which stay there with length 1."""
    axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
    value = node.inputs[0]
    if not is_op(node, "ReduceMean") or axes is None or value is None or value.shape is None or node.attributes.get_int("keepdims", 1) != 1:
        return False
    return bool(len(axes)) and all(int(a) % len(value.shape) > 1 for a in axes.reshape(-1))


def is_vector(shape: tuple[int, ...], channels: int, place: int) -> bool:
    """One number a channel, along the axis that many places from the end."""
    return len(shape) >= place and shape[-place] == channels == math.prod(shape)
