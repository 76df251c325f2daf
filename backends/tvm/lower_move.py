"""Element-wise chains, and what moves data: as a view of the same memory where there is one, else as a copy."""

from __future__ import annotations

from backends.tvm.fuse import Group
from backends.tvm.graph import Node
from backends.tvm.kernel import Chain
from backends.tvm.kernels.elementwise import Elementwise
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering, refuse
from backends.tvm.views import View, memory_order


def elementwise(low: Lowering, group: Group) -> None:
    """A chain alone; its result lies in memory as the largest thing that it reads."""
    steps, operands = low.chain(group, 0)
    shape = low.graph.shapes[group.result]
    whole = [view for view in operands if 0 not in view.strides and low.storages[view.storage].kind != "weight"]
    order = memory_order(whole[0]) if whole else tuple(range(len(shape)))
    out = low.place(group.result, order)
    if 0 in shape:
        return
    kernel = Elementwise(shape, tuple(view.operand() for view in operands), out.operand(), Chain((), steps))
    low.launch(kernel, operands, out, label(group))


def reshape(low: Lowering, group: Group) -> None:
    """Another shape for the same memory, if there is one; else a copy in order."""
    node, view = _of(low, group)
    shape = low.graph.shapes[group.result]
    found = view.reshaped(shape)
    if found is None:
        found = low.contiguous(view).reshaped(shape)
        assert found is not None
    low.views[node.outputs[0]] = found


def transpose(low: Lowering, group: Group) -> None:
    """Another order of the axes."""
    node, view = _of(low, group)
    low.views[node.outputs[0]] = view.transposed(node.attributes["perm"])


def slices(low: Lowering, group: Group) -> None:
    """A part of the same memory."""
    node, view = _of(low, group)
    for axis, start, count, step in node.attributes["cuts"]:
        view = view.sliced(axis, start, count, step)
    low.views[node.outputs[0]] = view


def expand(low: Lowering, group: Group) -> None:
    """The same memory, read again and again."""
    node, view = _of(low, group)
    low.views[node.outputs[0]] = view.expanded(low.graph.shapes[node.outputs[0]])


def concat(low: Lowering, group: Group) -> None:
    """Parts that were not written in their place are copied there."""
    node = group.anchor
    assert node is not None
    parts = [low.view(name) for name in node.inputs]
    whole = low.whole(node, memory_order(max(parts, key=lambda part: part.shape)))
    axis, start = node.get("axis") % len(whole.shape), 0
    for part in parts:
        target = whole.sliced(axis, start, part.shape[axis])
        start += part.shape[axis]
        if (part.storage, part.offset, part.strides) != (target.storage, target.offset, target.strides):
            low.copy(part, target, "Concat")
    low.views[node.outputs[0]] = whole


def _of(low: Lowering, group: Group) -> tuple[Node, View]:
    node = group.anchor
    assert node is not None
    if 0 in low.graph.shapes[group.result]:
        raise refuse(node, "it is empty")
    return node, low.view(node.inputs[0])
