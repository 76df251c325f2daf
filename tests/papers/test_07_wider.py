"""Going wider: one block at every depth, with experts and norms of its own. Its weights are stored once where memory counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, normal, right, through

PAPER = Paper(7, "memory: the weights of one block and the norms of all depths")
WIDTH, DEPTH, EXPERTS, BEST = 16, 4, 3, 2


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.router = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(EXPERTS))
        self.n = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * DEPTH))

    def attention(self, h: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(h).split(WIDTH, -1)
        return self.o((q @ k.mT / WIDTH**0.5).softmax(-1) @ v)

    def experts(self, h: torch.Tensor) -> torch.Tensor:
        w, best = self.router(h).softmax(-1).topk(BEST, -1)
        gate = torch.zeros_like(self.router(h)).scatter(-1, best, w)
        return sum(gate[..., e : e + 1] * d(F.gelu(u(h))) for e, (u, d) in enumerate(zip(self.up, self.down, strict=True)))  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for depth in range(DEPTH):
            x = x + self.attention(self.n[2 * depth](x))
            x = x + self.experts(self.n[2 * depth + 1](x))
        return x


class WideByEinsum(Wide):
    def attention(self, h: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.einsum("nti,oi->nto", h, self.qkv.weight) + self.qkv.bias).chunk(3, -1)
        weights = (torch.einsum("nqd,nkd->nqk", q, k) * WIDTH**-0.5).softmax(-1)
        return torch.einsum("nqk,nkd,od->nqo", weights, v, self.o.weight) + self.o.bias


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


ONE = 4 * (3 * WIDTH * WIDTH + 3 * WIDTH + WIDTH * WIDTH + WIDTH + EXPERTS * WIDTH + EXPERTS * (4 * WIDTH * WIDTH + 3 * WIDTH))
NORMS = 4 * 2 * DEPTH * 2 * WIDTH


@each(modules=Wide, einsum=WideByEinsum)
def test_memory_keeps_one_block(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs(), objective="memory")
    right(outcome, kept=True)
    assert outcome.weight_bytes <= 1.05 * ONE + NORMS, f"{outcome.weight_bytes} bytes, {ONE + NORMS} expected\n{outcome.graph}"
    record(PAPER, outcome)
