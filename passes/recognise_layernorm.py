"""Layer normalisation spelled out becomes LayerNormalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import last_axis_mean, made_by, number_and_rest, other, read_once, squared
from rewriter.edit import Editor, dims, is_op, nodes, operand, required, scalar, static

_OPSET = 17


def recognise_layernorm(model: ir.Model) -> ir.Model:
    """The textbook expression over the last axis becomes one node.

    before                                    after
        d = x - ReduceMean(x)                     y = LayerNormalization(x, scale, bias) {axis=-1, epsilon}
        v = ReduceMean(d * d)
        y = d / Sqrt(v + e) * scale + bias

    The square may be Pow, the division a product with Reciprocal or with Pow by -0.5; scale and bias may be missing.
    Only for float32 (LayerNormalization computes in float32 whatever its input is), and where the size of the last
    axis is known.
    """
    if model.opset_imports.get("", 0) < _OPSET:
        return model
    editor = Editor(model)
    for node in nodes(model):
        if is_op(node, "Div", "Mul") and node.graph is not None:
            _recognise(node, editor)
    return model


def _recognise(node: ir.Node, editor: Editor) -> None:
    found = _normalised(node)
    if found is None:
        return
    x, epsilon = found
    shape = dims(x)
    if shape is None or not isinstance(shape[-1], int) or x.dtype != ir.DataType.FLOAT:
        return
    size, end = shape[-1], node.outputs[0]
    scale, end = applied(end, "Mul", size)
    bias, end = applied(end, "Add", size)
    if scale is None:
        scale = editor.constant(np.ones(size, dtype=np.float32), "ones")
    last = end.producer()
    assert last is not None
    inputs = [x, scale] if bias is None else [x, scale, bias]
    attributes = {"axis": -1, "epsilon": epsilon}
    y = editor.emit(last, "LayerNormalization", inputs, attributes, dtype=x.dtype, shape=shape)
    editor.replace(end, y)
    editor.drop(last)


def _normalised(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and epsilon where the node is (x - mean) / sqrt(variance + epsilon)."""
    for place in (0,) if node.op_type == "Div" else (0, 1):
        difference = required(node, place)
        deviation = inverse_root(node, place)
        x = _centred(difference)
        if deviation is None or x is None:
            continue
        variance, epsilon = deviation
        centred = squared(last_axis_mean(variance))
        if centred is not None and (centred is difference or _centred(centred) is x):
            return x, epsilon
    return None


def inverse_root(node: ir.Node, place: int) -> tuple[ir.Value, float] | None:
    """v and epsilon where the node multiplies its operand `place` by 1 / sqrt(v + epsilon)."""
    value = required(node, 1 - place)
    if node.op_type == "Mul":
        if (inverse := made_by(value, "Reciprocal")) is not None:
            value = required(inverse, 0)
        elif (power := made_by(value, "Pow")) is not None and scalar(operand(power, 1)) == -0.5:
            return _plus_epsilon(required(power, 0))
        elif (ratio := made_by(value, "Div")) is not None and scalar(ratio.inputs[0]) == 1.0:
            value = required(ratio, 1)
        else:
            return None
    root = made_by(value, "Sqrt", "Pow")
    if root is None or (root.op_type == "Pow" and scalar(operand(root, 1)) != 0.5):
        return None
    return _plus_epsilon(required(root, 0))


def _plus_epsilon(value: ir.Value) -> tuple[ir.Value, float] | None:
    total = made_by(value, "Add")
    parts = None if total is None else number_and_rest(total)
    if parts is None or parts[0] < 0:
        return None
    return parts[1], parts[0]


def _centred(value: ir.Value) -> ir.Value | None:
    """x where the value is x - mean(x)."""
    difference = made_by(value, "Sub")
    if difference is None:
        return None
    x = required(difference, 0)
    return x if last_axis_mean(difference.inputs[1]) is x else None


def applied(value: ir.Value, op_type: str, size: int) -> tuple[ir.Value | None, ir.Value]:
    """The weight of that size that the value's only reader multiplies or adds, and what that makes."""
    reader = next(iter(value.consumers()), None)
    if reader is None or not read_once(value) or not is_op(reader, op_type) or reader.graph is not _graph(value):
        return None, value
    weight = other(reader, value)
    if weight is None or static(weight) != (size,):
        return None, value
    return weight, reader.outputs[0]


def _graph(value: ir.Value) -> ir.Graph | None:
    producer = value.producer()
    return None if producer is None else producer.graph
