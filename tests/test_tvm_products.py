"""Products and convolutions: ragged columns; those of 8-bit numbers against the same in 64 bits: exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from dataclasses import replace

from tvm_kernels import extent, in_order, machines, seen, some, step

from backends.tvm import single
from backends.tvm.kernel import Chain, Machine, Operand
from backends.tvm.kernels.contraction import Contraction
from backends.tvm.kernels.contraction8 import Contraction8, convolves_fast, pairs_fit
from backends.tvm.kernels.contraction_codes import ContractionCodes
from backends.tvm.machine import detect

Array = np.ndarray[Any, Any]
MACHINES = machines(threads=2)
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")


def matmul(rows: int, depth: int, columns: int, dtype: str = "uint8", zero: int = 3, batch: tuple[int, ...] = ()) -> Contraction8:
    """Of ``batch`` products, each with weights of its own."""
    *before, row, along = in_order((*batch, rows, depth))
    *outside, line, column = in_order((*batch, rows, columns))
    left = Operand(dtype, (*before, 0, row, 0, 0, along))
    out = Operand("int32", (*outside, 0, line, column))
    return Contraction8(batch, (1, rows), columns, (1, 1), depth, left, out, zero, in_order(batch))


def convolution(channels: int, columns: int, taps: int, stride: int, dtype: str = "uint8") -> Contraction8:
    size, results = 9, (9 - taps) // stride + 1
    n, h, w, c = in_order((2, size, size, channels))
    left = Operand(dtype, (n, h * stride, w * stride, h, w, c))
    out = Operand("int32", in_order((2, results, results, columns)))
    return Contraction8((2,), (results, results), columns, (taps, taps), channels, left, out, 100, (0,))


PRODUCTS = [
    *[matmul(rows, depth, columns) for rows, depth, columns in ((1, 1, 1), (3, 5, 7), (17, 4, 16), (9, 37, 49), (1, 130, 100), (40, 64, 33))],
    *[matmul(rows, depth, columns, "int8", -4) for rows, depth, columns in ((1, 1, 1), (9, 37, 49), (33, 66, 18))],
    matmul(5, 10, 20, batch=(3,)), convolution(3, 17, 3, 1), convolution(8, 32, 3, 2), convolution(5, 6, 1, 1, "int8"),
]  # fmt: skip
PRODUCTS += [replace(kernel, fits=True) for kernel in PRODUCTS]


@each_machine
def test_every_column_of_every_panel(machine: Machine) -> None:
    """Where the last panel holds fewer columns, but as many vectors."""
    kernels, configs = [], []
    for columns in (9, 31, 47, 58, 63, 95, 143):
        left, out = Operand("float32", (0, 8, 0, 0, 1)), Operand("float32", (0, columns, 1))
        kernel = Contraction((), (1, 9), columns, (1, 1), 8, left, out)
        chosen = kernel.configs(machine)[:4]
        kernels += [kernel] * len(chosen)
        configs += chosen
    for kernel, config, run in zip(kernels, configs, single.build(kernels, machine, configs), strict=True):
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((9, 8)).astype(np.float32), rng.standard_normal((8, kernel.columns)).astype(np.float32)
        got = run(a, kernel.pack(b[None, None, None], config, machine), np.full((9, kernel.columns), np.nan, np.float32))
        np.testing.assert_allclose(got.reshape(9, -1), a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5, err_msg=f"{kernel} {config}")


def operands(kernel: Contraction8) -> tuple[Array, Array, Array]:
    """What lies in memory on the left, the weights, and the exact result; numbers at the ends of their ranges too."""
    rng = np.random.default_rng(0)
    shape = (*kernel.batch, *kernel.rows, *kernel.taps, kernel.depth)
    low, high = np.iinfo(kernel.left.dtype).min, np.iinfo(kernel.left.dtype).max
    memory = rng.choice([low, high, *range(low, high, 17)], extent(shape, kernel.left) + 3).astype(kernel.left.dtype)
    matrices = 1 + sum((size - 1) * stride for size, stride in zip(kernel.batch, kernel.matrices, strict=True))
    extremes = [-64, 64, *range(-64, 64, 7)] if kernel.fits else [-128, 127, *range(-128, 127, 11)]
    weights = rng.choice(extremes, (matrices, *kernel.taps, kernel.depth, kernel.columns)).astype(np.int8)
    assert not kernel.fits or pairs_fit(weights)
    x = seen(memory, shape, kernel.left).astype(np.int64) - kernel.zero
    per_batch = np.stack([weights[i if matrices > 1 else 0] for i in range(kernel.batch[0])]) if kernel.batch else weights
    if not kernel.batch:
        x = x[None]
    return memory, weights, np.einsum("brstuk,btukn->brsn", x, per_batch.astype(np.int64))


@each_machine
def test_sums_are_exact(machine: Machine) -> None:
    chosen = some(PRODUCTS, machine, MACHINES[0])
    for kernel, run in zip(chosen, single.build(chosen, machine), strict=True):
        memory, weights, expected = operands(kernel)
        packed = kernel.pack(weights, kernel.configs(machine)[0], machine)
        shape = (*kernel.batch, *kernel.rows, kernel.columns)
        got = run(memory, packed, np.zeros(shape, np.int32)).reshape(expected.shape)
        np.testing.assert_array_equal(got, expected, err_msg=str(kernel))


@each_machine
def test_scales_bias_and_bytes_again_in_the_chain(machine: Machine) -> None:
    columns = 21
    along = Operand("float32", (0, 0, 1))
    steps = (
        step("Cast", 0), step("Mul", 3, 1), step("Add", 4, 2), step("Relu", 5),
        step("Constant", value=0.5), step("Constant", value=7, dtype="uint8"), step("QuantizeLinear", 6, 7, 8, dtype="uint8"),
    )  # fmt: skip
    plain = matmul(6, 30, columns)
    kernel = replace(plain, out=replace(plain.out, dtype="uint8"), chain=Chain((along, along), steps))
    (run,) = single.build([kernel], machine)
    memory, weights, sums = operands(kernel)
    scales, bias = np.random.default_rng(1).random((2, columns)).astype(np.float32) / 1000
    got = run(memory, kernel.pack(weights, kernel.configs(machine)[0], machine), scales, bias, np.zeros((6, columns), np.uint8))
    expected = np.clip(np.rint(np.maximum(sums[0, 0] * scales.astype(np.float64) + bias, 0) / 0.5) + 7, 0, 255)
    assert abs(got.reshape(6, columns) - expected).max() <= 1


def test_pairs_that_leave_sixteen_bits_are_seen() -> None:
    """Neighbours along depth, of one sign, at the ends of what 255 times them may come to."""
    rows = {(64, 64): True, (65, 63): True, (65, 64): False, (127, -127): True, (-64, -64): True, (-64, -65): False, (127, 1): True, (127, 2): False}
    for pair, fit in rows.items():
        assert pairs_fit(np.array([0, 0, *pair], np.int8)[:, None]) is fit, pair
        assert pairs_fit(np.array([pair[0], 0, pair[1], 0], np.int8)[:, None]), pair
    assert pairs_fit(np.full((3, 1), 64, np.int8)) and not pairs_fit(np.full((3, 2), 70, np.int8))


def test_where_convolutions_of_bytes_are_faster_than_those_of_floats() -> None:
    fours, pairs, narrow = (replace(MACHINES[0], lanes=lanes, vnni=vnni) for lanes, vnni in ((8, True), (8, False), (4, False)))
    large = np.full((5, 4, 3, 3), 100, np.int8)
    assert convolves_fast(fours, large) and not convolves_fast(pairs, large) and not convolves_fast(narrow, large // 2)
    apart = large.copy()
    apart[:, 1::2] = 28  # neighbours along channels fit; along a line of taps they do not
    assert convolves_fast(pairs, apart) and not convolves_fast(pairs, apart.transpose(0, 3, 2, 1))
    assert convolves_fast(pairs, np.full((5, 3, 3, 3), 64, np.int8)) and convolves_fast(pairs, np.full((5, 3, 1, 1), 28, np.int8))


def test_narrow_vectors_with_products_of_fours() -> None:
    """A processor with such products for 8 lanes alone: its code is made, whether or not it runs here."""
    narrow = detect(1, "alderlake")
    assert narrow.vnni and narrow.lanes == 8
    single.build([matmul(9, 37, 49)], narrow)


def of_codes(rows: int, depth: int, columns: int, block: int, bits: int, shifted: bool) -> ContractionCodes:
    left, out = Operand("float32", (0, depth, 0, 0, 1)), Operand("float32", (0, columns, 1))
    return ContractionCodes((), (1, rows), columns, depth, block, bits, shifted, left, out)


CODES = [
    of_codes(rows, depth, columns, block, bits, shifted)
    for bits in (8, 4)
    for rows, depth, columns, block, shifted in (
        (1, 64, 48, 32, False), (1, 96, 17, 16, True), (3, 37, 31, 16, True), (20, 33, 50, 34, False), (7, 1, 1, 16, True), (33, 130, 64, 64, True),
    )
]  # fmt: skip


@each_machine
def test_weights_that_stay_codes(machine: Machine) -> None:
    """Every tile; blocks that depth does not divide, odd depths, ragged columns; codes at the ends of their range."""
    pairs = [(kernel, config) for kernel in some(CODES, machine, MACHINES[0]) for config in kernel.configs(machine)[::3]]
    runs = single.build([kernel for kernel, _ in pairs], machine, [config for _, config in pairs])
    for (kernel, config), run in zip(pairs, runs, strict=True):
        rng = np.random.default_rng(0)
        low, high, kind = (0, 15, np.uint8) if kernel.bits == 4 else (-128, 127, np.int8)
        x = rng.standard_normal((kernel.rows[1], kernel.depth)).astype(np.float32)
        codes = rng.choice([low, high, *range(low, high + 1, 3)], (kernel.depth, kernel.columns)).astype(kind)
        blocks = -(-kernel.depth // kernel.block)
        scales = rng.standard_normal((1 + kernel.shifted, blocks, kernel.columns)).astype(np.float32)
        packed = [kernel.pack(array, config, machine) for array in (codes, scales)]
        got = run(x, *packed, np.full((kernel.rows[1], kernel.columns), np.nan, np.float32)).reshape(-1, kernel.columns)
        scale, *shift = (np.repeat(s.astype(np.float64), kernel.block, axis=0)[: kernel.depth] for s in scales)
        expected = x.astype(np.float64) @ (codes * scale + (shift[0] if shift else 0.0))
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-5, err_msg=f"{kernel} {config}")
