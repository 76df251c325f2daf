"""Operators that slide a window: convolutions and pools, over any number of spatial dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised

Pads = list[tuple[int, int]]
_COLUMNS_BYTES = 1 << 28  # the window matrix of one call stays below this where a batch element allows it


def padding(call: Call, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> Pads:
    """Padding before and after each spatial dimension; ``spans`` are the dilated kernel's sizes."""
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, span, stride in zip(sizes, spans, strides, strict=True):
            total = max(0, (math.ceil(size / stride) - 1) * stride + span - size)
            small = total // 2
            pads.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
        return pads
    flat = [0] * (2 * len(sizes)) if auto == "VALID" else call.get("pads") or [0] * (2 * len(sizes))
    return list(zip(flat[: len(sizes)], flat[len(sizes) :], strict=True))


def windows(x: Array, spans: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """A view of shape ``[N, C, *positions, *kernel]`` over the padded ``x``."""
    n = len(spans)
    view = np.lib.stride_tricks.sliding_window_view(x, tuple(spans), axis=tuple(range(2, 2 + n)))
    steps = [slice(None)] * 2 + [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
    result: Array = view[tuple(steps)]
    return result


def convolve(call: Call, x: Array, w: Array, b: Array | None) -> Array:
    """Convolution of ``x [N, C, *S]`` with ``w [O, C/groups, *K]`` by one matrix product a group."""
    n = x.ndim - 2
    kernel_shape, groups = w.shape[2:], call.get("group", 1)
    strides, dilations = call.get("strides") or [1] * n, call.get("dilations") or [1] * n
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    pads = padding(call, x.shape[2:], spans, strides)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    outputs, inner = w.shape[0], math.prod(w.shape[1:])
    weights = w.reshape(groups, outputs // groups, inner)
    view = windows(x, spans, strides, dilations)
    positions = view.shape[2 : 2 + n]
    order = (0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))
    y = np.empty((x.shape[0], groups, outputs // groups, math.prod(positions)), np.result_type(x, w))
    step = max(1, _COLUMNS_BYTES // max(1, x.itemsize * groups * inner * math.prod(positions)))
    for start in range(0, x.shape[0], step):
        part = view[start : start + step]
        columns = part.transpose(order).reshape(len(part), groups, inner, -1)
        y[start : start + step] = np.matmul(weights, columns)
    y = y.reshape(x.shape[0], outputs, *positions)
    return y if b is None else y + b.reshape(-1, *(1,) * n)


@kernel("Conv")
def conv(call: Call, x: Array, w: Array, b: Array | None = None) -> Any:
    return convolve(call, raised(x), raised(w), None if b is None else raised(b)).astype(x.dtype, copy=False)


@kernel("ConvInteger")
def conv_integer(call: Call, x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None) -> Any:
    wide, weights = x.astype(np.float64), w.astype(np.float64)  # 8-bit products: exact in float64
    if x_zero is not None:
        wide = wide - float(x_zero.reshape(()))
    if w_zero is not None:
        weights = weights - w_zero.astype(np.float64).reshape(-1, *(1,) * (w.ndim - 1))
    return np.rint(convolve(call, wide, weights, None)).astype(np.int32)


@kernel("ConvTranspose")
def conv_transpose(call: Call, x: Array, w: Array, b: Array | None = None) -> Any:
    """Each input pixel adds its multiple of the kernel to the output: ``w`` is ``[C, O/groups, *K]``."""
    n, groups = x.ndim - 2, call.get("group", 1)
    kernel_shape = w.shape[2:]
    strides, dilations = call.get("strides") or [1] * n, call.get("dilations") or [1] * n
    extra = call.get("output_padding") or [0] * n
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    full = [s * (size - 1) + span for s, size, span in zip(strides, x.shape[2:], spans, strict=True)]
    pads, shape = _transposed_padding(call, x.shape[2:], full, strides, extra)
    outputs = w.shape[1] * groups
    wide, weights = raised(x), raised(w)
    columns = wide.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    # room beyond the far edge, so that what padding or output_padding asks for exists
    room = [max(f, p[0] + s) for f, p, s in zip(full, pads, shape, strict=True)]
    y = np.zeros((x.shape[0], groups, w.shape[1], *room), wide.dtype)
    taps = weights.reshape(groups, x.shape[1] // groups, w.shape[1], *kernel_shape)
    for at in itertools.product(*(range(k) for k in kernel_shape)):
        part = np.matmul(taps[(..., *at)].transpose(0, 2, 1), columns).reshape(*y.shape[:3], *x.shape[2:])
        place: list[Any] = [
            slice(i * d, i * d + s * (size - 1) + 1, s)
            for i, d, s, size in zip(at, dilations, strides, x.shape[2:], strict=True)
        ]
        y[(..., *place)] += part
    y = y.reshape(x.shape[0], outputs, *room)
    inside: list[Any] = [slice(p[0], p[0] + s) for p, s in zip(pads, shape, strict=True)]
    y = y[(..., *inside)]
    y = y if b is None else y + raised(b).reshape(-1, *(1,) * n)
    return y.astype(x.dtype, copy=False)


def _transposed_padding(
    call: Call, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[Pads, list[int]]:
    n, auto, wanted = len(sizes), call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted:
        wanted = list(wanted)[-n:]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted:
        pads = []
        for f, e, want in zip(full, extra, wanted, strict=True):
            total = max(0, f + e - want)
            pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
        return pads, list(wanted)
    flat = call.get("pads") or [0] * (2 * n)
    pads = list(zip(flat[:n], flat[n:], strict=True))
    return pads, [f + e - p[0] - p[1] for f, e, p in zip(full, extra, pads, strict=True)]


@kernel("MaxPool", "AveragePool", "LpPool")
def pool(call: Call, x: Array) -> Any:
    if call.outputs > 1:
        return NotImplemented  # the indices of maxima
    kernel_shape = call.get("kernel_shape")
    n = len(kernel_shape)
    strides, dilations = call.get("strides") or [1] * n, call.get("dilations") or [1] * n
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    pads = padding(call, x.shape[2:], spans, strides)
    over = [0] * n
    if call.get("ceil_mode"):
        over = [_ceil_extra(s, p, span, st) for s, p, span, st in zip(x.shape[2:], pads, spans, strides, strict=True)]
    wide = raised(x)
    axes = tuple(range(-n, 0))

    def view(array: Array, fill: float, beyond: float) -> Array:
        inner = np.pad(array, [(0, 0), (0, 0), *pads], constant_values=fill)
        outer = np.pad(inner, [(0, 0), (0, 0), *((0, o) for o in over)], constant_values=beyond)
        return windows(outer, spans, strides, dilations)

    if call.op == "MaxPool":
        least = -np.inf if wide.dtype.kind == "f" else np.iinfo(wide.dtype).min
        return view(wide, least, least).max(axis=axes).astype(x.dtype, copy=False)
    if call.op == "LpPool":
        p = call.get("p", 2)
        return ((view(np.abs(wide), 0, 0) ** p).sum(axis=axes) ** (1 / p)).astype(x.dtype, copy=False)
    counted = view(np.ones((1, 1, *x.shape[2:])), 1 if call.get("count_include_pad") else 0, 0).sum(axis=axes)
    return (view(wide, 0, 0).sum(axis=axes) / counted).astype(x.dtype, copy=False)


def _ceil_extra(size: int, pads: tuple[int, int], span: int, stride: int) -> int:
    """Columns that ceil_mode adds: the last window must still start inside the input or its left padding."""
    padded = size + sum(pads)
    count = math.ceil((padded - span) / stride) + 1
    if (count - 1) * stride >= size + pads[0]:
        count -= 1
    return max(0, (count - 1) * stride + span - padded)


@kernel("GlobalMaxPool")
def global_max_pool(call: Call, x: Array) -> Any:
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


@kernel("GlobalAveragePool")
def global_average_pool(call: Call, x: Array) -> Any:
    return raised(x).mean(axis=tuple(range(2, x.ndim)), keepdims=True).astype(x.dtype, copy=False)
