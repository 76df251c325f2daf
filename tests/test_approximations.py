"""What each approximate rewrite computes, against its paper's formula."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_text import run_ort
from proposals import RANDOM, applied, candidates, inputs, lost, model, normal, proposed

import rewriter
from passes import calibrate
from passes.approximate import elimination
from passes.approximate.binary_codes import BinaryCodes, binary_codes, by_tables
from passes.approximate.candidate import Refusal
from passes.approximate.few_levels import FewLevels, gaussian_levels, low_bit, ternary
from passes.approximate.int8_activations import DEEPEST, Int8Activations
from passes.approximate.int8_products import Int8Products
from passes.approximate.linear_attention import LinearAttention
from passes.approximate.log2_softmax import Log2Softmax, log_codes, powers
from passes.approximate.products import products
from passes.approximate.pruned_channels import PrunedChannels
from passes.approximate.rounding import activation_codes, fitted_codes, output_error, rounded, symmetric_scales
from passes.approximate.transported_scales import TransportedScales, _moved, reparameterised
from passes.approximate.truncated_kernels import TruncatedKernels
from passes.calibrate import Feed, Recorded, aligned, with_outputs
from rewriter.graph import weight_bytes
from zoo.ort import relative

Array = np.ndarray


LINEAR = "main (float[8,32] x) => (float[8,24] y) { y = MatMul(x, w) }"
CONVOLUTION = """main (float[1,8,9,9] x) => (float[1,16,9,9] y)
    { c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, k, b) r = Relu(c) y = Add(r, one) }"""
GEMM = "main (float[8,32] x) => (float[8,24] y) { y = Gemm<transB=1>(x, w, b) }"


# 8 bits (17)


@pytest.mark.parametrize("name", ["matmul", "gemm", "conv"])
def test_products_on_8_bits(name: str) -> None:
    exact, feeds = {
        "matmul": (model(LINEAR, w=normal(32, 24)), inputs(8, 32)),
        "gemm": (model(GEMM, w=normal(24, 32), b=normal(24)), inputs(8, 32)),
        "conv": (model(CONVOLUTION, k=normal(16, 8, 3, 3), b=normal(16), one=normal(1)), inputs(1, 8, 9, 9)),
    }[name]
    found = candidates(Int8Products(), exact, feeds)
    ways = {"", "-to-floats"} if name == "conv" else {"", "-integers"}
    assert {c.rewrite for c in found} == {f"quantise/int8-per-{each}{way}" for each in ("channel", "tensor") for way in ways}
    for candidate in found:
        assert lost(exact, candidate, feeds[3]) < 0.04, candidate.rewrite
        assert candidate.bytes < 0
        changed = ir.from_proto(applied(exact, candidate))
        assert abs(weight_bytes(changed) - weight_bytes(exact) - candidate.bytes) < 200


@pytest.mark.parametrize("depth", [1, 2, 7, 64])
def test_codes_whose_pairs_stay_within_16_bits(depth: int) -> None:
    """Where a kernel adds neighbours in 16 bits: the bound holds for every pair of codes, it costs less than a whole bit, and nothing without."""
    w = RANDOM.normal(size=(40, depth))
    w[0] = 1.0  # every pair is at its limit
    x = RANDOM.normal(size=(500, depth)) @ RANDOM.normal(size=(depth, depth))
    gram, partners = x.T @ x / 500, np.minimum(np.arange(depth) ^ 1, depth - 1)
    errors = []
    for bits, together in ((8, None), (8, partners), (7, None)):
        scales = symmetric_scales(w, bits, np.diag(gram), together)
        for codes in (rounded(w, scales, bits, together), fitted_codes(w, scales, bits, gram, partners=together)):
            pairs = codes.astype(int).reshape(40, -1, 2) if depth % 2 == 0 else np.pad(codes.astype(int), [(0, 0), (0, 1)]).reshape(40, -1, 2)
            sums = np.maximum(pairs, 0).sum(-1), np.minimum(pairs, 0).sum(-1)
            assert together is None or (sums[0].max() <= 128 and sums[1].min() >= -128)
        errors.append(output_error(w, codes * scales[:, None], gram))
    assert depth <= 2 or errors[0] < errors[1] < errors[2]


def test_partners_are_neighbours_where_kernels_read_channels_innermost() -> None:
    """Channel pairs of one tap in a convolution; none where an odd number of channels makes it depend on the kernel."""

    def partners(shape: tuple[int, ...]) -> np.ndarray | None:
        c, h, w = shape[1:]
        graph = model(f"main (float[1,{c},9,9] x) => (float[1,{shape[0]},{10 - h},{10 - w}] y) {{ y = Conv(x, w) }}", w=normal(*shape))
        (found,) = products(graph)
        return found.partners

    even = partners((5, 4, 3, 2))
    assert even is not None
    columns = np.arange(24).reshape(4, 3, 2)
    assert (even.reshape(4, 3, 2)[0] == columns[1]).all() and (even.reshape(4, 3, 2)[3] == columns[2]).all()
    assert partners((5, 3, 3, 3)) is None
    alone = partners((5, 3, 1, 1))
    assert alone is not None and alone.tolist() == [1, 0, 2]


def test_the_integer_product_is_the_fake_quantised_one() -> None:
    """s_x s_w (q·Q - z ΣQ) against dequantised numbers in float64."""
    w, x = normal(24, 32), normal(40, 32)
    codes = activation_codes(x.ravel(), float(x.min()), float(x.max()))
    scales = symmetric_scales(w, 8)
    q, weights = np.clip(np.round(x / codes.scale) + codes.zero, 0, 255).astype(np.int64), rounded(w, scales, 8).astype(np.int64)
    integer = codes.scale * scales.astype(np.float64) * (q @ weights.T - codes.zero * weights.sum(axis=1))
    fake = ((q - codes.zero) * codes.scale) @ (weights * scales.astype(np.float64)[:, None]).T
    assert relative(integer, fake) < 1e-9
    exact = model(LINEAR, w=w.T.copy())
    for candidate in candidates(Int8Products(), exact, [{"x": x[k * 8 : k * 8 + 8]} for k in range(5)]):
        reference, got = (run_ort(m, {"x": x[:8]})[0] for m in (ir.to_proto(exact), applied(exact, candidate)))
        assert relative(got, reference) < 0.05


def correlated(rows: int, depth: int) -> Array:
    return normal(rows, depth // 4) @ normal(depth // 4, depth) + 0.1 * normal(rows, depth)


@pytest.mark.parametrize("bits", [3, 4])
def test_layer_wise_calibration_beats_rounding(bits: int) -> None:
    """At 4 bits at most 0.7 of round-to-nearest's NMSE, on inputs that nothing was fitted to."""
    w, mix = normal(64, 128), normal(32, 128)
    x, other = (normal(n, 32) @ mix + 0.1 * normal(n, 128) for n in (1024, 512))
    gram = x.T.astype(np.float64) @ x / len(x)
    scales = symmetric_scales(w, bits)
    fitted, nearest = (c * scales[:, None] for c in (fitted_codes(w, scales, bits, gram), rounded(w, scales, bits)))
    held_out = other.T.astype(np.float64) @ other / len(other)
    assert output_error(w, fitted, held_out) <= 0.7 * output_error(w, nearest, held_out)


