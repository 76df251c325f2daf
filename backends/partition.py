"""Split a model into few large regions by who can run them, and run the regions one after another.

Nodes get levels: a node's level is at least that of what it reads, odd for nodes that are taken and even for the
others. The nodes of one level are one region; since edges never go down, a path that leaves a region cannot come back,
so every region is convex. An If or Loop is one node, which also reads what its bodies capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

Takes = Callable[[onnx.NodeProto], bool]


@dataclass(frozen=True)
class Part:
    """One region: its nodes in order, and the values that cross its border (weights do not count)."""

    taken: bool
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def partition(model: onnx.ModelProto, takes: Takes, *, least: int = 1) -> list[Part]:
    """The regions in an order in which they can run.

    A region of taken nodes with fewer than ``least`` nodes that are more than constants is left to the others: crossing
    the border costs too.
    """
    nodes = list(model.graph.node)
    taken = [takes(node) for node in nodes]
    while True:
        levels = _levels(nodes, taken)
        small = _small(nodes, taken, levels, least)
        if not small:
            return _parts(model, nodes, taken, levels)
        for index in small:
            taken[index] = False


def part_model(model: onnx.ModelProto, part: Part, values: Mapping[str, Any]) -> onnx.ModelProto:
    """``part`` as a model of its own; ``values`` gives an example of each of its inputs, which fixes type and shape."""
    used = {name for node in part.nodes for name in names_read(node)} | set(part.outputs)
    made = {name for node in part.nodes for name in node.output}
    graph = onnx.GraphProto(name=f"{model.graph.name or 'model'}_part")
    graph.node.extend(part.nodes)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in used - set(part.inputs) - made)
    graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in used)
    graph.input.extend(onnx.ValueInfoProto(name=name, type=type_of(values[name])) for name in part.inputs)
    declared = {v.name: v for v in (*model.graph.output, *model.graph.value_info)}
    graph.output.extend(declared[name] if name in declared else onnx.ValueInfoProto(name=name) for name in part.outputs)
    whole = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    whole.functions.extend(model.functions)
    return whole


def halves(part: Part) -> list[Part]:
    """The first and the second half of a region's nodes, each a region of its own."""
    middle = len(part.nodes) // 2
    first, second = part.nodes[:middle], part.nodes[middle:]
    made = [name for node in first for name in node.output if name]
    read = _ordered(name for node in second for name in sorted(names_read(node)))
    early = {name for node in first for name in names_read(node)}
    late = {name for node in second for name in node.output}
    return [
        Part(part.taken, first, tuple(n for n in part.inputs if n in early),
             tuple(n for n in made if n in read or n in part.outputs)),
        Part(part.taken, second, tuple(n for n in read if n in part.inputs or n in made),
             tuple(n for n in part.outputs if n in late)),
    ]  # fmt: skip


def type_of(value: Any) -> onnx.TypeProto:
    """The ONNX type of an array, or of a sequence of arrays."""
    if isinstance(value, list):
        inner = type_of(value[0]) if value else helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
        inner.tensor_type.ClearField("shape")  # the members of a sequence may differ
        return helper.make_sequence_type_proto(inner)
    array = np.asarray(value)
    kind = onnx.TensorProto.STRING if array.dtype.kind in "OUS" else helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_type_proto(kind, array.shape)


def names_read(node: onnx.NodeProto) -> set[str]:
    """Every name that the node, or a body in it, mentions as an input or result: at least what it captures."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            names.update(output.name for output in graph.output)
            for inner in graph.node:
                names |= names_read(inner)
    return names


def _levels(nodes: Sequence[onnx.NodeProto], taken: Sequence[bool]) -> list[int]:
    made: dict[str, int] = {}
    levels = []
    for node, mine in zip(nodes, taken, strict=True):
        level = max((made[name] for name in names_read(node) if name in made), default=0)
        level += level % 2 != int(mine)
        levels.append(level)
        made.update((name, level) for name in node.output)
    return levels


def _small(nodes: Sequence[onnx.NodeProto], taken: Sequence[bool], levels: Sequence[int], least: int) -> list[int]:
    counts: dict[int, int] = {}
    for node, level in zip(nodes, levels, strict=True):
        counts[level] = counts.get(level, 0) + (node.op_type not in ("Constant", "Identity"))
    return [i for i, level in enumerate(levels) if taken[i] and counts[level] < least]


def _parts(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], taken: Sequence[bool], levels: Sequence[int]
) -> list[Part]:
    results = {output.name for output in model.graph.output}
    weights = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    sources = {v.name for v in model.graph.input} - weights
    groups: dict[int, list[int]] = {}
    for index, level in enumerate(levels):
        groups.setdefault(level, []).append(index)
    maker = {name: levels[i] for i, node in enumerate(nodes) for name in node.output if name}
    parts = []
    for level in sorted(groups):
        chosen = [nodes[i] for i in groups[level]]
        read = _ordered(name for node in chosen for name in sorted(names_read(node)))
        inputs = [n for n in read if (n in maker and maker[n] != level) or (n in sources and n not in maker)]
        wanted = {n for i, node in enumerate(nodes) if levels[i] != level for n in names_read(node)} | results
        outputs = [name for node in chosen for name in node.output if name in wanted]
        if outputs:
            parts.append(Part(taken[groups[level][0]], tuple(chosen), tuple(inputs), tuple(outputs)))
    return parts


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
