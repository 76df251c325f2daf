"""The oracle against the standard's own node cases, and against ONNX Runtime where those do not reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from node_cases import node_cases, plain, same, same_kind, tolerance
from onnx import TensorProto, helper, numpy_helper
from small_models import apply, f32, model_of, numbers

from backends import backend, reference
from rewriter.errors import InvalidInput, InvalidModel, UnsupportedModel

# in float64 no 32-bit pattern is left to reinterpret, a rounding tie may fall the other way, and onnx.reference's
# FlexAttention compares types
NOT_FLOAT64 = ("test_bitcast_", "test_dynamicquantizelinear", "test_flexattention")


@pytest.mark.parametrize("float64", [False, True])
def test_the_standards_node_cases(float64: bool) -> None:
    wrong, right = [], 0
    for case in node_cases():
        if float64 and case.name.startswith(NOT_FLOAT64):
            continue
        rtol, atol = tolerance(case)
        for inputs, outputs in case.data_sets:
            got = reference.build(case.model, float64=float64)(*plain(inputs))
            want = plain(outputs)
            kinds = float64 or same_kind(got, want)
            if kinds and same(got, want, rtol, atol):
                right += 1
            else:
                wrong.append(case.name)
    assert not wrong
    assert right > 1800


def check(model: onnx.ModelProto, *inputs: Any, atol: float = 1e-5) -> Any:
    """Both precisions of the oracle against ONNX Runtime's unoptimised run."""
    want = backend("onnxruntime").build(model, threads=1, optimised=False)(*inputs)
    for float64 in (False, True):
        got = reference.build(model, float64=float64)(*inputs)
        for g, w in zip(got, want, strict=True):
            assert g.dtype == (np.float64 if float64 and w.dtype == np.float32 else w.dtype)
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=atol)
    return want


FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@pytest.mark.parametrize(("rank", "group"), [(1, 1), (1, 2), (2, 1), (2, 4), (3, 2)])
@pytest.mark.parametrize(
    "options", [{}, {"strides": 2, "pads": 1}, {"dilations": 2}, {"auto_pad": "SAME_LOWER", "strides": 2}]
)
def test_convolutions(rank: int, group: int, options: dict[str, Any]) -> None:
    given = {k: v if isinstance(v, str) else [v] * (2 * rank if k == "pads" else rank) for k, v in options.items()}
    x, w, b = numbers(2, 4, *range(7, 7 + rank)), numbers(8, 4 // group, *[3] * rank), numbers(8)
    node = apply("Conv", ["x", "w", "b"], ["y"], group=group, **given)
    check(model_of([node], [("x", FLOAT, x.shape)], [("y", FLOAT, None)], [("w", w), ("b", b)]), x, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"strides": 2, "pads": 1, "output_padding": 1}, {"dilations": 2}, {"strides": 3}, {"group": 2}]
)
def test_transposed_convolutions(rank: int, options: dict[str, Any]) -> None:
    given = {k: v if k == "group" else [v] * (2 * rank if k == "pads" else rank) for k, v in options.items()}
    x, w = numbers(2, 4, *[5] * rank), numbers(4, 3, *[3] * rank)
    node = apply("ConvTranspose", ["x", "w"], ["y"], **given)
    check(model_of([node], [("x", FLOAT, x.shape)], [("y", FLOAT, None)], [("w", w)]), x, atol=1e-4)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("size", [7, 8, 9])
def test_pools_with_ceil_mode(op: str, ceil_mode: int, size: int) -> None:
    x = numbers(1, 2, size, size + 2)
    more = {"count_include_pad": 1} if op == "AveragePool" else {}
    node = apply(op, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=ceil_mode, **more)
    check(model_of([node], [("x", FLOAT, x.shape)], [("y", FLOAT, None)]), x)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, [5, 2, 3]])
def test_recurrent(op: str, direction: str, lengths: list[int] | None) -> None:
    gates, two = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    x, h0 = numbers(5, 3, 4), numbers(two, 3, 6, seed=4)
    weights = [("w", numbers(two, gates * 6, 4, seed=1)), ("r", numbers(two, gates * 6, 6, seed=2)),
               ("b", numbers(two, 2 * gates * 6, seed=3)), ("h0", h0)]  # fmt: skip
    weights += [("len", np.array(lengths, np.int32))] if lengths else []
    names = ["x", "w", "r", "b", "len" if lengths else "", "h0"]
    outs = ["y", "h", "c"] if op == "LSTM" else ["y", "h"]
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    node = apply(op, names, outs, hidden_size=6, direction=direction, **more)
    check(model_of([node], [("x", FLOAT, x.shape)], [(o, FLOAT, None) for o in outs], weights), x)


