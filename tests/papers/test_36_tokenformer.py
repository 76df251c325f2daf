"""TokenFormer: linear layers as attention over parameter tokens. Their keys on one input are one product; the normaliser stays."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(36, "one product with the keys of q, k and v; the factor sqrt(S) is in the values")
WIDTH, SLOTS = 12, 10


class Pattention(nn.Module):
    """gelu(x K^T) over its own norm, times sqrt(S), times V."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Parameter(torch.empty(SLOTS, WIDTH)), nn.Parameter(torch.empty(SLOTS, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.gelu(x @ self.k.T)
        return (a / a.norm(dim=-1, keepdim=True) * self.k.shape[0] ** 0.5) @ self.v


class PattentionByEinsum(Pattention):
    """The norm by a sum of squares, the factor on the output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.gelu(torch.einsum("ntd,sd->nts", x, self.k))
        y = torch.einsum("nts,sd->ntd", a * torch.rsqrt(a.square().sum(-1, keepdim=True)), self.v)
        return y * SLOTS**0.5


class Three(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.q, self.k, self.v = layer(), layer(), layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return (q @ k.mT).softmax(-1) @ v


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(modules=Pattention, einsum=PattentionByEinsum)
def test_the_factor_is_in_the_values(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    assert outcome.ops.get("Mul", 0) + outcome.ops.get("Div", 0) <= 2, outcome.graph
    record(PAPER, outcome)


@each(
    modules=lambda: Three(Pattention),
    einsum=lambda: Three(PattentionByEinsum),
)
def test_the_keys_are_one_product(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    assert outcome.products == 6, outcome.graph
    record(PAPER, outcome)


class MoreSlots(Pattention):
    """Zero keys were added, and the factor grew with them: they may go only if the old factor stays."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Parameter(torch.empty(6, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys, values = torch.cat([self.k, torch.zeros_like(self.more)]), torch.cat([self.v, self.more])
        a = F.gelu(x @ keys.T)
        return (a / a.norm(dim=-1, keepdim=True) * keys.shape[0] ** 0.5) @ values


def test_dead_slots_keep_the_factor() -> None:
    outcome = through("torch", awake(MoreSlots()), inputs())
    right(outcome)
    has(outcome, Gelu=1)
