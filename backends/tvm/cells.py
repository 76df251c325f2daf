"""An LSTM over few steps as products, gates and sums: streaming models call it with one step at a time.

For each step (ONNX LSTM, default activations; gates in the order i, o, f, c)::

    [i o f g] = [x_t h] [W R]ᵀ + Wb + Rb        c = s(f) c + s(i) tanh(g)        h = s(o) tanh(c)

with s the sigmoid, and one product of both, whose left operand is laid side by side where its parts are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.tvm.graph import Graph, Node, UnsupportedNode

Array = np.ndarray[Any, Any]
STEPS = 4
"""Steps up to which it pays: each is some ten kernels."""
DEFAULTS = {"direction": "forward", "layout": 0, "input_forget": 0, "clip": 0.0}
ACTIVATIONS = ["Sigmoid", "Tanh", "Tanh"]


def lstm(graph: Graph, node: Node) -> None:
    """Spell it out. Raises UnsupportedNode for more steps, two directions, lengths, peepholes, and weights that are computed."""
    x, w, r, bias, lengths, hidden, cell, peepholes = [*node.inputs, *[""] * 8][:8]
    steps, batch, _ = graph.shapes[x]
    _check(graph, node, steps, lengths or peepholes)
    weights = [graph.constants[name][0] for name in (w, r)]
    size = weights[1].shape[1]
    joined = graph.constant(np.ascontiguousarray(np.concatenate(weights, axis=1).T))  # [inputs + hidden, 4 hidden]
    shift = graph.constant(graph.constants[bias][0].reshape(2, -1).sum(axis=0).astype(weights[0].dtype)) if bias else ""
    kind = graph.dtypes[x]
    writer = _Writer(graph, kind, batch, size)
    h, c = (writer.state(name) for name in (hidden, cell))
    every = []
    for step in range(steps):
        h, c = writer.step(writer.row(x, step), h, c, joined, shift)
        every.append(h)
    for place, rows in enumerate((every, [h], [c])):
        if place < len(node.outputs) and node.outputs[place]:
            writer.give(rows, node.outputs[place])


def _check(graph: Graph, node: Node, steps: int, extra: str) -> None:
    name = next(filter(None, node.outputs), "")
    if any(node.get(key, value) != value for key, value in DEFAULTS.items()) or (node.get("activations") or ACTIVATIONS) != ACTIVATIONS:
        raise UnsupportedNode(node.op, name, "only forward, and its usual activations")
    if steps > STEPS or steps < 1:
        raise UnsupportedNode(node.op, name, f"it has {steps} steps, more than {STEPS}")
    if extra or any(n and n not in graph.constants for n in node.inputs[1:4]):
        raise UnsupportedNode(node.op, name, "lengths, peepholes, or weights that are computed")


class _Writer:
    """Adds the steps' nodes. ``batch`` samples, ``size`` hidden numbers."""

    def __init__(self, graph: Graph, kind: str, batch: int, size: int) -> None:
        self._graph, self._kind, self._batch, self._size = graph, kind, batch, size

    def state(self, name: str) -> str:
        """[1, batch, size], or zeros where there is none."""
        if not name:
            return self._graph.constant(np.zeros((self._batch, self._size), self._kind))
        return self._made("Reshape", [name], (self._batch, self._size))

    def row(self, x: str, step: int) -> str:
        """Step ``step`` of [steps, batch, inputs]."""
        steps, batch, depth = self._graph.shapes[x]
        part = x if steps == 1 else self._made("Slice", [x], (1, batch, depth), cuts=[(0, step, 1, 1)])
        return self._made("Reshape", [part], (batch, depth))

    def step(self, x: str, h: str, c: str, weights: str, shift: str) -> tuple[str, str]:
        """The next h and c."""
        depth = self._graph.shapes[weights][0]
        both = self._made("Concat", [x, h], (self._batch, depth), axis=1)
        sums = self._made("MatMul", [both, weights], (self._batch, 4 * self._size))
        sums = self._made("Add", [sums, shift]) if shift else sums
        parts = [self._made("Slice", [sums], (self._batch, self._size), cuts=[(1, k * self._size, self._size, 1)]) for k in range(4)]
        i, o, f = (self._made("Sigmoid", [part]) for part in parts[:3])
        kept, new = self._made("Mul", [f, c]), self._made("Mul", [i, self._made("Tanh", [parts[3]])])
        c = self._made("Add", [kept, new])
        return self._made("Mul", [o, self._made("Tanh", [c])]), c

    def give(self, rows: Sequence[str], output: str) -> None:
        """The rows as the output of that name, [steps, 1, batch, size] or [1, batch, size]."""
        joined = rows[0] if len(rows) == 1 else self._made("Concat", rows, (len(rows) * self._batch, self._size), axis=0)
        self._graph.add("Reshape", [joined], output)

    def _made(self, op: str, inputs: Sequence[str], shape: tuple[int, ...] | None = None, **attributes: Any) -> str:
        out = self._graph.fresh(op.lower(), shape or (self._batch, self._graph.shapes[inputs[0]][-1]), self._kind)
        self._graph.add(op, inputs, out, **attributes)
        return out
