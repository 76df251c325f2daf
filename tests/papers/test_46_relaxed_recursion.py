"""Relaxed recursive transformers: one layer at every depth, with a LoRA of its own at each. Shared for memory, merged for speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, is_plain, normal, plain, right, through

PAPER = Paper(46, "latency: a merged layer for every depth; memory: one layer and the LoRAs; both agree")
WIDTH, DEPTH, RANK, TOKENS = 32, 3, 2, 16


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(WIDTH, WIDTH)
        self.a, self.b = nn.Parameter(torch.empty(DEPTH, RANK, WIDTH)), nn.Parameter(torch.empty(DEPTH, WIDTH, RANK))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for depth in range(DEPTH):
            h = self.norms[depth](x)
            x = x + F.gelu(self.layer(h, depth))
        return x

    def layer(self, h: torch.Tensor, depth: int) -> torch.Tensor:
        return self.w(h) + h @ self.a[depth].T @ self.b[depth].T


class ByEinsum(Recursive):
    def layer(self, h: torch.Tensor, depth: int) -> torch.Tensor:
        low = torch.einsum("ni,ri->nr", h, self.a[depth])
        return torch.einsum("ni,oi->no", h, self.w.weight) + torch.einsum("nr,or->no", low, self.b[depth]) + self.w.bias


class Materialised(Recursive):
    """The program adds the LoRA to the weight at every depth: sharing must be found again."""

    def layer(self, h: torch.Tensor, depth: int) -> torch.Tensor:
        return F.linear(h, self.w.weight + self.b[depth] @ self.a[depth], self.w.bias)


class Plain(Recursive):
    """A layer of its own at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def layer(self, h: torch.Tensor, depth: int) -> torch.Tensor:
        return F.linear(h, self.own[depth].weight, self.w.bias)


def plain_recursion() -> nn.Module:
    return awake(Plain())


def inputs() -> tuple[torch.Tensor]:
    return (normal(TOKENS, WIDTH),)


SMALL = 4 * (WIDTH * WIDTH + DEPTH * 2 * RANK * WIDTH + WIDTH + DEPTH * 2 * WIDTH)
"""Bytes of one dense weight, the LoRAs, the bias and the norms."""


@each(linear=Recursive, einsum=ByEinsum, materialised=Materialised)
def test_the_objective_decides(module: Any, door: str, record: Any) -> None:
    fast, small = (through(door, awake(module()), inputs(), objective=o) for o in ("latency", "memory"))
    is_plain(fast, plain(plain_recursion, inputs))
    right(small, kept=True)
    assert small.weight_bytes <= SMALL + 64, f"{small.weight_bytes} bytes, {SMALL} expected\n{small.graph}"
    np.testing.assert_allclose(fast.outputs[0], small.outputs[0], rtol=0, atol=1e-5 * np.abs(fast.outputs[0]).max())
    record(PAPER, fast)
