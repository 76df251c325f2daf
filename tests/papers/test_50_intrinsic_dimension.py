"""Intrinsic dimension: all weights move in a random subspace of a few dimensions. The move is a constant."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, through

PAPER = Paper(50, "dense, seeded and Fastfood projections are folded into plain layers")
INPUTS, OUTPUTS, DIMENSIONS = 12, 10, 5
PADDED = 128
"""A power of two, for the Hadamard transform."""


class Subspace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w0", normal(OUTPUTS, INPUTS, seed=2))
        self.theta, self.scale = nn.Parameter(normal(DIMENSIONS, seed=3)), nn.Parameter(torch.tensor(0.7))
        self.c = nn.Parameter(normal(OUTPUTS, seed=4))

    def projected(self) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w0 + self.scale * self.projected().view(OUTPUTS, INPUTS), self.c)


class Dense(Subspace):
    """A stored random matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("p", normal(OUTPUTS * INPUTS, DIMENSIONS, seed=5) / DIMENSIONS**0.5)

    def projected(self) -> torch.Tensor:
        return self.p @ self.theta


class Seeded(Subspace):
    """The matrix is made from its seed whenever it is needed, and never stored."""

    def projected(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(11)
        p = torch.randn(OUTPUTS * INPUTS, DIMENSIONS, generator=generator) / DIMENSIONS**0.5
        return torch.einsum("wd,d->w", p.to(self.theta.dtype), self.theta)


class Fastfood(Subspace):
    """S H G P H B: signs, Hadamard transform, permutation, Gaussian diagonal, transform, scale; padded to a power of two, then cut."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        self.register_buffer("signs", torch.randint(0, 2, (PADDED,), generator=generator) * 2 - 1)
        self.register_buffer("order", torch.randperm(PADDED, generator=generator))
        self.register_buffer("gauss", torch.randn(PADDED, generator=generator))
        self.register_buffer("stretch", torch.rand(PADDED, generator=generator) + 0.5)

    def projected(self) -> torch.Tensor:
        x = F.pad(self.theta, (0, PADDED - DIMENSIONS)) * self.signs
        x = self.gauss * hadamard(x)[self.order]
        return (self.stretch * hadamard(x) / PADDED)[: OUTPUTS * INPUTS]


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """The fast Walsh-Hadamard transform, by halves."""
    half = 1
    while half < len(x):
        pairs = x.view(-1, 2, half)
        x = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).flatten()
        half *= 2
    return x


class Plain(Subspace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w0, self.c)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, INPUTS),)


@each(dense=Dense, seeded=Seeded, fastfood=Fastfood)
def test_the_projection_is_folded(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), inputs())
    is_plain(outcome, plain(Plain, inputs), 1e-6)
    record(PAPER, outcome)


def test_a_seed_gives_what_the_module_itself_draws() -> None:
    """And neither reading nor running it moves the global generator."""
    before = torch.random.get_rng_state()
    outcome = through("torch", Seeded(), inputs())
    assert outcome.error <= 1e-5
    assert torch.equal(before, torch.random.get_rng_state())
