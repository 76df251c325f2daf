"""Pad as slices laid side by side: what is around an image is a part of it, read backwards or again, or a constant."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.tvm.graph import Graph, Node, UnsupportedNode

MODES = ("constant", "reflect", "edge", "wrap")


def pad(graph: Graph, node: Node) -> None:
    """Spell it out, an axis after the other. Raises UnsupportedNode for lengths that are computed, and for reflections of reflections."""
    mode = node.get("mode", "constant")
    value = _fill(graph, node)
    name = node.inputs[0]
    lengths = _lengths(graph, node)
    if mode != "constant" and any(n < 0 for _, *pair in lengths for n in pair):
        raise UnsupportedNode(node.op, node.outputs[0], f"{mode} by less than nothing")
    for axis, before, after in lengths:
        name = _cut(graph, name, axis, max(0, -before), max(0, -after))
        size = graph.shapes[name][axis]
        before, after = max(0, before), max(0, after)
        if mode in ("reflect", "wrap") and max(before, after) > size - (mode == "reflect"):
            raise UnsupportedNode(node.op, node.outputs[0], f"{mode} by {max(before, after)} where there are {size}")
        parts = [_around(graph, name, axis, count, mode, value, first=first) for count, first in ((before, True), (after, False))]
        joined = [part for part in (parts[0], name, parts[1]) if part]
        if len(joined) > 1:
            name = _made(graph, "Concat", joined, axis, size + before + after, axis=axis)
    graph.add("Reshape", [name], node.outputs[0])


def _lengths(graph: Graph, node: Node) -> list[tuple[int, int, int]]:
    """(axis, before, after) of each axis that changes."""
    rank = len(graph.shapes[node.inputs[0]])
    given = node.get("pads")
    if given is None:
        if len(node.inputs) < 2 or node.inputs[1] not in graph.constants:
            raise UnsupportedNode(node.op, node.outputs[0], "its lengths are not constants")
        given = [int(v) for v in graph.constants[node.inputs[1]]]
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3]:
        if node.inputs[3] not in graph.constants:
            raise UnsupportedNode(node.op, node.outputs[0], "its axes are not constants")
        axes = [int(v) % rank for v in graph.constants[node.inputs[3]]]
    pairs = zip(axes, given[: len(axes)], given[len(axes) :], strict=True)
    return [(axis, before, after) for axis, before, after in pairs if before or after]


def _fill(graph: Graph, node: Node) -> Any:
    """What a constant border is made of."""
    if node.get("mode", "constant") not in MODES:
        raise UnsupportedNode(node.op, node.outputs[0], f"mode {node.get('mode')!r}")
    if len(node.inputs) > 2 and node.inputs[2]:
        if node.inputs[2] not in graph.constants:
            raise UnsupportedNode(node.op, node.outputs[0], "its value is not constant")
        return graph.constants[node.inputs[2]].item()
    return node.get("value", 0)


def _around(graph: Graph, name: str, axis: int, count: int, mode: str, value: Any, *, first: bool) -> str:
    """The border before, or after; nothing where it is empty."""
    if not count:
        return ""
    size = graph.shapes[name][axis]
    if mode == "constant":
        shape = [count if k == axis else n for k, n in enumerate(graph.shapes[name])]
        return graph.constant(np.full(shape, value, graph.dtypes[name]))
    if mode == "edge":
        line = _made(graph, "Slice", [name], axis, 1, cuts=[(axis, 0 if first else size - 1, 1, 1)])
        return _made(graph, "Expand", [line], axis, count)
    step = -1 if mode == "reflect" else 1
    start = {("reflect", True): count, ("reflect", False): size - 2, ("wrap", True): size - count, ("wrap", False): 0}[mode, first]
    return _made(graph, "Slice", [name], axis, count, cuts=[(axis, start, count, step)])


def _cut(graph: Graph, name: str, axis: int, before: int, after: int) -> str:
    """Negative lengths take away."""
    size = graph.shapes[name][axis] - before - after
    return name if not before and not after else _made(graph, "Slice", [name], axis, size, cuts=[(axis, before, size, 1)])


def _made(graph: Graph, op: str, inputs: list[str], along: int, length: int, **attributes: Any) -> str:
    shape = [length if k == along else n for k, n in enumerate(graph.shapes[inputs[0]])]
    out = graph.fresh(op.lower(), shape, graph.dtypes[inputs[0]])
    graph.add(op, inputs, out, **attributes)
    return out
