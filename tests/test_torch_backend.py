"""ONNX graphs as PyTorch modules, against the standard's node cases and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backends import backend
from backends import torch as backend_torch
from rewriter.errors import InvalidInput, UnsupportedModel
from tests.node_cases import node_cases, same, same_kind, tolerance, with_constants

EMPTY = ("test_reduce_max_empty", "test_reduce_min_empty")  # PyTorch has no maximum of nothing: it says so at run time


def model_of(nodes, inputs, outputs, initializers=(), opset=20):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        initializer=[numpy_helper.from_array(v, n) for n, v in initializers],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_the_standards_node_cases():
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


def attention():
    """Reshapes by a shape that is computed from the input, as exporters write it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Gather", ["shape", "one"], ["time"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "first"], ["b"]),
        helper.make_node("Unsqueeze", ["time", "first"], ["t"]),
        helper.make_node("Concat", ["b", "t", "heads"], ["split"], axis=0),
        helper.make_node("Mul", ["t", "two"], ["t2"]),
        helper.make_node("MatMul", ["x", "layer.0.weight"], ["h"]),
        helper.make_node("Reshape", ["h", "split"], ["r"]),
        helper.make_node("Transpose", ["r"], ["p"], perm=[0, 2, 1, 3]),
        helper.make_node("Softmax", ["p"], ["s"], axis=-1),
        helper.make_node("Expand", ["bias", "split"], ["e"]),
        helper.make_node("Slice", ["s", "first", "t2", "last"], ["cut"]),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 1, 3]),
        helper.make_node("Add", ["cut", "f"], ["y"]),
    ]
    ints = {"zero": 0, "one": 1, "first": [0], "two": [2], "heads": [2, 4], "last": [2]}
    weights = [(n, np.asarray(v, np.int64)) for n, v in ints.items()]
    weights += [("layer.0.weight", numbers(8, 8)), ("bias", numbers(1, 1, 1, 4, seed=1))]
    shape = ["batch", "time", 8]
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
def test_resize(options, scales):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **options)
    weights = [("scales", np.float32(scales))]
    model = model_of([node], [("x", TensorProto.FLOAT, ["n", 2, "h", "w"])], [("y", TensorProto.FLOAT, None)], weights)
    x = numbers(1, 2, 5, 7)
    [want] = backend("onnxruntime").build(model, threads=1)(x)
    np.testing.assert_allclose(backend_torch.build(model)(x)[0], want, rtol=1e-4, atol=1e-5)


def test_one_module_serves_every_shape():
    program = backend_torch.build(attention(), threads=1)
    oracle = backend("onnxruntime").build(attention(), threads=1)
    for shape in ((1, 3, 8), (2, 5, 8), (3, 1, 8)):
        x = numbers(*shape)
        np.testing.assert_allclose(program(x)[0], oracle(x)[0], rtol=1e-5, atol=1e-6)


def test_the_module_is_an_ordinary_graph_module():
    module = backend_torch.build(attention()).module
    assert isinstance(module, torch.fx.GraphModule)
    assert set(dict(module.named_parameters())) == {"layer.0.weight", "bias"}
    x = torch.randn(2, 3, 8)
    [y] = module(x)
    y.square().sum().backward()
    assert module.get_parameter("layer.0.weight").grad.abs().sum() > 0
    again = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(again(x)[0], y)


def test_awkward_weight_names_are_kept_apart():
    names = ["a", "a.b", "onnx::MatMul_3", "forward", "1"]
    nodes, previous = [], "x"
    for i, name in enumerate(names):
        nodes.append(helper.make_node("Add", [previous, name], [f"t{i}"]))
        previous = f"t{i}"
    weights = [(name, numbers(3, seed=i)) for i, name in enumerate(names)]
    shape = [("x", TensorProto.FLOAT, [3])]
    model = model_of(nodes, shape, [(previous, TensorProto.FLOAT, [3])], weights)
    x = numbers(3, seed=9)
    program = backend_torch.build(model)
    np.testing.assert_allclose(program(x)[0], x + sum(w for _, w in weights), rtol=1e-6)
    assert len(list(program.module.parameters())) == len(names)


def test_local_functions_are_inlined():
    body = [helper.make_node("Mul", ["x", "x"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    function = helper.make_function("rewriter", "Square", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    model = model_of(
        [helper.make_node("Square", ["x"], ["y"], domain="rewriter")],
        [("x", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
    )
    model.opset_import.append(helper.make_opsetid("rewriter", 1))
    model.functions.append(function)
    np.testing.assert_array_equal(backend_torch.build(model)(np.float32([2, -3]))[0], [4, 9])


def test_refusals_say_which_node_and_why():
    loop = model_of([helper.make_node("Unique", ["x"], ["y"], name="u1")], [("x", 1, [3])], [("y", 1, None)])
    with pytest.raises(UnsupportedModel, match="u1.*no PyTorch form"):
        backend_torch.build(loop)
    data = model_of(
        [helper.make_node("Slice", ["x", "at", "end"], ["y"], name="s1")],
        [("x", 1, [3]), ("at", 7, [1]), ("end", 7, [1])],
        [("y", 1, None)],
    )
    with pytest.raises(UnsupportedModel, match="s1.*computed from data"):
        backend_torch.build(data)


def test_inputs_are_checked():
    program = backend_torch.build(attention())
    with pytest.raises(InvalidInput, match="'x' is float64; the model takes float32"):
        program(np.zeros((1, 1, 8)))
    with pytest.raises(InvalidInput, match="0 inputs"):
        program()
    with pytest.raises(InvalidInput, match="could not run"):
        program(np.zeros((1, 1, 7), "float32"))


def test_round_trip_through_a_directory(tmp_path):
    program = backend_torch.build(attention())
    program.save(tmp_path)
    x = numbers(2, 2, 8)
    np.testing.assert_array_equal(backend_torch.restore(tmp_path)(x)[0], program(x)[0])
