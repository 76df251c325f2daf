"""The vocabulary means the same in NumPy and in ONNX, and windows do what they say."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from rewriter.decode import EMIT, Writer
from rewriter.terms import OPERATORS, Arrays
from rewriter.window import Widening, Window, compose, depthwise_identity, join

W = Window(4, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 2, "float64")
POINT = Window(4, 4, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, "float64")
DEPTHWISE = Window(4, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4, "float64")
GROUPED = Window(4, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2, "float64")


def values(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.standard_normal(s) for s in shapes]


CASES: dict[str, list[tuple[list[tuple[int, ...]], tuple[Any, ...]]]] = {
    "linear": [([(2, 3, 4), (4, 5), (5,)], ()), ([(1, 4), (4, 1), (1,)], ())],
    "matmul": [([(3, 4), (4, 5)], ()), ([(4,), (4, 5)], ())],
    "conv": [([(2, 4, 5, 7), W.shape, (6,)], (str(W),)), ([(1, 4, 1, 1), POINT.shape, (4,)], (str(POINT),))],
    "add": [([(2, 3), (2, 3)], ())],
    "mul": [([(2, 3), (2, 3)], ())],
    "scale": [([(2, 3, 4), (3,)], (-2,)), ([(2, 3), (3,)], (-1,))],
    "bias": [([(2, 3, 4), (3,)], (-2,)), ([(2, 3), (3,)], (-1,))],
    "scalar": [([(2, 3), ()], ())],
    "shift": [([(2, 3), ()], ())],
    "product": [([(2, 3, 4), (2, 4, 5)], ())],
    "cat": [([(2, 3), (2, 1)], (-1,)), ([(2, 3), (4, 3)], (-2,))],
    "slice": [([(2, 5)], (-1, 1, 3)), ([(3, 2)], (-2, 0, 1))],
    "rows": [([(2, 3, 4), (2, 3, 1)], ())],
    "max_pool": [([(1, 4, 5, 5)], (str(DEPTHWISE),)), ([(1, 4, 5, 4)], ("4>4 k2x3 s2x1 p0,1,0,1 d1x1 g4 float64",))],
    "divide": [([(3,), (3,)], ())],
    "middle": [([(5,)], ())],
    "inverse": [([(3,)], ())],
    "sign": [([(3,)], ())],
    "tile": [([(3,)], (2, 4)), ([(1,)], (1, 1))],
    "padded": [([(2, 3)], (1, 2)), ([(3,)], (0, 1)), ([(1,)], (0, 0))],
    "transposed": [([(3, 2)], ())],
    "block_compose": [([(2, 3), (24, 5)], (4, 2)), ([(1, 2), (2, 1)], (1, 1))],
    "block_sum": [([(3,), (24, 5)], (4, 2))],
    "flat_kernel": [([W.shape], ())],
    "mean_pool": [([(1, 4, 5, 5)], (str(DEPTHWISE),))],
    "kernel_scale_inputs": [([W.shape, (4,)], (str(W),)), ([POINT.shape, (4,)], (str(POINT),))],
    "kernel_sum_inputs": [([W.shape, (4,)], (str(W),)), ([POINT.shape, (4,)], (str(POINT),))],
    "kernel_widen": [([W.shape], ("+1,0|0,2 g2>1",)), ([DEPTHWISE.shape], ("+0,0|0,0 g4>2",)), ([W.shape], ("+0,0|0,0 g2>2",))],
    "kernel_compose": [
        ([POINT.shape, DEPTHWISE.shape], (str(POINT), str(DEPTHWISE))),
        ([DEPTHWISE.shape, POINT.shape], (str(DEPTHWISE), str(POINT))),
        ([POINT.shape, GROUPED.shape], (str(POINT), str(GROUPED))),
        ([GROUPED.shape, (4, 2, 1, 1)], (str(GROUPED), "4>4 k1x1 s1x1 p0,0,0,0 d1x1 g2 float64")),
        ([(4, 2, 1, 1), GROUPED.shape], ("4>4 k1x1 s1x1 p0,0,0,0 d1x1 g2 float64", str(GROUPED))),
    ],
    "kernel_diagonal": [([(4,)], ("4>4 k1x1 s1x1 p0,0,0,0 d1x1 g4 float64",))],
    "kernel_ones": [([], ("4>4 k1x1 s1x1 p0,0,0,0 d1x1 g4 float64",))],
    "kernel_mean": [([], (str(DEPTHWISE),))],
    "eye_like": [([(3, 3)], ())],
    "zero_like": [([(3, 2)], ())],
    "zero_row": [([(3, 2)], ())],
    "zero_outputs": [([W.shape], ())],
}
POINTS = [(name, shapes, attributes) for name, cases in CASES.items() for shapes, attributes in cases]


def test_every_operator_has_a_case() -> None:
    written_otherwise = {"map", "rowmap", "move", "norm", "normed"}
    assert set(CASES) == set(OPERATORS) - written_otherwise - {"pick"}
    assert set(EMIT) == set(OPERATORS) - written_otherwise


@pytest.mark.parametrize(("name", "shapes", "attributes"), POINTS, ids=lambda v: v if isinstance(v, str) else None)
def test_numpy_and_onnx_agree(name: str, shapes: list[tuple[int, ...]], attributes: tuple[Any, ...]) -> None:
    arrays = values(np.random.default_rng(0), *shapes)
    order = iter(arrays)
    given = iter(attributes)
    arguments = [next(order) if k == "t" else next(given) for k in OPERATORS[name].kinds]
    want = getattr(Arrays, name)(*arguments)
    writer = Writer(set())
    inputs = [ir.Value(name=f"x{i}", shape=ir.Shape(a.shape), type=ir.TensorType(ir.DataType.DOUBLE)) for i, a in enumerate(arrays)]
    feed, given = iter(inputs), iter(attributes)
    out = EMIT[name](writer, *(next(feed) if k == "t" else next(given) for k in OPERATORS[name].kinds))
    got = _run(writer, inputs, out, arrays)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want.astype(np.float64), rtol=1e-12, atol=1e-12)


def _run(writer: Writer, inputs: list[ir.Value], out: ir.Value, arrays: list[np.ndarray]) -> np.ndarray:
    from backends import reference

    if out in inputs:
        return arrays[inputs.index(out)]
    if out.producer() is None:
        assert out.const_value is not None
        return out.const_value.numpy()
    out.type = ir.TensorType(ir.DataType.DOUBLE)
    graph = ir.Graph(inputs, [out], nodes=writer.nodes, initializers=list(writer.initializers.values()), opset_imports={"": 20})
    return np.asarray(reference.build(ir.to_proto(ir.Model(graph, ir_version=9)))(*arrays)[0])


def windows() -> list[Window]:
    kernels = [((k,), (p, q), (d,)) for k, p, q, d in product((1, 2, 3), (0, 1, 2), (0, 1), (1, 2))]
    return [Window(2, 2, k, (s,), p, d, g) for (k, p, d), s, g in product(kernels, (1, 2), (1, 2)) if sum(p) >= 0]


def test_joined_windows_compute_what_the_single_ones_do() -> None:
    """Over all pairs of small one-dimensional windows: where a join exists both kernels, widened, give the same images."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (1, 2, 7)).astype(np.float64)
    zero = np.zeros(2)
    joined = 0
    for a, b in product(windows(), windows()):
        found = join(a, b)
        if found is None:
            continue
        joined += 1
        c, p, q = found
        for w, widening in ((a, p), (b, q)):
            k = rng.integers(-3, 4, w.shape).astype(np.float64)
            wide = Arrays.kernel_widen(k, str(widening))
            np.testing.assert_array_equal(Arrays.conv(x, k, zero, str(w)), Arrays.conv(x, wide, zero, str(c)))
    assert joined > 500


