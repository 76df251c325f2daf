"""Verification finds wrong rewrites, blames the rule, and leaves a right model; and it does not cry wolf over rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_text import parse, read, run_ort

import rewriter
import rules
from rewriter.rule import rule
from rewriter.verify import Case, Oracle, difference, domains, feeds

LORA = """main (float[n,3] x) => (float[n,3] y) <float[3,3] W = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.5}, float[3] b = {1.0,0.5,0.25}, float[3] s = {2.0,3.0,4.0}>
    { u = Mul(x, s)  v = MatMul(u, W)  w = Relu(v)  z = Mul(w, s)  y = Add(z, b) }"""


@rule("x:ni s:i", when="const(s)", cite="wrong on purpose")
def relu_swallows_scale(op: Any, x: Any, s: Any) -> tuple[Any, Any]:
    """relu(x) * s == relu(x)"""
    return op.scale(op.map("Relu{}1", x), s, -1), op.map("Relu{}1", x)


def test_a_wrong_rule_is_dropped_and_reported() -> None:
    result = rewriter.optimize(parse(LORA), rules=[*rules.ALL, relu_swallows_scale])
    assert result.report.verification.passed
    blamed = [d for d in result.report.declined if "relu-swallows-scale" in d["rule"]]
    assert blamed and "verification failed" in blamed[0]["reason"]
    assert any("relu-swallows-scale" in note for note in result.report.notes)
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_allclose(run_ort(result.model, {"x": x})[0], run_ort(parse(LORA), {"x": x})[0], rtol=1e-5)
    assert any(r["rule"] == "matmul/scale-before-map" for r in result.report.rewrites)  # the right rules still fire


def test_when_no_single_rule_is_to_blame_the_model_is_kept() -> None:
    @rule("x:ni", cite="wrong on purpose")
    def relu_is_nothing(op: Any, x: Any) -> tuple[Any, Any]:
        """relu(x) == x"""
        return op.map("Relu{}1", x), x

    body = "main (float[n,3] x) => (float[n,3] y) <float[3] s = {2.0,3.0,4.0}> { u = Relu(x)  z = Mul(u, s)  y = Add(z, s) }"
    result = rewriter.optimize(parse(body), rules=[relu_swallows_scale, relu_is_nothing])
    x = np.float32([[-1.0, 2.0, -3.0]])
    np.testing.assert_array_equal(run_ort(result.model, {"x": x})[0], run_ort(parse(body), {"x": x})[0])
    assert result.report.notes and result.report.verification.passed


def oracle(want: Any, reference: Any = None) -> Oracle:
    return Oracle([Case({}, [np.float32(want)], "normal inputs")], reference)


def test_rounding_is_accepted_and_an_error_is_not() -> None:
    want = np.float32([1.0, 100.0])
    near, far = want * np.float32(1 + 1e-6), want + np.float32([0, 1])
    assert oracle(want).judge(lambda _: [[near]], None).passed
    verdict = oracle(want).judge(lambda _: [[far]], None)
    assert verdict.passed is False and "off by 1" in verdict.reason and "normal inputs" in verdict.reason


def test_the_float64_reference_decides_doubtful_cases() -> None:
    """Both far apart in float32: accepted if the two agree in float64, refused if they do not."""
    want, got = np.float32([1.0, 1000.0]), np.float32([1.0, 1000.9])
    exact = np.float64([1.0, 1000.4])
    assert oracle(want, lambda _: [exact]).judge(lambda _: [[got]], lambda _: [exact * (1 + 1e-9)]).passed
    assert oracle(want, lambda _: [want.astype(float)]).judge(lambda _: [[got]], lambda _: [got.astype(float)]).passed is False


def test_an_engine_may_round_as_the_usual_one_does() -> None:
    """On an input whose rounding grows large in every engine, the usual one's error is the measure."""
    want, exact = np.float32([1.0, 100.01]), np.float64([1.0, 100.0])
    got, usual = np.float32([1.0, 100.1]), np.float32([1.0, 100.04])
    asked = oracle(want, lambda _: [exact])
    assert "off by" in asked.differs(lambda _: [got])
    assert asked.differs(lambda _: [got], lambda _: [usual]) == ""
    assert "off by" in asked.differs(lambda _: [got + 1], lambda _: [usual])
    assert "NaN" in asked.differs(lambda _: [np.float32([1.0, np.nan])], lambda _: [np.float32([1.0, np.nan])])


@pytest.mark.parametrize(
    ("want", "got", "problem"),
    [
        ([1.0, np.nan], [1.0, 2.0], "NaN"),
        ([1.0, np.inf], [1.0, -np.inf], "infinities"),
        ([1.0, 2.0], [[1.0, 2.0]], "shape"),
        ([1, 2], [1, 3], "1 of 2"),
        ([True, False], [True, True], "1 of 2"),
    ],
)
def test_differences_that_are_no_rounding(want: Any, got: Any, problem: str) -> None:
    assert problem in difference(np.array(want), np.array(got))[2]
    assert difference(np.array(want), np.array(want))[2] == ""


def test_made_up_inputs_stay_in_an_embeddings_range() -> None:
    body = """main (int64[b,t] ids, int64[b,t] mask, float[b,2] z) => (float[b,t,2] y) <float[5,2] E = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,10.0}>
        { i = Cast<to=7>(ids)  y = Gather(E, i) }"""
    graph = read(body).graph
    assert domains(graph)["ids"].high == 5 and domains(graph)["mask"].high is None
    seen: set[int] = set()
    for _, make in feeds(graph, {}):
        feed = make(2, 7)
        assert feed["ids"].min() >= 0 and feed["ids"].max() < 5 and set(np.unique(feed["mask"])) <= {0, 1}
        assert feed["z"].dtype == np.float32
        seen |= set(np.unique(feed["ids"]).tolist())
    assert {0, 4} <= seen  # both ends


def test_inputs_take_the_values_they_are_compared_with() -> None:
    body = """main (int64 rate, float[2] x) => (float[2] y) <int64 sixteen = {16000}>
        { c = Equal(rate, sixteen)  f = Cast<to=1>(c)  y = Mul(x, f) }"""
    for _, make in feeds(read(body).graph, {}):
        assert make(1, 1)["rate"] == 16000


def test_a_model_that_cannot_be_run_is_said_to_be_unverified() -> None:
    node = onnx.helper.make_node("Strange", ["x"], ["y"], domain="who.knows")
    info = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", info[:1], info[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("who.knows", 1)], ir_version=9,
    )  # fmt: skip
    report = rewriter.optimize(model).report
    assert report.verification.passed is None and "example inputs" in report.verification.reason