@settings(max_examples=40, deadline=None)
@given(st.floats(-50, 50), st.floats(0.01, 100), st.integers(0, 1000))
def test_zero_is_a_code(middle: float, spread: float, seed: int) -> None:
    x = (np.random.default_rng(seed).normal(size=500) * spread + middle).astype(np.float32)
    codes = activation_codes(x, float(x.min()), float(x.max()))
    assert 0 <= codes.zero <= 255
    assert codes.scale > 0


# Scales of channels (62)


def test_codes_of_the_tensor_are_those_of_the_channels() -> None:
    x = (normal(2000, 64) * np.exp(normal(64)) + normal(64)).astype(np.float64)
    low, high = x.min(axis=0), x.max(axis=0)
    whole, r, b = reparameterised(low, high)
    scales, zeros = (r.astype(np.float64) * whole.scale), np.round(whole.zero - b / whole.scale)
    channels = np.round(x / scales) + zeros
    tensor = np.round((x / r.astype(np.float64) - whole.scale * np.round(b / whole.scale)) / whole.scale) + whole.zero
    ties = np.abs(x / scales - np.floor(x / scales) - 0.5) < 1e-6
    assert x.size >= 1e5
    np.testing.assert_array_equal(channels[~ties], tensor[~ties])


def test_uneven_channels_lose_less_when_their_scales_move() -> None:
    spread = np.where(np.arange(64) % 16 == 0, 60.0, 1.0).astype(np.float32)
    exact = model("main (float[8,64] x) => (float[8,80] y) { h = MatMul(x, w) y = Relu(h) }", w=normal(64, 80) / spread[:, None])
    feeds = [{"x": normal(8, 64) * spread} for _ in range(32)]
    (moved,) = candidates(TransportedScales(), exact, feeds)
    plain = next(c for c in candidates(Int8Products(), exact, feeds) if c.rewrite == "quantise/int8-per-channel")
    assert lost(exact, moved, feeds[3]) < 0.5 * lost(exact, plain, feeds[3])
    even = [{"x": normal(8, 64)} for _ in range(32)]
    (refused,) = proposed(TransportedScales(), exact, even)
    assert isinstance(refused, Refusal) and "similar ranges" in refused.reason


