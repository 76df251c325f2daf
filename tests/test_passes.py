"""The passes after the search: each one's text before and after, that it keeps the meaning, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import assert_same, parse, read, run, run_ort

from passes.compose import compose
from passes.drop_dead import drop_dead
from passes.fold_weights import fold_weights
from passes.pack_weights import pack_weights
from passes.share_weights import share_weights
from rewriter.infer_onnx import infer
from rewriter.text import text

Golden = Callable[[str], None]


def check(golden: Golden, body: str, step: Callable[[ir.Model], object], **sizes: int) -> ir.Model:
    model = read(body)
    before = text(model)
    step(model)
    infer(model)
    golden(f"before\n{before}\n\nafter\n{text(model)}")
    for seed in range(3):
        assert_same(parse(body), model, 1e-6, seed, engine=run, **sizes)
    return model


def test_compose(golden: Golden) -> None:
    check(
        golden,
        """main (float[2,3,4,4] x, float[5,3] u, float[5,2] p) => (float[2,2,4,4] c, float[2,3,4,4] n, float[5,2] g, float[5,2] d, float[5,6] k)
        <float[2,3,1,1] K = {1.0,2.0,3.0,4.0,5.0,6.0}, float[2,1,1] b = {1.0,2.0}, float[1,3,1,1] s = {2.0,3.0,4.0}, float[3,1,1] t = {5.0,6.0,7.0},
         float[3,2] W = {1.0,2.0,3.0,4.0,5.0,6.0}, float[2] v = {1.0,2.0}>
        { y = Conv(x, K)  c = Add(y, b)
          m = Mul(x, s)  n = Add(t, m)
          q = MatMul(u, W)  g = Add(q, v)
          h = Neg(p)  d = Add(g, h)
          e = Concat<axis=1>(d, p)  k = Concat<axis=1>(e, g) }""",
        compose,
    )


def test_compose_leaves_what_others_read_or_does_not_fit() -> None:
    """A product that is also an output, a bias that repeats, a bias along another axis."""
    body = """main (float[5,3] u, float[1,2,2,2] x) => (float[5,2] q, float[5,2] g, float[1,2,2,2] n, float[3,5,2] r)
        <float[3,2] W = {1.0,2.0,3.0,4.0,5.0,6.0}, float[2] v = {1.0,2.0}, float[2] w = {3.0,4.0}, float[3,1,2] z = {1.0,2.0,3.0,4.0,5.0,6.0},
         float[2,2,1,1] K = {1.0,2.0,3.0,4.0}>
        { q = MatMul(u, W)  g = Add(q, v)  c = Conv(x, K)  n = Add(c, w)  p = MatMul(u, W)  r = Add(p, z) }"""
    model = compose(read(body))
    assert sorted(n.op_type for n in model.graph) == ["Add", "Add", "Add", "Conv", "MatMul", "MatMul"]
    assert_same(parse(body), model, 0.0, 0, engine=run)


def test_drop_dead(golden: Golden) -> None:
    check(golden, "main (float[n] x) => (float[n] b) <float[1] w = {1.0}> { a = Relu(x)  c = Add(a, w)  b = Exp(x) }", drop_dead, n=3)


def test_share_weights(golden: Golden) -> None:
    check(
        golden,
        """main (float[n,2] x) => (float[n,2] z) <float[2,2] W = {1.0,2.0,3.0,4.0}, float[2,2] V = {1.0,2.0,3.0,4.0}, float[2,2] U = {1.0,2.0,3.0,-4.0}>
        { y = MatMul(x, W)  w = MatMul(y, V)  z = MatMul(w, U) }""",
        share_weights,
        n=3,
    )


def test_zeros_of_different_sign_and_types_are_not_shared() -> None:
    body = """main (float[2] x) => (float[2] y, int64[2] i) <float[2] p = {0.0,0.0}, float[2] m = {-0.0,-0.0}, int64[2] k = {0,0}, int64[2] x2 = {1,1}>
        { a = Div(x, p)  b = Div(x, m)  y = Add(a, b)  i = Add(k, x2) }"""
    model = read(body)
    assert share_weights(model) == {}


def test_fold_weights(golden: Golden) -> None:
    check(
        golden,
        """main (float[n,2] x) => (float[n,3] y) <float[3,2] W = {1.0,2.0,3.0,4.0,5.0,6.0}, float[3] s = {2.0,4.0,8.0}>
        { V = Transpose<perm=[1,0]>(W)  U = Mul(V, s)  y = MatMul(x, U) }""",
        lambda model: (fold_weights(model), drop_dead(model)),
        n=3,
    )


def test_the_weight_program_folds_other_weights_the_same_way() -> None:
    body = """main (float[n,2] x) => (float[n,3] y) <float[3,2] W = {1.0,2.0,3.0,4.0,5.0,6.0}, float[3] s = {2.0,4.0,8.0}>
        { V = Transpose<perm=[1,0]>(W)  U = Mul(V, s)  y = MatMul(x, U) }"""
    program = fold_weights(read(body))
    assert program is not None and set(program.inputs) == {"W", "s"}
    state = {"W": np.arange(6, dtype=np.float32).reshape(3, 2), "s": np.float32([1, 10, 100])}
    ((name, folded),) = program.evaluate(state.__getitem__)
    assert name == program.outputs[0] and folded.dtype == np.float32
    np.testing.assert_array_equal(folded, state["W"].T * state["s"])


def test_packed_weights_stay_packed() -> None:
    """int8 with a scale unpacks to four times the bytes: whoever runs the model unpacks it, as before."""
    numbers = ",".join(str(i % 100) for i in range(200 * 200))
    body = f"""main (float[n,200] x) => (float[n,200] y) <int8[200,200] q = {{{numbers}}}, float s = {{0.5}}>
        {{ c = Cast<to=1>(q)  W = Mul(c, s)  y = MatMul(x, W) }}"""
    model = read(body)
    assert fold_weights(model) is None and len(list(model.graph)) == 3


def test_a_weight_that_is_an_output_keeps_its_name() -> None:
    body = "main (float[2] x) => (float[2] y, float[2] W) <float[2] a = {1.0,2.0}> { W = Neg(a)  y = Add(x, W) }"
    model = read(body)
    fold_weights(model)
    infer(model)
    assert [v.name for v in model.graph.outputs] == ["y", "W"]
    assert_same(parse(body), model, 0.0, 0, engine=run)


def bytes_of(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def test_the_smallest_weights_are_those_that_are_shared() -> None:
    """W + b_i a_i of one W: merged they are two matrices, unmerged one and four vectors."""
    ramp = ",".join(f"{i % 7}.5" for i in range(64))
    body = f"""main (float[n,8] x) => (float[n,8] y) <float[8,8] W = {{{ramp}}}, float[8,1] b = {{1,2,3,4,5,6,7,8}}, float[1,8] a = {{1,0,1,0,1,0,2,1}},
        float[8,1] d = {{8,7,6,5,4,3,2,1}}, float[1,8] c = {{1,1,1,0,1,3,2,1}}>
        {{ p = MatMul(b, a)  V = Add(W, p)  u = MatMul(x, V)  r = Relu(u)  q = MatMul(d, c)  U = Add(W, q)  y = MatMul(r, U) }}"""
    fast, small = read(body), read(body)
    fold_weights(fast)
    fold_weights(small, smallest=True)
    for model in (fast, small):
        drop_dead(model)
        infer(model)
        assert_same(parse(body), model, 1e-6, n=3)
    assert bytes_of(fast) == 2 * 256 and bytes_of(small) == 256 + 4 * 32


def test_the_smallest_weight_is_evaluated_where_that_is_smaller() -> None:
    """A product that has fewer elements than its factors."""
    body = """main (float[n,2] x) => (float[n,2] y) <float[2,4] A = {1,2,3,4,5,6,7,8}, float[4,2] B = {1,0,2,1,0,1,3,1}>
        { W = MatMul(A, B)  y = MatMul(x, W) }"""
    model = read(body)
    fold_weights(model, smallest=True)
    drop_dead(model)
    assert bytes_of(model) == 16
    assert_same(parse(body), model, 1e-6, n=3)


@pytest.mark.parametrize(("values", "shape", "bits"), [(2, (16, 24), 1), (4, (16, 24), 2), (9, (15, 30), 4), (200, (50, 51), 8), (2, (4, 3, 10), 1)])
def test_few_valued_weights_are_packed_bit_for_bit(values: int, shape: tuple[int, ...], bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(values).astype("float32")[rng.integers(values, size=shape)]
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.Tensor(weight, name="w"))
    node = ir.Node("", "Mul", [x, w], outputs=[ir.Value(name="y", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20}, name="g"), ir_version=9)
    before = ir.to_proto(model)
    assert pack_weights(model) == ["w"]
    drop_dead(model)
    infer(model)
    table = len(np.unique(weight)) * 4
    assert bytes_of(model) <= weight.size * bits / 8 + table + 8 + 1 + 24
    for engine in (run, run_ort):
        assert_same(before, model, 0.0, engine=engine)


def test_many_valued_and_small_weights_are_not_packed() -> None:
    many = ",".join(f"{i}.25" for i in range(300))
    body = f"main (float[300] x) => (float[300] y, float[2] z) <float[300] w = {{{many}}}, float[2] v = {{1, 1}}> {{ y = Add(x, w)  z = Neg(v) }}"
    assert pack_weights(read(body)) == []
