"""Scalable language models: weight deltas retrieved for each request. They stay factored; no matrix of weights is built at run time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Outcome, Paper, at_most, awake, each, normal, right, through

PAPER = Paper(75, "the retrieved delta stays factored: no d x d matrix at run time, a fifth of its products")
WIDTH, TOKENS, POOL, RANK, BEST = 256, 16, 6, 2, 3


class Retrieved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.keys = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.empty(POOL, WIDTH))
        self.a, self.b = nn.Parameter(torch.empty(POOL, RANK, WIDTH)), nn.Parameter(torch.empty(POOL, RANK, WIDTH))

    def weights(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the best entries, and which they are."""
        similarity, best = F.cosine_similarity(q[None], self.keys).topk(BEST)
        return similarity / (similarity.sum() + 1e-9), best

    def forward(self, h: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        w, best = self.weights(q)
        delta = torch.einsum("k,kro,kri->oi", w, self.a[best], self.b[best])
        return F.linear(h, self.base.weight + delta, self.base.bias)


class ByProducts(Retrieved):
    """The delta as a batched product that is summed, and its own product beside the base layer."""

    def forward(self, h: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        w, best = self.weights(q)
        delta = (w[:, None, None] * torch.bmm(self.b[best].mT, self.a[best])).sum(0)
        return self.base(h) + h @ delta


class Concatenated(Retrieved):
    """The entries side by side: one product of tall factors, materialised."""

    def forward(self, h: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        w, best = self.weights(q)
        up = (self.a[best] * w[:, None, None]).flatten(0, 1)
        return h @ (self.base.weight + up.t() @ self.b[best].flatten(0, 1)).t() + self.base.bias


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(TOKENS, WIDTH), normal(WIDTH, seed=2)


BASE = TOKENS * WIDTH * WIDTH
DELTA = BEST * RANK * WIDTH * WIDTH
"""Products of the base layer, and of the materialised delta."""


def no_square(outcome: Outcome) -> None:
    for node in outcome.result.ir_model.graph:
        for value in node.outputs:
            shape = [] if value.shape is None else list(value.shape)
            assert shape[-2:] != [WIDTH, WIDTH], f"{node.op_type} makes a matrix of weights\n{outcome.graph}"


@each(
    einsum=Retrieved,
    products=ByProducts,
    concatenated=Concatenated,
)
def test_the_delta_stays_factored(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs(), also=[(inputs()[0], -inputs()[1])])
    right(outcome)
    no_square(outcome)
    at_most(outcome, BASE + DELTA / 5 + POOL * WIDTH)
    record(PAPER, outcome)


class MeanOverTheBatch(Retrieved):
    """As released: the similarity is a mean over the batch, so what one request gets depends on its neighbours."""

    def forward(self, h: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return super().forward(h, q.mean(0))


def test_a_retrieval_over_the_batch_is_said_so() -> None:
    """The result is the module's; that its requests are not independent is in the notes."""
    outcome = through("torch", awake(MeanOverTheBatch()), (inputs()[0], normal(4, WIDTH, seed=2)))
    right(outcome)
    assert any("batch" in note for note in outcome.result.report.notes), outcome.result.report.notes