def test_moments_of_moved_channels_are_of_all_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of inputs of which only some are kept, as far from each other as can be."""
    monkeypatch.setattr(calibrate, "KEPT", 100)
    rows = [normal(6, 9) + 50 * (k % 3) for k in range(32)]
    seen = calibrate.Recorded()
    for array in rows:
        seen.add(array, gram=True)
    gram, mean = seen.moments(), seen.mean()
    assert gram is not None and mean is not None and len(seen.samples) < 8
    r, b = np.abs(normal(9)) + 0.5, normal(9)
    moved = np.concatenate(rows).astype(np.float64) / r - b
    np.testing.assert_allclose(_moved(gram, mean, r, b), moved.T @ moved / len(moved), rtol=1e-5)


# Products of activations, probabilities (17, 62)

SCORES = """main (float[2,3,13,20] q, float[2,13,3,20] k, float[2,3,13,17] v) => (float[2,3,13,17] y)
    { t = Transpose<perm=[0,2,3,1]>(k) s = MatMul(q, t) p = Softmax<axis=-1>(s) y = MatMul(p, v) }"""
PAIRS = {
    "matrices": ("main (float[33,41] a, float[41,27] b) => (float[33,27] y) { y = MatMul(a, b) }", (33, 41), (41, 27)),
    "batches": ("main (float[2,1,33,41] a, float[3,41,27] b) => (float[2,3,33,27] y) { y = MatMul(a, b) }", (2, 1, 33, 41), (3, 41, 27)),
    "rows of one": ("main (float[16,1,41] a, float[16,41,27] b) => (float[16,1,27] y) { y = MatMul(a, b) }", (16, 1, 41), (16, 41, 27)),
    "depth of one": ("main (float[133,1] a, float[1,127] b) => (float[133,127] y) { y = MatMul(a, b) }", (133, 1), (1, 127)),
    "turned": ("main (float[5,33,41] a, float[27,5,41] b) => (float[5,33,27] y) { t = Transpose<perm=[1,2,0]>(b) y = MatMul(a, t) }", (5, 33, 41), (27, 5, 41)),
    "turned for others, too": (
        "main (float[33,41] a, float[27,41] b) => (float[33,27] y, float[41,27] z) { t = Transpose<perm=[1,0]>(b) y = MatMul(a, t) z = Relu(t) }", (33, 41), (27, 41),
    ),
}  # fmt: skip


def integer_product(a: Array, b: Array) -> Array:
    """s_a s_b (q_a·q_b - z_a Σ q_b - z_b Σ q_a + n z_a z_b), in whole numbers and float64."""
    ca, cb = (activation_codes(x.ravel(), float(x.min()), float(x.max())) for x in (a, b))
    qa, qb = (np.clip(np.round(x / np.float32(c.scale)) + c.zero, 0, 255).astype(np.int64) for x, c in ((a, ca), (b, cb)))
    sums = qa @ qb - ca.zero * qb.sum(-2, keepdims=True) - cb.zero * qa.sum(-1, keepdims=True) + a.shape[-1] * ca.zero * cb.zero
    return np.asarray(ca.scale * cb.scale * sums)


@pytest.mark.parametrize("name", PAIRS)
def test_products_of_activations_are_integer_products(name: str) -> None:
    """Both forms, against the formula; the shift of a's mean makes its zero point matter."""
    body, left, right = PAIRS[name]
    exact, feed = model(body), {"a": normal(*left) + np.float32(1.5), "b": normal(*right, scale=3.0) - np.float32(0.5)}
    found = candidates(Int8Activations(), exact, [feed])
    assert [c.rewrite for c in found] == ["quantise/int8-activations", "quantise/int8-activations-integers"]
    b = feed["b"] if "turned" not in name else feed["b"].transpose(1, 2, 0) if feed["b"].ndim == 3 else feed["b"].T
    want, real = integer_product(feed["a"], b), feed["a"].astype(np.float64) @ b
    share = np.sum((want - real) ** 2) / np.sum(real**2)
    for candidate in found:
        proto = applied(exact, candidate)
        assert relative(run_ort(proto, feed)[0], want) < 1e-5, candidate.rewrite
        assert np.isclose(candidate.layer_error, share, rtol=1e-3)
        alone = "too" not in name
        assert candidate.reads == {"a", "b" if alone else "t"} and candidate.bytes == 0
        turns = [n.input[0] for n in proto.graph.node if n.op_type == "Transpose"]
        assert len(turns) == ("turned" in name)
        if turns and "integers" in candidate.rewrite:
            makers = [n.op_type for n in proto.graph.node if turns[0] in n.output]
            assert makers == (["QuantizeLinear"] if alone else []), "codes are moved, where nobody else reads the moved numbers"


