"""Adapters of every kind end as the plain network, by algebra: the reports say which laws, the arrays say it is right."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import rewriter
from zoo import adapters, ort

CASES = [(network, adapter) for network in adapters.NETWORKS for adapter in adapters.CONFIGS]
MIXES_GROUPS = {("grouped_conv", "lora"), ("grouped_conv", "dora")}
"""Here PEFT's A reads all groups, so that the sum is a dense convolution, which PEFT itself cannot merge."""


@pytest.mark.parametrize(("network", "adapter"), CASES)
def test_an_adapter_costs_nothing(network: str, adapter: str) -> None:
    """Same operators and sizes as the network without it, and PEFT's own merge agrees."""
    module, x = adapters.adapted(network, adapter), adapters.example(network)
    mixes = (network, adapter) in MIXES_GROUPS
    plain = rewriter.optimize(adapters.plain("conv" if mixes else network), (x,))
    merged = rewriter.optimize(module, (x,))

    assert merged.report.verification.passed
    assert merged.report.before.nodes > plain.report.before.nodes
    assert merged.report.after.ops == plain.report.after.ops
    assert merged.report.after.macs == plain.report.after.macs
    assert weight_shapes(merged) == weight_shapes(plain)

    with torch.no_grad():
        want = module(x).numpy()
        without = adapters.plain(network)(x).numpy()
        by_peft = want if mixes else copy.deepcopy(module).merge_and_unload()(x).numpy()
    got = ort.run(merged.model, ort.feed_of(merged.model, [x]))[0]
    assert ort.relative(got, want) < 1e-5
    assert ort.relative(got, by_peft) < 1e-5
    assert ort.relative(without, want) > 1e-2, "the adapter must change the outputs, else equality proves nothing"


def test_an_adapter_inside_the_groups_keeps_them() -> None:
    torch.manual_seed(0)
    module, x = adapters.GroupedAdapter().eval(), adapters.example("grouped_conv")
    result = rewriter.optimize(module, (x,))

    (conv,) = (node for node in result.ir_model.graph if node.op_type == "Conv")
    assert result.report.after.ops == {"Conv": 1}
    assert conv.attributes.get_int("group", 1) == 4
    with torch.no_grad():
        want = module(x).numpy()
    assert ort.relative(ort.run(result.model, ort.feed_of(result.model, [x]))[0], want) < 1e-5


def weight_shapes(result: rewriter.Optimized) -> list[tuple[int, ...]]:
    """Shapes of the weights of matrix products and convolutions, sorted."""
    values = {node.inputs[1] for node in result.ir_model.graph if node.op_type in ("MatMul", "Gemm", "Conv")}
    return sorted(tuple(int(str(d)) for d in v.shape) for v in values if v is not None and v.shape is not None)


def test_a_parallel_relu_adapter_becomes_one_wider_layer() -> None:
    x = adapters.example("linear")
    module = adapters.ParallelAdapter(F.relu).eval()
    result = rewriter.optimize(module, (x,))

    assert result.report.before.ops["Relu"] == 2
    assert result.report.after.ops == rewriter.optimize(adapters.ParallelAdapter(F.relu, adapted=False).eval(), (x,)).report.after.ops
    assert weight_shapes(result) == [(12, 24), (24, 12)]
    with torch.no_grad():
        want = module(x).numpy()
    assert ort.relative(ort.run(result.model, ort.feed_of(result.model, [x]))[0], want) < 1e-5


def test_gelu_beside_relu_is_left_alone_and_said_so() -> None:
    """max(0, x) and x Phi(x) are different functions: no wider layer computes both."""
    x = adapters.example("linear")
    module = adapters.ParallelAdapter(F.gelu).eval()
    result = rewriter.optimize(module, (x,))

    after = result.report.after.ops
    assert after["Relu"] == 1 and after["Gelu"] == 1
    assert after["MatMul"] == 4
    assert [d for d in result.report.declined if d["reason"] and d["site"]], "nothing says why the two were not merged"
    with torch.no_grad():
        want = module(x).numpy()
    assert ort.relative(ort.run(result.model, ort.feed_of(result.model, [x]))[0], want) < 1e-5
