"""Whole models through the front door: whatever their shape, the same numbers, names, types and order come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import parse, run_ort

import rewriter
from rewriter import Limits, Optimized

W3 = "float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9.5}, float[3, 3] v = {1, 0, 3, 4, 5, 6, 0, 8, 9}"
RNG = np.random.default_rng(0)


def ports(values: Any) -> list[bytes]:
    """Names, types and shapes of inputs or outputs, as they are written in the file."""
    return [helper.make_value_info(v.name, v.type).SerializeToString(deterministic=True) for v in values]


def made_up(proto: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, Any]:
    feed = {}
    weights = {t.name for t in proto.graph.initializer}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 2) for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if value.name not in weights:
            feed[value.name] = np.asarray(RNG.standard_normal(shape) > 0 if dtype == np.bool_ else RNG.standard_normal(shape)).astype(dtype)
    return feed


def optimised(
    source: onnx.ModelProto | str, *, feeds: list[dict[str, Any]] | None = None, rtol: float = 1e-5, verified: bool = True, smooth: bool = True, **options: Any
) -> Optimized:
    """The optimised model, having checked that it is valid, has the same interface and gives the same numbers.

    ``verified``: could the original be run? ``smooth``: nothing went wrong on the way, so there is nothing to note.
    """
    __tracebackhide__ = True
    proto = parse(source) if isinstance(source, str) else source
    before = proto.SerializeToString()
    result = rewriter.optimize(proto, **options)
    assert proto.SerializeToString() == before, "the caller's model was changed"
    after = result.model
    onnx.checker.check_model(after, full_check=True)
    weights = {t.name for t in proto.graph.initializer}
    assert ports(after.graph.input) == ports(v for v in proto.graph.input if v.name not in weights)
    for old, new in zip(proto.graph.output, after.graph.output, strict=True):
        if not old.type.tensor_type.HasField("shape"):
            new.type.tensor_type.ClearField("shape")  # the file gained it
        assert ports([old]) == ports([new])
    assert result.report.after.nodes <= result.report.before.nodes
    assert result.report.verification.passed is (True if verified else None)
    assert not smooth or result.report.notes == []
    for feed in feeds or [made_up(proto, {})] * verified:
        for want, got in zip(run_ort(proto, feed), run_ort(after, feed), strict=True):
            assert want.dtype == got.dtype and want.shape == got.shape
            if want.dtype.kind == "f":
                scale = float(np.abs(want.astype(np.float64)).max(initial=1e-30))
                np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=rtol * scale)
            else:
                np.testing.assert_array_equal(got, want)
    return result


def count(result: Optimized, op: str) -> int:
    return result.report.after.ops.get(op, 0)


# --- subgraphs


BRANCHES = f"""main (float[n, 3] x, bool c) => (float[n, 3] y) <{W3}> {{
    y = If (c) <
        then_branch = yes () => (float[n, 3] a) {{ p = MatMul(x, w)  q = MatMul(p, v)  a = Relu(q) }},
        else_branch = no () => (float[n, 3] b) <float[3] s = {{1, 2, 3}}> {{ r = MatMul(x, w)  b = Mul(r, s) }}
    >
}}"""


def both(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    return [{**made_up(proto, {}), "c": np.array(flag)} for flag in (True, False)]


def test_branches_are_rewritten() -> None:
    result = optimised(BRANCHES, feeds=both(parse(BRANCHES)))
    assert result.report.after.ops == {"If": 1, "MatMul": 2, "Relu": 1}


def test_a_value_that_a_branch_reads_from_outside_stays() -> None:
    body = f"""main (float[n, 3] x, bool c) => (float[n, 3] y, float[n, 3] z) <{W3}> {{
        t = MatMul(x, w)
        u = MatMul(t, v)
        y = If (c) <
            then_branch = yes () => (float[n, 3] a) {{ a = Add(t, u) }},
            else_branch = no () => (float[n, 3] b) {{ b = Mul(u, u) }}
        >
        z = Relu(u)
    }}"""
    result = optimised(body, feeds=both(parse(body)))
    assert count(result, "MatMul") == 2  # t is read from inside: two maps of x, as before


LOOP = f"""main (float[2, 3] x, int64 trips) => (float[2, 3] y, float[k, 2, 3] ys) <{W3}, bool yes = {{1}}> {{
    y, ys = Loop (trips, yes, x) <body = step (int64 i, bool go, float[2, 3] h) => (bool on, float[2, 3] next, float[2, 3] seen) {{
        a = MatMul(h, w)
        b = MatMul(h, v)
        s = Add(a, b)
        next = Tanh(s)
        seen = Mul(next, h)
        on = Identity(go)
    }}>
}}"""


def test_a_loops_body_is_rewritten() -> None:
    x = RNG.standard_normal((2, 3)).astype("float32")
    result = optimised(LOOP, feeds=[{"x": x, "trips": np.array(n)} for n in (0, 1, 4)])
    assert count(result, "MatMul") == 1 and count(result, "Loop") == 1


def test_a_branch_in_a_loop() -> None:
    body = f"""main (float[2, 3] x, int64 trips, bool c) => (float[2, 3] y) <{W3}, bool yes = {{1}}> {{
        y = Loop (trips, yes, x) <body = step (int64 i, bool go, float[2, 3] h) => (bool on, float[2, 3] next) {{
            k = If (c) <
                then_branch = t () => (float[2, 3] a) {{ p = MatMul(h, w)  a = MatMul(p, v) }},
                else_branch = e () => (float[2, 3] b) {{ b = Add(h, x) }}
            >
            next = Tanh(k)
            on = Identity(go)
        }}>
    }}"""
    x = RNG.standard_normal((2, 3)).astype("float32")
    result = optimised(body, feeds=[{"x": x, "trips": np.array(n), "c": np.array(c)} for n in (0, 3) for c in (True, False)])
    assert count(result, "MatMul") == 1


def test_a_scans_body_is_rewritten() -> None:
    body = f"""main (float[2, 3] h, float[4, 2, 3] xs) => (float[2, 3] y, float[4, 2, 3] ys) <{W3}> {{
        y, ys = Scan <num_scan_inputs = 1, body = step (float[2, 3] s, float[2, 3] x) => (float[2, 3] next, float[2, 3] o) {{
            a = MatMul(x, w)  b = MatMul(x, v)  c = Add(a, b)  d = Add(c, s)  next = Tanh(d)  o = Identity(next)
        }}> (h, xs)
    }}"""
    assert count(optimised(body), "MatMul") == 1


def test_an_outer_and_an_inner_value_of_one_name() -> None:
    """Shadowing is forbidden, but two branches may use one name."""
    body = BRANCHES.replace("r = MatMul(x, w)  b = Mul(r, s)", "p = MatMul(x, v)  b = Mul(p, s)")
    optimised(body, feeds=both(parse(body)))


# --- operators that nobody knows


def with_domain(body: str, domain: str) -> onnx.ModelProto:
    proto: onnx.ModelProto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20, "{domain}": 1]>\n{body}')
    return proto


def test_rules_work_on_both_sides_of_a_foreign_operator() -> None:
    body = f"""main (float[n, 3] x) => (float[n, 3] y) <{W3}, float[n, 3] c> {{
        a = MatMul(x, w)  b = MatMul(a, v)  c = com.microsoft.Gelu(b)  d = MatMul(c, v)  y = MatMul(d, w)
    }}"""
    result = optimised(with_domain(body, "com.microsoft"))
    assert result.report.after.ops == {"MatMul": 2, "com.microsoft::Gelu": 1}


def test_an_operator_of_an_unknown_domain_passes_through() -> None:
    body = f"""main (float[n, 3] x) => (float[n, 3] y, float[n, 3] z) <{W3}> {{
        a = MatMul(x, w)  b = MatMul(a, v)
        c, d = acme.Magic <level: int = 3, words: strings = ["a", "b"]> (b, w)
        e = MatMul(d, v)  y = MatMul(e, w)  z = Neg(c)
    }}"""
    result = optimised(with_domain(body, "acme"), verified=False)
    assert "could not be run" in result.report.verification.reason
    (magic,) = [n for n in result.model.graph.node if n.op_type == "Magic"]
    assert magic.domain == "acme" and len(magic.input) == len(magic.output) == 2
    assert {a.name: helper.get_attribute_value(a) for a in magic.attribute} == {"level": 3, "words": [b"a", b"b"]}
    assert {o.domain: o.version for o in result.model.opset_import}["acme"] == 1
    assert count(result, "MatMul") <= 3  # the two maps after Magic may stay apart: what it makes is of unknown rank


def test_local_functions_are_inlined_and_rewritten() -> None:
    proto = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 20, "mine": 1]>
        main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ a = mine.layer(x, w)  b = mine.layer(a, v)  y = Relu(b) }}
        <domain: "mine", opset_import: ["": 20]> layer (p, q) => (r) {{ r = MatMul(p, q) }}""")
    assert optimised(proto).report.after.ops == {"MatMul": 1, "Relu": 1}


