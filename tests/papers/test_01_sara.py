"""SaRA: trained values are put over the small weights of a frozen layer. At inference that is one stored weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from papers.fixture import Outcome, Paper, each, is_plain, normal, plain, through

PAPER = Paper(1, "12 layers with sparse deltas are 12 plain layers, bit for bit")
WIDTH, LAYERS, THRESHOLD = 8, 12, 0.1


def weights(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frozen weight, the stored mask of its small entries, and what training made of them: no longer small."""
    w = normal(WIDTH, WIDTH, seed=i) / WIDTH**0.5
    mask = w.abs() < THRESHOLD
    return w, mask, normal(int(mask.sum()), seed=100 + i)


def merged(i: int) -> torch.Tensor:
    w, mask, p = weights(i)
    return w.masked_scatter(mask, p)


class IndexPut(nn.Module):
    """As the paper's code does it: the values are put into a copy by a boolean index."""

    def __init__(self, i: int) -> None:
        super().__init__()
        w, mask, p = weights(i)
        self.weight, self.p = nn.Parameter(w, requires_grad=False), nn.Parameter(p)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight.clone()
        w[self.mask] = self.p
        return F.linear(x, w)


class Scattered(nn.Module):
    """By positions in the flattened weight, and used as x W^T."""

    def __init__(self, i: int) -> None:
        super().__init__()
        w, mask, p = weights(i)
        self.kernel, self.values = nn.Parameter(w.flatten()), nn.Parameter(p)
        self.register_buffer("places", mask.flatten().nonzero()[:, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel.scatter(0, self.places, self.values).view(WIDTH, WIDTH).t()


class Selected(nn.Module):
    """A dense delta under a mask: W (1 - M) + M P, in an einsum."""

    def __init__(self, i: int) -> None:
        super().__init__()
        w, mask, p = weights(i)
        self.w, self.dense = nn.Parameter(w), nn.Parameter(torch.zeros_like(w).masked_scatter(mask, p))
        self.register_buffer("m", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,oi->no", x, torch.where(self.m, self.dense, self.w))


class Plain(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.w = nn.Parameter(merged(i))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w)


def network(layer: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(*(part for i in range(LAYERS) for part in (layer(i), nn.ReLU()))).eval()


def inputs() -> tuple[torch.Tensor]:
    return (normal(5, WIDTH, seed=99),)


def base() -> Outcome:
    return plain(plain_network, inputs, as_built=True)


def plain_network() -> nn.Module:
    return network(Plain)


@each(index_put=IndexPut, scatter=Scattered, where=Selected)
def test_a_sparse_delta_costs_nothing(module: Any, door: str, record: Any) -> None:
    outcome = through(door, network(module), inputs())
    is_plain(outcome, base())
    np.testing.assert_array_equal(outcome.outputs[0], base().outputs[0])
    record(PAPER, outcome)


class Written(IndexPut):
    """Writes into its own parameter: after a call it is another module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight[self.mask] = self.p
        return F.linear(x, self.weight)


def test_a_module_that_writes_its_weights_is_refused() -> None:
    module = Written(0).eval()
    with pytest.raises(rewriter.UnsupportedModel, match="weight"):
        rewriter.optimize(module, inputs())
    assert torch.equal(module.weight, weights(0)[0]), "the caller's weights were changed"
