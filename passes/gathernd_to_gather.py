"""Rows picked by one index each are a Gather."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import made_by
from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required


def gathernd_to_gather(model: ir.Model) -> ir.Model:
    """GatherND whose index vectors have one entry becomes Gather on the first axis.

    before, i: [n]                                after
        u = Unsqueeze(i, -1)                          y = Gather(x, i) {axis=0}
        y = GatherND(x, u)

    This is how PyTorch's exporter writes x[i].
    """
    editor = Editor(model)
    for node in nodes(model):
        shape = dims(operand(node, 1)) if is_op(node, "GatherND") else None
        if not shape or shape[-1] != 1 or node.attributes.get_int("batch_dims", 0) != 0:
            continue
        rows = _rows(node, len(shape), editor)
        y = editor.emit(node, "Gather", [required(node, 0), rows], {"axis": 0}, dtype=node.outputs[0].dtype, shape=dims(node.outputs[0]))
        editor.replace(node.outputs[0], y)
        editor.drop(node)
    return model


def _rows(node: ir.Node, rank: int, editor: Editor) -> ir.Value:
    """The indices without their last axis."""
    index = required(node, 1)
    unsqueezed = made_by(index, "Unsqueeze")
    if unsqueezed is not None:
        axes = const(operand(unsqueezed, 1), 8)
        if axes is not None and axes.size == 1 and int(axes.item()) % rank == rank - 1:
            return required(unsqueezed, 0)
    last = editor.constant(np.array([rank - 1], dtype=np.int64), "axes")
    return editor.emit(node, "Squeeze", [index, last], dtype=index.dtype, shape=(dims(index) or ())[:-1])