def test_windows_that_do_not_join() -> None:
    a = Window(2, 2, (3,), (1,), (1, 1), (1,), 1)
    from dataclasses import replace

    assert join(a, replace(a, strides=(2,))) is None
    assert join(a, replace(a, dilations=(2,), pads=(2, 2))) is None
    assert join(a, replace(a, outputs=4)) is None
    assert join(a, replace(a, pads=(1, 0))) is None  # another number of outputs
    assert join(a, replace(a, dtype="float16")) is None
    assert join(replace(a, inputs=6, outputs=6, group=2), replace(a, inputs=6, outputs=6, group=3)) is None


def test_composition_is_refused_at_borders() -> None:
    a = Window(2, 2, (3,), (1,), (1, 1), (1,), 1)
    point = Window(2, 2, (1,), (1,), (0, 0), (1,), 1)
    assert compose(a, a) is None
    assert compose(a, point) == a and compose(point, a) == a
    assert depthwise_identity(a) == Window(2, 2, (1,), (1,), (0, 0), (1,), 2)


@pytest.mark.parametrize("text", ["", "4>4 k3", "4>4 k3x3 s1x1 p1,1,1,1 d1x1 gx", "conv"])
def test_bad_text_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match="not a window"):
        Window.parse(text)
    with pytest.raises(ValueError, match="not a widening"):
        Widening.parse(text)


def test_text_round_trips() -> None:
    for w in [W, POINT, *windows()[:20]]:
        assert Window.parse(str(w)) == w
    e = Widening((1, 0), (0, 2), 4, 2)
    assert Widening.parse(str(e)) == e and not e.identity
