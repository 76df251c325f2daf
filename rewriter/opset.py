"""Bring a model from ONNX opset 7..19 to opset 20, node by node and in subgraphs too.

The standard converter of the onnx package renames values and works on the outermost graph of a model that fits one
protobuf message; this one edits in place. An operator whose interface did not change between the two opsets is left
alone; one that changed has an adapter here that keeps its meaning; anything else is `CannotUpgrade`, and the model
then stays at its own opset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from rewriter.edit import Editor, const, dims, nodes, operand, required, static

OPSET = 20

Adapter = Callable[[ir.Node, Editor, int], None]


class CannotUpgrade(Exception):
    """No adapter keeps the meaning of this node."""


def upgrade(model: ir.Model, target: int) -> None:
    """Afterwards every standard node has the meaning at `target` (at most 20) that it had at the model's opset.

    Local functions must be inlined. Raises CannotUpgrade, with the model half changed.
    """
    opset = model.opset_imports.get("", target)
    if opset >= target:
        return
    editor = Editor(model)
    for node in nodes(model):
        if node.domain == "":
            _upgrade_node(node, editor, opset, target)
            node.version = None
    model.opset_imports[""] = target
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", target)]))


def _upgrade_node(node: ir.Node, editor: Editor, opset: int, target: int) -> None:
    adapter = _ADAPTERS.get(node.op_type)
    old = _schema(node.op_type, opset)
    new = _schema(node.op_type, target)
    if old.since_version == new.since_version:
        return
    if adapter is not None:
        adapter(node, editor, opset)
    elif not _extends(old, new):
        raise CannotUpgrade(f"{node.op_type} of opset {opset}")


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError as error:
        raise CannotUpgrade(f"{op_type} at opset {opset}") from error


def _extends(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Whether everything one could say to `old` says the same to `new`: its inputs and attributes are a prefix."""
    if new.deprecated or len(old.inputs) > len(new.inputs) or len(old.outputs) > len(new.outputs):
        return False
    for name, attribute in old.attributes.items():
        if name not in new.attributes or str(attribute.default_value) != str(new.attributes[name].default_value):
            return False
    return True


def _set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _ints(editor: Editor, numbers: Sequence[int], hint: str) -> ir.Value:
    return editor.constant(np.array(numbers, dtype=np.int64), hint)


def _pop(node: ir.Node, name: str) -> ir.Attr | None:
    return node.attributes.pop(name, None)


def _set(node: ir.Node, **attributes: float | str) -> None:
    for attribute in ir.convenience.convert_attributes(attributes):
        node.attributes.add(attribute)


def _axes_to_input(since: int) -> Adapter:
    """``Op(x) {axes=[..]}`` becomes ``Op(x, axes)``."""

    def adapt(node: ir.Node, editor: Editor, opset: int) -> None:
        axes = _pop(node, "axes") if opset < since else None
        if axes is not None:
            _set_input(node, 1, _ints(editor, axes.as_ints(), "axes"))

    return adapt


def _slice(node: ir.Node, editor: Editor, opset: int) -> None:
    if opset >= 10:
        return
    starts, ends, axes = (_pop(node, name) for name in ("starts", "ends", "axes"))
    if starts is None or ends is None:
        raise CannotUpgrade("Slice without starts and ends")
    where = axes.as_ints() if axes is not None else range(len(starts.as_ints()))
    for index, numbers in enumerate((starts.as_ints(), ends.as_ints(), list(where)), start=1):
        _set_input(node, index, _ints(editor, numbers, ("starts", "ends", "axes")[index - 1]))


def _topk(node: ir.Node, editor: Editor, opset: int) -> None:
    k = _pop(node, "k")
    if k is not None:
        _set_input(node, 1, _ints(editor, [k.as_int()], "k"))


def _like(editor: Editor, number: float, value: ir.Value, hint: str) -> ir.Value:
    if value.dtype is None:
        raise CannotUpgrade(f"{hint} of unknown type")
    return editor.constant(np.array(number, dtype=value.dtype.numpy()), hint)


def _clip(node: ir.Node, editor: Editor, opset: int) -> None:
    if opset >= 11:
        return
    for index, name in ((1, "min"), (2, "max")):
        bound = _pop(node, name)
        if bound is not None:
            _set_input(node, index, _like(editor, bound.as_float(), required(node, 0), name))


def _pad(node: ir.Node, editor: Editor, opset: int) -> None:
    if opset >= 11:
        return
    pads, value = _pop(node, "pads"), _pop(node, "value")
    if pads is None:
        raise CannotUpgrade("Pad without pads")
    _set_input(node, 1, _ints(editor, pads.as_ints(), "pads"))
    if value is not None:
        _set_input(node, 2, _like(editor, value.as_float(), required(node, 0), "value"))