def test_loop_scans_captures_and_carries() -> None:
    body = helper.make_graph(
        [
            apply("Mul", ["v", "scale"], ["v2"]),  # scale belongs to the graph around
            apply("Identity", ["go"], ["go2"]),
            apply("Add", ["v2", "bias"], ["row"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", INT64, []), ("go", BOOL, []), ("v", FLOAT, [2]))],
        [
            helper.make_tensor_value_info(n, t, s)
            for n, t, s in (("go2", BOOL, []), ("v2", FLOAT, [2]), ("row", FLOAT, [2]))
        ],
        initializer=[numpy_helper.from_array(f32([1, 2]), "bias")],
    )
    nodes = [
        apply("Exp", ["s"], ["scale"]),
        apply("Loop", ["n", "", "x"], ["last", "rows"], body=body),
        apply("Neg", ["scale"], ["after"]),
    ]
    model = model_of(
        nodes,
        [("n", INT64, []), ("x", FLOAT, [2]), ("s", FLOAT, [])],
        [("last", FLOAT, [2]), ("rows", FLOAT, [None, 2]), ("after", FLOAT, [])],
    )
    for count in (3, 0):
        _, rows, _ = check(model, np.int64(count) + np.zeros((), np.int64), numbers(2), np.full((), 0.1, "float32"))
        assert rows.shape == (count, 2)


def test_if_and_nested_if_see_outer_values() -> None:
    def branch(op: str, name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [apply(op, ["x", "y"], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )

    inner = apply("If", ["c2"], ["inner"], then_branch=branch("Add", "a"), else_branch=branch("Sub", "b"))
    nested = helper.make_graph([inner], "n", [], [helper.make_tensor_value_info("inner", FLOAT, None)])
    node = apply("If", ["c1"], ["z"], then_branch=nested, else_branch=branch("Mul", "m"))
    model = model_of(
        [node], [("c1", BOOL, []), ("c2", BOOL, []), ("x", FLOAT, [3]), ("y", FLOAT, [3])], [("z", FLOAT, [3])]
    )
    results = [
        check(model, np.asarray(c1), np.asarray(c2), numbers(3), numbers(3, seed=1))[0]
        for c1, c2 in ((True, True), (True, False), (False, False))
    ]
    assert not np.allclose(results[0], results[1])
    assert not np.allclose(results[1], results[2])


def test_scan_backwards_on_another_axis() -> None:
    body = helper.make_graph(
        [apply("Add", ["s", "r"], ["s2"]), apply("Identity", ["s2"], ["o"])],
        "body",
        [helper.make_tensor_value_info(n, FLOAT, [2]) for n in ("s", "r")],
        [helper.make_tensor_value_info(n, FLOAT, [2]) for n in ("s2", "o")],
    )
    node = apply(
        "Scan", ["s0", "x"], ["last", "all"], body=body, num_scan_inputs=1,
        scan_input_axes=[1], scan_input_directions=[1], scan_output_axes=[1],
    )  # fmt: skip
    model = model_of([node], [("s0", FLOAT, [2]), ("x", FLOAT, [2, 5])], [("last", FLOAT, [2]), ("all", FLOAT, [2, 5])])
    check(model, numbers(2), numbers(2, 5, seed=1))


def test_local_functions_with_attributes() -> None:
    function = helper.make_function(
        "rewriter",
        "Leaky",
        ["x"],
        ["y"],
        [apply("LeakyRelu", ["x"], ["t"]), apply("Neg", ["t"], ["y"])],
        [helper.make_opsetid("", 20)],
        attributes=["alpha"],
    )
    linked = onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    function.node[0].attribute.append(linked)
    nodes = [apply("Leaky", ["x"], ["m"], domain="rewriter", alpha=0.25),
             apply("Leaky", ["m"], ["y"], domain="rewriter", alpha=0.5)]  # fmt: skip
    model = model_of(nodes, [("x", FLOAT, [4])], [("y", FLOAT, [4])], functions=[function], domains=["rewriter"])
    check(model, f32([-2, -1, 0, 3]))


def test_float64_promotes_weights_constants_and_cast_targets() -> None:
    third = apply("Constant", [], ["c"], value=numpy_helper.from_array(f32([1 / 3]), "c"))
    nodes = [
        third,
        apply("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        apply("Cast", ["c"], ["k"], to=TensorProto.FLOAT16),
        apply("Mul", ["h", "k"], ["m"]),
        apply("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    model = model_of(nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])])
    x = f32([0.1])
    [y] = reference.build(model, float64=True)(x)
    assert y.dtype == np.float64
    assert y[0] == np.float64(x[0]) * np.float64(np.float32(1 / 3))
    [narrow] = reference.build(model)(x)
    assert narrow.dtype == np.float32
    assert abs(narrow[0] - y[0]) > 1e-6


def test_inputs_are_not_written_to_and_results_are_the_callers() -> None:
    weight = np.ones(3, "float32")
    model = model_of([apply("Identity", ["w"], ["y"])], [], [("y", FLOAT, [3])], [("w", weight)])
    program = reference.build(model)
    program()[0][:] = 5
    np.testing.assert_array_equal(program()[0], weight)


def test_errors_are_one_line() -> None:
    unknown = model_of(
        [apply("Nope", ["x"], ["y"], domain="d")], [("x", FLOAT, [1])], [("y", FLOAT, [1])], domains=["d"]
    )
    with pytest.raises(UnsupportedModel, match="d::Nope"):
        reference.build(unknown)(np.zeros(1, "float32"))
    add = model_of([apply("Add", ["x", "x"], ["y"])], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    with pytest.raises(InvalidInput, match="float64; the model takes float32"):
        reference.build(add)(np.zeros(2))
    with pytest.raises(InvalidInput, match="1 dim|2 dim"):
        reference.build(add)(np.zeros((1, 2), "float32"))
    with pytest.raises(InvalidInput, match="2 inputs"):
        reference.build(add)(np.zeros(2), np.zeros(2))
    with pytest.raises(InvalidModel, match="no such file"):
        reference.build("/nowhere/model.onnx")
