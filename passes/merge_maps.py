"""Linear maps of one tensor as one map, split afterwards (R6; TENSAT's rules of two outputs; papers 4, 36).

``x·A``, ``x·B`` are slices of ``x·[A|B]``. In an e-graph every pair of maps of a tensor has such a form, and the forms have pairs again:
one transformer block grows to millions of terms (TENSAT, section 4, and measured here). And a term has one result, so that the
price of the product and of the Split, paid once for all slices, would have to be seen by the extraction through each of them. The
groups are plain to see in a finished graph, so it is one step here, taken where it pays.

It seldom pays. Measured on ONNX Runtime, two cores, 1 to 197 rows, 16 to 2048 columns: a Split costs what two to four products cost to
start, and the arithmetic is the same; 3 or 4 maps alone give 0.77 to 1.08 of the speed. What pays is what merges behind them: the same
function of every slice, and sums of slices of two maps, as in recurrent cells. ``_price`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.cost import Prices, numbers
from rewriter.edit import Editor, dims, is_op, operand, required, static, tensor, uses
from rewriter.encode import ELEMENTWISE
from rewriter.weights import LAW

NAME = "maps/merge"


@dataclass(eq=False)
class _Bundle:
    """Values of several nodes that one node could make, side by side along ``axis`` (from the front), in the lengths ``pieces``.

    ``below``: the bundles that it is made from; none where it is one of maps.
    """

    nodes: list[ir.Node]
    axis: int
    pieces: tuple[int, ...]
    below: tuple[_Bundle, ...] = ()
    biased: bool = False
    """A sum with a vector, which runtimes do with the product before it."""
    above: _Bundle | None = field(default=None, repr=False)

    @property
    def values(self) -> list[ir.Value]:
        return [n.outputs[0] for n in self.nodes]


def merge_maps(model: ir.Model, prices: Prices, hints: Mapping[str, int] | None = None) -> int:
    """Merge what pays in the main graph; how many maps became fewer.

    before                              after
        a = MatMul(x, A)                    m = MatMul(x, [A|B|C])
        b = MatMul(x, B)                    g = Gelu(m)
        c = MatMul(x, C)                    p, q, r = Split(g)
        p = Gelu(a)  q = Gelu(b)  r = Gelu(c)
    """
    groups = list(_groups(model.graph))
    owner = {v: (bundle, k) for bundle in groups for k, v in enumerate(bundle.values)}
    pending = list(groups)
    while pending:
        bundle = pending.pop(0)
        higher = _above(bundle, owner) if bundle.above is None else None
        if higher is not None:
            for below in higher.below:
                below.above = higher
            owner.update((v, (higher, k)) for k, v in enumerate(higher.values))
            pending.append(higher)
    editor = Editor(model)
    merged = 0
    for top in dict.fromkeys(_top(bundle) for bundle in groups):
        if _price(top, prices, hints or {}) < 0:
            merged += sum(len(b.nodes) - 1 for b in _within(top) if not b.below)
            _split(top, _write(top, editor), editor)
    if merged:
        model.graph.sort()
    return merged


def _groups(graph: ir.Graph) -> Iterator[_Bundle]:
    """Maps with constant weights of one tensor, of one kind."""
    found: dict[Any, list[ir.Node]] = {}
    for node in graph:
        key = _kind(node)
        if key is not None:
            found.setdefault((required(node, 0), key), []).append(node)
    for nodes in found.values():
        shape = dims(nodes[0].outputs[0])
        if len(nodes) > 1 and shape is not None and all(dims(n.outputs[0]) is not None for n in nodes):
            axis = 1 if nodes[0].op_type == "Conv" else len(shape) - 1
            yield _Bundle(nodes, axis, tuple(_outputs(n) for n in nodes))


def _kind(node: ir.Node) -> Any:
    """What must agree for nodes to be one; None where it is no map that can be merged."""
    weight, bias = tensor(operand(node, 1)), tensor(operand(node, 2))
    if weight is None or uses(required(node, 1)) > 1 or len(node.outputs) != 1:
        return None
    if operand(node, 2) is not None and (bias is None or len(bias.shape) != 1):
        return None
    attributes = {a.name: a.value for a in node.attributes.values()}
    if is_op(node, "MatMul") and len(weight.shape) == 2:
        return "MatMul", weight.dtype, weight.shape[0]
    if is_op(node, "Gemm") and not any(attributes.get(k, d) != d for k, d in (("transA", 0), ("transB", 0), ("alpha", 1.0), ("beta", 1.0))):
        return "Gemm", weight.dtype, bias is not None and bias.shape[0] == weight.shape[1]
    if is_op(node, "Conv") and attributes.get("group", 1) == 1:
        return "Conv", weight.dtype, tuple(weight.shape[1:]), bias is not None, *sorted((k, str(v)) for k, v in attributes.items())
    return None


def _outputs(node: ir.Node) -> int:
    shape = static(node.inputs[1]) or ()
    return shape[0] if node.op_type == "Conv" else shape[-1]


def _above(bundle: _Bundle, owner: Mapping[ir.Value, tuple[_Bundle, int]]) -> _Bundle | None:
    """The bundle of what reads each value of this one, if that is one function of all of them and reads nothing else of them."""
    readers = [_reader(v) for v in bundle.values]
    first = readers[0]
    if first is None or any(r is None or not _alike(r, first) for r in readers) or len(set(readers)) < len(readers):
        return None
    nodes = [r for r in readers if r is not None]
    if is_op(first, *ELEMENTWISE) and len(first.inputs) == 1:
        return _Bundle(nodes, bundle.axis, bundle.pieces, (bundle,))
    if not is_op(first, "Add", "Mul"):
        return None
    others = [_other(n, v) for n, v in zip(nodes, bundle.values, strict=True)]
    vectors = [tensor(o) for o in others]
    if all(v is not None and tuple(v.shape) == (p,) for v, p in zip(vectors, bundle.pieces, strict=True)):
        last = bundle.axis == len(dims(bundle.values[0]) or ()) - 1
        return _Bundle(nodes, bundle.axis, bundle.pieces, (bundle,), biased=True) if last else None
    places = [owner.get(o) for o in others]
    second = places[0][0] if places[0] is not None else None
    if second is None or second is bundle or second.above is not None or (second.axis, second.pieces) != (bundle.axis, bundle.pieces):
        return None
    if any(place != (second, k) for k, place in enumerate(places)) or any(_reader(v) is not n for n, v in zip(nodes, second.values, strict=True)):
        return None
    if dims(bundle.values[0]) != dims(second.values[0]):
        return None
    return _Bundle(nodes, bundle.axis, bundle.pieces, (bundle, second))


def _reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, in the value's own graph."""
    found = tuple(value.uses())
    reader = found[0].node if len(found) == 1 and not value.is_graph_output() else None
    made = value.producer()
    return reader if reader is not None and made is not None and reader.graph is made.graph and len(reader.outputs) == 1 else None


