"""Gated attention: the output of attention times a sigmoid gate, before the output layer. Four projections are one product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(4, "one product for q, k, v and the gate; values and output layer are not merged through the gate")
WIDTH, HEADS, TOKENS = 16, 2, 6


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.g, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.o(a * torch.sigmoid(self.g(x)))


class GatedByEinsum(Gated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v, g = (torch.einsum("nti,oi->nto", x, p.weight) for p in (self.q, self.k, self.v, self.g))
        q, k, v = (z.reshape(len(x), TOKENS, HEADS, -1) for z in (q, k, v))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * (WIDTH / HEADS) ** -0.5
        a = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2)
        return (g.sigmoid() * a) @ self.o.weight.t()


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, TOKENS, WIDTH),)


@each(
    modules=Gated, einsum=GatedByEinsum, missing=dict.fromkeys(("modules", "einsum"), "four products are measured to be faster than one and a Split")
)
def test_four_projections_are_one_product(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Sigmoid=1, Softmax=1)
    assert outcome.products == 4, outcome.graph
    record(PAPER, outcome)


def test_the_gate_stays_between_values_and_output() -> None:
    outcome = through("torch", awake(Gated()), inputs(), also=[(3 * inputs()[0],)])
    right(outcome)
    has(outcome, Sigmoid=1, Mul=1)
