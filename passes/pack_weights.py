"""A weight of few different values is stored as their codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, nodes

LEAST = 64
"""Elements below which nothing is gained."""


def pack_weights(model: ir.Model) -> list[str]:
    """Every floating-point weight that takes at most 256 values becomes codes of 1, 2, 4 or 8 bits and a table, unpacked when it runs.

    before                                    after, W has two values
        y = MatMul(x, W)                          shifted = BitShift(codes, [0, 1, .. 7])    codes: [r, c / 8, 1]
                                                  bits = BitwiseAnd(shifted, 1)
                                                  places = Flatten(Cast(bits))
                                                  W = Gather(table, places)
                                                  y = MatMul(x, W)

    Bit for bit the same numbers. For the memory objective: the names of the weights that are no more.
    """
    if model.opset_imports.get("", 0) < 18:  # BitwiseAnd
        return []
    editor, packed = Editor(model), []
    for value in list(model.graph.initializers.values()):
        data = value.const_value
        if data is None or value.is_graph_input() or value.is_graph_output() or data.size < LEAST or not data.dtype.is_floating_point():
            continue
        plan = _plan(data.numpy())
        if plan is not None and (reader := _first_reader(model, value)) is not None:
            _unpack(value, *plan, reader, editor)
            packed.append(value.name or "")
    return packed


def pack_weight(value: ir.Value, reader: ir.Node, editor: Editor) -> bool:
    """One weight as codes and a table, unpacked before ``reader``, the first node that reads it; False where that is no smaller."""
    plan = None if value.const_value is None else _plan(value.const_value.numpy())
    if plan is not None:
        _unpack(value, *plan, reader, editor)
    return plan is not None


def _plan(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """The table of different bit patterns, each element's place in it, and bits a place; None where that is no smaller."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.itemsize not in (2, 4, 8):
        return None
    patterns, places = np.unique(flat.view(f"u{flat.dtype.itemsize}"), return_inverse=True)
    bits = next((b for b in (1, 2, 4, 8) if len(patterns) <= 1 << b and flat.size % (8 // b) == 0), None)
    if bits is None or flat.size * bits // 8 + patterns.nbytes + 32 > flat.nbytes // 2:
        return None
    return patterns.view(flat.dtype), places.astype(np.uint8), bits


def _first_reader(model: ir.Model, value: ir.Value) -> ir.Node | None:
    """The first node of the main graph that reads it; None where a subgraph does, or nobody."""
    readers = {use.node for use in value.uses()}
    if any(node.graph is not model.graph for node in readers):
        return None
    return next((node for node in nodes(model) if node in readers), None)


def _unpack(value: ir.Value, table: np.ndarray, places: np.ndarray, bits: int, reader: ir.Node, editor: Editor) -> None:
    data = value.const_value
    assert data is not None
    shape, each = tuple(data.shape.numpy()), 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * bits
    codes = np.bitwise_or.reduce(places.reshape(-1, each) << shifts, axis=1).astype(np.uint8)
    matrix = len(shape) == 2 and shape[1] % each == 0
    stored = editor.initialiser(ir.Tensor(codes.reshape((shape[0], -1, 1) if matrix else (-1, 1))), f"{value.name}_codes")
    spread = stored
    if each > 1:
        shifted = editor.emit(reader, "BitShift", [stored, editor.constant(shifts, "shifts")], {"direction": "RIGHT"}, dtype=ir.DataType.UINT8)
        mask = editor.constant(np.array((1 << bits) - 1, dtype=np.uint8), "mask")
        spread = editor.emit(reader, "BitwiseAnd", [shifted, mask], dtype=ir.DataType.UINT8)
    if matrix:
        spread = editor.emit(reader, "Flatten", [spread], {"axis": 1}, dtype=ir.DataType.UINT8, shape=shape)
    else:
        target = editor.constant(np.array(shape, dtype=np.int64), "shape")
        spread = editor.emit(reader, "Reshape", [spread, target], dtype=ir.DataType.UINT8, shape=shape)
    index = editor.emit(reader, "Cast", [spread], {"to": int(ir.DataType.INT32)}, dtype=ir.DataType.INT32, shape=shape)
    values = editor.initialiser(ir.Tensor(table), f"{value.name}_values")
    unpacked = editor.emit(reader, "Gather", [values, index], dtype=data.dtype, shape=shape, hint=f"{value.name}_unpacked")
    value.replace_all_uses_with(unpacked)
