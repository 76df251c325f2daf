"""HUT: the weight times a low-rank matrix, element by element. A constant; unmerged, each rank costs a layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, is_plain, normal, plain, through

PAPER = Paper(20, "a Hadamard update is a plain layer, in its unmerged form of one product a rank too")
INPUTS, OUTPUTS, RANK = 12, 16, 3


class Hadamard(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w0, self.bias = nn.Parameter(torch.empty(OUTPUTS, INPUTS)), nn.Parameter(torch.zeros(OUTPUTS))
        self.a, self.b = nn.Parameter(torch.empty(OUTPUTS, RANK)), nn.Parameter(torch.empty(RANK, INPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w0 * (self.a @ self.b), self.bias)


class Offset(Hadamard):
    """W (1 + AB), the low-rank product an einsum, the layer a product with a transpose."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = 1 + torch.einsum("or,ri->io", self.a, self.b)
        return torch.matmul(x, self.w0.t() * update) + self.bias


class Unmerged(Hadamard):
    """sum_r a_r * W(b_r * x): as many products with W as ranks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bias
        for r in range(RANK):
            y = y + self.a[:, r] * F.linear(self.b[r] * x, self.w0)
        return y


class Convolved(Hadamard):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = (self.w0 * torch.mm(self.a, self.b))[..., None]
        return F.conv1d(x.transpose(1, 2), kernel, self.bias).transpose(1, 2)


class Plain(Hadamard):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w0, self.bias)


class PlainConvolution(Hadamard):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.w0[..., None], self.bias).transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, INPUTS),)


@each(functional=(Hadamard, Plain), offset=(Offset, Plain), unmerged=(Unmerged, Plain), convolution=(Convolved, PlainConvolution))
def test_a_hadamard_update_costs_nothing(module: Any, door: str, record: Any) -> None:
    updated, base = module
    outcome = through(door, awake(updated()), inputs())
    is_plain(outcome, plain(base, inputs), 1e-6)
    record(PAPER, outcome)