def test_a_product_with_itself_has_one_quantiser() -> None:
    exact, feed = model("main (float[33,33] a) => (float[33,33] y) { y = MatMul(a, a) }"), {"a": normal(33, 33)}
    for candidate in candidates(Int8Activations(), exact, [feed]):
        proto = applied(exact, candidate)
        assert [n.op_type for n in proto.graph.node].count("QuantizeLinear") == 1 and candidate.unit == (("a",), "y")
        assert relative(run_ort(proto, feed)[0], integer_product(feed["a"], feed["a"])) < 1e-5


def test_large_codes_side_by_side_do_not_saturate() -> None:
    """All codes are the largest: sums of two products of unsigned and signed bytes would not fit 16 bits."""
    exact = model("main (float[16,64] a, float[64,16] b) => (float[16,16] y) { y = MatMul(a, b) }")
    feed = {"a": np.ones((16, 64), np.float32), "b": np.ones((64, 16), np.float32)}
    for candidate in candidates(Int8Activations(), exact, [feed]):
        np.testing.assert_allclose(run_ort(applied(exact, candidate), feed)[0], 64.0, rtol=1e-5)


def test_products_of_activations_that_stay() -> None:
    text = "main (float[3,4] a, float[4,5] b) => (float[3,5] y) { y = MatMul(a, b) }"
    assert not proposed(Int8Activations(), model(text), [{"a": normal(3, 4), "b": normal(4, 5)}]), "too small"
    assert not proposed(Int8Activations(), model(LINEAR, w=normal(32, 24)), inputs(8, 32)), "weights are for quantise/int8"
    deep = DEEPEST + 1
    text = f"main (float[1,{deep}] a, float[{deep},1] b) => (float[1,1] y) {{ y = MatMul(a, b) }}"
    (found,) = proposed(Int8Activations(), model(text), [{"a": normal(1, deep), "b": normal(deep, 1)}])
    assert isinstance(found, Refusal) and "do not fit 32 bits" in found.reason
    text = "main (float[33,41] a, float[41,27] b) => (float[33,27] y) { y = MatMul(a, b) }"
    (found,) = proposed(Int8Activations(), model(text), [{"a": normal(33, 41) + np.float32(np.inf), "b": normal(41, 27)}])
    assert isinstance(found, Refusal) and "infinite" in found.reason


def scores(scale: float = 1.0) -> Feed:
    return {"q": normal(2, 3, 13, 20, scale=scale), "k": normal(2, 13, 3, 20), "v": normal(2, 3, 13, 17)}


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


LONG = """main (float[5,20] q, float[20,301] k, float[301,17] v) => (float[5,17] y)
    { s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v) }"""


@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_probabilities_are_written_as_powers_of_the_square_root_of_two(scale: float) -> None:
    """The paper's q = clamp(round(-2 log2(p / s))), s 2^(-q/2), and nothing for what lies beyond; s comes from the data, and what is later
    larger than it is s."""
    exact, feeds = model(LONG), [{"q": normal(5, 20, scale=scale), "k": normal(20, 301), "v": normal(301, 17)} for _ in range(6)]
    (found,) = candidates(Log2Softmax(), exact, feeds)
    proto = applied(exact, found)
    zero = next(int(numpy_helper.to_array(w)) for w in proto.graph.initializer if w.name.startswith("zero"))
    assert (zero > 15) == (scale < 1), "where all of 301 probabilities are small, so is the scale"
    s, losses = 2.0 ** ((15 - zero) / 2), []
    for feed in (*feeds, feeds[0] | {"q": 20 * feeds[0]["q"]}):
        p = np.maximum(softmax(feed["q"] @ feed["k"]), 1e-300)
        q = np.round(-2 * np.log2(p / s))
        ties = np.abs(np.abs(-2 * np.log2(p / s) - q) - 0.5) < 1e-4
        want = s * 2.0 ** (-np.maximum(q, 0) / 2) * (q <= 14)
        assert len(np.unique(want)) <= 16, "four bits"
        slack = (np.where(ties, want, 0) @ np.abs(feed["v"])) + 1e-5
        assert (np.abs(run_ort(proto, feed)[0] - want @ feed["v"].astype(np.float64)) <= slack).all()
        losses.append(np.sum((want @ feed["v"] - p @ feed["v"]) ** 2) / np.sum((p @ feed["v"]) ** 2))
    assert 0.5 * min(losses[:4]) < found.layer_error < 2 * max(losses[:4])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10_000))
