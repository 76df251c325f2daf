"""Depthwise convolution and pooling against sums over windows in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm_kernels import filled, in_order, machines, seen, some, step

from backends.tvm import single
from backends.tvm.kernel import Chain, Machine, Operand
from backends.tvm.kernels.depthwise import Depthwise
from backends.tvm.kernels.pooling import Pooling, Window

Array = np.ndarray[Any, Any]
MACHINES = machines(threads=2)
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")


def depthwise(
    channels: int, size: tuple[int, int], taps: tuple[int, int], stride: int = 1, dilation: int = 1, batch: int = 1, gap: int = 0
) -> Depthwise:
    """Of an image that is padded already; ``gap``: elements after each line."""
    _, high, wide, _ = image = (batch, *size, channels)
    n, h, w, c = in_order(image, gap=gap)
    rows = tuple((s - (t - 1) * dilation - 1) // stride + 1 for s, t in zip((high, wide), taps, strict=True))
    source = Operand("float32", (n, h * stride, w * stride, h * dilation, w * dilation, c))
    out = Operand("float32", in_order((batch, *rows, channels)))
    chain = Chain((Operand("float32", (0, 0, 0, 1)), out), (step("Add", 0, 1), step("HardSwish", 3), step("Add", 4, 2)))
    return Depthwise(batch, (rows[0], rows[1]), channels, taps, source, out, chain)


DEPTHWISE = [
    *[depthwise(channels, (9, 11), (3, 3)) for channels in (1, 3, 5, 8, 16, 17, 40, 72)],
    *[depthwise(35, (17, 13), (k, k), stride, dilation) for k, stride, dilation in ((3, 2, 1), (5, 1, 1), (5, 2, 1), (7, 1, 1), (3, 1, 2))],
    depthwise(20, (1, 50), (1, 3)), depthwise(20, (3, 3), (3, 3)), depthwise(33, (10, 10), (3, 3), batch=3, gap=5),
    depthwise(96, (40, 40), (3, 3)),
]  # fmt: skip


@each_machine
def test_depthwise(machine: Machine) -> None:
    asked = [
        (kernel, config) for kernel in some(DEPTHWISE, machine, MACHINES[0]) for config in (kernel.configs(machine)[0], kernel.configs(machine)[-1])
    ]
    runs = single.build([kernel for kernel, _ in asked], machine, [config for _, config in asked])
    for (kernel, config), run in zip(asked, runs, strict=True):
        shape = (kernel.batch, *kernel.rows, *kernel.taps, kernel.channels)
        source = filled(shape, kernel.source)
        weights, bias = filled(shape[3:], Operand("float32", in_order(shape[3:])), 1), filled((kernel.channels,), Operand("float32", (1,)), 2)
        small = (*shape[:3], shape[-1])
        other = filled(small, kernel.out, 4)
        x = seen(source, shape, kernel.source).astype(np.float64)
        total = (x * weights.reshape(shape[3:])).sum((3, 4)) + bias
        expected = total * np.clip(total / 6 + 0.5, 0, 1) + other.reshape(small)
        packed = kernel.pack(weights.reshape(shape[3:]), config, machine)
        got = run(source, packed, bias, other, np.zeros_like(other)).reshape(small)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=f"{kernel} {config}")


def window(size: int, taps: int, stride: int = 1, before: int = 0, after: int = 0, dilation: int = 1, ceil: bool = False) -> Window:
    room = size + before + after - (taps - 1) * dilation - 1
    results = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (results - 1) * stride >= size + before:  # no window starts in the padding after the image
        results -= 1
    return Window(size, taps, results, stride, dilation, before, after)


def pooling(
    kind: str, windows: tuple[Window, Window], channels: int, order: Any = (0, 1, 2, 3), include: bool = False, dtype: str = "float32"
) -> Pooling:
    source = (2, windows[0].size, windows[1].size, channels)
    out = (2, windows[0].results, windows[1].results, channels)
    chain = Chain((), (step("Neg", 0, dtype=dtype),))
    return Pooling(kind, 2, windows, channels, Operand(dtype, in_order(source, order)), Operand(dtype, in_order(out, order)), include, chain)


PLAIN = (window(10, 2, 2), window(7, 3, 2))
PADDED = (window(10, 3, 2, 1, 1), window(7, 5, 1, 2, 1))
CEILED = (window(10, 3, 3, 0, 1, ceil=True), window(8, 3, 2, 1, 0, ceil=True))
DILATED = (window(12, 3, 1, 2, 2, dilation=2), window(9, 2, 2, 1, 1, dilation=3))
POOLING = [
    *[pooling(kind, windows, 21, include=include) for kind, include in (("max", False), ("average", False), ("average", True)) for windows in (PLAIN, PADDED, CEILED, DILATED)],
    *[pooling("max", PADDED, channels) for channels in (1, 3, 4, 16, 48, 96, 130)],
    pooling("average", PADDED, 5, order=(0, 3, 1, 2)),
    pooling("max", PADDED, 30, dtype="int8"),
    pooling("max", (window(60, 3, 2, 1, 1), window(60, 3, 2, 1, 1)), 64),
]  # fmt: skip


def pooled(kernel: Pooling, x: Array) -> Array:
    """By definition; of an average, the padding counts only with ``include_pad``."""
    rows, columns = kernel.windows
    out = np.zeros((2, rows.results, columns.results, kernel.channels))
    for h, w in itertools.product(range(rows.results), range(columns.results)):
        places = [
            [at for at in (i * axis.stride - axis.before + t * axis.dilation for t in range(axis.taps)) if at < axis.size + axis.after]
            for i, axis in ((h, rows), (w, columns))
        ]
        inside = [[at for at in line if 0 <= at < axis.size] for line, axis in zip(places, kernel.windows, strict=True)]
        part = x[:, inside[0]][:, :, inside[1]].astype(np.float64)
        counted = places if kernel.include_pad else inside
        out[:, h, w] = part.max((1, 2)) if kernel.kind == "max" else part.sum((1, 2)) / (len(counted[0]) * len(counted[1]))
    return out


@each_machine
def test_pooling(machine: Machine) -> None:
    chosen = some(POOLING, machine, MACHINES[0])
    for kernel, run in zip(chosen, single.build(chosen, machine), strict=True):
        sizes = [window.size for window in kernel.windows]
        results = [window.results for window in kernel.windows]
        source = filled((2, *sizes, kernel.channels), kernel.source)
        out = np.zeros(2 * results[0] * results[1] * kernel.channels, kernel.out.dtype)
        got = seen(run(source, out), (2, *results, kernel.channels), kernel.out)
        expected = -pooled(kernel, seen(source, (2, *sizes, kernel.channels), kernel.source))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=str(kernel))
