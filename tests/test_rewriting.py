"""From ONNX text to ONNX text: what the algebra finds, which laws it needed, and that it is right. Near misses beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import assert_same, parse, read, run, run_ort

import rules
from passes import normalise
from passes.compose import compose
from passes.drop_dead import drop_dead
from passes.fold_weights import fold_weights
from passes.saturate import Search, saturate
from passes.share_weights import share_weights
from rewriter.egraph import Saturator
from rewriter.infer_onnx import infer
from rewriter.read_onnx import read_onnx
from rewriter.text import text

Golden = Callable[[str], None]


@pytest.fixture(scope="module")
def saturator() -> Iterator[Saturator]:
    with Saturator() as child:
        yield child


def rewrite(body: str, saturator: Saturator, objective: str = "latency") -> tuple[ir.Model, Search]:
    """The pipeline without its verification: a wrong law must show."""
    model = normalise(read(body))
    share_weights(model)
    infer(model)
    graph, search = saturate(model.graph, rules.ALL, saturator, objective=objective)
    model = ir.Model(graph, ir_version=model.ir_version)
    infer(model)
    compose(model)
    fold_weights(model)
    return drop_dead(model), search


def weight(name: str, *shape: int, seed: int = 0) -> str:
    """An initialiser in ONNX text with values that a sum or product shows."""
    values = np.random.default_rng((seed, *name.encode())).integers(-8, 9, shape) / 8
    dims = ",".join(map(str, shape))
    return f"float[{dims}] {name} = {{{','.join(f'{v:.3f}' for v in values.ravel())}}}"


PROGRAMS: dict[str, str] = {
    "lora": f"""main (float[n,3] x) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("A", 3, 1)}, {weight("B", 1, 2)}, float s = {{0.5}}>
        {{ p = MatMul(x, W)  q = MatMul(x, A)  r = MatMul(q, B)  t = Mul(r, s)  y = Add(p, t) }}""",
    "lora_around_a_residual": f"""main (float[n,3] x, float[n,2] h) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("b", 2)}, {weight("A", 3, 1)},
        {weight("B", 1, 2)}> {{ p = MatMul(x, W)  pb = Add(p, b)  u = Add(pb, h)  q = MatMul(x, A)  r = MatMul(q, B)  y = Add(u, r) }}""",
    "input_and_output_scales": f"""main (float[2,n,3] x) => (float[2,n,2] y) <{weight("l", 3)}, {weight("W", 3, 2)}, {weight("b", 2)}, {weight("m", 2)}>
        {{ u = Mul(x, l)  v = MatMul(u, W)  w = Add(v, b)  y = Mul(w, m) }}""",
    "bias_taken_away_and_put_back": f"""main (float[n,3] x) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("b", 2)}, {weight("m", 1, 2)}>
        {{ p = MatMul(x, W)  r = Add(p, b)  s = Sub(r, b)  t = Mul(m, s)  y = Add(r, t) }}""",
    "repvgg_block": f"""main (float[1,2,4,5] x) => (float[1,2,4,5] y) <{weight("K", 2, 2, 3, 3)}, {weight("P", 2, 2, 1, 1)}, {weight("c", 2)},
        {weight("g", 2)}, {weight("b", 2)}, {weight("m", 2)}, float[2] v = {{0.5, 2.0}}>
        {{ k = Conv<pads=[1,1,1,1]>(x, K, c)  p = Conv(x, P)  n = BatchNormalization(x, g, b, m, v)  s = Add(k, p)  y = Add(s, n) }}""",
    "grouped_and_dense_kernels": f"""main (float[1,4,4,4] x) => (float[1,4,4,4] y) <{weight("K", 4, 2, 3, 3)}, {weight("A", 1, 4, 3, 3)}, {weight("B", 4, 1, 1, 1)}>
        {{ k = Conv<pads=[1,1,1,1], group=2>(x, K)  a = Conv<pads=[1,1,1,1]>(x, A)  b = Conv(a, B)  y = Add(k, b) }}""",
    "mean_pool_beside_a_kernel": f"""main (float[1,2,5,5] x) => (float[1,2,5,5] y) <{weight("K", 2, 2, 3, 3)}>
        {{ k = Conv<pads=[1,1,1,1]>(x, K)  p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)  y = Add(k, p) }}""",
    "parallel_adapter": f"""main (float[n,3] x) => (float[n,3] y) <{weight("W", 3, 4)}, {weight("w", 4)}, {weight("V", 4, 3)}, {weight("D", 3, 1)},
        {weight("U", 1, 3)}, float s = {{4.0}}>
        {{ h = MatMul(x, W)  hb = Add(h, w)  r = Relu(hb)  p = MatMul(r, V)  d = MatMul(x, D)  e = Relu(d)  u = MatMul(e, U)
           t = Mul(u, s)  y = Add(p, t) }}""",
    "dead_branch": f"""main (float[n,3] x) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("A", 3, 1)}, float[1,2] B = {{0.0, 0.0}}>
        {{ p = MatMul(x, W)  q = MatMul(x, A)  e = Relu(q)  r = MatMul(e, B)  y = Add(p, r) }}""",
    "sum_from_zero": f"""main (float[n,3] x) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("V", 3, 2)}, float zero = {{0.0}}>
        {{ p = MatMul(x, W)  a = Add(p, zero)  q = MatMul(x, V)  y = Add(a, q) }}""",
    "shared_matrix": f"""main (float[n,3] x, float[n,3] z) => (float[n,2] y) <{weight("W", 3, 2)}>
        {{ p = MatMul(x, W)  q = MatMul(z, W)  y = Add(p, q) }}""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_found(name: str, golden: Golden, saturator: Saturator) -> None:
    """The golden text has the program after, and the laws that it rests on."""
    after, search = rewrite(PROGRAMS[name], saturator)
    laws = "\n".join(f"  {count} {rule}" for rule, count in sorted(search.rewrites.items()))
    golden(f"after\n{text(after)}\n\nlaws\n{laws}")
    for n in (1, 3):
        assert_same(parse(PROGRAMS[name]), after, 2e-6, n, engine=run, n=n)


