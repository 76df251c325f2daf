"""Candidates put into a graph one at a time: what they compute is their paper's formula, and what they refuse they name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

import rewriter
from backends import onnxruntime
from passes.approximate.averaged_experts import AveragedExperts, spread
from passes.approximate.blockwise_weights import BlockwiseWeights, coded
from passes.approximate.candidate import Approximation, Candidate, Refusal, Site, substituted
from passes.approximate.coded_tables import CodedTables
from passes.approximate.constant_gates import ConstantGates
from passes.approximate.dropped_blocks import DroppedBlocks, residuals
from passes.approximate.low_rank import LowRank, decomposed
from passes.approximate.mean_gates import MeanGates
from passes.approximate.rounding import output_error
from passes.calibrate import record, with_outputs
from rewriter.read_onnx import read_onnx

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)


def model(text: str, **weights: Array) -> ir.Model:
    made = parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]>\n{text}')
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items())
    return read_onnx(made)


def outputs(graph: ir.Model, x: Array) -> list[Array]:
    return list(onnxruntime.build(ir.to_proto(graph), threads=1)(x))


def proposed(kind: Approximation, graph: ir.Model, feeds: Iterable[Array]) -> tuple[list[Candidate], list[Refusal]]:
    wanted = kind.wants(graph)
    names = sorted(wanted.values | wanted.grams)
    probe = onnxruntime.build(ir.to_proto(with_outputs(graph, names)), threads=1)
    recorded = record(graph, names, wanted.grams, [{"x": x} for x in feeds], lambda feed: list(probe(feed["x"])))
    before = ir.to_proto(graph)
    found = list(kind.propose(Site(graph, recorded)))
    assert ir.to_proto(graph) == before, "proposing changes nothing"
    return [f for f in found if isinstance(f, Candidate)], [f for f in found if isinstance(f, Refusal)]


def bytes_of(graph: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)


def some(*shape: int, count: int = 24) -> list[Array]:
    return [RNG.standard_normal(shape).astype(np.float32) for _ in range(count)]


# Low rank


def test_low_rank_is_best_for_what_was_seen() -> None:
    """Inputs that lie in few directions: cut off for them, the layer loses nothing, though its weights are of full rank."""
    weights = RNG.standard_normal((160, 128)).astype(np.float32)
    basis = RNG.standard_normal((10, 160)).astype(np.float32)
    graph = model("g (float[9,160] x) => (float[9,128] y) { p = MatMul (x, w)\n y = Add (p, b) }", w=weights, b=RNG.standard_normal(128))
    feeds = [RNG.standard_normal((9, 10)).astype(np.float32) @ basis for _ in range(24)]
    found, _ = proposed(LowRank(), graph, feeds)
    thinnest = min(found, key=lambda c: c.bytes)
    assert thinnest.layer_error < 1e-5
    new = substituted(graph, [thinnest])
    np.testing.assert_allclose(outputs(new, feeds[0])[0], outputs(graph, feeds[0])[0], atol=0.02 * np.abs(outputs(graph, feeds[0])[0]).max())
    assert bytes_of(new) - bytes_of(graph) == thinnest.bytes < 0


def test_low_rank_of_a_convolution_with_a_window() -> None:
    weights = RNG.standard_normal((48, 40, 3, 3)).astype(np.float32)
    graph = model(
        "g (float[2,40,9,7] x) => (y) { y = Conv <strides=[2,1], pads=[1,1,0,1]> (x, w, b) }", w=weights, b=RNG.standard_normal(48)
    )  # fmt: skip
    found, _ = proposed(LowRank(), graph, some(2, 40, 9, 7, count=6))
    largest = max(found, key=lambda c: c.bytes)
    x = some(2, 40, 9, 7, count=1)[0]
    got, want = outputs(substituted(graph, [largest]), x)[0], outputs(graph, x)[0]
    assert got.shape == want.shape
    share = float(np.sum((got - want) ** 2) / np.sum(want**2))
    assert 0 < share < 4 * largest.layer_error + 0.05


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50))
def test_no_other_matrix_of_that_rank_is_nearer(outs: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, x = rng.standard_normal((outs, depth)), rng.standard_normal((40, depth)) * rng.uniform(0.1, 3, depth)
    gram = x.T @ x / len(x)
    left, right, energy = decomposed(weights, gram)
    for rank in range(1, min(outs, depth) + 1):
        near = left[:, :rank] @ right[:rank]
        assert np.isclose(output_error(weights, near, gram), energy[rank:].sum() / energy.sum(), atol=1e-2)
        u, s, vt = np.linalg.svd(weights, full_matrices=False)
        assert output_error(weights, near, gram) <= output_error(weights, (u[:, :rank] * s[:rank]) @ vt[:rank], gram) + 1e-3


# Weights in blocks


@pytest.mark.parametrize("bits, most", [(8, 2.2), (4, 7.5)])
def test_blocks_take_the_bytes_that_the_paper_says(bits: int, most: float) -> None:
    """4-bit codes in blocks of 128, with scales of 32 bits: 7.5 times smaller."""
    weights = RNG.standard_normal((256, 200)).astype(np.float32)
    graph = model("g (float[1,256] x) => (float[1,200] y) { y = MatMul (x, w) }", w=weights)
    feeds = some(1, 256)
    found, _ = proposed(BlockwiseWeights(), graph, feeds)
    (candidate,) = (c for c in found if f"{bits}-bit-blocks-of-128" in c.rewrite)
    new = substituted(graph, [candidate])
    assert bytes_of(graph) / bytes_of(new) >= most and bytes_of(new) - bytes_of(graph) == candidate.bytes
    x = some(1, 256, count=1)[0]
    error = np.abs(outputs(new, x)[0] - outputs(graph, x)[0])
    codes, scales = coded(weights.T, None, bits, 128)
    bound = (np.abs(x).reshape(1, 2, 128).sum(2) @ scales.T / 2).max()
    assert error.max() <= 3 * bound and float(candidate.bound.split()[-1]) > 0
    assert np.abs(codes).max() <= 2 ** (bits - 1) - 1


def test_a_block_of_zeros_and_an_operator_that_changes_with_the_opset() -> None:
    weights = RNG.standard_normal((128, 160)).astype(np.float32)
    weights[:32] = 0
    graph = model("g (float[3,128] x) => (float[3,160] y) { y = MatMul (x, w) }", w=weights)
    found, _ = proposed(BlockwiseWeights(), graph, some(3, 128))
    for candidate in found:
        assert np.isfinite(outputs(substituted(graph, [candidate]), some(3, 128, count=1)[0])[0]).all()
    text = "g (float[1,4,32,8] x) => (y, n) { n = GroupNormalization <num_groups=2> (x, s, o)\n f = Reshape (x, h)\n y = MatMul (f, w) }"
    made = parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}')
    arrays = {"s": np.ones(2, np.float32), "o": np.zeros(2, np.float32), "h": np.array([8, 128]), "w": weights}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    _, refused = proposed(BlockwiseWeights(), read_onnx(made), some(1, 4, 32, 8))
    assert [r.reason for r in refused] == ["it takes opset 21, in which GroupNormalization means something else"]


# Tables


def test_a_table_becomes_codes_with_a_scale_for_each_row() -> None:
    """Rows of very different size are coded as well as if each stood alone; the exact search leaves the codes codes."""
    table = (RNG.standard_normal((400, 64)) * np.exp(RNG.uniform(-4, 4, (400, 1)))).astype(np.float32)
    table[7] = 0
    text = "g (int64[2,5] x, float[2,5,64] p) => (y, z) { e = Gather (t, x)\n y = Add (e, p)\n f = Gather (t, x)\n z = Exp (f) }"
    graph = model(text, t=table)
    ids, p = RNG.integers(-400, 400, (2, 5)), some(2, 5, 64, count=1)[0]
    ids[0, 0] = 7
    wanted = CodedTables().wants(graph)
    found = list(CodedTables().propose(Site(graph, {})))
    (candidate,) = (f for f in found if isinstance(f, Candidate))
    assert {"x"} <= wanted.values and candidate.bytes == -(3 * table.nbytes // 4) + 4 * len(table)
    new = substituted(graph, [candidate])
    result = rewriter.optimize(new)
    assert bytes_of(result.ir_model) <= 0.3 * table.nbytes, "no law makes floats of the table"
    for proto in (ir.to_proto(new), result.model):
        y, z = onnxruntime.build(proto, threads=1)(ids, p)
        assert (np.abs((y - p) - table[ids]) <= np.abs(table[ids]).max(-1, keepdims=True) / 253 + 1e-6).all()
        assert (y[0, 0] == p[0, 0]).all() and z.shape == y.shape


def test_a_table_that_something_else_reads_stays() -> None:
    table = RNG.standard_normal((400, 64))
    text = "g (int64[3] x, float[2,64] p) => (y, z) { y = Gather (t, x)\n q = Transpose <perm=[1,0]> (t)\n z = MatMul (p, q) }"
    assert not list(CodedTables().propose(Site(model(text, t=table), {})))


# Residual branches


RESIDUAL = """g (float[2,5,16] x, float[2,5,1] m) => (float[2,5,16] z) {{
    a = MatMul (x, w1)\n k = Mul (a, m)\n r = Relu (k)\n b = MatMul (r, w2)\n y = Add ({0})\n c = MatMul (y, w1)\n d = Tanh (c)\n z = Add (d, y) }}"""


@pytest.mark.parametrize("order", ["x, b", "b, x"])
def test_a_branch_is_left_out(order: str) -> None:
    w1, w2 = RNG.standard_normal((2, 16, 16)).astype(np.float32) / 4
    graph = model(RESIDUAL.format(order), w1=w1, w2=w2)
    assert {(skip.name, total.name, len(branch)) for skip, total, branch in residuals(graph)} == {("x", "y", 4), ("y", "z", 2)}
    probe = onnxruntime.build(ir.to_proto(graph), threads=1)
    x, m = some(2, 5, 16, count=1)[0], some(2, 5, 1, count=1)[0]
    wanted = DroppedBlocks().wants(graph)
    recorder = onnxruntime.build(ir.to_proto(with_outputs(graph, sorted(wanted.values))), threads=1)
    recorded = record(graph, sorted(wanted.values), frozenset(), [{"x": x, "m": m}], lambda f: list(recorder(f["x"], f["m"])))
    first, second = (c for c in DroppedBlocks().propose(Site(graph, recorded)) if isinstance(c, Candidate))
    got = onnxruntime.build(ir.to_proto(substituted(graph, [first])), threads=1)(x, m)[0]
    np.testing.assert_allclose(got, x + np.tanh(x @ w1), atol=1e-5)
    assert first.bytes == -w2.nbytes, "w1 is read by the other branch, too"
    both = substituted(graph, [first, second])
    np.testing.assert_allclose(onnxruntime.build(ir.to_proto(both), threads=1)(x, m)[0], x, atol=0)
    y = x + np.maximum((x @ w1) * m, 0) @ w2
    assert np.isclose(first.layer_error, np.sum((y - x) ** 2) / np.sum(y**2), rtol=1e-4)
    assert probe(x, m)[0].shape == x.shape


def test_what_is_no_branch() -> None:
    """Read elsewhere, of another shape, not made from the stream, or given out as well."""
    w = RNG.standard_normal((8, 8)).astype(np.float32)
    texts = (
        "g (float[2,8] x) => (y, float[2,8] b) { a = MatMul (x, w)\n b = Relu (a)\n y = Add (x, b) }",
        "g (float[2,8] x) => (y, q) { a = MatMul (x, w)\n b = Relu (a)\n y = Add (x, b)\n q = Exp (a) }",
        "g (float[2,8] x) => (y, q) { a = MatMul (x, w)\n b = Relu (a)\n c = Tanh (b)\n y = Add (x, c)\n q = Exp (a) }",
        "g (float[1,8] x) => (y) { a = MatMul (x, w)\n b = Relu (a)\n c = Concat <axis=0> (b, b)\n y = Add (x, c) }",
        "g (float[2,8] x) => (y) { s = Exp (x)\n a = MatMul (x, w)\n b = Relu (a)\n y = Add (s, b) }",
    )
    for text in texts:
        found, refused = proposed(DroppedBlocks(), model(text, w=w), some(*((1, 8) if "[1,8]" in text else (2, 8))))
        assert not found and all("gives an output" in r.reason for r in refused), text


def test_a_branch_of_open_lengths_is_left_out_where_nothing_is_spread() -> None:
    """Which lengths are equal only what was recorded says."""
    graph = model(
        "g (float[n,4,h,w] x) => (y) { a = Conv <pads=[1,1,1,1]> (x, k)\n b = Relu (a)\n c = Conv (b, v)\n y = Add (c, x) }",
        k=RNG.standard_normal((6, 4, 3, 3)), v=RNG.standard_normal((4, 6, 1, 1)),
    )  # fmt: skip
    (candidate,), _ = proposed(DroppedBlocks(), graph, some(2, 4, 5, 7))
    assert candidate.site == "y"
    spread = "g (float[n,4] x) => (y) { a = MatMul (x, u)\n b = Relu (a)\n c = Concat <axis=0> (b, b)\n y = Add (c, x) }"
    found, _ = proposed(DroppedBlocks(), model(spread, u=RNG.standard_normal((4, 4))), some(1, 4))
    assert not found, "x has one row and the sum two"


# Experts


def experts(count: int, apart: float, shuffled: bool = False) -> list[list[Array]]:
    first = [RNG.standard_normal((12, 20)) / 3, RNG.standard_normal(20), RNG.standard_normal((20, 12)) / 4]
    made = []
    for _ in range(count):
        w1, b1, w2 = (a + apart * a.std() * RNG.standard_normal(a.shape) for a in first)
        order = RNG.permutation(20) if shuffled else np.arange(20)
        made.append([np.asarray(a, np.float32) for a in (w1[:, order], b1[order], w2[order])])
    return made


def relu_expert(x: Array, w1: Array, b1: Array, w2: Array) -> Array:
    return np.asarray(np.maximum(x @ w1 + b1, 0) @ w2)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_a_wide_layer_of_close_experts_becomes_one(count: int, shuffled: bool) -> None:
    group = experts(count, 0.01, shuffled)
    wide = [np.concatenate([e[k] for e in group], axis=(1, 0, 0)[k]) for k in range(3)]
    graph = model("g (float[6,12] x) => (float[6,12] y) { a = MatMul (x, w1)\n p = Add (a, b1)\n h = Relu (p)\n y = MatMul (h, w2) }",
                  w1=wide[0], b1=wide[1], w2=wide[2])  # fmt: skip
    found, _ = proposed(AveragedExperts(), graph, some(6, 12))
    (candidate,) = (c for c in found if c.rewrite == f"average-experts-{count}")
    new = substituted(graph, [candidate])
    x = some(6, 12, count=1)[0]
    want = sum(relu_expert(x, *e) for e in group)
    np.testing.assert_allclose(outputs(new, x)[0], want, atol=0.05 * np.abs(want).max())
    weights = {v.shape and tuple(v.shape) for v in new.graph.initializers.values()}
    assert weights == {(12, 20), (20,), (20, 12)}, "a plain layer of one expert's size"


def test_experts_that_lie_far_apart_are_refused_by_their_spread() -> None:
    group = experts(2, 0.9)
    wide = [np.concatenate([e[k] for e in group], axis=(1, 0, 0)[k]) for k in range(3)]
    graph = model("g (float[6,12] x) => (float[6,12] y) { a = MatMul (x, w1)\n p = Add (a, b1)\n h = Relu (p)\n y = MatMul (h, w2) }",
                  w1=wide[0], b1=wide[1], w2=wide[2])  # fmt: skip
    found, refused = proposed(AveragedExperts(), graph, some(6, 12))
    assert not found and "spread" in refused[0].reason
    assert spread([np.ones(3), np.ones(3)]) == 0 and np.isclose(spread([np.array([1.0, 0]), np.array([0, 1.0])]), 1.0)


@pytest.mark.parametrize("rest", ["", "x, "])
def test_gated_experts_become_one_times_the_gates(rest: str) -> None:
    """Σ g_e f_e is f̄ Σ g_e where the experts are equal, whatever the gates: here they do not sum to one."""
    (w1, b1, w2), other = experts(2, 0.0)[0], experts(1, 0.01)[0]
    del other
    text = f"""g (float[6,12] x) => (y) {{ g = MatMul (x, wr)\n g0, g1 = Split <axis=-1, num_outputs=2> (g)
        a0 = MatMul (x, u0)\n p0 = Add (a0, c0)\n h0 = Relu (p0)\n f0 = MatMul (h0, v0)\n t0 = Mul (g0, f0)
        a1 = MatMul (x, u1)\n p1 = Add (a1, c1)\n h1 = Relu (p1)\n f1 = MatMul (h1, v1)\n t1 = Mul (f1, g1)
        y = Sum ({rest}t0, t1) }}"""
    gates = RNG.standard_normal((12, 2))
    graph = model(text, wr=gates, u0=w1, c0=b1, v0=w2, u1=w1, c1=b1, v1=w2)
    found, _ = proposed(AveragedExperts(), graph, some(6, 12))
    (candidate,) = (c for c in found if c.site == "y")
    x = some(6, 12, count=1)[0]
    new = substituted(graph, [candidate])
    np.testing.assert_allclose(outputs(new, x)[0], outputs(graph, x)[0], atol=2e-5 * np.abs(outputs(graph, x)[0]).max())
    assert sum(n.op_type == "MatMul" for n in new.graph) == 3


def test_halves_of_one_map_are_not_equal() -> None:
    """Both come from one Split: the same node, and not the same numbers."""
    text = """g (float[6,12] x) => (y) { p = MatMul (x, w)\n s0, s1 = Split <axis=-1, num_outputs=2> (p)
        h0 = Relu (s0)\n f0 = MatMul (h0, v0)\n h1 = Relu (s1)\n f1 = MatMul (h1, v1)\n y = Add (f0, f1) }"""
    weights = {"w": RNG.standard_normal((12, 40)), "v0": RNG.standard_normal((20, 12)), "v1": RNG.standard_normal((20, 12))}
    found, _ = proposed(AveragedExperts(), model(text, **weights), some(6, 12))
    assert not found


# Gates


GATED = "g (float[1,6] x) => (y) { s = MatMul (x, w)\n c = Greater (s, t)\n g = Cast <to=1> (c)\n h = MatMul (x, v)\n y = Mul (h, g) }"


def test_a_gate_that_never_changed_becomes_what_it_was() -> None:
    weights = {"w": RNG.standard_normal((6, 4)), "v": RNG.standard_normal((6, 4))}
    graph = model(GATED, t=np.array([100.0, -100, 100, -100]), **weights)
    (candidate,), _ = proposed(ConstantGates(), graph, some(1, 6, count=40))
    assert "0.075" in candidate.bound, "three by forty"
    x = some(1, 6, count=1)[0]
    new = substituted(graph, [candidate])
    np.testing.assert_array_equal(outputs(new, x)[0], outputs(graph, x)[0])
    assert not any(n.op_type == "Greater" for n in new.graph)


def test_a_gate_that_changes_and_one_that_was_hardly_seen() -> None:
    weights = {"w": RNG.standard_normal((6, 4)), "v": RNG.standard_normal((6, 4)), "t": np.zeros(4)}
    for count, said in ((40, "it changes"), (5, "too few inputs")):
        found, refused = proposed(ConstantGates(), model(GATED, **weights), some(1, 6, count=count))
        assert not found and refused[0].reason.startswith(said)


EXCITED = """g (float[n,8,h,w] x) => (y) {
    c = Conv (x, k, b)\n r = Relu (c)\n p = GlobalAveragePool (r)\n d = Conv (p, k1)\n e = Relu (d)\n f = Conv (e, k2)\n g = HardSigmoid (f)
    m = Mul (GATED)\n TAIL }"""


def excited(order: str, tail: str) -> ir.Model:
    shapes = {"k": (8, 8, 1, 1), "b": (8,), "k1": (4, 8, 1, 1), "k2": (8, 4, 1, 1), "v": (6, 8, 1, 1), "q": (6, 8, 3, 3), "o": (6,)}
    weights = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    return model(EXCITED.replace("GATED", order).replace("TAIL", tail), **weights)


def seen(graph: ir.Model, feeds: Iterable[Array], *names: str) -> list[Array]:
    probe = onnxruntime.build(ir.to_proto(with_outputs(graph, list(names))), threads=1)
    found = [list(probe(x))[1:] for x in feeds]
    return [np.concatenate([f[k] for f in found]).astype(np.float64) for k in range(len(names))]


@pytest.mark.parametrize("order", ["r, g", "g, r"])
@pytest.mark.parametrize("tail", ["y = Conv (m, q)", "y = Exp (m)", "y = Conv (m, v)\n z = Exp (m)"])
def test_a_gate_on_channels_becomes_what_it_is_on_average(order: str, tail: str) -> None:
    """Read by a window, by something else, or twice: the least-squares constant of each channel."""
    graph, feeds = excited(order, tail), some(2, 8, 5, 7)
    (candidate,), refused = proposed(MeanGates(), graph, feeds)
    assert not refused and candidate.site == "m"
    h, g, m = seen(graph, feeds, "r", "g", "m")
    constant = ((g * h**2).sum((0, 2, 3)) / (h**2).sum((0, 2, 3)))[:, None, None]
    lost = np.sum((h * (g - constant)) ** 2) / np.sum(m**2)
    assert np.isclose(candidate.layer_error, lost, rtol=1e-5) and lost > 0
    new = substituted(graph, [candidate])
    (got,) = seen(new, feeds[:1], "m")
    np.testing.assert_allclose(got, h[:2] * constant, rtol=1e-4, atol=1e-6)
    assert all(np.sum((h * (g - f * constant)) ** 2) > lost * np.sum(m**2) for f in (0.98, 1.02)), "no other constant is nearer"
    if "q" in tail:
        assert [n.op_type for n in rewriter.optimize(new).ir_model.graph] == ["Conv", "Relu", "Conv"], "the constant is in the weights"


@pytest.mark.parametrize("tail", ["y = Conv (m, v)", "y = Conv (m, v, o)", "y = Conv <strides=[2,2]> (m, v, o)"])
def test_a_product_is_fitted_to_what_the_gate_scaled(tail: str) -> None:
    """As near as a product with an offset can be, and the gate's network is gone."""
    graph, feeds = excited("r, g", tail), some(2, 8, 5, 7)
    (candidate,), _ = proposed(MeanGates(), graph, feeds)
    new = substituted(graph, [candidate])
    assert [n.op_type for n in new.graph] == ["Conv", "Relu", "Conv"]
    (h,) = seen(graph, feeds, "r")
    got, wanted = (np.concatenate([outputs(made, x)[0] for x in feeds]) for made in (new, graph))
    if "strides" not in tail:
        rows, targets = (np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]) for a in (h, wanted))
        bar = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        best = float(np.sum((bar @ np.linalg.lstsq(bar, targets, rcond=None)[0] - targets) ** 2))
        assert 0.999 * best <= float(np.sum((got - wanted) ** 2)) <= 1.001 * best
    assert np.sum((got - wanted) ** 2) < 0.1 * np.sum(wanted**2)


