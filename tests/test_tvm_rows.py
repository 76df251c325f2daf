"""Kernels of totals, softmax and normalisations against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm_kernels import filled, in_order, machines, seen, some, step

from backends.tvm import single
from backends.tvm.kernel import Chain, Machine, Operand
from backends.tvm.kernels.reduce import KINDS, Reduce
from backends.tvm.kernels.rows import Rows

Array = np.ndarray[Any, Any]
MACHINES = machines(threads=2)
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
EPSILON = 1e-5


def rows(kind: str, shape: tuple[int, ...], order: tuple[int, ...] | None = None, gap: int = 0, chain: Chain | None = None) -> Rows:
    """With scale and bias for what has them in ONNX; ``order`` of the axes in memory, source and output alike."""
    strides = in_order(shape, order, gap)
    along = Operand("float32", (0,) * (len(shape) - 1) + (1,))
    scale = along if kind in ("LayerNormalization", "RMSNormalization") else None
    bias = along if kind == "LayerNormalization" else None
    epsilon = 0.0 if kind == "LpNormalization" else EPSILON
    out = Operand("float32", strides)
    return Rows(kind, shape[:-1], shape[-1], Operand("float32", strides), out, epsilon, scale, bias, chain or Chain())


def exact(kind: str, x: Array, scale: Array, bias: Array) -> Array:
    """The row-wise definition, along the last axis."""
    if "Softmax" in kind:
        shifted = x - x.max(-1, keepdims=True)
        total = np.exp(shifted).sum(-1, keepdims=True)
        return shifted - np.log(total) if kind == "LogSoftmax" else np.exp(shifted) / total
    if kind == "LayerNormalization":
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + bias
    if kind == "RMSNormalization":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale
    norm = np.sqrt((x**2).sum(-1, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


ROWS = [
    *[rows(kind, (3, columns)) for kind in ("Softmax", "LayerNormalization") for columns in (1, 2, 3, 17, 33, 64, 127, 385, 1030)],
    *[rows(kind, (2, 3, columns), gap=2) for kind in ("LogSoftmax", "RMSNormalization", "LpNormalization") for columns in (5, 384, 600)],
    *[rows(kind, (2, width, 7), (0, 2, 1)) for kind in ("Softmax", "LayerNormalization", "LpNormalization") for width in (5, 16, 37)],
    rows("Softmax", (40, 200), chain=Chain((Operand("float32", (0, 1)),), (step("Mul", 0, 1), step("Relu", 2)))),
    rows("LayerNormalization", (130, 96), chain=Chain((), (step("Gelu", 0),))),
    rows("Softmax", (300, 70)),
]  # fmt: skip


@each_machine
def test_rows(machine: Machine) -> None:
    chosen = some(ROWS, machine, MACHINES[0])
    for kernel, run in zip(chosen, single.build(chosen, machine), strict=True):
        shape = (*kernel.rows, kernel.columns)
        source = filled(shape, kernel.source)
        scale, bias = np.random.default_rng(1).standard_normal((2, kernel.columns)).astype(np.float32)
        extra = [a for a, there in ((scale, kernel.scale), (bias, kernel.bias)) if there]
        others = [filled(shape, operand, 3) for operand in kernel.chain.operands]
        result = seen(run(source, *extra, *others, np.zeros_like(source)), shape, kernel.out)
        x = seen(source, shape, kernel.source).astype(np.float64)
        expected = exact(kernel.kind, x, scale.astype(np.float64), bias.astype(np.float64))
        if others:
            expected = np.maximum(expected * seen(others[0], shape, kernel.chain.operands[0]), 0)
        elif kernel.chain.steps:
            from math import erf

            expected = expected * (1 + np.vectorize(erf)(expected / np.sqrt(2))) / 2
        np.testing.assert_allclose(result, expected, rtol=3e-6, atol=3e-7, err_msg=str(kernel))


def test_rows_that_break_things() -> None:
    shape = (6, 37)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[0], x[1, 3], x[2, 5], x[3] = -np.inf, -np.inf, np.nan, 3e4 + x[3]
    x[4], x[5, 0] = 88.0, np.inf
    kernels = [rows("Softmax", shape), rows("LayerNormalization", shape), rows("LpNormalization", shape)]
    softmax, norm, unit = single.build(kernels, MACHINES[0])
    ones, zeros = np.ones(37, np.float32), np.zeros(37, np.float32)
    got = softmax(x, x).reshape(shape)
    assert np.isnan(got[[0, 2, 5]]).all()  # no score at all, an undefined one, an infinite one
    assert got[1, 3] == 0 and np.isfinite(got[1]).all()
    np.testing.assert_allclose(got[3:5], exact("Softmax", x[3:5].astype(np.float64), ones, zeros), rtol=2e-6)
    got = norm(x, ones, zeros, x).reshape(shape)
    np.testing.assert_allclose(got[3], exact("LayerNormalization", x[3].astype(np.float64), ones, zeros), atol=3e-3)  # a mean of 3e4
    assert (got[4] == 0).all()
    x[0] = 0
    np.testing.assert_array_equal(unit(x, x).reshape(shape)[0], 0)


def test_softmax_into_bytes() -> None:
    """Where the output cannot hold what is computed on the way."""
    steps = (step("Constant", value=1 / 256), step("Constant", value=0, dtype="uint8"), step("QuantizeLinear", 0, 1, 2, dtype="uint8"))
    kernel = Rows("Softmax", (5,), 150, Operand("float32", (150, 1)), Operand("uint8", (150, 1)), chain=Chain((), steps))
    (run,) = single.build([kernel], MACHINES[0])
    x = np.random.default_rng(0).standard_normal((5, 150)).astype(np.float32) * 4
    got = run(x, np.zeros(750, np.uint8)).reshape(5, 150)
    expected = exact("Softmax", x.astype(np.float64), x, x) * 256
    assert abs(got - np.clip(expected, 0, 255)).max() <= 0.51


def reduce(kind: str, shape: tuple[int, ...], axes: tuple[int, ...], order: Any = None, chain: Chain | None = None, dtype: str = "float32") -> Reduce:
    kept = tuple(i for i in range(len(shape)) if i not in axes)
    strides = in_order(shape, order)
    source = Operand(dtype, tuple(strides[i] for i in (*kept, *axes)))
    small = tuple(shape[i] for i in kept)
    return Reduce(kind, small, tuple(shape[i] for i in axes), source, Operand(dtype, in_order(small)), chain or Chain())


def total(kind: str, x: Array, axes: tuple[int, ...]) -> Array:
    if x.dtype.kind == "f":
        x = x.astype(np.float64)
    last = {
        "ReduceSum": lambda: x.sum(axes), "ReduceMean": lambda: x.mean(axes), "ReduceProd": lambda: x.prod(axes),
        "ReduceMax": lambda: x.max(axes), "ReduceMin": lambda: x.min(axes), "ReduceSumSquare": lambda: (x * x).sum(axes),
        "ReduceL1": lambda: abs(x).sum(axes), "ReduceL2": lambda: np.sqrt((x * x).sum(axes)),
        "ReduceLogSum": lambda: np.log(x.sum(axes)), "ReduceLogSumExp": lambda: np.log(np.exp(x).sum(axes)),
    }  # fmt: skip
    with np.errstate(invalid="ignore"):
        return np.asarray(last[kind]())


IMAGE = (2, 37, 7, 5)
REDUCE = [
    *[reduce(kind, (5, 67), (1,)) for kind in sorted(KINDS)],
    *[reduce(kind, (67, 5), (0,)) for kind in sorted(KINDS)],
    *[reduce("ReduceMean", IMAGE, (2, 3), order) for order in (None, (0, 2, 3, 1))],
    *[reduce("ReduceSum", (n, n), (i,)) for n in (1, 2, 15, 16, 33, 130) for i in (0, 1)],
    reduce("ReduceMax", (3, 4, 5), (0, 2)),
    reduce("ReduceMax", (7,), (0,)),
    reduce("ReduceSum", (4, 900), (0, 1)),
    reduce("ReduceSum", (300, 300), (0,), chain=Chain((Operand("float32", (1,)),), (step("Add", 0, 1), step("Tanh", 2)))),
    *[reduce(kind, (6, 19), (i,), dtype="int64") for kind in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd") for i in (0, 1)],
    reduce("ReduceSum", (20, 30), (1,), (1, 0)),
]  # fmt: skip


@each_machine
def test_reductions(machine: Machine) -> None:
    chosen = some(REDUCE, machine, MACHINES[0])
    for kernel, run in zip(chosen, single.build(chosen, machine), strict=True):
        shape = (*kernel.kept, *kernel.reduced)
        axes = tuple(range(len(kernel.kept), len(shape)))
        source = filled(shape, kernel.source)
        others = [filled(kernel.kept, operand, 3) / 8 for operand in kernel.chain.operands]
        x = seen(source, shape, kernel.source)
        if kernel.chain.steps:
            x[...] /= 8
        got = run(source, *others, np.zeros(kernel.kept, kernel.out.dtype)).reshape(kernel.kept)
        expected = total(kernel.kind, x, axes)
        if others:
            expected = np.tanh(expected + others[0])
        tolerance = {"rtol": 2e-6, "atol": 3e-6} if expected.dtype.kind == "f" else {"rtol": 0}
        np.testing.assert_allclose(got, expected, err_msg=str(kernel), **tolerance)


def test_totals_hand_on_what_is_undefined() -> None:
    x = np.ones((3, 50), np.float32)
    x[0, 17], x[1], x[2, 3] = np.nan, -np.inf, np.inf
    kinds = ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceLogSumExp")
    for kind, run in zip(kinds, single.build([reduce(kind, (3, 50), (1,)) for kind in kinds], MACHINES[0]), strict=True):
        got = run(x, np.zeros(3, np.float32))
        expected = {"ReduceLogSumExp": np.array([np.nan, -np.inf, np.inf])}.get(kind)
        np.testing.assert_array_equal(got, total(kind, x, (1,)) if expected is None else expected)
