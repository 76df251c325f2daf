"""FoldGPT: residual branches with trained gates. A gate is in its branch's last layer; a closed one takes its branch with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, is_plain, normal, plain, right, through

PAPER = Paper(44, "gates are folded into the branches' last layers")
WIDTH, HIDDEN, BLOCKS = 8, 12, 3


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(BLOCKS))
        self.up = nn.ModuleList(nn.Linear(WIDTH, HIDDEN) for _ in range(BLOCKS))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, WIDTH) for _ in range(BLOCKS))
        self.g = nn.Parameter(torch.ones(BLOCKS))

    def gated(self, branch: torch.Tensor, i: int) -> torch.Tensor:
        return self.g[i] * branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(BLOCKS):
            x = x + self.gated(self.down[i](F.gelu(self.up[i](self.n[i](x)))), i)
        return x


class BlocksByEinsum(Blocks):
    """Gates unpacked from a tensor; the last product an einsum with the gate in the middle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, gate in enumerate(self.g.unbind()):
            h = F.gelu(F.linear(self.n[i](x), self.up[i].weight, self.up[i].bias))
            x = (torch.einsum("nth,wh->ntw", h * gate, self.down[i].weight) + self.down[i].bias * gate) + x
        return x


class Ungated(Blocks):
    def gated(self, branch: torch.Tensor, i: int) -> torch.Tensor:
        return branch


def ungated() -> nn.Module:
    return awake(Ungated())


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(modules=Blocks, einsum=BlocksByEinsum)
def test_the_gates_are_folded(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(ungated, inputs))
    record(PAPER, outcome)


def test_a_closed_gate_takes_its_block_with_it() -> None:
    module = awake(Blocks())
    module.g.data[1] = 0.0
    outcome = through("torch", module, inputs())
    right(outcome)
    has(outcome, Gelu=BLOCKS - 1, LayerNormalization=BLOCKS - 1)


class PostNorm(Blocks):
    """The norm comes after the sum: a gate of zero does not make the block an identity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(BLOCKS):
            x = self.n[i](x + self.g[i] * self.down[i](F.gelu(self.up[i](x))))
        return x


def test_a_norm_after_the_sum_stays() -> None:
    outcome = through("torch", awake(PostNorm()), inputs())
    right(outcome)
    has(outcome, LayerNormalization=BLOCKS)
