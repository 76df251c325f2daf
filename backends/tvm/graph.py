"""The graph that is lowered: fixed shapes, constants as arrays, and few kinds of node.

``read`` takes an ONNX model whose shapes are fixed and spells it with fewer operators: biases are additions, batch norms
are a scale and a shift, Gemm is MatMul, and whatever moves no data is Reshape, Transpose, Slice or Expand. Constants fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Node:
    """One operator; all inputs and outputs are names, and "" where an input is left out."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


@dataclass
class Graph:
    """Nodes in an order in which they can run; every value has a shape and a dtype (numpy's name)."""

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    def constant(self, array: Array) -> str:
        """The name of a new constant."""
        name = self.fresh("constant", array.shape, array.dtype.name)
        self.constants[name] = array
        return name

    def fresh(self, stem: str, shape: Sequence[int], dtype: str) -> str:
        """A new name."""
        self._count += 1
        name = f"{stem}#{self._count}"
        self.shapes[name], self.dtypes[name] = tuple(shape), dtype
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Append a node with one output."""
        self.nodes.append(Node(op, list(inputs), [output], attributes))

    def users(self) -> dict[str, list[Node]]:
        """The nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def makers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs if name}


class UnsupportedNode(ValueError):
    """A node that cannot be lowered: the message says why, ``output`` is the name of its first result."""

    def __init__(self, op: str, output: str, why: str) -> None:
        super().__init__(f"{op} {output!r}: {why}")
        self.output = output