# --- shapes and types


def test_symbolic_shapes() -> None:
    body = f"""main (float[batch, length, 3] x, float[batch, length, 3] r) => (float[batch, length, 3] y, int64[3] s) <{W3}> {{
        a = MatMul(x, w)  b = MatMul(x, v)  c = Add(a, b)  d = Add(c, r)  y = Tanh(d)  s = Shape(y)
    }}"""
    proto = parse(body)
    result = optimised(proto, feeds=[made_up(proto, {"batch": b, "length": n}) for b, n in ((1, 1), (2, 5), (3, 1))])
    assert count(result, "MatMul") == 1


def test_a_broadcast_between_symbols_is_not_a_sum_of_equals() -> None:
    """m may be 1 where n is not."""
    body = f"main (float[n, 3] x, float[m, 3] z) => (float[k, 3] y) <{W3}> {{ a = MatMul(x, w)  b = MatMul(z, v)  y = Add(a, b) }}"
    proto = parse(body)
    optimised(proto, feeds=[made_up(proto, {"n": n, "m": m}) for n, m in ((1, 4), (4, 1), (3, 3))], input_shapes=None)


def test_sizes_without_names() -> None:
    proto = parse(f"main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  u = MatMul(t, v)  y = Relu(u) }}")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    assert count(optimised(proto), "MatMul") == 1


