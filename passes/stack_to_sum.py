"""A mean or sum over a stack is one of its parts: then what the parts have in common merges (R1; ensembles, experts, paper 2)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import read_once
from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required

MOST = 64
"""Parts: one after the other, many additions take longer than one reduction."""


def stack_to_sum(model: ir.Model) -> ir.Model:
    """ReduceMean and ReduceSum over the axis along which parts of length 1 were put together.

    before                                          after
        s = Concat(Unsqueeze(a, 0), .., axis=0)         t = Add(Add(a, b), c)
        y = ReduceMean(s, [0], keepdims=0)              y = Div(t, 3)

    Left alone: parts of another length, integers, a stack that something else reads.
    """
    if model.opset_imports.get("", 0) < 18:  # axes were attributes
        return model
    editor = Editor(model)
    for node in nodes(model):
        found = _stack(node)
        if found is None:
            continue
        parts, axis = found
        keep = bool(node.attributes.get_int("keepdims", 1))
        old, terms = node.outputs[0], parts if keep else [_without(p, axis, node, editor) for p in parts]
        total = terms[0]
        for term in terms[1:]:
            total = editor.emit(node, "Add", [total, term], dtype=old.dtype, shape=terms[0].shape)
        if node.op_type == "ReduceMean":
            assert old.dtype is not None
            count = editor.constant(np.array(len(parts), old.dtype.numpy()), "parts")
            total = editor.emit(node, "Div", [total, count], dtype=old.dtype, shape=terms[0].shape)
        editor.replace(old, total)
        editor.drop(node)
    return model


def _stack(node: ir.Node) -> tuple[list[ir.Value], int] | None:
    """What the stack that a node reduces was made of, and along which axis, from the front."""
    if not is_op(node, "ReduceMean", "ReduceSum") or node.graph is None or node.outputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    stack, axes = required(node, 0).producer(), const(operand(node, 1))
    if stack is None or not is_op(stack, "Concat") or not read_once(stack.outputs[0]) or axes is None or axes.size != 1:
        return None
    parts = [v for v in stack.inputs if v is not None]
    ranks = {None if dims(v) is None else len(dims(v) or ()) for v in parts}
    rank = ranks.pop()
    if ranks or rank is None or not 2 <= len(parts) <= MOST:
        return None
    axis = stack.attributes.get_int("axis", 0) % rank
    if int(axes.reshape(-1)[0]) % rank != axis or any((dims(v) or ())[axis] != 1 for v in parts):
        return None
    return parts, axis


def _without(part: ir.Value, axis: int, node: ir.Node, editor: Editor) -> ir.Value:
    """A part without its axis of length 1."""
    maker = part.producer()
    if maker is not None and is_op(maker, "Unsqueeze"):
        own = const(operand(maker, 1))
        if own is not None and own.size == 1 and int(own.reshape(-1)[0]) % len(dims(part) or ()) == axis:
            return required(maker, 0)
    shape = [d for k, d in enumerate(part.shape or ()) if k != axis]
    return editor.emit(node, "Squeeze", [part, editor.constant(np.array([axis]), "axes")], dtype=part.dtype, shape=shape)