NEAR_MISSES: dict[str, tuple[str, str]] = {
    # The border pixels of a padded convolution see zeros, not the bias.
    "bias_before_padding": (
        f"""main (float[1,1,3,3] x) => (float[1,1,3,3] y) <{weight("b", 1, 1, 1)}, {weight("K", 1, 1, 3, 3)}>
        {{ u = Add(x, b)  y = Conv<pads=[1,1,1,1]>(u, K) }}""",
        "Add",
    ),
    # ReLU beside GELU: the hidden layers cannot be one.
    "different_activations": (
        f"""main (float[n,3] x) => (float[n,3] y) <{weight("W", 3, 4)}, {weight("V", 4, 3)}, {weight("D", 3, 1)}, {weight("U", 1, 3)}>
        {{ h = MatMul(x, W)  r = Relu(h)  p = MatMul(r, V)  d = MatMul(x, D)  e = Gelu(d)  u = MatMul(e, U)  y = Add(p, u) }}""",
        "Gelu",
    ),
    # The adapter reads another tensor.
    "another_input": (
        f"""main (float[n,3] x, float[n,3] z) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("A", 3, 1)}, {weight("B", 1, 2)}>
        {{ p = MatMul(x, W)  q = MatMul(z, A)  r = MatMul(q, B)  y = Add(p, r) }}""",
        "Add",
    ),
    # Two strided kernels whose outputs agree in size at this image and not in position.
    "strides_that_do_not_meet": (
        f"""main (float[1,1,4,4] x) => (float[1,1,2,2] y) <{weight("K", 1, 1, 2, 2)}, {weight("L", 1, 1, 3, 3)}>
        {{ k = Conv<strides=[2,2]>(x, K)  l = Conv(x, L)  y = Add(k, l) }}""",
        "Add",
    ),
    # x[n,1] + b[3] repeats x: no bias.
    "a_constant_that_repeats_x": (
        f"""main (float[n,1] x) => (float[n,2] y) <{weight("b", 3)}, {weight("W", 3, 2)}> {{ u = Add(x, b)  y = MatMul(u, W) }}""",
        "Add",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name: str, saturator: Saturator) -> None:
    """What must not be merged is still there, and the numbers are the same."""
    body, kept = NEAR_MISSES[name]
    after, _ = rewrite(body, saturator)
    assert any(n.op_type == kept for n in after.graph)
    for n in (1, 3):
        assert_same(parse(body), after, 2e-6, n, engine=run, n=n)


def test_a_product_read_elsewhere_is_not_done_twice(saturator: Saturator) -> None:
    """x·W is an output and also gets a bias: one product and one sum, not two products."""
    body = f"""main (float[n,64] x) => (float[n,64] p, float[n,64] y) <{weight("W", 64, 64)}, {weight("b", 64)}>
        {{ p = MatMul(x, W)  y = Add(p, b) }}"""
    after, _ = rewrite(body, saturator)
    assert sorted(n.op_type for n in after.graph) == ["Add", "MatMul"]


def test_a_convolution_is_not_done_twice_for_an_offset(saturator: Saturator) -> None:
    """h and h + 3 of a hard swish: an offset costs less than to convolve again with another bias."""
    body = f"""main (float[1,2,32,32] x) => (float[1,16,32,32] y) <{weight("K", 16, 2, 1, 1)}, {weight("b", 16)}, float three = {{3}}, float zero = {{0}}, float six = {{6}}>
        {{ h = Conv(x, K, b)  p = Add(h, three)  c = Clip(p, zero, six)  y = Mul(h, c) }}"""
    after, _ = rewrite(body, saturator)
    assert sorted(n.op_type for n in after.graph) == ["Add", "Clip", "Conv", "Mul"]


def test_low_rank_stays_where_merging_costs_more(saturator: Saturator) -> None:
    """(x·A)·B through a narrow middle is cheaper than x·(A·B), through a wide one dearer: the law holds for both, cost decides."""
    narrow = f"main (float[512,96] x) => (float[512,96] y) <{weight('A', 96, 1)}, {weight('B', 1, 96)}> {{ q = MatMul(x, A)  y = MatMul(q, B) }}"
    wide = f"main (float[512,8] x) => (float[512,8] y) <{weight('A', 8, 96)}, {weight('B', 96, 8)}> {{ q = MatMul(x, A)  y = MatMul(q, B) }}"
    assert len(list(rewrite(narrow, saturator)[0].graph)) == 2
    assert len(list(rewrite(wide, saturator)[0].graph)) == 1


def test_memory_keeps_a_weight_that_two_adapters_share(saturator: Saturator) -> None:
    """Merging each adapter into its copy of W is fastest and stores W twice: the objective decides (papers 7, 15, 46)."""
    body = f"""main (float[8,32] x, float[8,32] z) => (float[8,32] y, float[8,32] w) <{weight("W", 32, 32)}, {weight("A", 32, 1)}, {weight("B", 1, 32)},
        {weight("C", 32, 1)}, {weight("D", 1, 32)}>
        {{ p = MatMul(x, W)  q = MatMul(x, A)  r = MatMul(q, B)  y = Add(p, r)
           s = MatMul(z, W)  t = MatMul(z, C)  u = MatMul(t, D)  w = Add(s, u) }}"""
    fast, small = rewrite(body, saturator)[0], rewrite(body, saturator, "memory")[0]
    sizes = [sum(v.const_value.nbytes for v in m.graph.initializers.values() if v.const_value is not None) for m in (fast, small)]
    assert len(list(fast.graph)) == 2 and sizes[0] == 2 * 32 * 32 * 4
    assert sizes[1] == (32 * 32 + 4 * 32) * 4
    for model in (fast, small):
        assert_same(parse(body), model, 2e-6, 0, engine=run)


def test_names_of_inputs_outputs_and_untouched_values_stay(saturator: Saturator) -> None:
    body = f"""main (float[n,3] x) => (float[n,2] y, float[n,3] z) <{weight("W", 3, 2)}> {{ s = Softmax(x)  z = Relu(s)  y = MatMul(z, W) }}"""
    after, _ = rewrite(body, saturator)
    names = {v.name for n in after.graph for v in n.outputs}
    assert names == {"s", "z", "y"} and [v.name for v in after.graph.outputs] == ["y", "z"]


def test_an_input_returned_and_one_value_returned_twice(saturator: Saturator) -> None:
    body = "main (float[n,3] x) => (float[n,3] y, float[n,3] z, float[n,3] w) { y = Identity(x)  z = Relu(x)  w = Identity(z) }"
    after, _ = rewrite(body, saturator)
    assert [v.name for v in after.graph.outputs] == ["y", "z", "w"]
    assert_same(parse(body), after, 0.0, 0, engine=run_ort, n=2)


def test_extreme_shapes(saturator: Saturator) -> None:
    """Axes of length 1, where a vector, a number and a broadcast are easily mistaken for each other."""
    bodies = [
        f"main (float[1,1] x) => (float[1,1] y) <{weight('W', 1, 1)}, {weight('b', 1)}, {weight('s', 1)}> {{ u = Mul(x, s)  v = MatMul(u, W)  y = Add(v, b) }}",
        f"main (float[1,1,1,1] x) => (float[1,1,1,1] y) <{weight('K', 1, 1, 1, 1)}, {weight('b', 1, 1, 1)}> {{ u = Conv(x, K)  v = Add(u, b)  y = Add(v, x) }}",
        f"main (float[n,1,3] x) => (float[n,2,3] y) <{weight('b', 2, 1)}, {weight('W', 3, 3)}> {{ u = MatMul(x, W)  y = Add(u, b) }}",
        f"main (float[n,3] x) => (float[2,n,3] y) <{weight('b', 2, 1, 3)}, {weight('W', 3, 3)}> {{ u = MatMul(x, W)  y = Add(u, b) }}",
        f"main (float[3] x) => (float[2] y) <{weight('W', 3, 2)}, {weight('b', 2)}> {{ u = MatMul(x, W)  y = Add(u, b) }}",
    ]
    for body in bodies:
        after, _ = rewrite(body, saturator)
        assert_same(parse(body), after, 2e-6, 1, engine=run, n=1)


def test_a_search_is_a_function_of_its_input(saturator: Saturator) -> None:
    """Rule order does not matter, nor what was searched before."""
    body = PROGRAMS["repvgg_block"]
    first = ir.to_proto(rewrite(body, saturator)[0]).SerializeToString()
    rewrite(PROGRAMS["lora"], saturator)
    assert ir.to_proto(rewrite(body, saturator)[0]).SerializeToString() == first



def test_an_adapter_after_an_operator_that_nobody_knows(saturator: Saturator) -> None:
    """Not even the rank of x is known: the two branches still read one tensor and end in one width."""
    import onnx

    body = f"""main (float[n,3] x) => (float[n,2] y) <{weight("W", 3, 2)}, {weight("b", 2)}, {weight("A", 3, 1)}, {weight("B", 1, 2)}>
        {{ u = Relu(x)  p = MatMul(u, W)  v = Add(p, b)  q = MatMul(u, A)  r = MatMul(q, B)  y = Add(v, r) }}"""
    proto = parse(body)
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "who.knows", "Strange"
    proto.opset_import.append(onnx.helper.make_opsetid("who.knows", 1))
    del proto.graph.value_info[:]
    model = normalise(read_onnx(proto))
    graph, _ = saturate(model.graph, rules.ALL, saturator)
    model = ir.Model(graph, ir_version=9)
    fold_weights(model)
    assert sorted(n.op_type for n in drop_dead(model).graph) == ["Add", "MatMul", "Strange"]
