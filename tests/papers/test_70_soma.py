"""SoMA: the minor singular components are trained, the rest is frozen. The parts merge into one weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, through

PAPER = Paper(70, "residual and minor components are the plain layer")
INPUTS, OUTPUTS, RANK, SIZE = 12, 16, 4, 6


class Minor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        w = normal(OUTPUTS, INPUTS, seed=2).double()
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        root = s[-RANK:].sqrt()
        b, a = u[:, -RANK:] * root, root[:, None] * v[-RANK:]
        self.register_buffer("rest", (w - b @ a).float())
        self.b = nn.Parameter(b.float() + normal(OUTPUTS, RANK, seed=4, scale=0.3))
        self.a = nn.Parameter(a.float() + normal(RANK, INPUTS, seed=5, scale=0.3))
        self.bias = nn.Parameter(normal(OUTPUTS, seed=6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.rest.T + x @ self.a.T @ self.b.T + self.bias


class ByEinsum(Minor):
    """One einsum of three operands beside a linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.rest, self.bias) + torch.einsum("nti,ri,or->nto", x, self.a, self.b)


class InTheKernel(Minor):
    """A 1 x 1 convolution whose kernel is put together in the forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = torch.addmm(self.rest, self.b, self.a)
        return F.conv1d(x.transpose(1, 2), kernel.unsqueeze(-1), self.bias).transpose(1, 2)


class Plain(Minor):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.rest, self.bias)


class PlainConvolution(Minor):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.rest.unsqueeze(-1), self.bias).transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, SIZE, INPUTS),)


@each(matmul=(Minor, Plain), einsum=(ByEinsum, Plain), convolution=(InTheKernel, PlainConvolution))
def test_the_parts_merge(module: Any, door: str, record: Any) -> None:
    parts, base = module
    outcome = through(door, parts(), inputs())
    is_plain(outcome, plain(base, inputs))
    record(PAPER, outcome)
