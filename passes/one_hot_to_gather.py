"""A product of one-hot rows and a table is a row of the table."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import made_by
from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required, tensor

WHOLE = (ir.DataType.INT32, ir.DataType.INT64)


def one_hot_to_gather(model: ir.Model) -> ir.Model:
    """MatMul of a comparison with 0, 1, .. n - 1 and a table of n rows becomes Gather; others than those n give zeros, as before.

    before, i: [.., 1], E: [n, d]                 after, E0: E and a row of zeros
        m = Equal(i, [0 .. n - 1])                    k = Min(Where(i < 0, n, i), n)
        f = Cast(m)                                   y = Gather(E0, Squeeze(k, -1)) {axis=0}
        y = MatMul(f, E)

    OneHot does the same, with indices below zero counted from the end. Not for tables with infinities: zero times those is no number.
    """
    editor = Editor(model)
    for node in nodes(model):
        if not is_op(node, "MatMul"):
            continue
        table = tensor(operand(node, 1))
        if table is None or len(table.shape) != 2 or not table.dtype.is_floating_point() or made_by(node.inputs[0], "Cast", "OneHot") is None:
            continue
        rows = _indices(node, editor, int(table.shape.numpy()[0])) if np.isfinite(table.numpy().astype(np.float64)).all() else None
        if rows is None:
            continue
        longer = editor.constant(np.concatenate([table.numpy(), np.zeros_like(table.numpy()[:1])]), "table")
        out = node.outputs[0]
        editor.replace(out, editor.emit(node, "Gather", [longer, rows], {"axis": 0}, dtype=out.dtype, shape=dims(out)))
        editor.drop(node)
    return model


def _indices(node: ir.Node, editor: Editor, count: int) -> ir.Value | None:
    """Which row of the longer table each row of the product is, if its left factor is one-hot."""
    cast = made_by(required(node, 0), "Cast")
    compared = made_by(operand(cast, 0), "Equal") if cast is not None else None
    if compared is not None:
        for index, numbers in (tuple(compared.inputs), tuple(compared.inputs)[::-1]):
            if index is not None and index.dtype in WHOLE and _counts(numbers, count, dims(index)):
                last = editor.constant(np.array([-1]), "axes")
                flat = editor.emit(node, "Squeeze", [index, last], dtype=index.dtype, shape=(dims(index) or ())[:-1])
                return _within(node, editor, flat, count, wraps=False)
        return None
    hot = made_by(required(node, 0), "OneHot")
    if hot is None or hot.attributes.get_int("axis", -1) not in (-1, len(dims(hot.outputs[0]) or ()) - 1):
        return None
    index, (depth, values) = required(hot, 0), (const(operand(hot, k)) for k in (1, 2))
    if index.dtype not in WHOLE or depth is None or depth.size != 1 or int(depth.item()) != count or values is None or values.tolist() != [0, 1]:
        return None
    return _within(node, editor, index, count, wraps=True)


def _counts(numbers: ir.Value | None, count: int, index: tuple[int | str | None, ...] | None) -> bool:
    """Are these 0, 1, .. count - 1 along the last axis, where the index has length 1?"""
    array = const(numbers)
    if array is None or not index or index[-1] != 1 or not 1 <= array.ndim <= len(index):
        return False
    return array.size == array.shape[-1] == count and bool((array.reshape(-1) == np.arange(count)).all())


def _within(node: ir.Node, editor: Editor, index: ir.Value, count: int, *, wraps: bool) -> ir.Value:
    """0 .. count, which is for all that is not below it."""
    assert index.dtype is not None
    kind, shape = index.dtype.numpy(), dims(index)

    def number(value: int) -> ir.Value:
        return editor.constant(np.array(value, kind), "bound")

    def where(condition: ir.Value, value: ir.Value, other: ir.Value) -> ir.Value:
        return editor.emit(node, "Where", [condition, value, other], dtype=index.dtype, shape=shape)

    def below(value: ir.Value, bound: int) -> ir.Value:
        return editor.emit(node, "Less", [value, number(bound)], dtype=ir.DataType.BOOL, shape=shape)

    if wraps:
        index = where(below(index, 0), editor.emit(node, "Add", [index, number(count)], dtype=index.dtype, shape=shape), index)
    index = where(below(index, 0), number(count), index)
    return editor.emit(node, "Min", [index, number(count)], dtype=index.dtype, shape=shape)
