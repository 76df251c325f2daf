"""Parallel scaling: the same tokens in several streams that differ by constant prefixes. What does not differ yet is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from papers.fixture import Paper, awake, each, normal, right, through

PAPER = Paper(43, "the first layer's q, k and v are computed once, not once a stream")
WIDTH, HEADS, TOKENS, STREAMS, PREFIX, BATCH = 16, 2, 5, 4, 3, 2
HEAD = WIDTH // HEADS


class Streams(nn.Module):
    """Prefix rows of each stream join keys and values; the streams are weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.pk, self.pv = (nn.Parameter(torch.empty(STREAMS, HEADS, PREFIX, HEAD)) for _ in range(2))
        self.weigh = nn.Linear(WIDTH, 1)

    def copies(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(STREAMS, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.copies(x)
        q, k, v = (p(h).view(STREAMS * BATCH, TOKENS, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (torch.cat([p.repeat_interleave(BATCH, 0), z], 2) for p, z in ((self.pk, k), (self.pv, v)))
        y = (q @ k.mT / HEAD**0.5).softmax(-1) @ v
        y = self.o(y.transpose(1, 2).flatten(2)).view(STREAMS, BATCH, TOKENS, WIDTH)
        return (y * self.weigh(y).softmax(0)).sum(0)


class StreamsByExpand(Streams):
    def copies(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(STREAMS, -1, -1, -1).reshape(STREAMS * BATCH, TOKENS, WIDTH)


def inputs() -> tuple[torch.Tensor]:
    return (normal(BATCH, TOKENS, WIDTH),)


ROWS = BATCH * TOKENS
LIMIT = ROWS * (3 * WIDTH * WIDTH + STREAMS * (WIDTH * WIDTH + WIDTH + 2 * (TOKENS + PREFIX) * WIDTH))


@each(
    repeat=Streams, expand=StreamsByExpand, missing=dict.fromkeys(("repeat", "expand"), "repeated rows are not computed once through reshapes")
)
def test_the_first_layer_is_computed_once(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    assert outcome.macs <= LIMIT, f"{outcome.macs}, at most {LIMIT}\n{outcome.graph}"
    record(PAPER, outcome)
