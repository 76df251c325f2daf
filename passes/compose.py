"""Write the algebra's primitives as the operators that runtimes have kernels for: the inverse of the normalising passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.fold_weights import weights_only
from rewriter.edit import Editor, dims, is_op, nodes, required, tensor, uses


def compose(model: ir.Model) -> ir.Model:
    """Bias into Conv and Gemm, differences, per-channel affine maps, nested concatenations: one operator each.

    before                              after
        c = Conv(x, K)                      d = Conv(x, K, b)
        d = Add(c, Reshape(b, [-1,1,1]))    n = Gemm(u, W, v)
        n = Add(MatMul(u, W), v)            s = Sub(p, q)
        s = Add(p, Neg(q))
    """
    editor = Editor(model)
    constant = _Constants(model)
    for node in nodes(model):
        if node.graph is None or node.domain or len(node.outputs) != 1:
            continue
        for rewrite in (_difference, _conv_bias, _gemm, _layer_normalization, _batch_normalization, _concat):
            if rewrite(node, editor, constant):
                break
    return model


class _Constants:
    """What only weights reach."""

    def __init__(self, model: ir.Model) -> None:
        self._values = weights_only(model)[1]

    def __contains__(self, value: ir.Value | None) -> bool:
        return value in self._values

    def add(self, value: ir.Value) -> None:
        self._values.add(value)


def _replace(node: ir.Node, new: ir.Value, editor: Editor) -> bool:
    old = node.outputs[0]
    name = old.name
    new.type, new.shape = old.type, old.shape
    editor.replace(old, new)
    editor.drop(node)
    if node.graph is None and not new.is_graph_output():
        new.name = name
    return True


def _operands(node: ir.Node, constant: _Constants) -> tuple[ir.Value, ir.Value] | None:
    """(run-time, constant) operands of a binary operator."""
    a, b = required(node, 0), required(node, 1)
    if (a in constant) == (b in constant):
        return None
    return (b, a) if a in constant else (a, b)


def _once(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The value's node, if it is one of these operators and nobody else reads it."""
    producer = value.producer()
    return producer if producer is not None and is_op(producer, *op_types) and uses(value) == 1 else None


def _vector(c: ir.Value, axis: int, length: int, before: ir.Node, editor: Editor, constant: _Constants) -> ir.Value | None:
    """A constant that lies along one axis (counted from the end) as a vector of ``length``, or None."""
    shape = dims(c)
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    lengths = {i - len(shape): d for i, d in enumerate(shape) if d != 1}
    if lengths != ({axis: length} if length != 1 else {}) or (length == 1 and not shape):
        return None
    if len(shape) == 1:
        return c
    producer = c.producer()
    if is_op(producer, "Reshape") and producer is not None and dims(producer.inputs[0]) == (length,):
        return required(producer, 0)
    out = editor.emit(before, "Reshape", [c, editor.constant(np.array([-1], np.int64))], dtype=c.dtype, shape=(length,))
    constant.add(out)
    return out


def _difference(node: ir.Node, editor: Editor, constant: _Constants) -> bool:
    """x + (-y) == x - y"""
    if not is_op(node, "Add"):
        return False
    for x, negative in ((0, 1), (1, 0)):
        neg = _once(required(node, negative), "Neg")
        if neg is not None and required(node, negative) not in constant:
            return _replace(node, editor.emit(node, "Sub", [required(node, x), required(neg, 0)]), editor)
    return False


def _conv_bias(node: ir.Node, editor: Editor, constant: _Constants) -> bool:
    """conv(x, K) + b == Conv(x, K, b)"""
    pair = _operands(node, constant) if is_op(node, "Add") else None
    conv = _once(pair[0], "Conv", "ConvTranspose") if pair else None
    shape = dims(node.outputs[0])
    if pair is None or conv is None or shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return False
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        return False
    bias = _vector(pair[1], 1 - len(shape), shape[1], node, editor, constant)
    if bias is None:
        return False
    new = editor.emit(node, conv.op_type, [conv.inputs[0], conv.inputs[1], bias], {a.name: a.value for a in conv.attributes.values()})
    return _replace(node, new, editor)


