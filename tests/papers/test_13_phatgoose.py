"""PHATGOOSE: every token is sent through the LoRAs that its router chose. Routing stays; the factors are one product each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, at_most, awake, each, normal, right, run_time_only, through

PAPER = Paper(13, "all LoRAs are two products beside the base layer; the router's constant part is folded")
WIDTH, OUTPUTS, EXPERTS, RANK, BEST, TOKENS = 64, 64, 8, 4, 2, 16


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.embedding = nn.Linear(WIDTH, OUTPUTS), nn.Parameter(torch.empty(EXPERTS, WIDTH))
        self.a, self.b = nn.Parameter(torch.empty(EXPERTS, RANK, WIDTH)), nn.Parameter(torch.empty(EXPERTS, OUTPUTS, RANK))

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        scores = F.layer_norm(x, (WIDTH,)) @ F.layer_norm(self.embedding, (WIDTH,)).T / WIDTH**0.5
        w, best = scores.softmax(-1).topk(BEST, -1)
        return torch.zeros_like(scores).scatter(1, best, w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.einsum("eri,ni->ner", self.a, x)
        return self.base(x) + torch.einsum("ne,eor,ner->no", self.gates(x), self.b, low) / RANK


class LoopOverExperts(Routed):
    """Each expert's LoRA on all tokens, weighted by its gate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g, y = self.gates(x), self.base(x)
        for e in range(EXPERTS):
            y = y + g[:, e : e + 1] * (x @ self.a[e].t() @ self.b[e].t()) / RANK
        return y


def inputs() -> tuple[torch.Tensor]:
    return (normal(TOKENS, WIDTH),)


BASE = TOKENS * WIDTH * OUTPUTS
LORAS = TOKENS * EXPERTS * RANK * (WIDTH + OUTPUTS)


@each(einsum=Routed, loop=LoopOverExperts, missing={"loop": "gated low-rank branches are not written side by side"})
def test_routing_costs_the_low_rank_products(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    run_time_only(outcome)
    at_most(outcome, BASE + LORAS + TOKENS * WIDTH * EXPERTS)
    assert outcome.products <= 4, outcome.graph
    record(PAPER, outcome)
