"""Channels that live and die together, and what is left when some of them go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from proposals import applied, candidates, inputs, lost, model, normal

from passes.approximate.hidden_channels import Hidden, hidden
from passes.approximate.pruned_channels import PrunedChannels
from passes.calibrate import Feed
from rewriter.graph import weight_bytes

Array = np.ndarray
C = 32


def copies(array: Array, axis: int = 0) -> Array:
    """The second half of the channels are the first half again."""
    moved = np.moveaxis(array, axis, 0)
    moved[C // 2 :] = moved[: C // 2]
    return array


SE = """g = GlobalAveragePool(h) f = Conv(g, f1, f1b) fr = Relu(f) s = Conv(fr, f2, f2b) t = HardSigmoid(s) k = Mul(h, t)"""
SHAPES = {
    "hard swish": (
        "main (float[1,4,7,5] x) => (float[1,6,7,5] y) { a = Conv(x, w, b) p = Add(a, three) c = Clip(p, zero, six) h = Mul(a, c) y = Conv(h, v) }",
        {}, 1, 1,
    ),
    "squeeze and excitation": (
        f"main (float[1,4,7,5] x) => (float[1,6,7,5] y) {{ a = Conv(x, w, b) h = Relu(a) {SE} y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(k, v) }}",
        {"f1": normal(8, C, 1, 1, scale=0.1), "f1b": normal(8), "f2": copies(normal(C, 8, 1, 1)), "f2b": copies(normal(C))}, 2, 2,
    ),
    "through depthwise": (
        "main (float[1,4,7,5] x) => (float[1,6,7,5] y) { a = Conv(x, w, b) h = Relu(a) d = Conv<kernel_shape=[3,1], pads=[1,0,1,0], group=32>(h, e, eb) "
        "q = Add(d, eb3) y = Conv(q, v) }",
        {"e": copies(normal(C, 1, 3, 1)), "eb": copies(normal(C)), "eb3": copies(normal(C, 1, 1))}, 1, 1,
    ),
    "of lines": (
        "main (float[1,4,35] x) => (float[1,6,33] y) { a = Conv(x, w, b) h = Mul(a, s) t = Tanh(h) y = Conv<kernel_shape=[3]>(t, v) }",
        {"s": copies(normal(C, 1))}, 1, 1,
    ),
    "gated": (
        "main (float[3,4] x) => (float[3,6] y) { a = MatMul(x, w) ab = Add(a, b) u = MatMul(x, w2) s = Sigmoid(ab) g = Mul(ab, s) h = Mul(g, u) "
        "m = MatMul(h, v) y = Add(m, vb) }",
        {"w2": copies(normal(4, C), 1), "vb": normal(6)}, 2, 1,
    ),
    "sum that goes on": (
        "main (float[1,4,7,5] x) => (float[1,6,7,5] y) { a = Conv(x, w, b) h = Relu(a) m = Conv(h, k1, k1b) mr = Relu(m) n = Conv(mr, k2, k2b) "
        "z = Add(h, n) y = Conv(z, v) }",
        {"k1": normal(8, C, 1, 1, scale=0.2), "k1b": normal(8), "k2": copies(normal(C, 8, 1, 1)), "k2b": copies(normal(C))}, 2, 2,
    ),
}  # fmt: skip


def example(name: str) -> tuple[ir.Model, list[Feed]]:
    body, extra, _, _ = SHAPES[name]
    linear = name == "gated"
    taps = (3, 3) if name == "squeeze and excitation" else (3,) if name == "of lines" else (1, 1)
    w, v = (copies(normal(4, C), 1), normal(C, 6)) if linear else (copies(normal(C, 4, *[1] * len(taps))), normal(6, C, *taps))
    constants = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)} if name == "hard swish" else {}
    shape = (3, 4) if linear else (1, 4, 35) if name == "of lines" else (1, 4, 7, 5)
    return model(body, w=w, b=copies(normal(C)), v=v, **extra, **constants), inputs(*shape, count=64)


@pytest.mark.parametrize("name", SHAPES)
def test_half_of_the_channels_are_copies_and_go(name: str) -> None:
    """From everything that makes them and reads them; what is left computes the same, up to the ridge's part."""
    exact, feeds = example(name)
    (part,) = (p for p in hidden(exact) if p.channels == C)
    assert (len(part.writers), len(part.readers)) == SHAPES[name][2:]
    half = next(c for c in candidates(PrunedChannels(), exact, feeds) if c.rewrite == "prune/channels-50%" and c.site == part.output.output)
    proto = applied(exact, half)
    assert lost(exact, half, feeds[0]) < 0.04 * (1 + len(part.readers))
    assert half.bytes == weight_bytes(ir.from_proto(proto)) - weight_bytes(exact)
    assert all(C not in i.dims for i in proto.graph.initializer), "no matrix has all of them"


