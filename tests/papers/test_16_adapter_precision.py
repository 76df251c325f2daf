"""Adapters of one bit: weights are quantised to two values in every forward. They are constants, and pack into bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from papers.fixture import Paper, each, has, is_plain, normal, plain, right, through

PAPER = Paper(16, "fake quantisation is folded; memory: one bit a weight")
WIDTH, RANK, LEVEL = 64, 8, 0.798


def quantised(w: torch.Tensor) -> torch.Tensor:
    """As the paper's code: unbiased deviation, the epsilon in the division only, straight-through gradient."""
    mean, deviation = w.mean(), w.std()
    z = (w - mean) / (deviation + 1e-5)
    return (z.sign() * LEVEL - z).detach() * deviation + z * deviation + mean


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)
        self.down.weight.data, self.up.weight.data = normal(RANK, WIDTH, seed=2), normal(WIDTH, RANK, seed=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.relu(F.linear(x, quantised(self.down.weight))), quantised(self.up.weight))


class AdapterInSteps(Adapter):
    """The deviation is written out, the levels are chosen by comparison, the products are einsums."""

    @staticmethod
    def bits(w: torch.Tensor) -> torch.Tensor:
        centred = w - w.mean()
        deviation = (centred.square().sum() / (w.numel() - 1)).sqrt()
        return torch.where(centred > 0, LEVEL, -LEVEL).to(w.dtype) * deviation + w.mean()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("nd,rd->nr", x, self.bits(self.down.weight)).clamp(min=0)
        return torch.einsum("nr,dr->nd", hidden, self.bits(self.up.weight))


class Plain(Adapter):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(F.relu(self.down(x)))


def inputs() -> tuple[torch.Tensor]:
    return (normal(3, WIDTH),)


@each(straight_through=Adapter, steps=AdapterInSteps)
def test_quantisation_is_folded(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), inputs())
    is_plain(outcome, plain(Plain, inputs))
    record(PAPER, outcome)


@each(straight_through=Adapter, steps=AdapterInSteps)
def test_memory_packs_it_into_bits(module: Any, door: str) -> None:
    outcome = through(door, module(), inputs(), objective="memory")
    right(outcome)
    assert outcome.weight_bytes <= 2 * WIDTH * RANK // 8 + 64, f"{outcome.weight_bytes} bytes\n{outcome.graph}"


class BesideGelu(Adapter):
    """AdaptFormer's place: the adapter reads x with ReLU, the layer beside it LN(x) with GELU. Nothing merges but constants."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.f2(F.gelu(self.f1(F.layer_norm(x, (WIDTH,)))))


def test_an_adapter_beside_another_activation_stays() -> None:
    outcome = through("torch", BesideGelu().eval(), inputs())
    right(outcome)
    has(outcome, Relu=1, Gelu=1)
    assert outcome.products == 4, outcome.graph


class WithAZero(Adapter):
    """sign(0) is 0: a weight at the mean is a third level, not one of the two."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.down.weight.copy_(torch.sign(normal(RANK, WIDTH, seed=2)))
            self.down.weight.view(-1)[:4] = torch.tensor([0.0, 0.0, 1.0, -1.0])
            half = self.down.weight.numel() // 2
            self.down.weight.view(-1)[4:] = torch.tensor([1.0, -1.0]).repeat(half - 2)


def test_a_weight_at_the_mean_is_a_third_level() -> None:
    module = WithAZero().eval()
    assert quantised(module.down.weight).unique().numel() == 3
    for objective in ("latency", "memory"):
        right(through("torch", module, inputs(), objective=objective))


def test_other_values_of_packed_weights_need_another_compile() -> None:
    module = Adapter().eval()
    compiled = rewriter.compile(module, inputs(), backend="onnxruntime", objective="memory")
    x = inputs()[0]
    with torch.no_grad():
        np.testing.assert_allclose(compiled(x).numpy(), module(x).numpy(), rtol=0, atol=1e-5 * module(x).abs().max().item())
    with pytest.raises(rewriter.RewriterError, match="compile again"):
        compiled.update({name: 2 * value for name, value in module.state_dict().items()})
