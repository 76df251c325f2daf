"""An LSTM over few steps as the products, gates and sums that it stands for: its weights are to be changed, and the operator hides them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.edit import Array, Editor, const, is_op, nodes, operand, required, static
from rewriter.lstm_steps import Lstm, refusal, spell_out


def spell_out_lstm(model: ir.Model) -> bool:
    """Replace every LSTM of few steps and fixed sizes, whose weights are constants; whether there was one.

    before                                  after, with one step
        y, h, c = LSTM(x, w, r, b, , h0, c0)    a = Add(MatMul(Concat(x, h0), [w r]ᵀ), wb + rb);  i, o, f, g = a in parts
                                                c = s(f) c0 + s(i) tanh(g);  h = s(o) tanh(c)
    """
    editor = Editor(model)
    found = [(node, cell) for node in nodes(model) if is_op(node, "LSTM") and (cell := _cell(node)) is not None]
    for node, cell in found:
        writer = _Writer(editor, node)
        every, h, c = spell_out(cell, writer)
        for output, rows in zip(node.outputs, (every, [h], [c]), strict=False):
            if output.uses() or output.is_graph_output():
                editor.replace(output, writer.given(rows, cell, output))
        editor.drop(node)
    return bool(found)


def _cell(node: ir.Node) -> Lstm[ir.Value] | None:
    x, hidden, cell = required(node, 0), operand(node, 5), operand(node, 6)
    shape, known = static(x), [const(operand(node, place), 1 << 26) for place in (1, 2, 3)]
    w, r, bias = known
    if shape is None or w is None or r is None or x.dtype is None:
        return None
    plain = operand(node, 4) is None and operand(node, 7) is None and (bias is not None or operand(node, 3) is None)
    if refusal({name: attribute.value for name, attribute in node.attributes.items()}, shape[0], plain=plain):
        return None
    return Lstm(x, (shape[0], shape[1], shape[2]), hidden, cell, w, r, bias)


class _Writer:
    """Adds nodes before the LSTM."""

    def __init__(self, editor: Editor, node: ir.Node) -> None:
        self._editor, self._node, self._dtype = editor, node, required(node, 0).dtype

    def constant(self, array: Array) -> ir.Value:
        return self._editor.constant(array, "lstm")

    def reshaped(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return x if static(x) == tuple(shape) else self.node("Reshape", [x, self._numbers(*shape)], shape)

    def rows(self, x: ir.Value, axis: int, start: int, size: int) -> ir.Value:
        shape = [*(static(x) or ())]
        shape[axis] = size
        return self.node("Slice", [x, self._numbers(start), self._numbers(start + size), self._numbers(axis)], shape)

    def node(self, op: str, inputs: Sequence[ir.Value], shape: Sequence[int], **attributes: Any) -> ir.Value:
        return self._editor.emit(self._node, op, inputs, attributes, dtype=self._dtype, shape=shape)

    def given(self, rows: Sequence[ir.Value], cell: Lstm[ir.Value], output: ir.Value) -> ir.Value:
        """The rows in the shape of an output: [steps, 1, batch, size] or [1, batch, size]."""
        _, batch, _ = cell.shape
        joined = rows[0] if len(rows) == 1 else self.node("Concat", rows, (len(rows) * batch, cell.size), axis=0)
        whole = (len(rows), 1, batch, cell.size) if output is self._node.outputs[0] else (1, batch, cell.size)
        return self.node("Reshape", [joined, self._numbers(*whole)], whole)

    def _numbers(self, *numbers: int) -> ir.Value:
        return self._editor.constant(np.array(numbers, np.int64), "numbers")