def test_tokens_have_gates_too() -> None:
    text = "g (float[2,5,8] x) => (y) { one = Constant <value_ints=[1]> ()\n p = ReduceMean <keepdims=1> (x, one)\n g = Sigmoid (p)\n m = Mul (g, x)\n y = MatMul (m, w) }"
    graph, feeds = model(text, w=RNG.standard_normal((8, 3))), some(2, 5, 8)
    (candidate,), _ = proposed(MeanGates(), graph, feeds)
    new = substituted(graph, [candidate])
    assert [n.op_type for n in new.graph if n.op_type != "Constant"] == ["MatMul"]
    got, want = (np.concatenate([outputs(m, x)[0] for x in feeds]) for m in (new, graph))
    assert np.isclose(np.sum((got - want) ** 2) / np.sum(want**2), candidate.layer_error, rtol=1e-3)


def test_what_is_no_gate_on_channels() -> None:
    """Made of something else as well; as large; a number for each of an open number of places; a number for each sample; as large as what it scales."""
    w = RNG.standard_normal((8, 8)).astype(np.float32)
    texts = (
        "g (float[2,5,8] x) => (y) { h = MatMul (x, w)\n one = Constant <value_ints=[1]> ()\n p = ReduceMean <keepdims=1> (x, one)\n g = Sigmoid (p)\n y = Mul (h, g) }",
        "g (float[2,5,8] x) => (y) { p = MatMul (x, w)\n g = Sigmoid (p)\n y = Mul (x, g) }",
        "g (float[2,t,8] x) => (y) { two = Constant <value_ints=[2]> ()\n p = ReduceMean <keepdims=1> (x, two)\n g = Sigmoid (p)\n y = Mul (x, g) }",
        "g (float[2,5,8] x) => (y) { all = Constant <value_ints=[1, 2]> ()\n p = ReduceMean <keepdims=1> (x, all)\n g = Sigmoid (p)\n y = Mul (x, g) }",
        "g (float[2,1,8] x) => (y) { p = MatMul (x, w)\n g = Sigmoid (p)\n y = Mul (x, g) }",
    )
    for text in texts:
        graph = model(text, w=w)
        shape = (2, 1, 8) if "[2,1,8]" in text else (2, 5, 8)
        found, _ = proposed(MeanGates(), graph, some(*shape))
        assert not found, text
