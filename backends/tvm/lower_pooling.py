"""MaxPool and AveragePool of images and lines, channels last."""

from __future__ import annotations

from backends.tvm.fuse import Group
from backends.tvm.graph import pads_of
from backends.tvm.kernel import Chain
from backends.tvm.kernels.pooling import Pooling, Window
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering, as_image, channels_last, refuse

_KINDS = {"MaxPool": "max", "AveragePool": "average"}


def pooling(low: Lowering, group: Group) -> None:
    """A window's maximum or average."""
    node = group.anchor
    assert node is not None
    graph = low.graph
    x, rank = node.inputs[0], len(graph.shapes[node.inputs[0]])
    if rank not in (3, 4) or graph.dtypes[x] != "float32" or len([name for name in node.outputs if name]) != 1:
        raise refuse(node, f"it is of {graph.dtypes[x]} and {rank} dimensions, or its indices are used")
    steps, operands = low.chain(group, 1)
    out = low.place(group.result, channels_last(rank))
    taps = node.attributes["kernel_shape"]
    ones = [1] * len(taps)
    strides, dilations = node.get("strides", ones), node.get("dilations", ones)
    pads = pads_of(node, graph.shapes[x][2:], taps, strides, dilations)
    windows = [
        Window(size, tap, results, stride, dilation, before, after)
        for size, tap, results, stride, dilation, before, after in zip(
            graph.shapes[x][2:], taps, out.shape[2:], strides, dilations, pads[: len(taps)], pads[len(taps) :], strict=True
        )
    ]
    views = [low.view(x), out, *operands]
    if rank == 3:
        windows, views = [Window(1, 1, 1), *windows], [as_image(view) for view in views]
    source, target, *others = (view.transposed((0, 2, 3, 1)) for view in views)
    kernel = Pooling(
        _KINDS[node.op], source.shape[0], (windows[0], windows[1]), source.shape[3], source.operand(), target.operand(),
        bool(node.get("count_include_pad", 0)), Chain(tuple(view.operand() for view in others), steps),
    )  # fmt: skip
    low.launch(kernel, [source, *others], target, label(group))
