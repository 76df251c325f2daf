"""A choice that the program itself decides is made now."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.drop_identity import same_dims
from rewriter.edit import Editor, const, is_op, nodes, operand, required, static


def choose_constant_branch(model: ir.Model) -> ir.Model:
    """Where with a known condition that is the same everywhere becomes the operand that it selects.

    before, c = [1, 1]                     after
        y = Where(c, a, b)                     y = a

    The operand is expanded to the result's shape where it has another, and that is known. What computed the other operand is dead then.
    """
    editor = Editor(model)
    for node in nodes(model):
        condition = const(operand(node, 0)) if is_op(node, "Where") else None
        if condition is None or not condition.size or condition.all() != condition.any():
            continue
        chosen, result = required(node, 1 if condition.all() else 2), node.outputs[0]
        if not same_dims(chosen, result):
            target = static(result)
            if target is None:
                continue
            shape = editor.constant(np.array(target, dtype=np.int64), "shape")
            chosen = editor.emit(node, "Expand", [chosen, shape], dtype=chosen.dtype, shape=target)
        if chosen.producer() is None and result.is_graph_output():
            chosen = editor.emit(node, "Identity", [chosen], dtype=chosen.dtype, shape=result.shape)
        editor.replace(result, chosen)
        editor.drop(node)
    return model
