"""PGN: two convolutions in a row with no activation between them, a repeat, a concatenation and a linear layer: one contraction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, at_most, awake, each, normal, right, through

PAPER = Paper(21, "the tail of linear layers is one contraction, three times fewer products")
PERIODS, STEPS, CHANNELS, WIDTH, OUT, BATCH = 7, 24, 5, 64, 4, 2
BEFORE = BATCH * (PERIODS * STEPS * CHANNELS * WIDTH + PERIODS * WIDTH * WIDTH + STEPS * (PERIODS * WIDTH * WIDTH + 2 * WIDTH * OUT))
"""Multiply-accumulates as written: short branch, long branch, last layer."""


class Tail(nn.Module):
    """As the paper's code: Conv1d over a period, Conv1d over the periods, both branches concatenated into a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.col = nn.Conv1d(CHANNELS, WIDTH, STEPS), nn.Conv1d(WIDTH, WIDTH, PERIODS)
        self.fl, self.fin = nn.Conv1d(WIDTH, WIDTH, PERIODS), nn.Conv1d(2 * WIDTH, OUT, 1)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z = self.row(x.permute(0, 1, 3, 2).flatten(0, 1)).view(BATCH, PERIODS, -1).transpose(1, 2)
        short = self.col(z).squeeze(-1)[:, None].expand(-1, STEPS, -1)
        long = self.fl(h.flatten(0, 1)).view(BATCH, STEPS, -1)
        return self.fin(torch.cat([short, long], -1).flatten(0, 1)[..., None]).view(BATCH, STEPS, -1)


class TailByEinsum(Tail):
    """The same contractions by einsum and a product with a transpose; ``repeat`` instead of ``expand``."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z = torch.einsum("brct,htc->brh", x, self.row.weight) + self.row.bias
        short = torch.einsum("brh,ohr->bo", z, self.col.weight) + self.col.bias
        long = torch.einsum("bchr,ohr->bco", h, self.fl.weight) + self.fl.bias
        both = torch.cat([short.unsqueeze(1).repeat(1, STEPS, 1), long], -1)
        return both @ self.fin.weight[..., 0].t() + self.fin.bias


class TailByLinear(Tail):
    """Flattened windows through linear layers."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z = F.linear(x.transpose(2, 3).flatten(2), self.row.weight.flatten(1), self.row.bias)
        short = F.linear(z.transpose(1, 2).flatten(1), self.col.weight.flatten(1), self.col.bias)
        long = F.linear(h.flatten(2), self.fl.weight.flatten(1), self.fl.bias)
        both = torch.cat([short[:, None].expand(-1, STEPS, -1), long], -1)
        return F.linear(both, self.fin.weight.flatten(1), self.fin.bias)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(BATCH, PERIODS, STEPS, CHANNELS), normal(BATCH, STEPS, WIDTH, PERIODS, seed=2)


@each(convolutions=Tail, einsum=TailByEinsum, linear=TailByLinear)
def test_the_tail_is_one_contraction(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    at_most(outcome, BEFORE / 3)
    record(PAPER, outcome)


class Activated(Tail):
    """With an activation between the two, there is no chain of linear layers."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.row(x.permute(0, 1, 3, 2).flatten(0, 1))).view(BATCH, PERIODS, -1).transpose(1, 2)
        return self.col(z).squeeze(-1)


def test_an_activation_between_stays() -> None:
    outcome = through("torch", awake(Activated()), inputs())
    right(outcome)
    assert outcome.ops["Tanh"] == 1 and outcome.products == 2, outcome.graph
