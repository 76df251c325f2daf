"""Nodes that return their input go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required, static, uses


def drop_identity(model: ir.Model) -> ir.Model:
    """Whoever reads a node that provably returns its first input reads that input.

    before                        after
        a = Relu(x)                   y = Relu(x)
        y = Identity(a)               return y
        return y

    These are Identity, Dropout in inference with its mask unused, Cast to the type at hand, and the operators of
    layout and selection whose arguments select everything. A graph output keeps its name: where the input is itself
    an input, a weight or another output, the node stays (as Identity). CastLike becomes Cast.
    """
    editor = Editor(model)
    for node in nodes(model):
        _resolve_cast_like(node)
        if node.domain == "" and node.graph is not None and _returns_input(node):
            _bypass(node, editor)
    return model


def _resolve_cast_like(node: ir.Node) -> None:
    target = operand(node, 1)
    if is_op(node, "CastLike") and target is not None and target.dtype is not None:
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes.add(ir.AttrInt64("to", int(target.dtype)))


def _returns_input(node: ir.Node) -> bool:
    test = _TESTS.get(node.op_type)
    if test is None or operand(node, 0) is None or any(uses(output) for output in node.outputs[1:]):
        return False
    return test(node)


def _bypass(node: ir.Node, editor: Editor) -> None:
    x, y = required(node, 0), node.outputs[0]
    if y.is_graph_output():
        producer = x.producer()
        # A Constant must stay a node of its own: its reader may want it as an initialiser.
        if producer is None or producer.graph is not node.graph or x.is_graph_output() or is_op(producer, "Constant"):
            if not is_op(node, "Identity"):
                editor.replace(y, editor.emit(node, "Identity", [x], dtype=y.dtype, shape=y.shape))
                editor.drop(node)
            return
    editor.replace(y, x)
    editor.drop(node)


def same_dims(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both have provably the same shape; a symbol counts as equal to itself where it is a real name."""
    a, b = dims(one), dims(other)
    return a is not None and b is not None and len(a) == len(b) and all(map(same_dim, a, b))


def same_dim(a: int | str | None, b: int | str | None) -> bool:
    """Equal numbers, or one symbol twice. Some exporters call every unknown dim `?`: that is no symbol."""
    return a == b and (isinstance(a, int) or is_symbol(a))


def is_symbol(dim: int | str | None) -> bool:
    """A name that two dims share only when they are equal."""
    return isinstance(dim, str) and dim[:1].isalpha() and dim.lower() not in ("none", "unk", "unknown", "dynamic")


def _always(node: ir.Node) -> bool:
    return True


def _dropout(node: ir.Node) -> bool:
    if operand(node, 2) is None:
        return True
    training = const(operand(node, 2), 1)
    return training is not None and not training.any()


def _cast(node: ir.Node) -> bool:
    return required(node, 0).dtype is not None and required(node, 0).dtype == node.attributes.get_int("to")


def _keeps_shape(node: ir.Node) -> bool:
    return same_dims(operand(node, 0), node.outputs[0])


def _expand(node: ir.Node) -> bool:
    shape, target = dims(operand(node, 0)), const(operand(node, 1))
    if shape is not None and target is not None and len(target) <= len(shape) and (target == 1).all():
        return True
    return _keeps_shape(node)


def _pad(node: ir.Node) -> bool:
    pads = const(operand(node, 1))
    return pads is not None and not pads.any()


def _tile(node: ir.Node) -> bool:
    repeats = const(operand(node, 1))
    return repeats is not None and bool((repeats == 1).all())


def _slice(node: ir.Node) -> bool:
    """Every axis from its start to its end, in steps of one."""
    starts, ends = const(operand(node, 1)), const(operand(node, 2))
    shape = dims(operand(node, 0))
    if starts is None or ends is None or shape is None or starts.any():
        return False
    steps, axes = const(operand(node, 4)), const(operand(node, 3))
    if operand(node, 4) is not None and (steps is None or (steps != 1).any()):
        return False
    if operand(node, 3) is not None and axes is None:
        return False
    where = range(len(ends)) if axes is None else [int(axis) for axis in axes]
    huge = np.iinfo(np.int32).max
    for axis, end in zip(where, ends, strict=True):
        size = shape[axis]
        if end < (size if isinstance(size, int) else huge):
            return False
    return True


def _transpose(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm")
    return perm is not None and list(perm) == sorted(perm)


def _pool(node: ir.Node) -> bool:
    """Windows of one element, one for each."""
    if any(node.attributes.get_ints("pads") or ()) :
        return False
    kernel, strides = node.attributes.get_ints("kernel_shape") or (), node.attributes.get_ints("strides") or ()
    return all(k == 1 for k in kernel) and all(s == 1 for s in strides)


def _one_input(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _one_output(node: ir.Node) -> bool:
    return len(node.outputs) == 1 and operand(node, 1) is None


def _flatten(node: ir.Node) -> bool:
    shape = dims(operand(node, 0))
    return shape is not None and len(shape) == 2 and node.attributes.get_int("axis", 1) in (1, -1)


def _reshape(node: ir.Node) -> bool:
    x, target = dims(operand(node, 0)), const(operand(node, 1))
    if x is not None and target is not None and not node.attributes.get_int("allowzero", 0):
        # [0, -1, 64] against [n, m, 64]: one dim may be left to be derived when all others are kept.
        kept = [t == 0 or t == d for t, d in zip(target.tolist(), x, strict=False)]
        if len(target) == len(x) and all(k or t == -1 for k, t in zip(kept, target.tolist(), strict=True)):
            return 0 not in x or -1 not in target
    return _keeps_shape(node) and static(operand(node, 0)) is not None


_TESTS: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Pad": _pad,
    "Tile": _tile,
    "Slice": _slice,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Split": _one_output,
    "AveragePool": _pool,
    "MaxPool": _pool,
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _one_input),
}
