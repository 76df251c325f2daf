"""Evaluate what is made of weights alone, and keep how it was made."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir

from passes.inline_constants import LITERAL
from passes.pack_weights import LEAST
from rewriter.encode import RANDOM, subgraphs
from rewriter.weights import LAW, WeightProgram

SMALL = 1 << 16
"""Bytes up to which folding may make a weight larger than what it is made of."""


def fold_weights(model: ir.Model, *, smallest: bool = False) -> WeightProgram | None:
    """Every value that only weights reach becomes an initialiser; the program that computes them is returned.

    before                          after
        V = Transpose(W)                U: an initialiser
        U = Mul(V, s)                   y = MatMul(x, U)
        y = MatMul(x, U)

    A weight that the model itself stores small and unpacks (int8 with scales, float16, a fill value) stays packed: unpacked it
    would compute the same and be larger. Weights that no rewrite touched keep their initialisers. ``smallest``: a weight is evaluated
    only where that makes the model smaller; others are made of what is stored whenever the model runs.
    """
    nodes, wanted = _plan(model, smallest)
    if not wanted:
        return None
    program = WeightProgram(_proto(model, nodes, wanted))
    sources = {v.name or "": v for v in model.graph.initializers.values()}

    def weight(name: str) -> np.ndarray:
        data = sources[name].const_value
        assert data is not None
        return data.numpy()

    by_name = {v.name or "": v for v in wanted}
    for name, array in program.evaluate(weight):
        if smallest:
            array = _fewest_values(array, functools.partial(program.in_reals, name, weight))
        old = by_name[name]
        producer = old.producer()
        assert producer is not None
        tensor = ir.Tensor(array, name=name)
        new = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        old.name = f"{name}_folded"
        if old.is_graph_output():
            _return(old, new, name, producer)
        else:
            old.replace_all_uses_with(new)
        model.graph.register_initializer(new)
    _drop(nodes)
    return program


def _fewest_values(array: np.ndarray, in_reals: Callable[[], np.ndarray]) -> np.ndarray:
    """The weight as the model rounds it, or without its roundings between, if they are all that makes its values many.

    A quantiser's straight-through form, (q - w) + w, leaves each of a few levels blurred by roundings.
    """
    if array.dtype.kind != "f" or array.size < LEAST:
        return array
    clean = in_reals()
    close = np.allclose(clean, array, rtol=0, atol=1e-6 * float(np.abs(array).max()))
    return clean if close and len(np.unique(clean)) < len(np.unique(array)) else array


def _return(old: ir.Value, new: ir.Value, name: str, producer: ir.Node) -> None:
    """An output keeps its name: it becomes the Identity of the weight, which everybody else reads."""
    assert producer.graph is not None and new.const_value is not None
    taken = producer.graph.initializers
    new.name = new.const_value.name = next(n for n in (f"{name}_value{k or ''}" for k in itertools.count()) if n not in taken)
    result = ir.Value(name=name, type=old.type, shape=old.shape)
    producer.graph.append(ir.Node("", "Identity", [new], outputs=[result]))
    for i, value in enumerate(producer.graph.outputs):
        if value is old:
            producer.graph.outputs[i] = result
    old.replace_all_uses_with(new)


def weights_only(model: ir.Model) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes that only weights reach, in order, and every value that is a weight or made by them."""
    constant: set[ir.Value] = {v for v in model.graph.initializers.values() if not v.is_graph_input()}
    nodes: list[ir.Node] = []
    for graph in [model.graph, *model.graph.subgraphs()]:
        for node in graph:
            if _foldable(node) and all(v is None or v in constant for v in node.inputs):
                nodes.append(node)
                constant.update(node.outputs)
    return nodes, constant


def _plan(model: ir.Model, smallest: bool) -> tuple[list[ir.Node], list[ir.Value]]:
    """The weights-only nodes, and which of their outputs are to become weights."""
    nodes, _ = weights_only(model)
    inside = set(nodes)
    frontier = [v for n in nodes for v in n.outputs if v.is_graph_output() or any(u.node not in inside for u in v.uses())]
    frontier = [v for v in frontier if isinstance(v.type, ir.TensorType) and not _is_copy(v)]
    if smallest:
        return nodes, _smallest(model, frontier, inside)
    stored = [v for v in frontier if _packed(v, inside) or _for_codes(v, inside)]
    kept = set(stored)
    return nodes, [*dict.fromkeys(c for v in stored for c in _codes(v, inside)), *(v for v in frontier if v not in kept)]


def _codes(value: ir.Value, inside: set[ir.Node]) -> list[ir.Value]:
    """Of a weight that stays stored as codes, what of them is made by other operators (they were turned) and is no larger for it."""
    maker = value.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return []
    made = [v for v in maker.inputs if v is not None and v.producer() in inside]
    return [v for v in made if (_bytes(v) or math.inf) <= sum(s.const_value.nbytes for s in _above(v, inside)[1] if s.const_value is not None)]


