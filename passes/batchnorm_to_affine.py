"""Batch normalisation in inference is one product and one sum."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.match import Weights
from rewriter.edit import Editor, dims, is_op, nodes, required, static


def batchnorm_to_affine(model: ir.Model) -> ir.Model:
    """BatchNormalization by weights becomes Mul and Add by weights of one number a channel.

    before, x: [n, 8, h, w]                             after
        y = BatchNormalization(x, g, b, m, v) {e}           deviation = Sqrt(v + e);  factor = g / deviation
                                                            scale = Reshape(factor, [8, 1, 1])
                                                            shift = Reshape(b - m * factor, [8, 1, 1])
                                                            y = x * scale + shift

    Scale and shift are expressions of weights, so they cost nothing once folded. Left alone: training mode, statistics
    that are computed, an input of unknown rank, weights of another type than the input.
    """
    editor, weights = Editor(model), Weights()
    for node in nodes(model):
        if is_op(node, "BatchNormalization") and _is_affine(node, weights):
            _rewrite(node, editor)
    return model


def _is_affine(node: ir.Node, weights: Weights) -> bool:
    x = required(node, 0)
    if node.attributes.get_int("training_mode", 0) or any(output.name for output in node.outputs[1:]):
        return False
    if dims(x) is None or x.dtype is None or static(node.inputs[1]) is None:
        return False
    return all(value in weights and value.dtype == x.dtype for value in node.inputs[1:] if value is not None)


def _rewrite(node: ir.Node, editor: Editor) -> None:
    x, gamma, beta, mean, variance = (required(node, index) for index in range(5))
    shape, channels = dims(x), static(gamma)
    assert shape is not None and x.dtype is not None and channels is not None
    epsilon = editor.constant(np.array(node.attributes.get_float("epsilon", 1e-5), dtype=x.dtype.numpy()), "epsilon")

    def emit(op_type: str, *inputs: ir.Value) -> ir.Value:
        return editor.emit(node, op_type, inputs, dtype=x.dtype, shape=channels)

    factor = emit("Div", gamma, emit("Sqrt", emit("Add", variance, epsilon)))
    offset = emit("Sub", beta, emit("Mul", mean, factor))
    if len(shape) > 2:
        column = [*channels, *[1] * (len(shape) - 2)]
        target = editor.constant(np.array(column, dtype=np.int64), "shape")
        factor = editor.emit(node, "Reshape", [factor, target], dtype=x.dtype, shape=column, hint="scale")
        offset = editor.emit(node, "Reshape", [offset, target], dtype=x.dtype, shape=column, hint="shift")
    scaled = editor.emit(node, "Mul", [x, factor], dtype=x.dtype, shape=shape)
    editor.replace(node.outputs[0], editor.emit(node, "Add", [scaled, offset], dtype=x.dtype, shape=shape))
    editor.drop(node)
