"""Elements at places that are known only when the model runs."""

from __future__ import annotations

from backends.tvm.fuse import Group
from backends.tvm.kernel import Chain, Operand
from backends.tvm.kernels.gather import Gather
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering, refuse


def gather(low: Lowering, group: Group) -> None:
    """Gather and GatherElements along any axis."""
    node = group.anchor
    assert node is not None
    steps, operands = low.chain(group, 1)
    data, indices = (low.view(name) for name in node.inputs)
    if indices.dtype not in ("int32", "int64"):
        raise refuse(node, f"its indices are of {indices.dtype}")
    axis = node.get("axis", 0) % len(data.shape)
    strides = list(data.strides)
    if node.op == "Gather":
        strides[axis : axis + 1] = [0] * len(indices.shape)
        after = len(data.shape) - axis - 1
        chosen = (*[0] * axis, *indices.strides, *[0] * after)
    else:
        strides[axis] = 0
        chosen = indices.strides
    out = low.place(group.result)
    kernel = Gather(
        out.shape, Operand(data.dtype, tuple(strides)), data.shape[axis], data.strides[axis],
        Operand(indices.dtype, tuple(chosen)), out.operand(), Chain(tuple(view.operand() for view in operands), steps),
    )  # fmt: skip
    low.launch(kernel, [data, indices, *operands], out, label(group))
