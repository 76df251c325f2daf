"""Gemm is a product and a sum."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, dims, is_op, nodes, operand, required


def gemm_to_matmul(model: ir.Model) -> ir.Model:
    """Gemm becomes MatMul and Add, with its scales and transposes as nodes of their own.

    before                                       after
        y = Gemm(x, w, b) {transB=1}                 wt = Transpose(w) {perm=[1, 0]}
                                                     xw = MatMul(x, wt)
                                                     y = Add(xw, b)
    """
    editor = Editor(model)
    for node in nodes(model):
        # Without the operands' ranks the two operators could not be written as one again.
        if is_op(node, "Gemm") and all(dims(v) is not None for v in node.inputs if v is not None):
            _split(node, editor)
    return model


def _split(node: ir.Node, editor: Editor) -> None:
    output = node.outputs[0]
    a = _transposed(node, required(node, 0), "transA", editor)
    b = _transposed(node, required(node, 1), "transB", editor)
    c = operand(node, 2)
    shape = _rows_and_columns(a, b, output)
    y = editor.emit(node, "MatMul", [a, b], dtype=output.dtype, shape=shape)
    y = _scaled(node, y, node.attributes.get_float("alpha", 1.0), editor)
    if c is not None:
        c = _scaled(node, c, node.attributes.get_float("beta", 1.0), editor)
        y = editor.emit(node, "Add", [y, c], dtype=output.dtype, shape=shape)
    editor.replace(output, y)
    editor.drop(node)


def _rows_and_columns(a: ir.Value, b: ir.Value, output: ir.Value) -> list[int | str | None]:
    rows, columns = dims(a), dims(b)
    known = dims(output) or (None, None)
    return [rows[0] if rows else known[0], columns[1] if columns else known[1]]


def _transposed(node: ir.Node, value: ir.Value, flag: str, editor: Editor) -> ir.Value:
    if not node.attributes.get_int(flag, 0):
        return value
    shape = dims(value)
    return editor.emit(
        node,
        "Transpose",
        [value],
        {"perm": [1, 0]},
        dtype=value.dtype,
        shape=None if shape is None else shape[::-1],
        hint=f"{value.name}_t",
    )


def _scaled(node: ir.Node, value: ir.Value, factor: float, editor: Editor) -> ir.Value:
    dtype = value.dtype or required(node, 0).dtype
    if factor == 1.0 or dtype is None:
        return value
    scale = editor.constant(np.array(factor, dtype=dtype.numpy()), "scale")
    return editor.emit(node, "Mul", [value, scale], dtype=value.dtype, shape=dims(value))
