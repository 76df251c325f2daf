"""NOLA: LoRA factors as combinations of random bases that are drawn again from their seed in every forward. Constants all the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from papers.fixture import Paper, each, is_plain, normal, plain, through

PAPER = Paper(57, "seeded bases are constants, the layer is plain; the global generator stays where it was")
INPUTS, OUTPUTS, RANK, BASES, SCALE = 12, 10, 3, 6, 0.5


class Nola(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(INPUTS, OUTPUTS)
        self.base.weight.data, self.base.bias.data = normal(OUTPUTS, INPUTS, seed=2) / 4, normal(OUTPUTS, seed=3)
        self.alpha, self.beta = nn.Parameter(normal(BASES, seed=4)), nn.Parameter(normal(BASES, seed=5))
        self.register_buffer("a0", normal(RANK, INPUTS, seed=6, scale=0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a0 + torch.einsum("k,kri->ri", self.alpha, self.drawn(1, RANK, INPUTS))
        b = torch.einsum("k,kor->or", self.beta, self.drawn(2, OUTPUTS, RANK))
        return self.base(x) + SCALE * x @ a.T @ b.T

    def drawn(self, seed: int, *shape: int) -> torch.Tensor:
        """With a generator of its own."""
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(BASES, *shape, generator=generator).to(self.alpha.dtype) * 2 - 1) / BASES**0.5


class GlobalSeed(Nola):
    """As the paper's code: the global generator is seeded in the forward, the bases are filled in place."""

    def drawn(self, seed: int, *shape: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.empty(BASES, *shape).uniform_(-1, 1).to(self.alpha.dtype) / BASES**0.5


class Normal(Nola):
    """Gaussian bases by ``randn``, as matrices; the scaled product is added to the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = torch.Generator()
        g.manual_seed(9)
        a = (self.alpha @ torch.randn(BASES, RANK * INPUTS, generator=g).to(self.alpha.dtype)).view(RANK, INPUTS)
        b = (torch.randn(OUTPUTS * RANK, BASES, generator=g).to(self.alpha.dtype) @ self.beta).view(OUTPUTS, RANK)
        return F.linear(x, self.base.weight + SCALE * torch.mm(b, a), self.base.bias)


class Plain(Nola):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, INPUTS),)


@each(generator=Nola, global_seed=GlobalSeed, normal=Normal)
def test_seeded_bases_cost_nothing(module: Any, door: str, record: Any) -> None:
    state = torch.random.get_rng_state()
    try:
        outcome = through(door, module(), inputs())
    finally:
        torch.random.set_rng_state(state)
    is_plain(outcome, plain(Plain, inputs))
    record(PAPER, outcome)


def test_the_global_generator_stays_where_it_was() -> None:
    """The module seeds it in its forward; reading the module does not."""
    module = GlobalSeed().eval()
    torch.manual_seed(1234)
    state = torch.random.get_rng_state()
    rewriter.optimize(module, inputs())
    assert torch.equal(state, torch.random.get_rng_state())
