"""CorDA: W is split by a decomposition that knows the inputs' covariance; what was trained is a low-rank part. It merges back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, through

PAPER = Paper(40, "residual and trained factors are the plain layer")
INPUTS, OUTPUTS, RANK = 12, 16, 4


class Decomposed(nn.Module):
    """SVD(W C) = U S V^T; the adapter is U sqrt(S), sqrt(S) V^T C^-1, then trained; the rest is frozen."""

    def __init__(self) -> None:
        super().__init__()
        w, samples = normal(OUTPUTS, INPUTS, seed=2).double(), normal(50, INPUTS, seed=3).double()
        covariance = samples.T @ samples / 50 + 0.01 * torch.eye(INPUTS, dtype=torch.float64)
        u, s, vh = torch.linalg.svd(w @ covariance, full_matrices=False)
        v = torch.linalg.solve(covariance, vh.T).T
        up, down = u[:, -RANK:] * s[-RANK:].sqrt(), s[-RANK:].sqrt()[:, None] * v[-RANK:]
        self.register_buffer("rest", (w - up @ down).float())
        self.up = nn.Parameter(up.float() + normal(OUTPUTS, RANK, seed=4, scale=0.3))
        self.down = nn.Parameter(down.float() + normal(RANK, INPUTS, seed=5, scale=0.3))
        self.bias = nn.Parameter(normal(OUTPUTS, seed=6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.rest.T + F.linear(F.linear(x, self.down), self.up, self.bias)


class ByEinsum(Decomposed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.einsum("nti,ri->ntr", x, self.down)
        return torch.einsum("ntr,or->nto", low, self.up) + torch.einsum("nti,oi->nto", x, self.rest) + self.bias


class Convolutions(Decomposed):
    """Three 1 x 1 convolutions on an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)[..., None]
        low = F.conv2d(y, self.down[..., None, None])
        return (F.conv2d(y, self.rest[..., None, None]) + F.conv2d(low, self.up[..., None, None], self.bias))[..., 0].transpose(1, 2)


class Plain(Decomposed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.rest, self.bias)


class PlainConvolution(Decomposed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.transpose(1, 2)[..., None], self.rest[..., None, None], self.bias)[..., 0].transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, INPUTS),)


@each(linear=(Decomposed, Plain), einsum=(ByEinsum, Plain), convolution=(Convolutions, PlainConvolution))
def test_the_parts_merge(module: Any, door: str, record: Any) -> None:
    parts, base = module
    outcome = through(door, parts(), inputs())
    is_plain(outcome, plain(base, inputs))
    record(PAPER, outcome)


class Truncated(Decomposed):
    """The low-rank part alone: two small products are cheaper than their merged one, so they stay."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.down[:1]), self.up[:, :1], self.bias)


def test_a_low_rank_layer_that_is_cheaper_stays() -> None:
    big = normal(512, INPUTS)
    outcome = through("torch", Truncated(), (big,))
    assert outcome.error <= 1e-5
    assert outcome.macs <= 512 * (INPUTS + OUTPUTS), outcome.graph
