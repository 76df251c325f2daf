"""A maximum with zero becomes Relu."""

from __future__ import annotations

import onnx_ir as ir

from passes.match import number_and_rest
from rewriter.edit import Editor, dims, is_op, nodes, operand, required, scalar


def recognise_relu(model: ir.Model) -> ir.Model:
    """One spelling for max(x, 0), so that branches that spell it differently meet.

    before                        after
        y = Max(x, zero)              y = Relu(x)

    Clip from 0 without an upper bound is one too; only for floating-point numbers.
    """
    editor = Editor(model)
    for node in nodes(model):
        x = _clipped(node)
        if x is not None and x.dtype is not None and x.dtype.is_floating_point():
            editor.replace(node.outputs[0], editor.emit(node, "Relu", [x], dtype=x.dtype, shape=dims(x)))
            editor.drop(node)
    return model


def _clipped(node: ir.Node) -> ir.Value | None:
    """x where the node is max(x, 0)."""
    if is_op(node, "Max") and len(node.inputs) == 2:
        found = number_and_rest(node)
        return found[1] if found is not None and found[0] == 0 else None
    if is_op(node, "Clip") and scalar(operand(node, 1)) == 0 and operand(node, 2) is None and "max" not in node.attributes:
        return required(node, 0)
    return None
