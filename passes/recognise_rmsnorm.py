"""Root-mean-square normalisation spelled out becomes rewriter::RMSNorm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import last_axis_mean, other, read_once, squared
from passes.recognise_layernorm import inverse_root
from rewriter.edit import Editor, dims, is_op, nodes, required, static
from rewriter.functions import DOMAIN, define
from rewriter.opset import OPSET


def recognise_rmsnorm(model: ir.Model) -> ir.Model:
    """x over the root of its mean square, times a weight, becomes one node.

    before                                    after
        v = ReduceMean(x * x)                     y = rewriter::RMSNorm(x, scale) {epsilon}
        y = x / Sqrt(v + e) * scale

    The square may be Pow, the division a product with Reciprocal or with Pow by -0.5; the scale may be missing. Only for float32, over
    the last axis, in a model at the opset that the function is written in.
    """
    if model.opset_imports.get("", 0) != OPSET:
        return model
    editor = Editor(model)
    for node in nodes(model):
        if is_op(node, "Div", "Mul") and node.graph is not None:
            _recognise(node, editor)
    return model


def _recognise(node: ir.Node, editor: Editor) -> None:
    for place in (0,) if node.op_type == "Div" else (0, 1):
        x, found = required(node, place), inverse_root(node, place)
        if found is None or squared(last_axis_mean(found[0])) is not x:
            continue
        shape = dims(x)
        if shape is None or not isinstance(shape[-1], int) or x.dtype != ir.DataType.FLOAT:
            return
        scale, end = _scaled(node, shape[-1])
        if scale is None:
            scale = editor.constant(np.ones(shape[-1], dtype=np.float32), "ones")
        last = end.producer()
        assert last is not None
        define(editor.model, "RMSNorm")
        y = editor.emit(last, "RMSNorm", [x, scale], {"epsilon": found[1]}, domain=DOMAIN, dtype=x.dtype, shape=shape)
        editor.replace(end, y)
        editor.drop(last)
        return


def _scaled(node: ir.Node, size: int) -> tuple[ir.Value | None, ir.Value]:
    """The scale that the quotient's only reader multiplies it by, if that is one, and the value that then is the norm."""
    out = node.outputs[0]
    reader = next(iter(out.consumers()), None)
    if reader is None or not is_op(reader, "Mul") or not read_once(out) or reader.graph is not node.graph:
        return None, out
    scale = other(reader, out)
    return (scale, reader.outputs[0]) if scale is not None and static(scale) == (size,) else (None, out)