def test_what_a_layer_loses_in_the_mean_its_offset_makes_up_for() -> None:
    """Channels that never change go for nothing: their part of the result is an offset."""
    w = np.concatenate([normal(4, C // 2), np.zeros((4, C // 2), np.float32)], axis=1)
    b = np.concatenate([normal(C // 2), np.full(C // 2, 5, np.float32)])
    body = "main (float[3,4] x) => (float[3,6] y) { a = MatMul(x, w) ab = Add(a, b) h = Relu(ab) m = MatMul(h, v) y = Add(m, vb) }"
    exact = model(body, w=w, b=b, v=normal(C, 6), vb=normal(6))
    feeds = inputs(3, 4, count=64)
    half = next(c for c in candidates(PrunedChannels(), exact, feeds) if c.rewrite == "prune/channels-50%")
    assert half.layer_error < 1e-3 and lost(exact, half, feeds[0]) < 0.05


REFUSED = {
    "an output of the graph": "main (float[1,4,7,5] x) => (float[1,6,7,5] y, float[1,32,7,5] h) { a = Conv(x, w, b) h = Relu(a) y = Conv(h, v) }",
    "two results": "main (float[1,4,7,5] x) => (float[1,6,7,5] y, float[1,6,7,5] z) { a = Conv(x, w, b) h = Relu(a) y = Conv(h, v) z = Conv(h, v2) }",
    "mixed channels": "main (float[1,4,7,5] x) => (float[1,6,7,5] y) { a = Conv(x, w, b) h = Softmax<axis=1>(a) y = Conv(h, v) }",
    "an input beside": "main (float[1,4,7,5] x, float[1,32,7,5] z) => (float[1,6,7,5] y) { a = Conv(x, w, b) h = Add(a, z) y = Conv(h, v) }",
    "a vector along another axis": "main (float[1,4,35] x) => (float[32,6,35] y) { a = Conv(x, w1, b) h = Mul(a, c) y = Conv(h, v1) }",
    "a number for each place": "main (float[1,4,7,5] x) => (float[1,6,7,5] y) { a = Conv(x, w, b) h = Mul(a, m) y = Conv(h, v) }",
    "a gate that others read": "main (float[1,4,7,5] x) => (float[1,6,7,5] y, float[1,8,1,1] fr) { a = Conv(x, w, b) h = Relu(a) "
    + SE + " y = Conv(k, v) }",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_are_seen_elsewhere_stay(name: str) -> None:
    gate = SHAPES["squeeze and excitation"][1]
    everything = {"w": normal(C, 4, 1, 1), "b": normal(C), "v": normal(6, C, 1, 1), "v2": normal(6, C, 1, 1), "m": normal(1, 1, 7, 5), **gate}
    everything |= {"w1": normal(C, 4, 1), "c": normal(C, 1, 1), "v1": normal(6, C, 1)}
    used = {k: a for k, a in everything.items() if f"{k})" in REFUSED[name] or f"{k}," in REFUSED[name]}
    assert [p for p in hidden(model(REFUSED[name], **used)) if p.channels == C] == []


def test_each_part_is_found_once_and_says_what_it_reads() -> None:
    exact, _ = example("sum that goes on")
    parts: list[Hidden] = list(hidden(exact))
    assert [p.inputs for p in parts] == [("x",)]
    assert {w.output for w in parts[0].writers} == {"a", "n"}
    assert [r.output for r in parts[0].readers] == ["m", "y"]