def _smallest(model: ir.Model, frontier: list[ir.Value], inside: set[ir.Node]) -> list[ir.Value]:
    """Which values to evaluate so that the fewest bytes are stored, from all and from none, one change at a time."""
    sizes = {v: _bytes(v) for v in frontier}
    sources = {v: {s for s in _above(v, inside)[1] if s.const_value is not None} for v in frontier}
    read = {v for v in model.graph.initializers.values() if any(u.node not in inside for u in v.uses()) or v.is_graph_output()}

    def stored(evaluated: set[ir.Value]) -> int:
        kept = read.union(*(sources[v] for v in frontier if v not in evaluated))
        return sum(sizes[v] or 0 for v in evaluated) + sum(s.const_value.nbytes for s in kept if s.const_value is not None)

    known = {v for v in frontier if sizes[v] is not None}
    best: set[ir.Value] | None = None
    for start in (known, set[ir.Value]()):
        chosen = set(start)
        while True:
            changes = [chosen ^ {v} for v in known]
            change = min(changes, key=lambda c: (stored(c), -len(c)), default=chosen)
            if (stored(change), -len(change)) >= (stored(chosen), -len(chosen)):
                break
            chosen = change
        if best is None or stored(chosen) < stored(best):
            best = chosen
    return [v for v in frontier if best is not None and v in best]


def _bytes(value: ir.Value) -> int | None:
    if value.shape is None or not value.shape.is_static() or value.dtype is None:
        return None
    return int(np.prod(value.shape.numpy()) * value.dtype.itemsize)


def _for_codes(value: ir.Value, inside: set[ir.Node]) -> bool:
    """Are these the numbers of stored codes, for operators whose input is codes too? Runtimes compute those on the codes."""
    maker = value.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return False
    makers = [v.producer() for v in maker.inputs if v is not None]
    if any(n is not None and n.op_type != "Transpose" for n in makers):
        return False

    def on_codes(node: ir.Node) -> bool:
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        on_weights = node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
        return on_weights and source is not None and source.op_type == "DequantizeLinear" and source not in inside

    return bool(value.uses()) and all(on_codes(u.node) for u in value.uses())


def _is_copy(value: ir.Value) -> bool:
    """Is this already what an output that is a weight looks like?"""
    node = value.producer()
    return node is not None and node.op_type == "Identity" and node.inputs[0] is not None and node.inputs[0].producer() is None


def _foldable(node: ir.Node) -> bool:
    # `rewriter` operators are functions: only standard operators can be evaluated without their bodies.
    return node.domain in ("", "ai.onnx") and node.op_type not in RANDOM and not any(True for _ in subgraphs(node)) and bool(node.inputs)


def _packed(value: ir.Value, inside: set[ir.Node]) -> bool:
    """Is this the model's own way to store a large tensor in fewer bytes? Its readers unpack it, as they did before."""
    above, sources = _above(value, inside)
    size = _bytes(value)
    if size is None or any(LAW in n.metadata_props for n in above):
        return False
    if not any(n.op_type in ("Cast", "DequantizeLinear", "ConstantOfShape", "Expand", "Tile", "EyeLike", "Range") for n in above):
        return False
    return size > SMALL and size > 2 * sum(v.const_value.nbytes for v in sources if v.const_value is not None)


def _above(value: ir.Value, inside: set[ir.Node]) -> tuple[set[ir.Node], set[ir.Value]]:
    nodes: set[ir.Node] = set()
    sources: set[ir.Value] = set()
    stack: list[ir.Value | None] = [value]
    while stack:
        v = stack.pop()
        node = v.producer() if v is not None else None
        if node in inside and node is not None and node not in nodes:
            nodes.add(node)
            stack.extend(node.inputs)
        elif v is not None and node is None:
            sources.add(v)
    return nodes, sources


def _proto(model: ir.Model, nodes: Iterable[ir.Node], wanted: list[ir.Value]) -> onnx.ModelProto:
    """The weights-only nodes as a model whose inputs are weights; integers and single numbers are part of the program."""
    inside = set(nodes)
    needed = {n for v in wanted for n in _above(v, inside)[0]}
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items())
    proto.graph.name = "weights"
    seen: set[ir.Value] = set()
    for node in nodes:
        if node not in needed:
            continue
        proto.graph.node.append(ir.serde.serialize_node(node))
        for v in node.inputs:
            if v is None or v in seen or v.producer() is not None:
                continue
            seen.add(v)
            data = v.const_value
            assert data is not None
            if v.meta.get(LITERAL) or data.size == 1 or (data.dtype.is_integer() and data.size <= 64):
                proto.graph.initializer.append(ir.serde.serialize_tensor(data))
                proto.graph.initializer[-1].name = v.name or ""
            else:
                proto.graph.input.append(ir.serde.serialize_value(v))
    proto.graph.output.extend(ir.serde.serialize_value(v) for v in wanted)
    return proto


def _drop(nodes: list[ir.Node]) -> None:
    for node in reversed(nodes):
        if node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            node.graph.remove(node, safe=True)


