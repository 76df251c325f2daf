"""Convolutions: channels last, padding as a halo, depthwise apart; a transposed one as one convolution a phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from backends.tvm.fuse import Group
from backends.tvm.graph import Node
from backends.tvm.kernel import Chain, Operand, Step
from backends.tvm.kernels.contraction import Contraction
from backends.tvm.kernels.contraction8 import Contraction8, pairs_fit
from backends.tvm.kernels.depthwise import Depthwise
from backends.tvm.lower_product import label
from backends.tvm.lower_winograd import tile_size, winograd
from backends.tvm.lowering import Lowering, Packed, as_image, channels_last, refuse
from backends.tvm.views import View

Array = np.ndarray[Any, Any]
_SOME = 8  # channels of an image that lies channels first for which it pays to copy it channels last


def wanted_halos(low: Lowering) -> None:
    """Tell the producers of images how far convolutions look around them."""
    for node in low.graph.nodes:
        if node.op == "Conv" and node.inputs[1] in low.graph.constants:
            before, after = _halo(node)
            after = _reach(low, node, after, tile_size(low, node))
            if any((*before, *after)):
                low.want_halo(node.inputs[0], before, after)
        elif node.op == "Conv8" and any(node.attributes["pads"]):
            low.want_halo(node.inputs[0], *_halo(node), node.attributes["zero"])


def convolution(low: Lowering, group: Group) -> None:
    """Conv, with constant weights, of an image or of a line."""
    node = group.anchor
    assert node is not None
    x, weight = node.inputs
    if weight not in low.graph.constants:
        raise refuse(node, "its weights are not constants")
    weights = low.graph.constants[weight]
    zero = node.get("zero") if node.op == "Conv8" else None
    if weights.ndim not in (3, 4) or (low.graph.dtypes[x] != "float32" and zero is None):
        raise refuse(node, f"it has {weights.ndim - 2} dimensions of {low.graph.dtypes[x]}")
    steps, operands = low.chain(group, 1)
    order = channels_last(weights.ndim)
    before, after = _halo(node)
    tile = tile_size(low, node) if zero is None else 0
    reach = _reach(low, node, after, tile)
    last = weights.shape[1] * node.attributes["group"] >= _SOME  # else all of them are read one by one from lines of pixels
    image = low.padded(x, before, reach, last=last) if zero is None else low.padded(low.owned(x), before, after, zero, last=True)
    out = low.place(group.result, order)
    if tile:
        winograd(low, label(group), image, weights, out, steps, operands, tile)
        return
    strides, dilations = node.attributes["strides"], node.attributes["dilations"]
    if weights.ndim == 3:
        image, out, *operands = (as_image(view) for view in (image, out, *operands))
        weights, strides, dilations = weights[:, :, None], [1, *strides], [1, *dilations]
    image, out, *operands = (view.transposed((0, 2, 3, 1)) for view in (image, out, *operands))
    _launch(low, label(group), image, weights, out, steps, operands, strides, dilations, node.attributes["group"], zero)


def transposed_convolution(low: Lowering, group: Group) -> None:
    """ConvTranspose: the outputs that are a stride apart see the same taps, so each such phase is a convolution."""
    node = group.anchor
    assert node is not None
    x, weight = node.inputs
    weights = low.graph.constants.get(weight)
    if weights is None or weights.ndim != 4 or node.attributes["group"] != 1 or set(node.attributes["dilations"]) != {1}:
        raise refuse(node, "only images, one group, no dilation, constant weights")
    if low.graph.dtypes[x] != "float32":
        raise refuse(node, f"it is of {low.graph.dtypes[x]}")
    steps, operands = low.chain(group, 1)
    shape = low.graph.shapes[group.result]
    phases = [_phases(shape[2 + i], node.attributes["strides"][i], weights.shape[2 + i], node.attributes["pads"][i]) for i in range(2)]
    lows = [max(0, -min(first for _, _, _, first in axis)) for axis in phases]
    sizes = low.graph.shapes[x][2:]
    highs = [max(0, max(first + count + len(taps) - 1 for _, count, taps, first in axis) - size)
             for axis, size in zip(phases, sizes, strict=True)]  # fmt: skip
    image = low.padded(x, (0, 0, *lows), (0, 0, *highs)).transposed((0, 2, 3, 1))
    out = low.place(group.result, channels_last(4))
    strides = node.attributes["strides"]
    for y, rows, down, top in phases[0]:
        for z, columns, across, left in phases[1]:
            kernel = weights[:, :, down][:, :, :, across].transpose(1, 0, 2, 3)
            part = image.sliced(1, top + lows[0], rows + len(down) - 1).sliced(2, left + lows[1], columns + len(across) - 1)
            views = [view.sliced(2, y, rows, strides[0]).sliced(3, z, columns, strides[1]).transposed((0, 2, 3, 1)) for view in (out, *operands)]
            _launch(low, label(group), part, kernel, views[0], steps, views[1:], [1, 1], [1, 1], 1)


def _phases(size: int, stride: int, taps: int, pad: int) -> list[tuple[int, int, list[int], int]]:
    """For each phase of an axis: its first output, how many there are, its taps in the order in which the input meets
    them, and the first input. A phase without taps is refused by its empty kernel."""
    found = []
    for y in range(min(stride, size)):
        rest = (y + pad) % stride
        mine = list(range(rest, taps, stride))[::-1]
        first = (y + pad - rest) // stride - (len(mine) - 1)
        if not mine:
            raise ValueError("a transposed convolution whose stride is wider than its kernel")
        found.append((y, math.ceil((size - y) / stride), mine, first))
    return found


def _launch(
    low: Lowering, name: str, image: View, weights: Array, out: View, steps: Sequence[Step], operands: Sequence[View],
    strides: Sequence[int], dilations: Sequence[int], groups: int, zero: int | None = None,
) -> None:  # fmt: skip
    """One convolution of views [n, h, w, c], weights [o, c / groups, taps, taps]; ``zero``: of 8-bit numbers."""
    channels = image.shape[3]
    if groups == channels and weights.shape[0] == channels and groups > 1:
        _depthwise(low, name, image, weights, out, steps, operands, strides, dilations)
        return
    n, h, w, c = image.strides
    views = [out, *operands]
    depth = weights.shape[1]
    batch: tuple[int, ...] = (out.shape[0],) if out.shape[0] > 1 else ()
    left_batch = (n,) if batch else ()
    taps, tap_strides = weights.shape[2:], (h * dilations[0], w * dilations[1])
    packed = weights.reshape(groups, -1, *weights.shape[1:]).transpose(0, 3, 4, 2, 1)  # groups, taps, taps, depth, columns
    matrices = (0,) * len(batch)
    if groups > 1:
        batch, left_batch, matrices = (*batch, groups), (*left_batch, depth * c), (*matrices, 1)
    arranged = [_grouped(view, groups, bool(out.shape[0] > 1)) for view in views]
    rows: tuple[int, int] = (out.shape[1], out.shape[2])
    row_strides = (h * strides[0], w * strides[1])
    if taps[1] > 1 and tap_strides[1] == depth * c:  # the taps of a line lie one after the other: one long depth
        packed = packed.reshape(groups, taps[0], 1, taps[1] * depth, packed.shape[-1])
        taps, depth, tap_strides = (taps[0], 1), taps[1] * depth, (tap_strides[0], 0)
    if row_strides[0] == rows[1] * row_strides[1] and all(_even(v) for v in arranged):  # one line of all pixels
        arranged = [_one_line(view) for view in arranged]
        rows, row_strides = (1, rows[0] * rows[1]), (0, row_strides[1])
    left = Operand(image.dtype, (*left_batch, *row_strides, *tap_strides, c))
    target, chain = arranged[0].operand(), Chain(tuple(view.operand() for view in arranged[1:]), tuple(steps))
    spec: Contraction | Contraction8
    if zero is None:
        spec = Contraction(batch, rows, packed.shape[-1], (taps[0], taps[1]), depth, left, target, matrices=matrices, chain=chain)
    else:
        spec = Contraction8(batch, rows, packed.shape[-1], (taps[0], taps[1]), depth, left, target, zero, matrices, chain, pairs_fit(packed))
    low.launch(spec, [image, Packed(lambda: packed), *arranged[1:]], arranged[0], name)


def _depthwise(
    low: Lowering, name: str, image: View, weights: Array, out: View, steps: Sequence[Step], operands: Sequence[View],
    strides: Sequence[int], dilations: Sequence[int],
) -> None:  # fmt: skip
    n, h, w, c = image.strides
    source = Operand(image.dtype, (n, h * strides[0], w * strides[1], h * dilations[0], w * dilations[1], c))
    kernel = Depthwise(
        out.shape[0], (out.shape[1], out.shape[2]), out.shape[3], (weights.shape[2], weights.shape[3]), source,
        out.operand(), Chain(tuple(view.operand() for view in operands), tuple(steps)),
    )  # fmt: skip
    low.launch(kernel, [image, Packed(lambda: weights[:, 0].transpose(1, 2, 0)), *operands], out, name)


def _grouped(view: View, groups: int, batched: bool) -> View:
    """[n, h, w, c] as [n?, groups?, h, w, c of a group]."""
    if groups > 1:
        n, h, w, c = view.strides
        size = view.shape[3] // groups
        view = replace(view, shape=(view.shape[0], groups, *view.shape[1:3], size), strides=(n, size * c, h, w, c))
    return view if batched else replace(view, shape=view.shape[1:], strides=view.strides[1:])


def _even(view: View) -> bool:
    return view.shape[-3] == 1 or view.strides[-3] == view.shape[-2] * view.strides[-2]


def _one_line(view: View) -> View:
    *batch, h, w, c = view.shape
    return replace(view, shape=(*batch, 1, h * w, c), strides=(*view.strides[:-3], 0, *view.strides[-2:]))


def _reach(low: Lowering, node: Node, after: tuple[int, ...], tile: int) -> tuple[int, ...]:
    """How far after the image a convolution looks: its last tiles of Winograd's may look farther than it pads."""
    if not tile:
        return after
    sizes = low.graph.shapes[node.outputs[0]][2:]
    return (0, 0, *(a + -size % tile for a, size in zip(after[2:], sizes, strict=True)))


def _halo(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pads = node.attributes["pads"]
    rank = len(pads) // 2
    return (0, 0, *pads[:rank]), (0, 0, *pads[rank:])
