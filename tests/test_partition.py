"""Splitting a model by who can run its nodes: nothing is lost, order is kept, and regions are few."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import apply, f32, model_of

from backends import onnxruntime
from backends.partition import Part, halves, part_model, partition


def run_parts(model: onnx.ModelProto, parts: list[Part], inputs: Any) -> list[Any]:
    """Every part as a model of its own, with nothing but what earlier parts and the caller gave."""
    values = dict(inputs)
    for part in parts:
        proto = part_model(model, part, values)
        assert [v.name for v in proto.graph.input] == list(part.inputs)
        results = onnxruntime.build(proto, threads=1, optimised=False)(*[values[n] for n in part.inputs])
        values.update(zip(part.outputs, results, strict=True))
    return [values[output.name] for output in model.graph.output]


def check(model: onnx.ModelProto, takes: Callable[[onnx.NodeProto], bool], *arrays: Any, least: int = 1) -> Any:
    names = [value.name for value in model.graph.input]
    parts = partition(model, takes, least=least)
    got = run_parts(model, parts, dict(zip(names, arrays, strict=True)))
    want = onnxruntime.build(model, threads=1, optimised=False)(*arrays)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-6)
    assert all(takes(node) for part in parts if part.taken for node in part.nodes)
    return parts


def kinds(*ops: str) -> Callable[[onnx.NodeProto], bool]:
    return lambda node: node.op_type in ops


FLOAT = TensorProto.FLOAT
X = f32([[1, -2, 3]])


def test_a_model_that_is_taken_whole_is_one_part() -> None:
    nodes = [apply("Relu", ["x"], ["a"]), apply("Add", ["a", "w"], ["y"])]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], [("w", X)])
    [part] = check(model, kinds("Relu", "Add"), X)
    assert (part.taken, part.inputs, part.outputs) == (True, ("x",), ("y",))
    assert [p.taken for p in check(model, kinds(), X)] == [False]


def test_branches_share_regions() -> None:
    """Two branches with the same kinds in the same order are two regions, not four."""
    nodes = []
    for side in "ab":
        nodes += [apply("Relu", ["x"], [f"{side}1"]), apply("Tan", [f"{side}1"], [f"{side}2"])]
    nodes.append(apply("Add", ["a2", "b2"], ["y"]))
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])
    assert [p.taken for p in check(model, kinds("Relu", "Add"), X)] == [True, False, True]


def test_small_regions_are_left_to_the_others() -> None:
    nodes = [apply(op, [a], [b]) for op, a, b in
             (("Tan", "x", "a"), ("Relu", "a", "b"), ("Tan", "b", "c"), ("Relu", "c", "d"), ("Relu", "d", "y"))]  # fmt: skip
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])
    assert [p.taken for p in check(model, kinds("Relu"), X, least=2)] == [False, True]
    assert [p.taken for p in check(model, kinds("Relu"), X, least=3)] == [False]


def test_bodies_read_values_of_other_regions() -> None:
    def branch(op: str, name: str) -> onnx.GraphProto:
        body = [apply(op, ["r", "w"], [name])]
        return helper.make_graph(body, name, [], [helper.make_tensor_value_info(name, FLOAT, [1, 3])])

    nodes = [
        apply("Relu", ["x"], ["r"]),
        apply("ReduceSum", ["x"], ["s"], keepdims=0),
        apply("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        apply("If", ["c"], ["i"], then_branch=branch("Add", "t"), else_branch=branch("Sub", "e")),
        apply("Mul", ["i", "w"], ["y"]),
    ]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], [("w", X + 1)])
    parts = check(model, kinds("Relu", "ReduceSum", "Cast", "Mul"), X)
    assert [p.taken for p in parts] == [True, False, True]
    assert set(parts[1].inputs) == {"r", "c"}
    check(model, kinds("Relu", "ReduceSum", "Cast", "Mul"), np.zeros((1, 3), "float32"))


def test_outputs_inside_a_region_and_sequences_across_a_border() -> None:
    nodes = [
        apply("Relu", ["x"], ["a"]),
        apply("SequenceConstruct", ["a", "x"], ["s"]),
        apply("ConcatFromSequence", ["s"], ["b"], axis=0),
        apply("Neg", ["b"], ["y"]),
    ]
    outputs = [("a", FLOAT, [1, 3]), ("y", FLOAT, [2, 3])]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], outputs)
    parts = check(model, kinds("Relu", "ConcatFromSequence", "Neg"), X)
    assert [p.taken for p in parts] == [True, False, True]


def test_a_contrib_operator_and_a_function_go_to_the_runtime() -> None:
    function = helper.make_function(
        "rewriter", "Twice", ["v"], ["t"], [apply("Add", ["v", "v"], ["t"])], [helper.make_opsetid("", 20)]
    )
    nodes = [
        apply("Relu", ["x"], ["a"]),
        apply("QuickGelu", ["a"], ["b"], domain="com.microsoft"),
        apply("Twice", ["b"], ["c"], domain="rewriter"),
        apply("Neg", ["c"], ["y"]),
    ]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])], domains=["com.microsoft", "rewriter"])
    model.functions.append(function)
    assert [p.taken for p in check(model, lambda node: node.domain == "", X)] == [True, False, True]


def test_halves_are_regions_too() -> None:
    names = ["x", *(f"v{i}" for i in range(7))]
    nodes = [apply("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    nodes.append(apply("Add", ["v1", "v6"], ["y"]))
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
def test_random_graphs(seed: int) -> None:
    chance = random.Random(seed)
    names, nodes = ["x"], []
    for index in range(25):
        op = chance.choice(["Relu", "Tanh", "Add", "Sub"])
        read = [chance.choice(names[-6:]) for _ in range(2 if op in ("Add", "Sub") else 1)]
        nodes.append(apply(op, read, [f"v{index}"]))
        names.append(f"v{index}")
    outputs = [(name, FLOAT, [1, 3]) for name in {chance.choice(names[1:]) for _ in range(3)} | {names[-1]}]
    model = model_of(nodes, [("x", FLOAT, [1, 3])], outputs)
    taken = {id(node) for node in nodes if chance.random() < 0.6}
    chosen = {node.output[0] for node in nodes if id(node) in taken}
    parts = check(model, lambda node: node.output[0] in chosen, X, least=1)
    assert all(a.taken != b.taken for a, b in itertools.pairwise(parts))
