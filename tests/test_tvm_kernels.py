"""Kernel templates against NumPy in float64: odd sizes, all widths of vectors, any strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm_kernels import extent, filled, in_order, machines, seen, some, step

from backends.tvm import single
from backends.tvm.kernel import Chain, Machine, Operand
from backends.tvm.kernels.elementwise import Elementwise

Array = np.ndarray[Any, Any]
MACHINES = machines(threads=2)
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")


def operand(shape: tuple[int, ...], order: tuple[int, ...] | None = None, gap: int = 0, dtype: str = "float32") -> Operand:
    return Operand(dtype, in_order(shape, order, gap))


def elementwise(shape: tuple[int, ...], out: Operand, *operands: Operand, steps: Any = ()) -> Elementwise:
    return Elementwise(shape, operands, out, Chain((), tuple(steps)))


ADD_RELU = (step("Add", 0, 1), step("Relu", 2))
NCHW, NHWC = (2, 37, 5, 21), (0, 2, 3, 1)
ELEMENTWISE: list[tuple[Elementwise, Callable[..., Any]]] = [
    *[
        (elementwise((n,), operand((n,)), operand((n,)), operand((n,)), steps=ADD_RELU), lambda a, b: np.maximum(a + b, 0))
        for n in (1, 2, 3, 15, 16, 17, 63, 64, 65, 100, 1000, 50001)
    ],
    (elementwise(NCHW, operand(NCHW, NHWC), operand(NCHW)), lambda a: a),
    (elementwise(NCHW, operand(NCHW), operand(NCHW, NHWC)), lambda a: a),
    (elementwise(NCHW, operand(NCHW, NHWC, gap=3), operand(NCHW), operand(NCHW, NHWC), steps=ADD_RELU), lambda a, b: np.maximum(a + b, 0)),
    (elementwise((3, 3, 31, 33), operand((3, 3, 31, 33), NHWC), operand((3, 3, 31, 33))), lambda a: a),
    (elementwise((70, 130), operand((70, 130), (1, 0)), operand((70, 130))), lambda a: a),
    (elementwise((5, 7, 3), operand((5, 7, 3), gap=2), operand((5, 7, 3)), Operand("float32", (0, 0, 1)), steps=ADD_RELU), lambda a, b: np.maximum(a + b, 0)),
    (elementwise((50, 40), operand((50, 40)), Operand("float32", (0, 1)), Operand("float32", (1, 0)), steps=[step("Mul", 0, 1)]), lambda a, b: a * b),
    (elementwise((1, 1), operand((1, 1)), operand((1, 1)), steps=[step("Exp", 0)]), np.exp),
    (elementwise((20, 9), Operand("float32", (18, 2)), Operand("float32", (9, 1))), lambda a: a),
    (elementwise((200, 300), operand((200, 300)), operand((200, 300), (1, 0)), operand((200, 300)), steps=[step("Sub", 0, 1), step("Tanh", 2)]), lambda a, b: np.tanh(a - b)),
    (elementwise((40, 33), operand((40, 33), dtype="int64"), operand((40, 33), dtype="int64"), operand((40, 33), (1, 0), dtype="int64"), steps=[step("Add", 0, 1, dtype="int64")]), np.add),
    (elementwise((40, 133), operand((40, 133), (1, 0), dtype="int8"), operand((40, 133), dtype="int8")), lambda a: a),
    (elementwise((77,), operand((77,), dtype="bool"), operand((77,)), operand((77,)), steps=[step("Less", 0, 1, dtype="bool")]), np.less),
    (elementwise((77,), operand((77,)), operand((77,), dtype="bool"), operand((77,)), steps=[step("Constant", value=2.0), step("Where", 0, 1, 2)]), lambda c, a: np.where(c, a, 2)),
    (elementwise((3, 37), operand((3, 37), gap=4), steps=[step("Constant", value=1.5)]), lambda: np.full((3, 37), 1.5)),
]  # fmt: skip


def assert_elementwise(kernel: Elementwise, run: single.Single, expected: Callable[..., Any]) -> None:
    arrays = [filled(kernel.shape, o, i) for i, o in enumerate(kernel.operands)]
    before = filled(kernel.shape, kernel.out, 9)
    result = run(*arrays, before)
    views = [seen(a, kernel.shape, o) for a, o in zip(arrays, kernel.operands, strict=True)]
    wanted = expected(*(v.astype(np.float64) if v.dtype.kind == "f" else v for v in views))
    np.testing.assert_allclose(seen(result, kernel.shape, kernel.out), wanted, rtol=1e-6, atol=1e-7, err_msg=str(kernel))
    untouched = np.ones(before.size, bool)
    seen(untouched, kernel.shape, Operand("bool", kernel.out.strides))[...] = False
    np.testing.assert_array_equal(result[untouched], before[untouched])


@each_machine
def test_elementwise_through_any_strides(machine: Machine) -> None:
    chosen = some(ELEMENTWISE, machine, MACHINES[0])
    runs = single.build([kernel for kernel, _ in chosen], machine)
    for (kernel, expected), run in zip(chosen, runs, strict=True):
        assert_elementwise(kernel, run, expected)


def test_extent_counts_what_strides_reach() -> None:
    assert extent((3, 4), Operand("float32", (10, 2))) == 27