def read(model: onnx.ModelProto, refused: dict[str, str] | None = None, folder: Path | None = None) -> Graph:
    """``model`` as a Graph; ``folder``: where its external data lie. Raises UnsupportedNode; or notes the reason in ``refused``,
    by the node's first output, and takes what the node makes for inputs."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    graph = Graph([value.name for value in model.graph.input], [value.name for value in model.graph.output])
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor, base_dir=str(folder or ""))
        graph.constants[tensor.name] = array
        graph.shapes[tensor.name], graph.dtypes[tensor.name] = array.shape, array.dtype.name
    graph.inputs = [name for name in graph.inputs if name not in graph.constants]
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.elem_type and kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            graph.shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
            graph.dtypes[value.name] = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    for proto in model.graph.node:
        node = Node(
            proto.op_type, list(proto.input), list(proto.output),
            {a.name: _plain(helper.get_attribute_value(a)) for a in proto.attribute},
        )  # fmt: skip
        before = len(graph.nodes)
        try:
            _spell(graph, node, proto.domain)
        except UnsupportedNode as error:
            if refused is None:
                raise
            refused[error.output] = str(error)
            del graph.nodes[before:]
            graph.inputs += [name for name in node.outputs if name in graph.shapes]
    if refused is not None:
        made = {name for node in graph.nodes for name in node.outputs}
        graph.outputs = [name for name in graph.outputs if name in made]
    _forward(graph)
    return graph


def _spell(graph: Graph, node: Node, domain: str) -> None:
    if domain not in ("", "ai.onnx"):
        raise UnsupportedNode(node.op, node.outputs[0], f"it is of domain {domain!r}")
    for name in (*node.inputs, *node.outputs):
        if name and name not in graph.shapes:
            raise UnsupportedNode(node.op, node.outputs[0], f"the shape of {name!r} is not known")
    SPELLINGS.get(node.op, _as_it_is)(graph, node)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, np.ndarray)) else value


def _as_it_is(graph: Graph, node: Node) -> None:
    graph.nodes.append(node)


def _alias(graph: Graph, node: Node) -> None:
    graph.add("Reshape", node.inputs[:1], node.outputs[0])


def _constant(graph: Graph, node: Node) -> None:
    (value,) = node.attributes.values()
    kind = np.int64 if "value_ints" in node.attributes or "value_int" in node.attributes else np.float32
    graph.constants[node.outputs[0]] = value if isinstance(value, np.ndarray) else np.asarray(value, kind)


def _conv(graph: Graph, node: Node) -> None:
    x, weight, *rest = node.inputs
    out = node.outputs[0]
    rank = len(graph.shapes[weight]) - 2
    taps = graph.shapes[weight][2:]
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads = pads_of(node, graph.shapes[x][2:], taps, strides, dilations)
    attributes = {
        "group": node.get("group", 1), "strides": strides, "dilations": dilations, "pads": pads,
    }  # fmt: skip
    if node.op == "ConvTranspose":
        if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.get("output_shape"):
            raise UnsupportedNode(node.op, out, "automatic padding")
        pads = node.get("pads", [0] * 2 * rank)
        attributes["pads"] = pads
    if not rest or not rest[0]:
        graph.add(node.op, [x, weight], out, **attributes)
        return
    sums = graph.fresh(out, graph.shapes[out], graph.dtypes[out])
    graph.add(node.op, [x, weight], sums, **attributes)
    graph.add("Add", [sums, _column(graph, rest[0], rank)], out)


def pads_of(node: Node, shape: Sequence[int], taps: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """The paddings before each axis, then after each."""
    auto = node.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return list(node.get("pads", [0] * 2 * len(taps)))
    if auto == "VALID":
        return [0] * 2 * len(taps)
    before, after = [], []
    for size, tap, stride, dilation in zip(shape, taps, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (tap - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before + after


def _column(graph: Graph, name: str, rank: int) -> str:
    """A vector over channels, shaped to broadcast over an image."""
    shape = (*graph.shapes[name], *[1] * rank)
    if name in graph.constants:
        return graph.constant(graph.constants[name].reshape(shape))
    out = graph.fresh(name, shape, graph.dtypes[name])
    graph.add("Reshape", [name], out)
    return out


def _batch_norm(graph: Graph, node: Node) -> None:
    x, *parameters = node.inputs
    if not all(name in graph.constants for name in parameters) or node.get("training_mode"):
        raise UnsupportedNode(node.op, node.outputs[0], "its parameters are not constants")
    scale, shift, mean, variance = (graph.constants[name].astype(np.float64) for name in parameters)
    factor = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    kind, rank = graph.dtypes[x], max(0, len(graph.shapes[x]) - 2)
    scaled = graph.fresh("scaled", graph.shapes[x], kind)
    shape = (-1, *[1] * rank)
    graph.add("Mul", [x, graph.constant(factor.astype(kind).reshape(shape))], scaled)
    offset = (shift - mean * factor).astype(kind)
    graph.add("Add", [scaled, graph.constant(offset.reshape(shape))], node.outputs[0])


def _gemm(graph: Graph, node: Node) -> None:
    a, b, *rest = node.inputs
    out, kind = node.outputs[0], graph.dtypes[a]
    a, b = (_flipped(graph, name) if node.get(key) else name for name, key in ((a, "transA"), (b, "transB")))
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    shape = graph.shapes[out]
    if alpha != 1.0:
        scaled = graph.fresh("scaled", graph.shapes[a], kind)
        graph.add("Mul", [a, graph.constant(np.asarray(alpha, kind))], scaled)
        a = scaled
    if not rest or not rest[0]:
        graph.add("MatMul", [a, b], out)
        return
    product = graph.fresh(out, shape, kind)
    graph.add("MatMul", [a, b], product)
    c = rest[0]
    if beta != 1.0:
        scaled = graph.fresh("scaled", graph.shapes[c], kind)
        graph.add("Mul", [c, graph.constant(np.asarray(beta, kind))], scaled)
        c = scaled
    graph.add("Add", [product, c], out)


def _flipped(graph: Graph, name: str) -> str:
    if name in graph.constants:
        return graph.constant(np.ascontiguousarray(graph.constants[name].T))
    out = graph.fresh(name, graph.shapes[name][::-1], graph.dtypes[name])
    graph.add("Transpose", [name], out, perm=[1, 0])
    return out


def _fold_pairs(op: str) -> Callable[[Graph, Node], None]:
    """Sum, Max, Min and Mean of many as a chain of two."""

    def spell(graph: Graph, node: Node) -> None:
        first, *others = node.inputs
        out, kind = node.outputs[0], graph.dtypes[node.outputs[0]]
        if not others:
            graph.add("Reshape", [first], out)
            return
        for index, name in enumerate(others):
            last = index == len(others) - 1 and node.op != "Mean"
            shape = np.broadcast_shapes(graph.shapes[first], graph.shapes[name])
            result = out if last else graph.fresh(out, shape, kind)
            graph.add(op, [first, name], result)
            first = result
        if node.op == "Mean":
            graph.add("Mul", [first, graph.constant(np.asarray(1.0 / len(node.inputs), kind))], out)

    return spell


def _slice(graph: Graph, node: Node) -> None:
    shape = graph.shapes[node.inputs[0]]
    if not all(name in graph.constants for name in node.inputs[1:] if name):
        raise UnsupportedNode(node.op, node.outputs[0], "its bounds are not constants")
    starts, ends, *rest = ([int(v) for v in graph.constants[n]] if n else [] for n in node.inputs[1:])
    axes = rest[0] if rest and rest[0] else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 and rest[1] else [1] * len(starts)
    cuts = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        span = range(*slice(start, end if not (step < 0 and end < -shape[axis]) else None, step).indices(shape[axis]))
        cuts.append((axis % len(shape), span.start, len(span), step))
    graph.add("Slice", node.inputs[:1], node.outputs[0], cuts=cuts)


def _split(graph: Graph, node: Node) -> None:
    axis = node.get("axis", 0) % len(graph.shapes[node.inputs[0]])
    start = 0
    for out in node.outputs:
        size = graph.shapes[out][axis]
        graph.add("Slice", node.inputs[:1], out, cuts=[(axis, start, size, 1)])
        start += size


def _gather(graph: Graph, node: Node) -> None:
    data, indices = node.inputs
    shape = graph.shapes[data]
    axis = node.get("axis", 0) % len(shape)
    known = graph.constants.get(indices)
    if known is None or known.size != 1 or data in graph.constants:
        graph.nodes.append(node)
        return
    out = node.outputs[0]
    row = graph.fresh(out, (*shape[:axis], 1, *shape[axis + 1 :]), graph.dtypes[data])
    graph.add("Slice", [data], row, cuts=[(axis, int(known.item()) % shape[axis], 1, 1)])
    graph.add("Reshape", [row], out)


def _gather_nd(graph: Graph, node: Node) -> None:
    """Places that are constants, as one Gather of rows."""
    data, indices = node.inputs
    places = graph.constants.get(indices)
    shape = graph.shapes[data]
    if places is None or node.get("batch_dims", 0) or places.size == 0:
        raise UnsupportedNode(node.op, node.outputs[0], "its indices are not constants")
    depth = places.shape[-1]
    outer = np.asarray(shape[:depth])
    rows = np.ravel_multi_index(tuple(np.moveaxis(np.where(places < 0, places + outer, places), -1, 0)), shape[:depth])
    flat = graph.fresh(data, (int(np.prod(outer)), *shape[depth:]), graph.dtypes[data])
    graph.add("Reshape", [data], flat)
    graph.add("Gather", [flat, graph.constant(np.asarray(rows, np.int64))], node.outputs[0], axis=0)


def _quantize(graph: Graph, node: Node) -> None:
    """QuantizeLinear and DequantizeLinear: scales and zero points of an axis broadcast along it."""
    x, *parameters = node.inputs
    if node.get("block_size", 0):
        if node.op == "DequantizeLinear" and all(name in graph.constants for name in node.inputs if name) and node.outputs[0] not in graph.outputs:
            blocks = {"axis": node.get("axis", 1) % len(graph.shapes[x]), "block": node.get("block_size")}
            graph.add(node.op, node.inputs, node.outputs[0], **blocks)
            return
        raise UnsupportedNode(node.op, node.outputs[0], "it has scales for blocks")
    shape = [1] * len(graph.shapes[x])
    if shape:
        shape[node.get("axis", 1) % len(shape) if len(graph.shapes[parameters[0]]) else 0] = -1
    spread = []
    for name in parameters:
        if not name or not graph.shapes[name]:
            spread.append(name)
        elif name in graph.constants:
            spread.append(graph.constant(graph.constants[name].reshape(shape)))
        else:
            raise UnsupportedNode(node.op, node.outputs[0], "its scales are not constants")
    graph.add(node.op, [x, *spread], node.outputs[0])


def _global(reduction: str) -> Callable[[Graph, Node], None]:
    """GlobalAveragePool and its like as a reduction over the image."""

    def spell(graph: Graph, node: Node) -> None:
        axes = list(range(2, len(graph.shapes[node.inputs[0]])))
        graph.add(reduction, node.inputs, node.outputs[0], axes=axes)

    return spell


def _reduce(graph: Graph, node: Node) -> None:
    data, *rest = node.inputs
    rank = len(graph.shapes[data])
    axes = node.get("axes")
    if rest and rest[0]:
        if rest[0] not in graph.constants:
            raise UnsupportedNode(node.op, node.outputs[0], "its axes are not constants")
        axes = [int(v) for v in graph.constants[rest[0]]]
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            graph.add("Reshape", [data], node.outputs[0])
            return
        axes = list(range(rank))
    graph.add(node.op, [data], node.outputs[0], axes=sorted(axis % rank for axis in axes))


def _transpose(graph: Graph, node: Node) -> None:
    rank = len(graph.shapes[node.inputs[0]])
    graph.add("Transpose", node.inputs, node.outputs[0], perm=node.get("perm") or list(reversed(range(rank))))


def _only_data(op: str) -> Callable[[Graph, Node], None]:
    return lambda graph, node: graph.add(op, node.inputs[:1], node.outputs[0])


def _clip(graph: Graph, node: Node) -> None:
    """The bounds as inputs, also where old models have attributes."""
    bounds = [node.inputs[i] if i < len(node.inputs) else "" for i in (1, 2)]
    for place, key in enumerate(("min", "max")):
        if key in node.attributes:
            bounds[place] = graph.constant(np.asarray(node.attributes[key], graph.dtypes[node.inputs[0]]))
    graph.add("Clip", [node.inputs[0], *bounds], node.outputs[0])


def _lstm(graph: Graph, node: Node) -> None:
    from backends.tvm.cells import lstm  # which imports this file

    lstm(graph, node)


def _pad(graph: Graph, node: Node) -> None:
    from backends.tvm.pads import pad  # which imports this file

    pad(graph, node)


SPELLINGS: dict[str, Callable[[Graph, Node], None]] = {
    "Constant": _constant, "Identity": _alias, "Dropout": _alias, "Conv": _conv, "ConvTranspose": _conv,
    "BatchNormalization": _batch_norm, "Gemm": _gemm, "Sum": _fold_pairs("Add"), "Mean": _fold_pairs("Add"),
    "Max": _fold_pairs("Max"), "Min": _fold_pairs("Min"), "Slice": _slice, "Split": _split, "Gather": _gather,
    "GatherND": _gather_nd, "QuantizeLinear": _quantize, "DequantizeLinear": _quantize,
    "GlobalAveragePool": _global("ReduceMean"), "GlobalMaxPool": _global("ReduceMax"), "Transpose": _transpose,
    "Reshape": _only_data("Reshape"), "Flatten": _only_data("Reshape"), "Squeeze": _only_data("Reshape"),
    "Unsqueeze": _only_data("Reshape"), "Expand": _only_data("Expand"), "Clip": _clip, "LSTM": _lstm, "Pad": _pad,
    **{f"Reduce{kind}": _reduce for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip


def _forward(graph: Graph) -> None:
    """Readers of a value that only repeats another read that one, and shapes of constants are applied to them."""
    same: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        node.inputs = [same.get(name, name) for name in node.inputs]
        out = node.outputs[0]
        source = node.inputs[0] if node.inputs else ""
        if node.op in ("Reshape", "Transpose", "Expand") and source in graph.constants and out not in graph.outputs:
            graph.constants[out] = _moved(node, graph.constants[source], graph.shapes[out])
            continue
        if node.op == "Reshape" and graph.shapes[out] == graph.shapes[source] and out not in graph.outputs:  # an Identity
            same[out] = source
            continue
        kept.append(node)
    graph.nodes = kept


def _moved(node: Node, array: Array, shape: Sequence[int]) -> Array:
    if node.op == "Reshape":
        return array.reshape(shape)
    return array.transpose(node.attributes["perm"]) if node.op == "Transpose" else np.broadcast_to(array, shape)