def test_codes_to_the_base_of_the_root_are_codes_to_the_base_two(shift: int, seed: int) -> None:
    """2^(-⌈q/2⌉) (1 + (q mod 2)(√2 - 1)) is 2^(-q/2), and no probability is off by more than half a step but for those that are cut off."""
    p = np.append(np.random.default_rng(seed).random(200) ** 4, [0.0, 1.0])
    codes = log_codes(p, shift)
    q = 15 - codes.astype(int)
    np.testing.assert_allclose(powers(codes, shift), np.where(q < 15, 2.0 ** (-(q + shift) / 2), 0), rtol=1e-12)
    inside = (p <= 2 ** (-shift / 2)) & (p >= 2 ** (-(14 + shift) / 2))
    ratio = powers(codes, shift)[inside] / p[inside]
    assert ((ratio <= 2**0.25 + 1e-9) & (ratio >= 2**-0.25 - 1e-9)).all()


def test_masked_probabilities_stay_zero() -> None:
    """A token that a mask excludes weighs nothing, whether the mask is -inf or just large."""
    for cut in (-np.inf, -1e9):
        mask = np.triu(np.full((13, 13), cut, np.float32), 1)
        exact = model(SCORES.replace("p = Softmax<axis=-1>(s)", "m = Add(s, mask) p = Softmax<axis=-1>(m)"), mask=mask)
        feed = scores(0.05)
        (found,) = candidates(Log2Softmax(), exact, [feed])
        other = feed | {"v": feed["v"].copy()}
        other["v"][:, :, 1:] = 1e6
        first, second = (run_ort(applied(exact, found), f)[0] for f in (feed, other))
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first[:, :, 0], second[:, :, 0])


def test_probabilities_that_something_else_reads_stay() -> None:
    shared = SCORES.replace("y) {", "y) {").replace("=> (float[2,3,13,17] y)", "=> (float[2,3,13,17] y, float[2,3,13,13] p)")
    (found,) = proposed(Log2Softmax(), model(shared), [scores()])
    assert isinstance(found, Refusal) and "another reader" in found.reason
    assert not proposed(Log2Softmax(), model("main (float[3,4] x) => (float[3,4] y) { y = Softmax(x) }"), inputs(3, 4))


def test_attention_on_8_bits_and_its_parts_together() -> None:
    """Scores and values, with keys moved as codes; the two kinds for the values exclude each other."""
    exact, feeds = model(SCORES), [scores(0.3) for _ in range(4)]
    found = candidates(Int8Activations(), exact, feeds)
    assert {c.site for c in found} == {"s", "y"}
    for kind in ("quantise/int8-activations", "quantise/int8-activations-integers"):
        both = [c for c in found if c.rewrite == kind]
        proto = applied(exact, *both)
        want, got = (run_ort(m, feeds[0])[0] for m in (ir.to_proto(exact), proto))
        assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
        assert [n.op_type for n in proto.graph.node].count("QuantizeLinear") == 4
        again = rewriter.optimize(proto).model
        assert np.linalg.norm(run_ort(again, feeds[0])[0] - got) < 1e-3 * np.linalg.norm(want), "the exact search keeps what it is given"
        assert [n.op_type for n in again.graph.node].count("QuantizeLinear") == 4
    probabilities = next(c for c in found if c.site == "y")
    (logarithms,) = candidates(Log2Softmax(), exact, feeds)
    assert probabilities.covers & logarithms.covers == {"y"}
    assert probabilities.layer_error < logarithms.layer_error
    proto = applied(exact, logarithms)
    got, again = (run_ort(m, feeds[0])[0] for m in (proto, rewriter.optimize(proto).model))
    assert np.linalg.norm(again - got) < 1e-3 * np.linalg.norm(got)


def test_samples_of_values_that_were_recorded_together_are_of_the_same_inputs() -> None:
    few, many = Recorded(), Recorded()
    for k in range(40):
        few.add(np.full(3, k, np.float32), gram=False)
        many.add(np.full(1 << 18, k, np.float32), gram=False)
    assert len(many.samples) < len(few.samples)
    pairs = list(aligned(few, many))
    assert len(pairs) == len(many.samples) and all(a[0] == b[0] for a, b in pairs)


# Binary codes (18)


def test_tables_are_the_dequantised_product() -> None:
    alpha, signs, _ = binary_codes(normal(24, 64), 3)
    x = normal(5, 64).astype(np.float64)
    dequantised = (signs * alpha[:, None, :].astype(np.float64)).sum(axis=2)
    assert relative(by_tables(x, alpha, signs), x @ dequantised.T) < 1e-5


def test_binary_codes_get_better_with_every_round_and_bit() -> None:
    w = normal(48, 256)
    last = 1.0
    for bits in (1, 2, 3, 4):
        _, signs, errors = binary_codes(w, bits)
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))
        assert errors[-1] < last
        assert set(np.unique(signs)) == {-1, 1}
        last = errors[-1]
    assert set(np.unique(binary_codes(np.zeros((2, 8), np.float32), 2)[1])) <= {-1, 1}, "sign(0) is no third code"


