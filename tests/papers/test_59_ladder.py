"""Ladder side-tuning: a narrow network beside the backbone, joined by constant gates; its last projection meets the language head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, at_most, awake, each, has, normal, right, through

PAPER = Paper(59, "the wide stream's gates are in its projections; the head reads the narrow network, an eighth of its products")
WIDTH, RATIO, WORDS, LAYERS, ROWS, TEMPERATURE = 16, 8, 200, 2, 6, 0.1
NARROW = WIDTH // RATIO


class Ladder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.side = nn.ModuleList(nn.Linear(NARROW, NARROW) for _ in range(LAYERS))
        self.down = nn.ModuleList(nn.Linear(WIDTH, NARROW) for _ in range(LAYERS + 1))
        self.alpha = nn.Parameter(torch.zeros(LAYERS))
        self.up, self.head = nn.Linear(NARROW, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def climb(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.down[LAYERS](h)
        for i, (block, side) in enumerate(zip(self.backbone, self.side, strict=True)):
            h = torch.tanh(block(h))
            gate = torch.sigmoid(self.alpha[i] / TEMPERATURE)
            z = torch.tanh(side(gate * z + (1 - gate) * self.down[i](h)))
        return z, h

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.climb(h)[0]) * WIDTH**-0.5)


class ByEinsum(Ladder):
    """The gate on the difference, products as einsums, the head's scale on its weight."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        z = F.linear(h, self.down[LAYERS].weight, self.down[LAYERS].bias)
        for i in range(LAYERS):
            h = torch.einsum("ni,oi->no", h, self.backbone[i].weight).add(self.backbone[i].bias).tanh()
            own = h @ self.down[i].weight.t() + self.down[i].bias
            mixed = own + (self.alpha[i] * 10).sigmoid() * (z - own)
            z = torch.tanh(torch.einsum("ni,oi->no", mixed, self.side[i].weight) + self.side[i].bias)
        wide = z @ self.up.weight.t() + self.up.bias
        return torch.einsum("ni,wi->nw", wide, self.head.weight / 4)


class MergeLast(Ladder):
    """The backbone joins at the top: the head reads a wide tensor anyway."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        z, h = self.climb(h)
        gate = torch.sigmoid(self.alpha[0])
        return self.head(gate * self.up(z) + (1 - gate) * h)


class NormBefore(Ladder):
    """A norm between the projection and the head."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.head(F.layer_norm(self.up(self.climb(h)[0]), (WIDTH,)))


def inputs() -> tuple[torch.Tensor]:
    return (normal(ROWS, WIDTH),)


BODY = ROWS * (LAYERS * (WIDTH * WIDTH + NARROW * NARROW) + (LAYERS + 1) * WIDTH * NARROW)


@each(linear=Ladder, einsum=ByEinsum)
def test_the_head_reads_the_narrow_network(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Sigmoid=0, Sub=0)
    assert outcome.ops.get("Mul", 0) <= LAYERS, f"only the narrow stream is multiplied, by its gate\n{outcome.graph}"
    at_most(outcome, BODY + ROWS * NARROW * WORDS)
    record(PAPER, outcome)


def test_a_backbone_that_joins_at_the_top_keeps_the_wide_head() -> None:
    """Folding would read both: more products than the one wide head."""
    outcome = through("torch", awake(MergeLast()), inputs())
    right(outcome)
    at_most(outcome, BODY + ROWS * (NARROW * WIDTH + WIDTH * WORDS))
    assert (WIDTH, WORDS) in outcome.matrices(), outcome.matrices()


def test_a_norm_before_the_head_stays() -> None:
    outcome = through("torch", awake(NormBefore()), inputs())
    right(outcome)
    has(outcome, LayerNormalization=1)


class Tied(Ladder):
    """The head is the embedding: un-tied, it would be stored twice; the embedding must keep its values."""

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        z, _ = self.climb(F.embedding(words, self.head.weight))
        return self.head(self.up(z))


def test_a_tied_head_leaves_the_embedding_as_it_was() -> None:
    words = torch.tensor([1, 7, 199, 0])
    for objective in ("latency", "memory"):
        outcome = through("torch", awake(Tied()), (words,), objective=objective)
        right(outcome)
    assert outcome.weight_bytes <= 4 * (WORDS * WIDTH + 4 * WIDTH * WIDTH), "memory: the table is stored once"
