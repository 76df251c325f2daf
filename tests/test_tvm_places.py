"""Kernels that read where something else says: gathers, resizes, running sums, places of extrema."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("tvm")

from tvm_kernels import filled, in_order, machines, seen, step

from backends.tvm import single
from backends.tvm.kernel import Chain, Machine, Operand
from backends.tvm.kernels.extremum import Extremum
from backends.tvm.kernels.gather import Gather
from backends.tvm.kernels.resize import Resize, interpolation
from backends.tvm.kernels.scan import Scan

Array = np.ndarray[Any, Any]
MACHINES = machines(threads=2)
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")


def gather(shape: tuple[int, ...], axis: int, places: tuple[int, ...], dtype: str = "int64", order: Any = None) -> Gather:
    """ONNX's Gather of data of this shape, which lies in memory in ``order``."""
    before, after = shape[:axis], shape[axis + 1 :]
    strides = in_order(shape, order)
    out = (*before, *places, *after)
    data = (*strides[:axis], *(0 for _ in places), *strides[axis + 1 :])
    indices = (*(0 for _ in before), *in_order(places), *(0 for _ in after))
    chain = Chain((Operand("float32", in_order(out)),), (step("Add", 0, 1),))
    return Gather(out, Operand("float32", data), shape[axis], strides[axis], Operand(dtype, indices), Operand("float32", in_order(out)), chain)


GATHERS = [
    ((50, 37), 0, (3, 5), "int64", None), ((50, 64), 0, (7,), "int32", None), ((4, 9, 21), 1, (6,), "int64", None),
    ((4, 9), 1, (2, 3), "int64", None), ((4, 9, 5), 2, (3,), "int32", (0, 2, 1)), ((30,), 0, (), "int64", None), ((1000, 384), 0, (1, 128), "int64", None),
]  # fmt: skip


@each_machine
def test_gather(machine: Machine) -> None:
    kernels = [gather(*case) for case in GATHERS]
    for (shape, axis, places, dtype, order), kernel, run in zip(GATHERS, kernels, single.build(kernels, machine), strict=True):
        rng = np.random.default_rng(0)
        whole = Operand("float32", in_order(shape, order))
        memory = filled(shape, whole)
        indices = rng.integers(-shape[axis], shape[axis], places).astype(dtype)
        other = filled(kernel.shape, kernel.out, 3)
        expected = np.take(seen(memory, shape, whole), indices, axis) + other.reshape(kernel.shape)
        np.testing.assert_array_equal(run(memory, indices, other, np.zeros_like(other)).reshape(kernel.shape), expected)


def test_gather_elements() -> None:
    shape, size = (6, 19), 11
    out = Operand("int64", (19, 1))
    kernel = Gather(shape, Operand("int64", (0, 1)), size, 19, out, out)
    (run,) = single.build([kernel], MACHINES[0])
    rng = np.random.default_rng(0)
    data, indices = rng.integers(0, 1000, (size, 19)), rng.integers(-size, size, shape)
    got = run(data, indices, np.zeros(shape, np.int64)).reshape(shape)
    np.testing.assert_array_equal(got, np.take_along_axis(data, indices, 0))


def test_an_index_out_of_range_reads_no_foreign_memory() -> None:
    kernel = gather((5, 16), 0, (4,))
    (run,) = single.build([kernel], MACHINES[0])
    data = np.arange(80, dtype=np.float32)
    got = run(data, np.array([5, -6, 2**40, -(2**40)]), np.zeros(64, np.float32), np.zeros(64, np.float32)).reshape(4, 16)
    np.testing.assert_array_equal(got, data.reshape(5, 16)[[4, 0, 4, 0]])


def onnx_resize(x: Array, sizes: tuple[int, ...], **attributes: Any) -> Array:
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    given = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("x", 1, x.shape), ("sizes", 7, [4]))]
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", 1, sizes)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    onnx.checker.check_model(model)
    (result,) = ReferenceEvaluator(model).run(None, {"x": x, "sizes": np.array(sizes)})
    return np.asarray(result)


COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
RESIZES = [
    *[{"mode": "nearest", "nearest_mode": n, "coordinate_transformation_mode": c} for n in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil") for c in COORDINATES[:3]],
    *[{"mode": mode, "coordinate_transformation_mode": c} for mode in ("linear", "cubic") for c in COORDINATES],
    {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
]  # fmt: skip


@pytest.mark.parametrize("sizes", [(14, 9), (1, 1), (5, 30), (7, 10)], ids=str)
def test_tables_of_interpolation(sizes: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 10)).astype(np.float32)
    for attributes in RESIZES:
        if 1 in sizes and attributes.get("coordinate_transformation_mode") == "pytorch_half_pixel":
            continue  # ONNX's reference has -0.5 where its specification and ONNX Runtime have 0
        names = {"coordinate_transformation_mode": "coordinates", "nearest_mode": "nearest", "cubic_coeff_a": "cubic"}
        given = {names.get(k, k): v for k, v in attributes.items()}
        expected = x.astype(np.float64)
        for axis, (size, result) in enumerate(zip((7, 10), sizes, strict=True)):
            places, weights = interpolation(size=size, result=result, scale=result / size, **given)
            picked = np.take(expected, places, 2 + axis)  # [..., result, taps, ...]
            shape = [1] * picked.ndim
            shape[2 + axis : 4 + axis] = weights.shape
            expected = (picked * weights.reshape(shape)).sum(3 + axis)
        np.testing.assert_allclose(expected, onnx_resize(x, (1, 2, *sizes), **attributes), rtol=1e-5, atol=1e-5, err_msg=str(attributes))


@each_machine
def test_resize(machine: Machine) -> None:
    size, sizes = (7, 10), (14, 25)
    asked = [(mode, channels) for mode in ("nearest", "linear", "cubic") for channels in (1, 3, 24, 37, 130)]
    kernels, tables = [], []
    for mode, channels in asked:
        pairs = [interpolation(mode, a, b, b / a) for a, b in zip(size, sizes, strict=True)]
        tables.append([array for pair in pairs for array in pair])
        taps = (pairs[0][0].shape[1], pairs[1][0].shape[1])
        source = Operand("float32", in_order((2, *size, channels), gap=2))
        out = Operand("float32", in_order((2, *sizes, channels), (0, 3, 1, 2) if channels == 3 else None))
        kernels.append(Resize(2, sizes, channels, taps, source, out, Chain((), (step("Neg", 0),))))
    for (_, channels), kernel, given, run in zip(asked, kernels, tables, single.build(kernels, machine), strict=True):
        memory = filled((2, *size, channels), kernel.source)
        x = seen(memory, (2, *size, channels), kernel.source)
        rows, row_weights, columns, column_weights = given
        expected = np.einsum("nhawbc,ha,wb->nhwc", x[:, rows][:, :, :, columns], row_weights, column_weights)
        shape = (2, *sizes, channels)
        got = seen(run(memory, *given, np.zeros(2 * 14 * 25 * channels, np.float32)), shape, kernel.out)
        np.testing.assert_allclose(got, -expected, rtol=1e-5, atol=1e-5, err_msg=str(kernel))


@each_machine
def test_running_sums(machine: Machine) -> None:
    kernels = []
    for rows, length, order in (((5,), 33, (0, 1)), ((37,), 6, (1, 0)), ((3, 40), 9, (0, 2, 1)), ((), 20, (0,)), ((2, 3), 1, (0, 1, 2))):
        for exclusive, reverse in ((False, False), (True, False), (False, True), (True, True)):
            strides = in_order((*rows, length), order)
            kernels.append(Scan(rows, length, Operand("int64", strides), Operand("int64", strides), exclusive, reverse))
    for kernel, run in zip(kernels, single.build(kernels, machine), strict=True):
        shape = (*kernel.rows, kernel.length)
        memory = filled(shape, kernel.source)
        x = seen(memory, shape, kernel.source)
        x = x[..., ::-1] if kernel.reverse else x
        expected = np.cumsum(x, -1) - (x if kernel.exclusive else 0)
        expected = expected[..., ::-1] if kernel.reverse else expected
        np.testing.assert_array_equal(seen(run(memory, np.zeros_like(memory)), shape, kernel.out), expected)


@each_machine
def test_places_of_extrema(machine: Machine) -> None:
    kernels = []
    for rows, length, order in (
        ((5,), 67, (0, 1)),
        ((37,), 6, (1, 0)),
        ((3, 40), 9, (0, 2, 1)),
        ((), 200, (0,)),
        ((2, 3), 1, (0, 1, 2)),
        ((4,), 5, (0, 1)),
    ):
        for largest in (True, False):
            for last in (True, False):
                strides = in_order((*rows, length), order)
                kernels.append(Extremum(largest, rows, length, Operand("float32", strides), Operand("int64", in_order(rows)), last))
    for kernel, run in zip(kernels, single.build(kernels, machine), strict=True):
        shape = (*kernel.rows, kernel.length)
        memory = np.rint(filled(shape, kernel.source) * 2)  # ties
        x = seen(memory, shape, kernel.source) * (1 if kernel.largest else -1)
        expected = kernel.length - 1 - np.argmax(x[..., ::-1], -1) if kernel.last else np.argmax(x, -1)
        got = run(memory, np.zeros(kernel.rows, np.int64)).reshape(kernel.rows)
        np.testing.assert_array_equal(got, expected, err_msg=str(kernel))


def test_the_place_of_an_infinite_maximum() -> None:
    kernel = Extremum(True, (2,), 40, Operand("float32", (40, 1)), Operand("int64", (1,)))
    (run,) = single.build([kernel], MACHINES[0])
    x = np.full((2, 40), -np.inf, np.float32)
    x[1, 20] = np.inf
    assert run(x, np.zeros(2, np.int64)).tolist() == [0, 20]