def test_powers_of_two() -> None:
    alpha, _, _ = binary_codes(normal(16, 64), 3, power_of_two=True)
    exponents = np.log2(np.abs(alpha))
    np.testing.assert_allclose(exponents, np.round(exponents))


def test_three_bits_take_a_quarter_of_half_precision() -> None:
    exact = model("main (float[1,256] x) => (float[1,192] y) { y = MatMul(x, w) }", w=normal(256, 192))
    feeds = inputs(1, 256)
    three = next(c for c in candidates(BinaryCodes(), exact, feeds) if c.rewrite == "binary-codes/3-bit")
    changed = ir.from_proto(applied(exact, three))
    assert weight_bytes(changed) <= 0.25 * 2 * 256 * 192
    alpha, signs, _ = binary_codes(exact.graph.initializers["w"].const_value.numpy().T, 3)  # type: ignore[union-attr]
    want = feeds[0]["x"] @ (signs * alpha[:, None, :]).sum(axis=2).T
    assert relative(run_ort(ir.to_proto(changed), feeds[0])[0], want) < 1e-5


# Few levels (16, 60)


def test_levels_are_those_of_a_gaussian() -> None:
    np.testing.assert_allclose(gaussian_levels(1), [-0.798, 0.798], atol=2e-3)
    np.testing.assert_allclose(gaussian_levels(2), [-1.510, -0.453, 0.453, 1.510], atol=5e-3)


def test_one_bit_as_the_authors_code() -> None:
    w = normal(8, 64)
    mean, deviation = w.mean(), w.std(ddof=1)
    z = (w - mean) / (deviation + 1e-5)
    np.testing.assert_allclose(low_bit(w, 1), np.sign(z) * 0.798 * deviation + mean, atol=2e-3)


def test_ternary_is_the_best_multiple_of_the_signs() -> None:
    delta = normal(16, 64) * (RANDOM.random((16, 64)) < 0.2)
    approximated, error = ternary(delta)
    values = np.unique(approximated)
    assert len(values) == 3 and values[0] == -values[2] and values[1] == 0
    signs = np.sign(approximated)
    for factor in (0.9, 1.1):
        assert output_error(delta, factor * values[2] * signs, None) > error


def test_a_ternary_delta_takes_an_eighth_of_half_precision() -> None:
    exact = model("main (float[4,128] x) => (float[4,96] y) { y = MatMul(x, w) }", w=normal(128, 96))
    found = {c.rewrite: c for c in candidates(FewLevels(), exact, inputs(4, 128))}
    assert weight_bytes(ir.from_proto(applied(exact, found["levels/ternary"]))) <= 2 * 128 * 96 / 8 + 64
    assert weight_bytes(ir.from_proto(applied(exact, found["levels/1-bit"]))) <= 128 * 96 / 8 + 64
    errors = [found[f"levels/{n}-bit"].layer_error for n in (1, 2, 4)]
    assert errors == sorted(errors, reverse=True)


# Kernels (26), channels, attention (12)

CAUSAL = "main (float[1,4,96] x) => (float[1,4,96] y) { y = Conv<group=4, kernel_shape=[64], pads=[63,0]>(x, k) }"


def test_a_decayed_kernel_is_cut_within_its_bound() -> None:
    kernel = normal(4, 1, 64) * (0.8 ** np.arange(63, -1, -1)).astype(np.float32)
    exact, feeds = model(CAUSAL, k=kernel), inputs(1, 4, 96)
    found = candidates(TruncatedKernels(), exact, feeds)
    assert [c.rewrite for c in found] == [f"truncate/kernel-{n}" for n in (48, 32, 16, 8)]
    largest = max(float(np.abs(f["x"]).max()) for f in feeds)
    for candidate in found:
        taps = int(candidate.rewrite.rsplit("-", 1)[1])
        bound = largest * float(np.abs(kernel[..., : 64 - taps]).sum(axis=-1).max())
        assert candidate.bound.startswith(f"at most {bound:.3g} ")
        want, got = run_ort(ir.to_proto(exact), feeds[0])[0], run_ort(applied(exact, candidate), feeds[0])[0]
        assert float(np.abs(want - got).max()) <= bound * (1 + 1e-5)


def test_taps_without_padding_stay() -> None:
    found = proposed(
        TruncatedKernels(),
        model(CAUSAL.replace("[63,0]", "[0,0]").replace("y) {", "y) {").replace("4,96] y", "4,33] y"), k=normal(4, 1, 64)),
        inputs(1, 4, 96),
    )
    assert found and all(isinstance(f, Refusal) and "places of padding" in f.reason for f in found)


