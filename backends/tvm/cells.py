"""An LSTM over few steps as products, gates and sums; a step's left operand is laid side by side where its parts are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.tvm.graph import Graph, Node, UnsupportedNode
from rewriter.lstm_steps import Lstm, refusal, spell_out

Array = np.ndarray[Any, Any]


def lstm(graph: Graph, node: Node) -> None:
    """Spell it out. Raises UnsupportedNode for more steps, two directions, lengths, peepholes, and weights that are computed."""
    x, w, r, bias, lengths, hidden, cell, peepholes = [*node.inputs, *[""] * 8][:8]
    steps, batch, depth = graph.shapes[x]
    plain = not (lengths or peepholes) and all(name in graph.constants for name in (w, r, bias) if name)
    if why := refusal(node.attributes, steps, plain=plain):
        raise UnsupportedNode(node.op, next(filter(None, node.outputs), ""), why)
    constants = (graph.constants[name] if name else None for name in (w, r, bias))
    found = Lstm(x, (steps, batch, depth), hidden or None, cell or None, *constants)  # type: ignore[arg-type]
    every, h, c = spell_out(found, _Writer(graph, graph.dtypes[x]))
    for place, rows in enumerate((every, [h], [c])):
        if place < len(node.outputs) and node.outputs[place]:
            _give(graph, rows, node.outputs[place])


def _give(graph: Graph, rows: Sequence[str], output: str) -> None:
    """The rows as the output of that name, [steps, 1, batch, size] or [1, batch, size]."""
    batch, size = graph.shapes[rows[0]]
    joined = rows[0]
    if len(rows) > 1:
        joined = graph.fresh("concat", (len(rows) * batch, size), graph.dtypes[joined])
        graph.add("Concat", rows, joined, axis=0)
    graph.add("Reshape", [joined], output)


class _Writer:
    """Adds the steps' nodes."""

    def __init__(self, graph: Graph, kind: str) -> None:
        self._graph, self._kind = graph, kind

    def constant(self, array: Array) -> str:
        return self._graph.constant(array)

    def reshaped(self, x: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [x], shape)

    def rows(self, x: str, axis: int, start: int, size: int) -> str:
        shape = [*self._graph.shapes[x]]
        shape[axis] = size
        return self.node("Slice", [x], shape, cuts=[(axis, start, size, 1)])

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> str:
        out = self._graph.fresh(op.lower(), shape, self._kind)
        self._graph.add(op, inputs, out, **attributes)
        return out