def _dropout(node: ir.Node, editor: Editor, opset: int) -> None:
    if opset >= 12:
        return
    # Below opset 10 the mask had the type of the data.
    if opset < 10 and len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise CannotUpgrade("Dropout with a mask that is not bool")
    _pop(node, "ratio")


def _batch_normalization(node: ir.Node, editor: Editor, opset: int) -> None:
    # More than one output meant training mode.
    if opset < 14 and any(output.name for output in node.outputs[1:]):
        raise CannotUpgrade("BatchNormalization in training mode")
    if opset < 14 and len(node.outputs) > 1:
        node.resize_outputs(1)


def _softmax(node: ir.Node, editor: Editor, opset: int) -> None:
    """Below opset 13 all dims from the axis on were normalised together."""
    if opset >= 13:
        return
    x, output = required(node, 0), node.outputs[0]
    shape, axis = dims(x), node.attributes.get_int("axis", 1)
    if shape is not None and axis < 0:
        axis += len(shape)
    if shape is not None and all(size == 1 for size in shape[axis + 1 :]):
        _set(node, axis=axis)
        return
    flat = editor.emit(node, "Flatten", [x], {"axis": axis}, dtype=x.dtype)
    soft = editor.emit(node, node.op_type, [flat], {"axis": 1}, dtype=x.dtype)
    size = editor.emit(node, "Shape", [x], dtype=ir.DataType.INT64)
    editor.replace(output, editor.emit(node, "Reshape", [soft, size], dtype=x.dtype, shape=output.shape))
    editor.drop(node)


def _split(node: ir.Node, editor: Editor, opset: int) -> None:
    sizes = _pop(node, "split") if opset < 13 else None
    if sizes is not None:
        _set_input(node, 1, _ints(editor, sizes.as_ints(), "split"))
    elif operand(node, 1) is None and opset < 18:
        _set(node, num_outputs=len(node.outputs))


def _scatter(node: ir.Node, editor: Editor, opset: int) -> None:
    node.op_type = "ScatterElements"


def _grid_sample(node: ir.Node, editor: Editor, opset: int) -> None:
    mode = node.attributes.get_string("mode", "bilinear")
    _set(node, mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _dft(node: ir.Node, editor: Editor, opset: int) -> None:
    axis = _pop(node, "axis")
    _set_input(node, 2, editor.constant(np.array(axis.as_int() if axis else 1, dtype=np.int64), "axis"))


def _roi_align(node: ir.Node, editor: Editor, opset: int) -> None:
    if opset < 16:
        _set(node, coordinate_transformation_mode="output_half_pixel")


def _upsample(node: ir.Node, editor: Editor, opset: int) -> None:
    node.op_type = "Resize"
    _set(node, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    scales = operand(node, 1)
    _set_input(node, 2, scales)
    _set_input(node, 1, None)


def _resize(node: ir.Node, editor: Editor, opset: int) -> None:
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_half_pixel_for_nn":
        raise CannotUpgrade("Resize with tf_half_pixel_for_nn")
    if opset < 11:
        _resize_10(node)
        return
    for index in (1, 2):  # an empty tensor said "absent" before opset 13
        value = operand(node, index)
        if value is not None and static(value) is not None and 0 in (static(value) or ()):
            _set_input(node, index, None)


def _resize_10(node: ir.Node) -> None:
    """Opset 10 rounded down when enlarging and up when shrinking, which one attribute says only for known scales."""
    scales = const(operand(node, 1))
    nearest = "floor"
    if node.attributes.get_string("mode", "nearest") == "nearest":
        if scales is None or (scales.min() < 1 < scales.max()):
            raise CannotUpgrade("Resize of opset 10 with scales that are not known")
        nearest = "floor" if scales.min() >= 1 else "ceil"
    _set(node, coordinate_transformation_mode="asymmetric", nearest_mode=nearest)
    _set_input(node, 2, operand(node, 1))
    _set_input(node, 1, None)


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]
_ADAPTERS: dict[str, Adapter] = {
    **{f"Reduce{kind}": _axes_to_input(18) for kind in _REDUCTIONS},
    "ReduceSum": _axes_to_input(13),
    "Squeeze": _axes_to_input(13),
    "Unsqueeze": _axes_to_input(13),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "DFT": _dft,
    "Dropout": _dropout,
    "GridSample": _grid_sample,
    "Pad": _pad,
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Scatter": _scatter,
    "Slice": _slice,
    "Split": _split,
    "TopK": _topk,
    "Upsample": _upsample,
}