def test_an_output_without_a_shape() -> None:
    proto = parse(f"main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert count(optimised(proto), "MatMul") == 1


def test_reshapes_by_shape_arithmetic() -> None:
    body = f"""main (float[n, 6] x) => (float[n, 2, 3] y) <{W3}, int64[1] zero = {{0}}, int64[2] rest = {{2, 3}}> {{
        s = Shape(x)  n1 = Gather(s, zero)  shape = Concat <axis = 0> (n1, rest)  r = Reshape(x, shape)  t = MatMul(r, w)  y = MatMul(t, v)
    }}"""
    proto = parse(body)
    result = optimised(proto, feeds=[made_up(proto, {"n": n}) for n in (1, 4)])
    assert count(result, "MatMul") == 1


@pytest.mark.parametrize(("kind", "rtol"), [("float16", 4e-3), ("double", 1e-12)])
def test_other_precisions(kind: str, rtol: float) -> None:
    dtype = "float16" if kind == "float16" else "float64"
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["x", "p"], ["b"]), helper.make_node("MatMul", ["b", "q"], ["c"]),
            helper.make_node("Mul", ["c", "s"], ["d"]), helper.make_node("Add", ["a", "d"], ["e"]), helper.make_node("Relu", ["e"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n", 8])],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n", 8])],
        [numpy_helper.from_array((RNG.standard_normal(shape) / 4).astype(dtype), name)
         for name, shape in (("w", (8, 8)), ("p", (8, 2)), ("q", (2, 8)), ("s", ()))],
    )  # fmt: skip
    result = optimised(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), rtol=rtol)
    assert result.report.after.ops == {"MatMul": 1, "Relu": 1}
    assert {t.data_type for t in result.model.graph.initializer} == {helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


def test_integers_are_left_exact() -> None:
    body = """main (int64[n] x) => (int64[n] y) <int64[1] a = {3}, int64[1] b = {4611686018427387904}> {
        t = Mul(x, a)  u = Add(t, b)  v = Mul(u, a)  y = Sub(v, x)
    }"""
    optimised(body, feeds=[{"x": np.array([1, -5, 1 << 61, -(1 << 62)])}])


def test_strings_sequences_and_options() -> None:
    body = """main (string[n] s, float[2, 3] x) => (string[n] t, seq(float[2, 3]) q, bool has) {
        t = StringNormalizer <case_change_action = "UPPER"> (s)  r = Relu(x)  q = SequenceConstruct(x, r)  has = OptionalHasElement(x)
    }"""
    result = rewriter.optimize(parse(body))  # nothing to compare arrays of: it must not fail
    assert {n.op_type for n in result.model.graph.node} == {"StringNormalizer", "Relu", "SequenceConstruct", "OptionalHasElement"}


def test_no_elements() -> None:
    body = f"main (float[0, 3] x) => (float[0, 3] y) <{W3}> {{ t = MatMul(x, w)  u = MatMul(t, v)  y = Relu(u) }}"
    assert count(optimised(body), "MatMul") == 1


# --- unusual interfaces


def test_an_output_that_is_an_input() -> None:
    body = f"main (float[n, 3] x, float[n, 3] z) => (float[n, 3] z, float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}"
    assert count(optimised(body), "MatMul") == 1


def test_outputs_that_are_weights_or_made_of_them() -> None:
    body = f"""main (float[n, 3] x) => (float[n, 3] y, float[3, 3] w, float[3, 3] wv) <{W3}> {{
        t = MatMul(x, w)  y = MatMul(t, v)  wv = MatMul(w, v)
    }}"""
    assert count(optimised(body), "MatMul") == 1


def test_outputs_that_are_one_value() -> None:
    body = f"""main (float[n, 3] x) => (float[n, 3] y, float[n, 3] z, float[n, 3] u) <{W3}> {{
        t = MatMul(x, w)  u = MatMul(t, v)  y = Identity(u)  z = Identity(y)
    }}"""
    assert count(optimised(body), "MatMul") == 1


def test_an_output_listed_twice() -> None:
    proto = parse(f"main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}")
    proto.graph.output.append(proto.graph.output[0])
    assert count(optimised(proto), "MatMul") == 1


def test_an_intermediate_value_that_is_an_output_stays() -> None:
    result = optimised(f"main (float[n, 3] x) => (float[n, 3] t, float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}")
    assert count(result, "MatMul") == 2


def test_inputs_and_weights_that_nothing_reads() -> None:
    body = f"main (float[n, 3] x, float[7] unused) => (float[n, 3] y) <{W3}, float[100] dead = {{{', '.join('1' * 100)}}}> {{ y = MatMul(x, w) }}"
    result = optimised(body)
    assert [t.name for t in result.model.graph.initializer] == ["w"]


def test_a_model_without_inputs() -> None:
    result = optimised(f"main () => (float[3, 3] y) <{W3}> {{ t = MatMul(w, v)  y = Relu(t) }}", feeds=[{}])
    assert result.report.after.nodes <= 1


def test_weights_listed_as_inputs() -> None:
    proto = parse(f"main (float[n, 3] x, float[3, 3] w, float[3, 3] v) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}")
    proto.ir_version = 3
    proto.opset_import[0].version = 9
    assert len(proto.graph.input) == 3 and count(optimised(proto), "MatMul") == 1


def test_constant_nodes_are_weights() -> None:
    body = """main (float[n, 2] x) => (float[n, 2] y) {
        w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()  v = Constant <value = float[2, 2] {0, 1, 1, 0}> ()  t = MatMul(x, w)  y = MatMul(t, v)
    }"""
    assert optimised(body).report.after.ops == {"MatMul": 1}


STRANGE = {"x": "an input: 'x' \"\\n", "y": "%y/0", "t": "Ünïcode → t", "w": "a.b.c[0]", "v": "; drop"}


@pytest.mark.parametrize("names", [STRANGE, {"t": "y_1", "w": "r0_", "v": "node"}])
def test_names_are_the_users(names: dict[str, str]) -> None:
    """Also those that read like ours, or like egglog's."""
    proto = parse(f"main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  s = Add(t, w)  y = MatMul(s, v) }}")
    graph = proto.graph
    for owner in (*graph.input, *graph.output, *graph.initializer):
        owner.name = names.get(owner.name, owner.name)
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    x = {graph.input[0].name: RNG.standard_normal((3, 3)).astype("float32")}
    optimised(proto, feeds=[x])


def test_metadata_is_kept() -> None:
    proto = parse(f"main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}")
    proto.producer_name, proto.doc_string, proto.model_version = "me", "what it is", 7
    proto.graph.name = "my graph"
    helper.set_model_props(proto, {"author": "somebody"})
    after = optimised(proto).model
    assert (after.producer_name, after.doc_string, after.model_version, after.graph.name) == ("me", "what it is", 7, "my graph")
    assert {p.key: p.value for p in after.metadata_props} == {"author": "somebody"}


# --- options


def test_constants_disappear_from_the_inputs() -> None:
    body = f"""main (float[n, 3] x, float t) => (float[n, 3] y) <{W3}, float one = {{1}}> {{
        a = MatMul(x, w)  k = Sub(one, t)  b = Mul(a, k)  y = MatMul(b, v)
    }}"""
    proto = parse(body)
    result = rewriter.optimize(proto, constants={"t": 0.25})
    assert [v.name for v in result.model.graph.input] == ["x"] and result.report.after.ops == {"MatMul": 1}
    x = RNG.standard_normal((2, 3)).astype("float32")
    want = run_ort(proto, {"x": x, "t": np.array(0.25, "float32")})[0]
    np.testing.assert_allclose(run_ort(result.model, {"x": x})[0], want, rtol=1e-5)


def test_rules_none_and_disable() -> None:
    body = f"main (float[n, 3] x) => (float[n, 3] y) <{W3}> {{ t = MatMul(x, w)  y = MatMul(t, v) }}"
    assert count(optimised(body, rules="none"), "MatMul") == 2
    assert count(optimised(body, disable=("maps-compose",)), "MatMul") == 2
    assert count(optimised(body, disable="matmul"), "MatMul") == 2


def test_a_product_that_would_cost_more_is_left_apart() -> None:
    """Two thin matrices are cheaper than the square one that they make."""
    proto = wide(256, 4)
    assert count(optimised(proto), "MatMul") == 2
    assert rewriter.optimize(proto, objective="memory").report.after.weight_bytes <= rewriter.optimize(proto).report.before.weight_bytes


def wide(size: int, rank: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["t"]), helper.make_node("MatMul", ["t", "b"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, size])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, size])],
        [numpy_helper.from_array(RNG.standard_normal(s).astype("float32"), n) for n, s in (("a", (size, rank)), ("b", (rank, size)))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


# --- a search that fails


@dataclass(frozen=True)
class Chain:
    """Layers with an adapter each."""

    layers: int

    def proto(self) -> onnx.ModelProto:
        nodes, weights, x = [], [], "x"
        for i in range(self.layers):
            names = {k: f"{k}{i}" for k in "wabmnopqy"}
            nodes += [
                helper.make_node("MatMul", [x, names["w"]], [names["m"]]), helper.make_node("MatMul", [x, names["a"]], [names["n"]]),
                helper.make_node("MatMul", [names["n"], names["b"]], [names["o"]]), helper.make_node("Add", [names["m"], names["o"]], [names["p"]]),
                helper.make_node("Tanh", [names["p"]], [names["y"]]),
            ]  # fmt: skip
            weights += [(names["w"], (8, 8)), (names["a"], (8, 2)), (names["b"], (2, 8))]
            x = names["y"]
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])], [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 8])],
            [numpy_helper.from_array((RNG.standard_normal(s) / 3).astype("float32"), n) for n, s in weights],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(
    ("limits", "stop"),
    [({"nodes": 10}, "nodes"), ({"rounds": 1}, "rounds"), (Limits(rounds=1, nodes=10), "nodes"), ({"seconds": 0.01}, "failed"), ({"memory_mb": 1}, "failed")],
)
def test_a_search_that_is_cut_short_gives_a_right_model_and_says_so(limits: Any, stop: str) -> None:
    result = optimised(Chain(20).proto(), limits=limits, smooth=False)
    assert result.report.egraph["stop"] == stop
    assert any("search" in note for note in result.report.notes), result.report.notes


def test_a_search_without_limits_merges_everything() -> None:
    result = optimised(Chain(20).proto())
    assert result.report.after.ops == {"MatMul": 20, "Tanh": 20} and result.report.notes == []


def test_steps_are_told() -> None:
    told: list[str] = []
    rewriter.optimize(Chain(1).proto(), step=told.append)
    assert told == ["reading", "normalising", "searching", "verifying"]
