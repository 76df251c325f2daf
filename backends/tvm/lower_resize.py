"""Resize of images, channels last."""

from __future__ import annotations

from backends.tvm.fuse import Group
from backends.tvm.graph import Graph, Node
from backends.tvm.kernel import Chain
from backends.tvm.kernels.resize import Resize, interpolation
from backends.tvm.lower_product import label
from backends.tvm.lowering import Lowering, channels_last, refuse

_MODES = ("nearest", "linear", "cubic")
_PLACES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners")


def resize(low: Lowering, group: Group) -> None:
    """Height and width alone, by constant factors."""
    node = group.anchor
    assert node is not None
    graph = low.graph
    x = node.inputs[0]
    shape, result = graph.shapes[x], graph.shapes[node.outputs[0]]
    if len(shape) != 4 or shape[:2] != result[:2] or graph.dtypes[x] != "float32":
        raise refuse(node, f"it makes {list(result)} of {list(shape)}")
    mode, places = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    odd = node.get("antialias", 0) or node.get("axes") or node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    if mode not in _MODES or places not in _PLACES or odd:
        raise refuse(node, f"its mode is {mode!r} with {places!r}, or it has rarer attributes")
    steps, operands = low.chain(group, 1)
    tables = [
        interpolation(
            mode, shape[axis], result[axis], scale, places, node.get("nearest_mode", "round_prefer_floor"),
            node.get("cubic_coeff_a", -0.75), bool(node.get("exclude_outside", 0)),
        )
        for axis, scale in zip((2, 3), _scales(graph, node), strict=True)
    ]  # fmt: skip
    out = low.place(group.result, channels_last(4))
    source, target, *others = (view.transposed((0, 2, 3, 1)) for view in (low.view(x), out, *operands))
    kernel = Resize(
        shape[0], (result[2], result[3]), shape[1], (tables[0][0].shape[1], tables[1][0].shape[1]), source.operand(),
        target.operand(), Chain(tuple(view.operand() for view in others), steps),
    )  # fmt: skip
    constants = [low.weight(array) for table in tables for array in table]
    low.launch(kernel, [source, *constants, *others], target, label(group))


def _scales(graph: Graph, node: Node) -> list[float]:
    """Of height and width: as given, or from the sizes."""
    given = node.inputs[2] if len(node.inputs) > 2 else ""
    if given and graph.shapes[given] != (0,):
        if given not in graph.constants:
            raise refuse(node, "its scales are not constants")
        return [float(value) for value in graph.constants[given][2:]]
    shape, result = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    return [result[axis] / shape[axis] for axis in (2, 3)]