def _alike(a: ir.Node, b: ir.Node) -> bool:
    written = [sorted((x.name, str(x.value)) for x in n.attributes.values()) for n in (a, b)]
    return a.op_identifier() == b.op_identifier() and written[0] == written[1] and len(a.inputs) == len(b.inputs)


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    a, b = required(node, 0), required(node, 1)
    return b if a is value else a


def _top(bundle: _Bundle) -> _Bundle:
    while bundle.above is not None:
        bundle = bundle.above
    return bundle


def _within(top: _Bundle) -> Iterator[_Bundle]:
    yield top
    for below in top.below:
        yield from _within(below)


def _price(top: _Bundle, prices: Prices, hints: Mapping[str, int]) -> float:
    """Microseconds more than before: a Split, each of its outputs, and copying them, for nodes that need not be started."""
    count = len(top.pieces)
    shapes = [numbers(dims(v), hints) for v in top.values]  # type: ignore[arg-type]
    if any(s is None for s in shapes):
        return math.inf
    copied = 8.0 * sum(math.prod(s) for s in shapes if s is not None)
    saved = sum(count - 1 for b in _within(top) if not b.biased)
    return prices.node * (1 + 0.5 * count) + copied * prices.byte - saved * prices.node


def _write(bundle: _Bundle, editor: Editor) -> ir.Value:
    """The one node of a bundle, in front of the first of its nodes; its value is whole."""
    first = bundle.nodes[0]
    inputs: list[ir.Value | None] = [_write(b, editor) for b in bundle.below] or [required(first, 0)]
    if bundle.biased:
        inputs.append(_joined([_other(n, v) for n, v in zip(bundle.nodes, bundle.below[0].values, strict=True)], 0, editor, first))
    elif not bundle.below:
        side = 0 if first.op_type == "Conv" else 1
        inputs.append(_joined([required(n, 1) for n in bundle.nodes], side, editor, first))
        if len(first.inputs) > 2 and first.inputs[2] is not None:
            inputs.append(_joined([required(n, 2) for n in bundle.nodes], 0, editor, first))
    shape = list(dims(first.outputs[0]) or ())
    shape[bundle.axis] = sum(bundle.pieces)
    attributes = {a.name: a.value for a in first.attributes.values()}
    return editor.emit(first, first.op_type, inputs, attributes, dtype=first.outputs[0].dtype, shape=shape)


def _joined(weights: Sequence[ir.Value], axis: int, editor: Editor, before: ir.Node) -> ir.Value:
    made = editor.emit(before, "Concat", weights, {"axis": axis}, dtype=weights[0].dtype, hint="side_by_side")
    maker = made.producer()
    assert maker is not None
    maker.metadata_props[LAW] = "1"
    return made


def _split(top: _Bundle, whole: ir.Value, editor: Editor) -> None:
    sizes = editor.constant(np.array(top.pieces, np.int64))
    pieces = [ir.Value(name=editor.fresh("piece"), type=v.type, shape=v.shape) for v in top.values]
    last = top.nodes[-1]
    split = ir.Node("", "Split", [whole, sizes], [ir.AttrInt64("axis", top.axis)], outputs=pieces, name=editor.fresh("split"))
    last.prepend(split)
    for old, new in zip(top.values, pieces, strict=True):
        editor.replace(old, new)
    for node in top.nodes:
        editor.drop(node)
