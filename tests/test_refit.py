"""Layers fitted once more where others before them have changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import run_ort
from proposals import candidates, inputs, model, normal

from passes.approximate.candidate import substituted
from passes.approximate.pruned_channels import PrunedChannels
from passes.approximate.refit import Observe, refit
from passes.calibrate import Feed, Recorded, record, with_outputs

NETWORKS = {
    "linear": (
        """main (float[6,16] x) => (float[6,8] y) { a = MatMul(x, w1) ab = Add(a, b1) r = Relu(ab) c = MatMul(r, w2) cb = Add(c, b2) s = Add(cb, x)
        d = MatMul(s, w3) t = Tanh(d) y = Gemm(t, w4, b4) }""",
        {"w1": (16, 64), "b1": (64,), "w2": (64, 16), "b2": (16,), "w3": (16, 64), "w4": (64, 8), "b4": (8,)}, (6, 16),
    ),
    "convolutions": (
        """main (float[1,4,9,7] x) => (float[1,6,4,3] y) { a = Conv(x, w1) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Add(c, x)
        d = Conv(s, w3, b3) t = Relu(d) y = Conv<strides=[2,2], dilations=[1,1]>(t, w4) }""",
        {"w1": (64, 4, 1, 1), "w2": (4, 64, 3, 3), "b2": (4,), "w3": (64, 4, 1, 1), "b3": (64,), "w4": (6, 64, 3, 3)}, (1, 4, 9, 7),
    ),
}  # fmt: skip


def observe(feeds: list[Feed]) -> Observe:
    def seen(network: ir.Model, names: Sequence[str], most: int | None) -> dict[str, Recorded]:
        proto = ir.to_proto(with_outputs(network, names))
        return record(network, names, frozenset(), feeds[:most], lambda feed: run_ort(proto, feed))

    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_layer_makes_up_for_what_the_first_has_lost(name: str) -> None:
    body, shapes, shape = NETWORKS[name]
    weights = {n: normal(*s, scale=1 / np.sqrt(np.prod(s[1:])) if len(s) > 2 else 0.3) for n, s in shapes.items()}
    exact, feeds, others = model(body, **weights), inputs(*shape, count=256), inputs(*shape, count=64)
    sites = {c.site: c for c in candidates(PrunedChannels(), exact, feeds) if c.rewrite == "prune/channels-50%"}
    assert len(sites) == 2
    chosen = list(sites.values())
    plain = substituted(exact, chosen)
    fitted = substituted(exact, chosen)
    refit(fitted, exact, frozenset().union(*(c.fitted for c in chosen)), observe(feeds))
    want, before, after = ([run_ort(ir.to_proto(m), f)[0] for f in others] for m in (exact, plain, fitted))
    errors = [np.linalg.norm(np.subtract(got, want)) / np.linalg.norm(want) for got in (before, after)]
    assert errors[1] < 0.995 * errors[0]


def test_nothing_changes_where_nothing_was_lost() -> None:
    """Ridge and all: the layer as it was is the least-squares solution."""
    body, shapes, shape = NETWORKS["convolutions"]
    exact = model(body, **{n: normal(*s, scale=0.3) for n, s in shapes.items()})
    feeds = inputs(*shape, count=16)
    same = exact.clone()
    refit(same, exact, ["c", "y", "x", "unknown"], observe(feeds))
    want, got = (run_ort(ir.to_proto(m), feeds[0])[0] for m in (exact, same))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
