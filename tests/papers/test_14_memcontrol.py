"""MemControl chooses what to tune; what it deploys are spectral shifts (SVDiff) and block scales (DiffFit). Both are constants."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, is_plain, normal, plain, through

PAPER = Paper(14, "spectral shifts and block scales are folded into plain layers")
WIDTH, HIDDEN = 12, 16


class Tuned(nn.Module):
    """A residual block: its first weight is U diag(relu(s + delta)) V^T, its output is scaled by a trained vector."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.empty(HIDDEN, WIDTH)), nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.s, self.delta = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.b, self.out, self.gamma = nn.Parameter(torch.zeros(HIDDEN)), nn.Linear(HIDDEN, WIDTH), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.u @ torch.diag(F.relu(self.s + self.delta)) @ self.v
        return x + self.gamma * self.out(F.gelu(F.linear(x, w, self.b)))


class ByEinsum(Tuned):
    """The spectrum applied in the middle of two products, the scale on the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("nti,si,s,os->nto", x, self.v, (self.s + self.delta).clamp(min=0), self.u) + self.b
        return (F.gelu(h) @ (self.out.weight * self.gamma[:, None]).t() + self.gamma * self.out.bias) + x


class Plain(Tuned):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(HIDDEN, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.gelu(F.linear(x, self.w, self.b)))


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(modules=Tuned, einsum=ByEinsum)
def test_the_block_is_plain(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(Plain, inputs))
    record(PAPER, outcome)
