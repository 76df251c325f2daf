"""Softmax and the normalisations, along any axes; reductions."""

from __future__ import annotations

import math
from dataclasses import replace

from backends.tvm.fuse import Group
from backends.tvm.kernel import Chain, Operand, Strides
from backends.tvm.kernels.reduce import Reduce
from backends.tvm.kernels.rows import Rows
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering, refuse
from backends.tvm.views import View, memory_order


def softmax(low: Lowering, group: Group) -> None:
    """Softmax and LogSoftmax along one axis."""
    node = group.anchor
    assert node is not None
    shape = low.graph.shapes[node.inputs[0]]
    axis = node.get("axis", -1) % len(shape)
    _launch(low, group, node.op, axis)


def layer_norm(low: Lowering, group: Group) -> None:
    """LayerNormalization and RMSNormalization over the last axis."""
    node = group.anchor
    assert node is not None
    shape = low.graph.shapes[node.inputs[0]]
    axis = node.get("axis", -1) % len(shape)
    if axis != len(shape) - 1:
        raise refuse(node, "it is over several axes")
    if node.get("stash_type", 1) != 1:
        raise refuse(node, "it is computed in another type")
    _launch(low, group, node.op, axis, node.get("epsilon", 1e-5))


def reduction(low: Lowering, group: Group) -> None:
    """ReduceSum and its like, over any axes."""
    node = group.anchor
    assert node is not None
    source = low.view(node.inputs[0])
    axes = node.attributes["axes"]
    if source.dtype not in ("float32", "int32", "int64"):
        raise refuse(node, f"it is of {source.dtype}")
    if source.dtype != "float32" and node.op not in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"):
        raise refuse(node, f"it is of {source.dtype}")
    steps, operands = low.chain(group, 1)
    rank, kept = len(source.shape), [axis for axis in range(len(source.shape)) if axis not in axes]
    left = [axis for axis in memory_order(source) if axis in kept]
    if len(low.graph.shapes[group.result]) == rank:
        out = low.place(group.result, (*left, *axes) if 0 in left else None)
        out, *operands = (_without(view, axes) for view in (out, *operands))
    else:
        out = low.place(group.result, [kept.index(axis) for axis in left])
    arranged = source.transposed((*kept, *axes))
    kernel = Reduce(
        node.op, out.shape, tuple(source.shape[axis] for axis in axes), arranged.operand(), out.operand(),
        Chain(tuple(view.operand() for view in operands), steps),
    )  # fmt: skip
    low.launch(kernel, [source, *operands], out, label(group))


def _without(view: View, axes: list[int]) -> View:
    """``view`` without axes of one element."""
    kept = [axis for axis in range(len(view.shape)) if axis not in axes]
    return view.transposed(kept)


def _launch(low: Lowering, group: Group, kind: str, axis: int, epsilon: float = 0.0) -> None:
    node = group.anchor
    assert node is not None
    graph = low.graph
    if graph.dtypes[node.inputs[0]] != "float32":
        raise refuse(node, f"it is of {graph.dtypes[node.inputs[0]]}")
    if len([name for name in node.outputs if name]) != 1:
        raise refuse(node, "more than one of its results is used")
    steps, operands = low.chain(group, 1)
    source = low.view(node.inputs[0])
    out = low.place(group.result, memory_order(source))
    shape = out.shape
    order = (*(i for i in range(len(shape)) if i != axis), axis)
    parameters = [low.view(name).expanded(shape) if name else None for name in (*node.inputs[1:], "", "")[:2]]
    views = [source, out, *(view for view in parameters if view is not None), *operands]
    arranged = merged([view.transposed(order) for view in views], 1)
    strides = {id(view): a.operand() for view, a in zip(views, arranged, strict=True)}

    def operand(view: View | None) -> Operand | None:
        return strides[id(view)] if view is not None else None

    kernel = Rows(
        kind, arranged[0].shape[:-1], shape[axis], strides[id(source)], strides[id(out)], epsilon,
        operand(parameters[0]), operand(parameters[1]), Chain(tuple(strides[id(view)] for view in operands), steps),
    )  # fmt: skip
    reads = [source, *(view for view in parameters if view is not None), *operands]
    low.launch(kernel, reads, out, label(group))


def merged(views: list[View], kept: int) -> list[View]:
    """The views with those of their axes that are one in all of them as one; the last ``kept`` stay as they are."""
    shape = views[0].shape[: len(views[0].shape) - kept]
    groups: list[list[int]] = []
    for axis, size in enumerate(shape):
        if groups and (size == 1 or all(_follows(view, groups[-1], axis) for view in views)):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return [_with_groups(view, groups, kept) for view in views]


def _follows(view: View, group: list[int], axis: int) -> bool:
    """Whether ``axis`` goes on where the axes of ``group`` end."""
    before = next((i for i in reversed(group) if view.shape[i] > 1), None)
    return before is None or view.strides[before] == view.shape[axis] * view.strides[axis]


def _with_groups(view: View, groups: list[list[int]], kept: int) -> View:
    rank = len(view.shape)
    shape = [math.prod(view.shape[axis] for axis in group) for group in groups]
    strides: Strides = tuple(_innermost(view, group) for group in groups)
    return replace(view, shape=(*shape, *view.shape[rank - kept :]), strides=(*strides, *view.strides[rank - kept :]))


def _innermost(view: View, group: list[int]) -> int:
    """The step of the last axis of a group that has one."""
    return next((view.strides[axis] for axis in reversed(group) if view.shape[axis] > 1), 0)
