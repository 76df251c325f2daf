"""MoSA: an adapter split into experts with disjoint masks. The masked sum is one adapter."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, is_plain, normal, plain, right, through

PAPER = Paper(41, "masked experts sum to the plain adapter; its ReLU stays")
WIDTH, RANK, EXPERTS = 16, 4, 3


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.down = nn.ModuleList(nn.Linear(WIDTH, RANK) for _ in range(EXPERTS))
        self.up = nn.ModuleList(nn.Linear(RANK, WIDTH) for _ in range(EXPERTS))
        self.register_buffer("down_owner", torch.randint(EXPERTS, (RANK, WIDTH), generator=generator))
        self.register_buffer("up_owner", torch.randint(EXPERTS, (WIDTH, RANK), generator=generator))

    @staticmethod
    def merged(layers: Any, owner: torch.Tensor) -> torch.Tensor:
        return sum(layer.weight * (owner == e) for e, layer in enumerate(layers))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:  # a random pair of experts each step: only eval is a function
            a, b = random.randrange(EXPERTS), random.randrange(EXPERTS)
            return self.up[b](F.relu(self.down[a](x)))
        hidden = F.relu(F.linear(x, self.merged(self.down, self.down_owner), self.down[0].bias))
        return x + F.linear(hidden, self.merged(self.up, self.up_owner), self.up[0].bias)


class OneHot(Experts):
    """Masks as one-hot tensors contracted with stacked weights."""

    @staticmethod
    def merged(layers: Any, owner: torch.Tensor) -> torch.Tensor:
        stack = torch.stack([layer.weight for layer in layers])
        return torch.einsum("eoi,oie->oi", stack, F.one_hot(owner, EXPERTS).to(stack.dtype))


class Gathered(Experts):
    """Each entry looked up in the stack of experts."""

    @staticmethod
    def merged(layers: Any, owner: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer.weight for layer in layers], -1).gather(-1, owner[..., None])[..., 0]


class Branches(Experts):
    """The first layers as a sum of masked products, biases after: the experts are merged by distributivity, not beforehand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = sum(x @ (layer.weight * (self.down_owner == e)).t() for e, layer in enumerate(self.down)) + self.down[0].bias
        hidden = F.relu(low)
        return x + (sum(hidden @ (layer.weight * (self.up_owner == e)).t() for e, layer in enumerate(self.up)) + self.up[0].bias)


class Plain(Experts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up[0](F.relu(self.down[0](x)))


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(masks=Experts, one_hot=OneHot, gather=Gathered, branches=Branches)
def test_disjoint_experts_are_one_adapter(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(Plain, inputs), 1e-6)
    record(PAPER, outcome)


def test_experts_with_their_own_activations_stay() -> None:
    """A mean of experts is no expert of means: relu is not linear."""

    class Mean(Experts):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([u(torch.sigmoid(d(x))) for d, u in zip(self.down, self.up, strict=True)]).mean(0)

    outcome = through("torch", awake(Mean()), inputs())
    right(outcome)
    assert outcome.ops.get("Sigmoid", 0) >= 1, outcome.graph
    has(outcome, Relu=0)
