"""Splitting a model by who can run its nodes: nothing is lost, order is kept, and regions are few."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends import onnxruntime
from backends.partition import halves, part_model, partition


def model_of(nodes, inputs, outputs, initializers=(), domains=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        initializer=[numpy_helper.from_array(v, n) for n, v in initializers],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run_parts(model, parts, inputs):
    """Every part as a model of its own, with nothing but what earlier parts and the caller gave."""
    values = dict(inputs)
    for part in parts:
        proto = part_model(model, part, values)
        assert [v.name for v in proto.graph.input] == list(part.inputs)
        results = onnxruntime.build(proto, threads=1, optimised=False)(*[values[n] for n in part.inputs])
        values.update(zip(part.outputs, results, strict=True))
    return [values[output.name] for output in model.graph.output]


def check(model, takes, *arrays, least=1):
    names = [value.name for value in model.graph.input]
    parts = partition(model, takes, least=least)
    got = run_parts(model, parts, dict(zip(names, arrays, strict=True)))
    want = onnxruntime.build(model, threads=1, optimised=False)(*arrays)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-6)
    assert all(takes(node) for part in parts if part.taken for node in part.nodes)
    return parts


def kinds(*ops):
    return lambda node: node.op_type in ops


FLOAT = TensorProto.FLOAT
X = np.float32([[1, -2, 3]])


def test_a_model_that_is_taken_whole_is_one_part():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "w"], ["y"])]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], [("w", X)])
    [part] = check(model, kinds("Relu", "Add"), X)
    assert (part.taken, part.inputs, part.outputs) == (True, ("x",), ("y",))
    assert [p.taken for p in check(model, kinds(), X)] == [False]


def test_branches_share_regions():
    """Two branches with the same kinds in the same order are two regions, not four."""
    nodes = []
    for side in "ab":
        nodes += [helper.make_node("Relu", ["x"], [f"{side}1"]), helper.make_node("Tan", [f"{side}1"], [f"{side}2"])]
    nodes.append(helper.make_node("Add", ["a2", "b2"], ["y"]))
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])
    assert [p.taken for p in check(model, kinds("Relu", "Add"), X)] == [True, False, True]


def test_small_regions_are_left_to_the_others():
    nodes = [helper.make_node(op, [a], [b]) for op, a, b in
             (("Tan", "x", "a"), ("Relu", "a", "b"), ("Tan", "b", "c"), ("Relu", "c", "d"), ("Relu", "d", "y"))]  # fmt: skip
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])
    assert [p.taken for p in check(model, kinds("Relu"), X, least=2)] == [False, True]
    assert [p.taken for p in check(model, kinds("Relu"), X, least=3)] == [False]


def test_bodies_read_values_of_other_regions():
    def branch(op, name):
        body = [helper.make_node(op, ["r", "w"], [name])]
        return helper.make_graph(body, name, [], [helper.make_tensor_value_info(name, FLOAT, [1, 3])])

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["i"], then_branch=branch("Add", "t"), else_branch=branch("Sub", "e")),
        helper.make_node("Mul", ["i", "w"], ["y"]),
    ]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], [("w", X + 1)])
    parts = check(model, kinds("Relu", "ReduceSum", "Cast", "Mul"), X)
    assert [p.taken for p in parts] == [True, False, True]
    assert set(parts[1].inputs) == {"r", "c"}
    check(model, kinds("Relu", "ReduceSum", "Cast", "Mul"), np.zeros((1, 3), "float32"))


def test_outputs_inside_a_region_and_sequences_across_a_border():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("SequenceConstruct", ["a", "x"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["b"], axis=0),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    outputs = [("a", FLOAT, [1, 3]), ("y", FLOAT, [2, 3])]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], outputs)
    parts = check(model, kinds("Relu", "ConcatFromSequence", "Neg"), X)
    assert [p.taken for p in parts] == [True, False, True]


def test_a_contrib_operator_and_a_function_go_to_the_runtime():
    function = helper.make_function(
        "rewriter", "Twice", ["v"], ["t"], [helper.make_node("Add", ["v", "v"], ["t"])], [helper.make_opsetid("", 20)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("QuickGelu", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("Twice", ["b"], ["c"], domain="rewriter"),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], domains=["com.microsoft", "rewriter"])
    model.functions.append(function)
    assert [p.taken for p in check(model, lambda node: node.domain == "", X)] == [True, False, True]


def test_halves_are_regions_too():
    names = ["x", *(f"v{i}" for i in range(7))]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    nodes.append(helper.make_node("Add", ["v1", "v6"], ["y"]))
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("v2", FLOAT, [1, 3]), ("y", FLOAT, [1, 3])])
    [part] = partition(model, kinds("Relu", "Add"))
    pair = halves(part)
    assert [len(p.nodes) for p in pair] == [4, 4]
    assert pair[0].outputs == ("v1", "v2", "v3")
    assert set(pair[1].inputs) == {"v1", "v3"}
    got = run_parts(model, [p for half in pair for p in halves(half)], {"x": X})
    for g, w in zip(got, onnxruntime.build(model, threads=1)(X), strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed):
    chance = random.Random(seed)
    names, nodes = ["x"], []
    for index in range(25):
        op = chance.choice(["Relu", "Tanh", "Add", "Sub"])
        read = [chance.choice(names[-6:]) for _ in range(2 if op in ("Add", "Sub") else 1)]
        nodes.append(helper.make_node(op, read, [f"v{index}"]))
        names.append(f"v{index}")
    outputs = [(name, FLOAT, [1, 3]) for name in {chance.choice(names[1:]) for _ in range(3)} | {names[-1]}]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], outputs)
    taken = {id(node) for node in nodes if chance.random() < 0.6}
    chosen = {node.output[0] for node in nodes if id(node) in taken}
    parts = check(model, lambda node: node.output[0] in chosen, X, least=1)
    assert all(a.taken != b.taken for a, b in itertools.pairwise(parts))
