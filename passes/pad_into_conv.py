"""Zeros around an image are the padding of the convolution that reads it."""

from __future__ import annotations

import onnx_ir as ir

from passes.match import made_by
from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required, scalar


def pad_into_conv(model: ir.Model) -> ir.Model:
    """A Pad with zeros, of spatial axes, goes into the convolution.

    before                                          after
        p = Pad(x, [0, 0, 1, 1, 0, 0, 1, 1])            y = Conv(p, k) {pads=[1, 1, 1, 1]}
        y = Conv(p, k)

    Negative pads (which cut) stay, as do batch and channel axes, other values than zero and other modes. Where others read the padded
    image too, it stays for them.
    """
    editor = Editor(model)
    for node in nodes(model):
        pad = made_by(operand(node, 0), "Pad") if is_op(node, "Conv") else None
        found = None if pad is None else _zeros(pad)
        if pad is None or found is None or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        own = node.attributes.get_ints("pads") or [0] * len(found)
        if len(own) != len(found):
            continue
        node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, found, strict=True)])
        node.attributes.pop("auto_pad", None)
        node.replace_input_with(0, required(pad, 0))
        editor.drop(pad)
    return model


def _zeros(pad: ir.Node) -> list[int] | None:
    """How many zeros before and after each spatial axis, as a convolution's ``pads``; None if it is another kind of padding."""
    shape, amounts = dims(operand(pad, 0)), const(operand(pad, 1), 64)
    mode = pad.attributes.get_string("mode", "constant")
    if shape is None or amounts is None or mode != "constant" or (operand(pad, 2) is not None and scalar(operand(pad, 2)) != 0):
        return None
    axes = const(operand(pad, 3), 64)
    where = list(range(len(shape))) if axes is None and operand(pad, 3) is None else [int(a) % len(shape) for a in axes] if axes is not None else None
    if where is None or len(amounts) != 2 * len(where) or len(shape) < 3:
        return None
    before, after = [0] * len(shape), [0] * len(shape)
    for place, axis in enumerate(where):
        before[axis], after[axis] = int(amounts[place]), int(amounts[place + len(where)])
    if min(*before, *after) < 0 or any((*before[:2], *after[:2])):
        return None
    return [*before[2:], *after[2:]]
