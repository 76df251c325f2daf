"""MoS: LoRA factors put together from shards of pools that all layers share. The tables are fixed, so each layer is a plain one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, right, through

PAPER = Paper(11, "gathers of shards disappear into plain layers")
WIDTH, RANK, SHARDS, POOL, SCALE = 16, 4, 2, 10, 0.25


class Shards(nn.Module):
    """Two layers on one pair of pools; each has its own tables of indices."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.pool_a, self.pool_b = (nn.Parameter(normal(POOL, WIDTH // SHARDS, seed=s)) for s in (2, 3))
        self.w = nn.ParameterList([normal(WIDTH, WIDTH, seed=s) / 4 for s in (4, 5)])
        self.c = nn.ParameterList([normal(WIDTH, seed=s) for s in (6, 7)])
        for name in ("ia", "ib"):
            self.register_buffer(name, torch.randint(POOL, (2, RANK, SHARDS), generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(F.relu(self.layer(x, 0)), 1)

    def layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        raise NotImplementedError


class Indexed(Shards):
    def layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        a, b = self.pool_a[self.ia[i]].flatten(1), self.pool_b[self.ib[i]].flatten(1).t()
        return F.linear(x, self.w[i], self.c[i]) + SCALE * (x @ a.t()) @ b.t()


class Selected(Shards):
    """``index_select`` and einsum, the scale on one factor."""

    def layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        a = self.pool_a.index_select(0, self.ia[i].reshape(-1)).reshape(RANK, WIDTH) * SCALE
        b = self.pool_b.index_select(0, self.ib[i].reshape(-1)).reshape(RANK, WIDTH)
        return torch.einsum("nti,oi->nto", x, self.w[i]) + torch.einsum("nti,ri,ro->nto", x, a, b) + self.c[i]


class Embedded(Shards):
    """The pools as embedding tables, the merged weight in a 1 x 1 convolution."""

    def layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        a, b = F.embedding(self.ia[i], self.pool_a).view(RANK, WIDTH), F.embedding(self.ib[i], self.pool_b).view(RANK, WIDTH)
        kernel = self.w[i] + SCALE * b.t() @ a
        return F.conv1d(x.transpose(1, 2), kernel[..., None], self.c[i]).transpose(1, 2)


class Plain(Shards):
    def layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.linear(x, self.w[i], self.c[i])


class PlainConvolution(Shards):
    def layer(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.w[i][..., None], self.c[i]).transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(indexed=(Indexed, Plain), index_select=(Selected, Plain), embedding=(Embedded, PlainConvolution))
def test_shards_are_gone(module: Any, door: str, record: Any) -> None:
    shards, base = module
    outcome = through(door, shards(), inputs())
    is_plain(outcome, plain(base, inputs))
    record(PAPER, outcome)


class Routed(Shards):
    """The indices come from the input: the factors are no constants."""

    def forward(self, x: torch.Tensor, ia: torch.Tensor) -> torch.Tensor:
        a, b = self.pool_a[ia].flatten(1), self.pool_b[self.ib[0]].flatten(1).t()
        return F.linear(x, self.w[0]) + SCALE * (x @ a.t()) @ b.t()


def test_indices_that_come_from_the_input_stay() -> None:
    module = Routed()
    other = (inputs()[0], module.ia[1])
    outcome = through("torch", module, (inputs()[0], module.ia[0]), also=[other])
    right(outcome)
    assert outcome.ops.get("Gather", 0) + outcome.ops.get("GatherND", 0) == 1, outcome.graph
