"""Running sums, and places of extrema."""

from __future__ import annotations

from backends.tvm.fuse import Group
from backends.tvm.kernel import Chain, Operand
from backends.tvm.kernels.extremum import Extremum
from backends.tvm.kernels.scan import Scan
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering, refuse
from backends.tvm.views import View, memory_order


def running_sum(low: Lowering, group: Group) -> None:
    """CumSum along an axis that is a constant."""
    node = group.anchor
    assert node is not None
    axis = low.graph.constants.get(node.inputs[1])
    source = low.view(node.inputs[0])
    if axis is None or source.dtype not in ("float32", "int32", "int64"):
        raise refuse(node, f"its axis is not a constant, or it is of {source.dtype}")
    steps, operands = low.chain(group, 1)
    out = low.place(group.result, memory_order(source))
    along = int(axis.item()) % len(source.shape)
    order = _last(len(source.shape), along)
    shape = [source.shape[i] for i in order]
    kernel = Scan(
        tuple(shape[:-1]), shape[-1], source.operand(order), out.operand(order), bool(node.get("exclusive", 0)),
        bool(node.get("reverse", 0)), Chain(tuple(view.operand(order) for view in operands), steps),
    )  # fmt: skip
    low.launch(kernel, [source, *operands], out, label(group))


def extremum(low: Lowering, group: Group) -> None:
    """ArgMax and ArgMin."""
    node = group.anchor
    assert node is not None
    source = low.view(node.inputs[0])
    if source.dtype not in ("float32", "int32"):
        raise refuse(node, f"it is of {source.dtype}")
    along = node.get("axis", 0) % len(source.shape)
    order = _last(len(source.shape), along)
    out = low.place(node.outputs[0])
    kept = _kept(out, along, len(source.shape))
    shape = [source.shape[i] for i in order]
    largest, last = node.op == "ArgMax", bool(node.get("select_last_index", 0))
    kernel = Extremum(largest, tuple(shape[:-1]), shape[-1], source.operand(order), kept, last)
    low.launch(kernel, [source], out, label(group))


def _last(rank: int, axis: int) -> tuple[int, ...]:
    """All axes, ``axis`` last."""
    return (*(i for i in range(rank) if i != axis), axis)


def _kept(out: View, axis: int, rank: int) -> Operand:
    """The steps of a result along the axes that are left, whether or not it has one of 1 element for ``axis``."""
    if len(out.shape) < rank:
        return out.operand()
    return out.operand(_last(rank, axis)[:-1])
