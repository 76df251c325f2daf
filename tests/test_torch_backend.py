"""ONNX graphs as PyTorch modules, against the standard's node cases and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from node_cases import node_cases, same, same_kind, tolerance, with_constants
from onnx import TensorProto, helper, numpy_helper
from small_models import apply, f32, model_of, numbers

from backends import backend
from backends import torch as backend_torch
from rewriter.errors import InvalidInput, UnsupportedModel

EMPTY = ("test_reduce_max_empty", "test_reduce_min_empty")  # PyTorch has no maximum of nothing: it says so at run time


def test_the_standards_node_cases() -> None:
    right, wrong = set(), []
    for case in node_cases():
        if len(case.data_sets) != 1 or case.name.startswith(EMPTY):
            continue
        model, inputs = with_constants(case)
        try:
            program = backend_torch.build(model)
        except UnsupportedModel as error:
            assert "\n" not in str(error)
            continue
        want = list(case.data_sets[0][1])
        want = [numpy_helper.to_array(w) if isinstance(w, onnx.TensorProto) else w for w in want]
        got = program(*inputs)
        if same_kind(got, want) and same(got, want, *tolerance(case)):
            right.add(case.model.graph.node[0].op_type)
        else:
            wrong.append(case.name)
    assert not wrong
    assert len(right) > 110
    assert {"Conv", "MatMul", "Gemm", "BatchNormalization", "Slice", "Gather", "TopK", "ScatterND"} <= right


def attention() -> onnx.ModelProto:
    """Reshapes by a shape that is computed from the input, as exporters write it."""
    nodes = [
        apply("Shape", ["x"], ["shape"]),
        apply("Gather", ["shape", "zero"], ["batch"], axis=0),
        apply("Gather", ["shape", "one"], ["time"], axis=0),
        apply("Unsqueeze", ["batch", "first"], ["b"]),
        apply("Unsqueeze", ["time", "first"], ["t"]),
        apply("Concat", ["b", "t", "heads"], ["split"], axis=0),
        apply("Mul", ["t", "two"], ["t2"]),
        apply("MatMul", ["x", "layer.0.weight"], ["h"]),
        apply("Reshape", ["h", "split"], ["r"]),
        apply("Transpose", ["r"], ["p"], perm=[0, 2, 1, 3]),
        apply("Softmax", ["p"], ["s"], axis=-1),
        apply("Expand", ["bias", "split"], ["e"]),
        apply("Slice", ["s", "first", "t2", "last"], ["cut"]),
        apply("Transpose", ["e"], ["f"], perm=[0, 2, 1, 3]),
        apply("Add", ["cut", "f"], ["y"]),
    ]
    ints = {"zero": 0, "one": 1, "first": [0], "two": [2], "heads": [2, 4], "last": [2]}
    weights = [(n, np.asarray(v, np.int64)) for n, v in ints.items()]
    weights += [("layer.0.weight", numbers(8, 8)), ("bias", numbers(1, 1, 1, 4, seed=1))]
    shape: list[int | str | None] = ["batch", "time", 8]
    return model_of(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, None)], weights)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ],
)
@pytest.mark.parametrize("scales", [[1, 1, 2, 2], [1, 1, 1.5, 2.6]])
def test_resize(options: dict[str, Any], scales: list[float]) -> None:
    node = apply("Resize", ["x", "", "scales"], ["y"], **options)
    weights = [("scales", f32(scales))]
    model = model_of([node], [("x", TensorProto.FLOAT, ["n", 2, "h", "w"])], [("y", TensorProto.FLOAT, None)], weights)
    x = numbers(1, 2, 5, 7)
    [want] = backend("onnxruntime").build(model, threads=1)(x)
    np.testing.assert_allclose(backend_torch.build(model)(x)[0], want, rtol=1e-4, atol=1e-5)


def test_one_module_serves_every_shape() -> None:
    program = backend_torch.build(attention(), threads=1)
    oracle = backend("onnxruntime").build(attention(), threads=1)
    for shape in ((1, 3, 8), (2, 5, 8), (3, 1, 8)):
        x = numbers(*shape)
        np.testing.assert_allclose(program(x)[0], oracle(x)[0], rtol=1e-5, atol=1e-6)


def test_the_module_is_an_ordinary_graph_module() -> None:
    module = backend_torch.build(attention()).module
    assert isinstance(module, torch.fx.GraphModule)
    assert set(dict(module.named_parameters())) == {"layer.0.weight", "bias"}
    x = torch.randn(2, 3, 8)
    [y] = module(x)
    y.square().sum().backward()
    gradient = module.get_parameter("layer.0.weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    again = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(again(x)[0], y)


def test_awkward_weight_names_are_kept_apart() -> None:
    names = ["a", "a.b", "onnx::MatMul_3", "forward", "1"]
    nodes, previous = [], "x"
    for i, name in enumerate(names):
        nodes.append(apply("Add", [previous, name], [f"t{i}"]))
        previous = f"t{i}"
    weights = [(name, numbers(3, seed=i)) for i, name in enumerate(names)]
    shape = [("x", TensorProto.FLOAT, [3])]
    model = model_of(nodes, shape, [(previous, TensorProto.FLOAT, [3])], weights)
    x = numbers(3, seed=9)
    program = backend_torch.build(model)
    np.testing.assert_allclose(program(x)[0], x + sum(w for _, w in weights), rtol=1e-6)
    assert len(list(program.module.parameters())) == len(names)


def test_local_functions_are_inlined() -> None:
    body = [apply("Mul", ["x", "x"], ["s"]), apply("Relu", ["s"], ["y"])]
    function = helper.make_function("rewriter", "Square", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    model = model_of(
        [apply("Square", ["x"], ["y"], domain="rewriter")],
        [("x", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
    )
    model.opset_import.append(helper.make_opsetid("rewriter", 1))
    model.functions.append(function)
    np.testing.assert_array_equal(backend_torch.build(model)(f32([2, -3]))[0], [4, 9])


def test_refusals_say_which_node_and_why() -> None:
    loop = model_of([apply("Unique", ["x"], ["y"], name="u1")], [("x", 1, [3])], [("y", 1, None)])
    with pytest.raises(UnsupportedModel, match="u1.*no PyTorch form"):
        backend_torch.build(loop)
    data = model_of(
        [apply("Slice", ["x", "at", "end"], ["y"], name="s1")],
        [("x", 1, [3]), ("at", 7, [1]), ("end", 7, [1])],
        [("y", 1, None)],
    )
    with pytest.raises(UnsupportedModel, match="s1.*computed from data"):
        backend_torch.build(data)


def test_inputs_are_checked() -> None:
    program = backend_torch.build(attention())
    with pytest.raises(InvalidInput, match="'x' is float64; the model takes float32"):
        program(np.zeros((1, 1, 8)))
    with pytest.raises(InvalidInput, match="0 inputs"):
        program()
    with pytest.raises(InvalidInput, match="could not run"):
        program(np.zeros((1, 1, 7), "float32"))


def test_round_trip_through_a_directory(tmp_path: Path) -> None:
    program = backend_torch.build(attention())
    program.save(tmp_path)
    x = numbers(2, 2, 8)
    np.testing.assert_array_equal(backend_torch.restore(tmp_path)(x)[0], program(x)[0])
