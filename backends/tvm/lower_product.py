"""MatMul: weights are packed for the kernel, and all rows of all batches that lie evenly in memory are one axis."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from backends.tvm.fuse import Group
from backends.tvm.kernel import Chain, Operand
from backends.tvm.kernels.contraction import Contraction
from backends.tvm.kernels.contraction8 import Contraction8, pairs_fit
from backends.tvm.kernels.contraction_codes import ContractionCodes
from backends.tvm.lowering import Lowering, Packed, refuse
from backends.tvm.views import View

Array = np.ndarray[Any, Any]


def matmul(low: Lowering, group: Group) -> None:
    """One Contraction; the right operand is packed weights, or data that is read where it lies."""
    node = group.anchor
    assert node is not None
    left_name, right_name = node.inputs
    graph = low.graph
    if len(graph.shapes[left_name]) < 2 or len(graph.shapes[right_name]) < 2:
        raise refuse(node, "a vector is an operand")
    zero = node.get("zero") if node.op == "MatMul8" else None
    if graph.dtypes[left_name] != "float32" and zero is None:
        raise refuse(node, f"its type is {graph.dtypes[left_name]}")
    steps, operands = low.chain(group, 1)
    out = low.place(group.result)
    left = low.view(left_name if zero is None else low.owned(left_name))
    weights = graph.constants.get(right_name)
    if weights is not None and math.prod(weights.shape[:-2]) == 1:
        _with_weights(low, group, left, weights.reshape(weights.shape[-2:]), out, Chain((), steps), operands, zero)
    else:
        _with_data(low, group, left, low.view(right_name), out, Chain((), steps), operands)


def matmul_codes(low: Lowering, group: Group) -> None:
    """One ContractionCodes: floats by weights that stay codes of 8 or 4 bits, with their scales and shifts."""
    node = group.anchor
    assert node is not None
    left, codes, scales = node.inputs
    numbers, factors = low.graph.constants[codes], low.graph.constants[scales]
    depth, columns = numbers.shape
    steps, operands = low.chain(group, 1)
    out = low.place(group.result)
    shape, (rows, out, *operands) = _lines([low.view(left).expanded((*out.shape[:-1], depth)), out, *operands])
    spec = ContractionCodes(
        tuple(shape[:-2]), (shape[-2], shape[-1]), columns, depth, node.get("block"), node.get("bits"), len(factors) == 2,
        Operand(rows.dtype, (*rows.strides[:-1], 0, 0, rows.strides[-1])), out.operand(), Chain(tuple(v.operand() for v in operands), steps),
    )  # fmt: skip
    low.launch(spec, [rows, Packed(lambda: numbers), Packed(lambda: factors), *operands], out, label(group))


def _lines(views: list[View]) -> tuple[tuple[int, ...], list[View]]:
    """Views of equal rows, and those rows: as few axes as lie evenly in all, at least two."""
    shape = _merged_rows(views, views[0].shape[:-1])
    return shape, [_rows(view, shape) for view in views]


def _with_weights(low: Lowering, group: Group, left: View, weights: Array, out: View, chain: Chain, operands: list[View], zero: int | None) -> None:
    depth, columns = weights.shape
    shape, (left, out, *operands) = _lines([left.expanded((*out.shape[:-1], depth)), out, *operands])
    batch = tuple(range(len(shape) - 2))
    if zero is not None and left.strides[-1] != 1:
        left = low.contiguous(left)
    rows_strides = Operand(left.dtype, (*left.strides[:-1], 0, 0, left.strides[-1]))
    target, whole = out.operand(), Chain(tuple(view.operand() for view in operands), chain.steps)
    lines = (shape[-2], shape[-1])
    spec: Contraction | Contraction8
    if zero is None:
        spec = Contraction(tuple(shape[:-2]), lines, columns, (1, 1), depth, rows_strides, target, matrices=(0,) * len(batch), chain=whole)
    else:
        matrices = (0,) * len(batch)
        spec = Contraction8(tuple(shape[:-2]), lines, columns, (1, 1), depth, rows_strides, target, zero, matrices, whole, pairs_fit(weights))
    low.launch(spec, [left, Packed(lambda: weights[None, None, None]), *operands], out, label(group))


def _with_data(low: Lowering, group: Group, left: View, right: View, out: View, chain: Chain, operands: list[View]) -> None:
    *batch, rows, columns = out.shape
    depth = left.shape[-1]
    if right.strides[-1] != 1 and columns > 1:
        right = low.contiguous(right)
    left, right = left.expanded((*batch, rows, depth)), right.expanded((*batch, depth, columns))
    spec = Contraction(
        batch=tuple(batch), rows=(1, rows), columns=columns, taps=(1, 1), depth=depth,
        left=replace(left.operand(), strides=(*left.strides[:-2], 0, left.strides[-2], 0, 0, left.strides[-1])),
        right=right.operand(), out=_with_line(out).operand(),
        chain=Chain(tuple(_with_line(view).operand() for view in operands), chain.steps),
    )  # fmt: skip
    low.launch(spec, [left, right, *operands], out, label(group))


def _merged_rows(views: list[View], rows: tuple[int, ...]) -> tuple[int, ...]:
    """All row axes as one if they lie evenly in every view; else the last two stay axes of their own, behind a batch."""
    if all(view.reshaped((math.prod(rows), view.shape[-1])) is not None for view in views):
        return (1, math.prod(rows))
    return rows if len(rows) > 1 else (1, *rows)


def _rows(view: View, shape: tuple[int, ...]) -> View:
    found = view.reshaped((*shape, view.shape[-1]))
    assert found is not None
    return found


def _with_line(view: View) -> View:
    """An axis of one line before the rows."""
    shape = (*view.shape[:-2], 1, *view.shape[-2:])
    return replace(view, shape=shape, strides=(*view.strides[:-2], 0, *view.strides[-2:]))


def label(group: Group) -> str:
    """What a launch computes, for reports."""
    return "+".join(node.op for node in group.nodes)
