"""A convolution whose kernels are unit impulses returns its input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required

RELIED = "rewriter.relied"
"""In a model's ``meta``: the weights whose values a pass relied on. Other values need another search."""


def drop_impulse(model: ir.Model) -> ir.Model:
    """A reprogramming layer that was never trained still is the identity.

    before, k[c] = 1 in the middle                        after
        y = Conv(x, k) {group=c, pads=[1, 1, 1, 1]}           z = Relu(x)
        z = Relu(y)

    Any grouping; one image in, one of the same size out, no bias or one of zeros.
    """
    editor = Editor(model)
    for node in nodes(model):
        if not is_op(node, "Conv"):
            continue
        kernel, bias = const(operand(node, 1)), const(operand(node, 2))
        if kernel is None or (operand(node, 2) is not None and (bias is None or bias.any())):
            continue
        if not _keeps_size(node, kernel) or not np.array_equal(kernel, _impulses(node, kernel)):
            continue
        x, y = required(node, 0), node.outputs[0]
        model.meta.setdefault(RELIED, set()).update(v.name for v in node.inputs[1:] if v is not None)
        if y.is_graph_output():
            x = editor.emit(node, "Identity", [x], dtype=y.dtype, shape=dims(y))
        editor.replace(y, x)
        editor.drop(node)
    return model


def _keeps_size(node: ir.Node, kernel: np.ndarray) -> bool:
    """Odd kernels in steps of one, with as much padding on either side as they overlap."""
    group, spatial = node.attributes.get_int("group", 1), kernel.shape[2:]
    strides = node.attributes.get_ints("strides") or [1] * len(spatial)
    dilations = node.attributes.get_ints("dilations") or [1] * len(spatial)
    pads = node.attributes.get_ints("pads") or [0] * 2 * len(spatial)
    half = [(size // 2) * step for size, step in zip(spatial, dilations, strict=True)]
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    return (
        kernel.shape[0] == kernel.shape[1] * group and all(s % 2 for s in spatial) and all(s == 1 for s in strides) and list(pads) == [*half, *half]
    )


def _impulses(node: ir.Node, kernel: np.ndarray) -> np.ndarray:
    """One in the middle of the kernel from each channel to itself."""
    wanted = np.zeros_like(kernel)
    middle = tuple(size // 2 for size in kernel.shape[2:])
    for channel in range(kernel.shape[0]):
        wanted[(channel, channel % kernel.shape[1], *middle)] = 1
    return wanted
