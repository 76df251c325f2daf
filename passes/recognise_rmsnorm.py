"""Root-mean-square normalisation spelled out becomes rewriter::RMSNorm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import last_axis_mean, squared
from passes.recognise_layernorm import applied, inverse_root
from rewriter.edit import Editor, dims, is_op, nodes, required
from rewriter.functions import DOMAIN, define
from rewriter.opset import OPSET


def recognise_rmsnorm(model: ir.Model) -> ir.Model:
    """x over the root of its mean square, times a weight, becomes one node.

    before                                    after
        v = ReduceMean(x * x)                     y = rewriter::RMSNorm(x, scale) {epsilon}
        y = x / Sqrt(v + e) * scale

    The square may be Pow, the mean a sum divided by the size, the division a product with Reciprocal or with Pow by -0.5; the scale
    may be missing. Only for float32, over the last axis, with a scale of exactly its size, in a model at the opset that the function
    is written in.
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
        scale, end = applied(node.outputs[0], "Mul", shape[-1])
        last = end.producer()
        assert last is not None
        if scale is None:
            scale = editor.constant(np.ones(shape[-1], dtype=np.float32), "ones")
        define(editor.model, "RMSNorm")
        attributes = {"epsilon": found[1]}
        y = editor.emit(last, "RMSNorm", [x, scale], attributes, domain=DOMAIN, dtype=x.dtype, shape=shape)
        editor.replace(end, y)
        editor.drop(last)
        return
