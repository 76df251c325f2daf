"""A sequence that is only taken apart again is no sequence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, const, dims, is_op, nodes, operand, required, uses


def sequence_to_split(model: ir.Model) -> ir.Model:
    """SplitToSequence becomes Split, where every reader takes one piece by its known place.

    before, x: [n, 12]                             after
        s = SplitToSequence(x, 4) {axis=1}             a, _, c = Split(x, [4, 4, 4]) {axis=1}
        a = SequenceAt(s, 0);  c = SequenceAt(s, -1)

    Only where the length of the axis is known. This is how PyTorch's exporter writes chunk, split and unbind.
    """
    editor = Editor(model)
    for node in nodes(model):
        sizes = _sizes(node) if is_op(node, "SplitToSequence") else None
        if sizes is None or uses(node.outputs[0]) != len(list(node.outputs[0].consumers())):
            continue
        readers = list(node.outputs[0].consumers())
        places = [_place(reader, len(sizes)) for reader in readers]
        if not all(is_op(reader, "SequenceAt") for reader in readers) or any(place is None for place in places):
            continue
        pieces = _split(node, sizes, editor)
        for reader, place in zip(readers, places, strict=True):
            assert place is not None
            piece = pieces[place]
            if not node.attributes.get_int("keepdims", 1) and operand(node, 1) is None:
                axes = editor.constant(np.array([node.attributes.get_int("axis", 0)], dtype=np.int64), "axes")
                piece = editor.emit(reader, "Squeeze", [piece, axes], dtype=piece.dtype)
            editor.replace(reader.outputs[0], piece)
            editor.drop(reader)
    return model


def _sizes(node: ir.Node) -> list[int] | None:
    """The lengths of the pieces."""
    shape, split = dims(operand(node, 0)), operand(node, 1)
    axis = node.attributes.get_int("axis", 0)
    length = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(length, int) or length == 0:
        return None
    if split is None:
        return [1] * length
    given = const(split, 1 << 12)
    if given is None or (given <= 0).any():
        return None
    if given.ndim:
        return [int(size) for size in given] if given.sum() == length else None
    size = int(given)
    return [min(size, length - start) for start in range(0, length, size)]


def _place(reader: ir.Node, count: int) -> int | None:
    place = const(operand(reader, 1), 1) if is_op(reader, "SequenceAt") else None
    if place is None or not -count <= int(place.item()) < count:
        return None
    return int(place.item()) % count


def _split(node: ir.Node, sizes: list[int], editor: Editor) -> list[ir.Value]:
    x, axis = required(node, 0), node.attributes.get_int("axis", 0)
    shape = list(dims(x) or ())
    outputs = []
    for size in sizes:
        shape[axis] = size
        name = editor.fresh(f"{node.outputs[0].name}_piece")
        outputs.append(ir.Value(name=name, type=None if x.dtype is None else ir.TensorType(x.dtype), shape=ir.Shape(shape)))
    lengths = editor.constant(np.array(sizes, dtype=np.int64), "lengths")
    node.prepend(ir.Node("", "Split", [x, lengths], {"axis": ir.AttrInt64("axis", axis)}, outputs=outputs, name=editor.fresh("split")))
    return outputs