HIDDEN = {
    "linear": ("main (float[8,16] x) => (float[8,12] y) { h = MatMul(x, w) c = Add(h, b) r = Gelu(c) y = MatMul(r, v) }", (16, 64), (64, 12), (8, 16)),
    "gemm": ("main (float[8,16] x) => (float[8,12] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm<transB=1>(r, v) }", (16, 64), (12, 64), (8, 16)),
    "conv": (
        """main (float[1,4,9,9] x) => (float[1,12,9,9] y)
        { h = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b) r = Relu(h) d = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=64>(r, e) y = Conv(d, v) }""",
        (64, 4, 3, 3), (12, 64, 1, 1), (1, 4, 9, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_channels_that_others_can_stand_for_go_for_nothing(name: str) -> None:
    """Half of the hidden channels are copies: the layer that reads them is fitted to the other half."""
    body, first, second, shape = HIDDEN[name]
    opset = body.replace("main", "main", 1)
    axis = 0 if name == "conv" else 1
    w, b = normal(*first, scale=0.4), normal(64)
    for array, where in ((w, axis), (b, 0)):
        half = np.moveaxis(array, where, 0)
        half[32:] = half[:32]
    extra = {"e": np.repeat(normal(32, 1, 3, 3), 2, 0).reshape(2, 32, 1, 3, 3, order="F").reshape(64, 1, 3, 3)} if name == "conv" else {}
    if extra:
        extra["e"][32:] = extra["e"][:32]
    exact = model(opset, w=w, b=b, v=normal(*second), **extra)
    feeds = inputs(*shape, count=64)
    half = next(c for c in candidates(PrunedChannels(), exact, feeds) if c.rewrite == "prune/channels-75%")
    assert lost(exact, half, feeds[5]) < 0.25
    assert ir.from_proto(applied(exact, half)).graph.num_nodes() == exact.graph.num_nodes()


@pytest.mark.parametrize("name", HIDDEN)
def test_one_of_two_equal_channels_goes(name: str) -> None:
    """By what they contribute both would stay or both go; with half of them all that was there is still there."""
    body, first, second, shape = HIDDEN[name]
    w, b, v = normal(*first, scale=0.4), normal(64), normal(*second)
    extra = {"e": normal(64, 1, 3, 3)} if name == "conv" else {}
    for array, where in ((w, 0 if name == "conv" else 1), (b, 0), *((e, 0) for e in extra.values())):
        half = np.moveaxis(array, where, 0)
        half[32:] = half[:32]
    exact = model(body, w=w, b=b, v=v, **extra)
    feeds = inputs(*shape, count=64)
    half = next(c for c in candidates(PrunedChannels(), exact, feeds) if c.rewrite == "prune/channels-50%")
    assert half.layer_error < 2e-3 and lost(exact, half, feeds[5]) < 0.06, "the ridge's"
    proto = applied(exact, half)
    assert half.bytes == weight_bytes(ir.from_proto(proto)) - weight_bytes(exact)


def least_loss(weights: Array, h: Array, columns: Array) -> float:
    """tr((W - V P) H (W - V P)ᵀ) of the best V on those columns, by least squares on a root of H."""
    root = np.linalg.cholesky(h).T
    v = np.linalg.lstsq(root[:, columns], root @ weights.T.astype(np.float64), rcond=None)[0]
    return float(np.sum((root @ weights.T - root[:, columns] @ v) ** 2))


def reading(weights: Array, gram: Array, taps: int = 1) -> elimination.Reading:
    """Whose losses are as they are, and not parts of a whole."""
    one = elimination.Reading(weights, gram, None, taps)
    return replace(one, share=one.energy)


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("outputs", [1, 7])
def test_what_a_channel_costs_is_what_its_removal_loses(taps: int, outputs: int) -> None:
    """And weights and inverse afterwards are those of the problem without it."""
    weights, x = normal(outputs, 11 * taps), correlated(200, 11 * taps + 1)[:, 1:].astype(np.float64)
    one = reading(weights, x.T @ x / len(x), taps)
    h, left = one.damped(), elimination._Left.of(one)
    columns = np.arange(11 * taps)
    without = [np.delete(columns, np.arange(c * taps, (c + 1) * taps)) for c in range(11)]
    np.testing.assert_allclose(left.costs(), [least_loss(weights, h, kept) for kept in without], rtol=1e-6)
    kept = np.delete(columns, elimination._columns(np.array([4, 7]), taps))
    rest = left.without(np.array([4, 7]))
    np.testing.assert_allclose(rest.inverse, np.linalg.inv(h[np.ix_(kept, kept)]), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(rest.weights, np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ weights.T.astype(np.float64)).T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("taps", [1, 2])
def test_channels_go_in_the_order_that_costs_least(taps: int, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each the cheapest of all that are left, by solving every least-squares problem; and not much worse in batches.
    Of two layers that read them, one with other taps, the sum counts."""
    problems = [(t, normal(5, 13 * t), correlated(400, 13 * t).astype(np.float64)) for t in (taps, 1)[:layers]]
    readings = [reading(w, x.T @ x / len(x), t) for t, w, x in problems]

    def cost(kept: list[int]) -> float:
        return sum(least_loss(r.weights, r.damped(), elimination._columns(np.array(kept), r.taps)) for r in readings)

    alive, gone = list(range(13)), []
    while len(alive) > 4:
        gone.append(min(alive, key=lambda c: cost([k for k in alive if k != c])))
        alive.remove(gone[-1])
    quick = elimination._by_elimination(readings, 13, 4)
    monkeypatch.setattr(elimination, "BATCH", 1)
    order = elimination._by_elimination(readings, 13, 4)
    assert sorted(order) == sorted(quick) == list(range(13))
    assert list(order[4:][::-1]) == gone
    assert cost(list(quick[:4])) < 1.5 * cost(list(order[:4]))


def test_pruned_channels_lose_what_they_say_and_no_more_than_by_magnitude() -> None:
    exact = model(HIDDEN["linear"][0], w=normal(16, 64), b=normal(64), v=normal(64, 12))
    feeds = inputs(8, 16, count=64)
    h = np.concatenate([run_ort(ir.to_proto(with_outputs(exact, ["r"])), f)[1] for f in feeds]).astype(np.float64)
    v, gram = exact.graph.initializers["v"].const_value.numpy().T, h.T @ h / len(h)  # type: ignore[union-attr]
    magnitude = np.argsort(-np.linalg.norm(v, axis=0) * np.linalg.norm(exact.graph.initializers["w"].const_value.numpy(), axis=0))  # type: ignore[union-attr]
    found = candidates(PrunedChannels(), exact, feeds)
    assert [c.rewrite for c in found] == [f"prune/channels-{p}%" for p in (25, 38, 50, 75, 88)]
    for candidate, size in zip(found, (16, 24, 32, 48, 56), strict=True):
        both = [[run_ort(m, f)[0] for f in feeds] for m in (ir.to_proto(exact), applied(exact, candidate))]
        assert np.isclose(np.sum(np.subtract(*both) ** 2.0) / np.sum(np.square(both[0])), candidate.layer_error, rtol=0.01)
        assert candidate.layer_error <= elimination.keep([elimination.Reading(v, gram, None, 1)], magnitude[:size]).lost * 1.001


def attention(masked: bool = False) -> ir.Model:
    add = "s = Add(m, mask)" if masked else "s = Identity(m)"
    body = f"main (float[1,2,16,8] q, float[1,2,8,16] k, float[1,2,16,8] v) => (float[1,2,16,8] y) {{ a = MatMul(q, k) m = Mul(a, c) {add} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    return model(body, c=np.array(0.35, np.float32), **({"mask": np.triu(np.full((16, 16), -1e9, np.float32), 1)} if masked else {}))


def _attention_feeds() -> list[Feed]:
    return [{"q": normal(1, 2, 16, 8, scale=3), "k": normal(1, 2, 8, 16, scale=3), "v": normal(1, 2, 16, 8)} for _ in range(4)]


def test_untuned_linear_attention_is_another_function() -> None:
    exact = attention()
    for node in list(exact.graph):
        if node.op_type == "Identity":
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            exact.graph.remove(node, safe=True)
    feeds = _attention_feeds()
    (found,) = candidates(LinearAttention(), exact, feeds)
    assert lost(exact, found, feeds[0]) > 0.3
    assert found.layer_error > 0.1
    assert "Softmax" in {n.op_type for n in applied(exact, found).graph.node}


def test_masked_attention_is_refused_with_a_reason() -> None:
    (found,) = proposed(LinearAttention(), attention(masked=True), _attention_feeds())
    assert isinstance(found, Refusal) and "masked" in found.reason


def test_two_candidates_share_the_codes_of_what_both_read() -> None:
    exact = model("main (float[8,32] x) => (float[8,24] y, float[8,24] z) { y = MatMul(x, w) z = MatMul(x, v) }", w=normal(32, 24), v=normal(32, 24))
    chosen = [c for c in candidates(Int8Products(), exact, inputs(8, 32)) if c.rewrite == "quantise/int8-per-channel"]
    assert len(chosen) == 2
    kinds = [n.op_type for n in applied(exact, *chosen).graph.node]
    assert kinds.count("QuantizeLinear") == 1