def _gemm(node: ir.Node, editor: Editor, constant: _Constants) -> bool:
    """x·W + b == Gemm(x, W, b) for a matrix x"""
    pair = _operands(node, constant) if is_op(node, "Add") else None
    product = _once(pair[0], "MatMul") if pair else None
    if pair is None or product is None:
        return False
    x, w, out, b = dims(product.inputs[0]), dims(product.inputs[1]), dims(node.outputs[0]), dims(pair[1])
    if x is None or w is None or out is None or b is None or len(x) != 2 or len(w) != 2 or len(out) != 2 or len(b) > 2:
        return False
    if required(product, 1) not in constant or b not in ((w[1],), (1, w[1])):
        return False
    return _replace(node, editor.emit(node, "Gemm", [product.inputs[0], product.inputs[1], pair[1]]), editor)


def _batch_normalization(node: ir.Node, editor: Editor, constant: _Constants) -> bool:
    """x * s + b, along the channels of an image: one pass over memory instead of two"""
    pair = _operands(node, constant) if is_op(node, "Add") else None
    product = _once(pair[0], "Mul") if pair else None
    inner = _operands(product, constant) if product is not None else None
    shape = dims(node.outputs[0])
    if pair is None or product is None or inner is None or shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return False
    if node.outputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or dims(inner[0]) is None or len(dims(inner[0]) or ()) != len(shape):
        return False
    scale = _vector(inner[1], 1 - len(shape), shape[1], node, editor, constant)
    bias = _vector(pair[1], 1 - len(shape), shape[1], node, editor, constant)
    if scale is None or bias is None:
        return False
    dtype = node.outputs[0].dtype.numpy()
    zeros, ones = np.zeros(shape[1], dtype), np.ones(shape[1], dtype)
    # The standard allows epsilon 0: with mean 0 and variance 1 the operator is then exactly x * s + b.
    new = editor.emit(node, "BatchNormalization", [inner[0], scale, bias, editor.constant(zeros), editor.constant(ones)], {"epsilon": 0.0})
    return _replace(node, new, editor)


def _layer_normalization(node: ir.Node, editor: Editor, constant: _Constants) -> bool:
    """The scale and the bias after a bare norm, built in"""
    pair = _operands(node, constant) if is_op(node, "Mul", "Add") else None
    norm = _once(pair[0], "LayerNormalization") if pair else None
    shape = dims(node.outputs[0])
    if pair is None or norm is None or shape is None or not isinstance(shape[-1], int) or dims(pair[1]) != (shape[-1],):
        return False
    ones = tensor(norm.inputs[1])
    bare = ones is not None and ones.size == shape[-1] and bool((ones.numpy() == 1).all())
    if len(norm.inputs) > 2 or (is_op(node, "Mul") and not bare):
        return False
    inputs = [norm.inputs[0], pair[1]] if is_op(node, "Mul") else [*norm.inputs, pair[1]]
    return _replace(node, editor.emit(node, "LayerNormalization", inputs, {a.name: a.value for a in norm.attributes.values()}), editor)


def _concat(node: ir.Node, editor: Editor, constant: _Constants) -> bool:
    """[[x|y]|z] == [x|y|z]"""
    if not is_op(node, "Concat"):
        return False
    axis = node.attributes.get_int("axis", 0)
    flat: list[ir.Value | None] = []
    for value in node.inputs:
        inner = _once(value, "Concat") if value is not None else None
        same = inner is not None and inner.attributes.get_int("axis", 0) == axis
        flat += list(inner.inputs) if inner is not None and same else [value]
    if len(flat) == len(node.inputs):
        return False
    return _replace(node, editor.emit(node, "Concat", flat, {"axis": axis}), editor)
