"""muP: constant multipliers at the readout and 1/d in the attention. They are in the weights; the attention's scale is not 1/sqrt(d)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(71, "no multiplication is left; the attention's own scale is kept; a tied head is not scaled twice")
WIDTH, HEADS, TOKENS, CLASSES, WORDS = 16, 2, 5, 10, 30
OUT_MULTIPLIER, WIDTH_MULTIPLIER = 4.0, 8.0
HEAD = WIDTH // HEADS


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.readout = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=1 / HEAD).transpose(1, 2).flatten(2)
        return self.readout(OUT_MULTIPLIER * torch.tanh(self.o(y)) / WIDTH_MULTIPLIER)


class BlockByEinsum(Block):
    """The scale on the scores, the multiplier after the readout's product and before its bias, einsums throughout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = ((torch.einsum("nti,oi->nto", x, p.weight) + p.bias).view(len(x), TOKENS, HEADS, HEAD) for p in (self.q, self.k, self.v))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / HEAD
        y = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).reshape(len(x), TOKENS, WIDTH)
        h = torch.tanh(y @ self.o.weight.t() + self.o.bias)
        return torch.matmul(h, self.readout.weight.t()) * (OUT_MULTIPLIER / WIDTH_MULTIPLIER) + self.readout.bias


class BlockWithSplitScale(Block):
    """q and k each divided by sqrt(d); the multiplier as a stored number, on a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("multiplier", torch.tensor(OUT_MULTIPLIER / WIDTH_MULTIPLIER))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = (((q / HEAD**0.5) @ (k / HEAD**0.5).mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = torch.tanh(self.o(y)).transpose(1, 2) * self.multiplier
        return F.conv1d(h, self.readout.weight[..., None], self.readout.bias).transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, TOKENS, WIDTH),)


@each(modules=Block, einsum=BlockByEinsum, split=BlockWithSplitScale)
def test_no_multiplication_is_left(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Mul=0, Div=0, Softmax=1)
    record(PAPER, outcome)


class TiedReadout(nn.Module):
    """The readout's weight is the embedding's: its multiplier may go into the norm before it, never into the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.table(words))
        return F.linear(OUT_MULTIPLIER * h / WIDTH_MULTIPLIER, self.table.weight)


class TiedByEinsum(TiedReadout):
    def forward(self, words: torch.Tensor) -> torch.Tensor:
        h = F.layer_norm(self.table.weight[words], (WIDTH,), self.norm.weight, self.norm.bias)
        return torch.einsum("nti,wi->ntw", h, self.table.weight) * (OUT_MULTIPLIER / WIDTH_MULTIPLIER)


@each(modules=TiedReadout, einsum=TiedByEinsum)
def test_a_tied_readout_is_scaled_once(module: Any, door: str, record: Any) -> None:
    words = torch.tensor([[1, 5, 29], [0, 0, 7]])
    outcome = through(door, awake(module()), (words,))
    right(outcome)
    has(outcome, Mul=0, Div=0)
    record(PAPER, outcome)


def test_memory_keeps_the_tied_table_once() -> None:
    outcome = through("torch", awake(TiedReadout()), (torch.tensor([[1, 5, 29], [0, 0, 7]]),), objective="memory")
    right(outcome, kept=True)
    assert outcome.weight_bytes <= 4 * (WORDS * WIDTH + 2 * WIDTH) + 64, f"{outcome.weight_bytes}\n{outcome.graph}"


class DynamicGate(Block):
    """A multiplier that depends on the input is no constant (as AdaLN-zero's gate)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(x * torch.sigmoid(self.q(x)).mean(-1, keepdim=True))


def test_a_multiplier_that_depends_on_the_input_stays() -> None:
    outcome = through("torch", awake(DynamicGate()), inputs(), also=[(-3 * inputs()[0],)])
    right(outcome)
    has(outcome, Mul=1)
