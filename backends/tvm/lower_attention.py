"""Attention as one kernel."""

from __future__ import annotations

from dataclasses import replace

from backends.tvm.fuse import Group
from backends.tvm.kernel import Chain
from backends.tvm.kernels.attention import Attention
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering
from backends.tvm.views import View


def attention(low: Lowering, group: Group) -> None:
    """A node that ``recognise`` made. Its result lies as it is mostly read: the heads of a query side by side."""
    node = group.anchor
    assert node is not None
    steps, operands = low.chain(group, 1)
    query, key, value = (low.view(name) for name in node.inputs[:3])
    rank = len(query.shape)
    if node.attributes["flipped"]:
        key = key.transposed((*range(rank - 2), rank - 1, rank - 2))
    reads = [query, key, value]
    if len(node.inputs) > 3:
        reads.append(low.view(node.inputs[3]).expanded((*query.shape[:-1], key.shape[-2])))
    out = low.place(group.result, (0, 2, 1, 3) if rank == 4 and group.result not in low.graph.outputs else None)
    query, key, value, out = (_with_batch(view) for view in (query, key, value, out))
    mask = _with_batch(reads[3]).operand() if len(reads) > 3 else None
    kernel = Attention(
        batch=query.shape[0], heads=query.shape[1], groups=key.shape[1], queries=query.shape[2], keys=key.shape[2],
        depth=query.shape[3], width=value.shape[3], scale=node.attributes["scale"], query=query.operand(),
        key=key.operand(), value=value.operand(), out=out.operand(), mask=mask, guarded=node.attributes["guarded"],
        chain=Chain(tuple(_with_batch(view).operand() for view in operands), steps),
    )  # fmt: skip
    low.launch(kernel, [*reads, *operands], out, label(group))


def _with_batch(view: View) -> View:
    """[heads, ...] as a batch of one."""
    return view if len(view.shape) == 4 else replace(view, shape=(1, *view.shape), strides=(0, *view.strides))
