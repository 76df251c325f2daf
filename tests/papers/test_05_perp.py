"""PERP: LoRA that retrains a pruned layer without filling its zeros. Merged, the weight is as sparse as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Outcome, Paper, each, is_plain, normal, plain, right, through

PAPER = Paper(5, "masked adapters merge, as many non-zeros as before")
INPUTS, OUTPUTS, RANK, SCALE = 12, 16, 3, 0.5


def pruned() -> torch.Tensor:
    """Two of every four weights are zero."""
    w = normal(OUTPUTS, INPUTS) / INPUTS**0.5
    groups = w.view(OUTPUTS, -1, 4)
    keep = torch.zeros_like(groups).scatter(-1, groups.abs().topk(2).indices, 1.0)
    return (groups * keep).view(OUTPUTS, INPUTS)


class Pruned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", pruned())
        self.a, self.b = nn.Parameter(normal(RANK, INPUTS, seed=2)), nn.Parameter(normal(OUTPUTS, RANK, seed=3))
        self.c = nn.Parameter(normal(OUTPUTS, seed=4))


class MaskLoRA(Pruned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w + SCALE * (self.b @ self.a) * (self.w != 0), self.c)


class MaskLoRAByEinsum(Pruned):
    """The mask multiplies first, as numbers; the product is an einsum over transposed factors."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mask = torch.where(self.w == 0, torch.zeros_like(self.w), torch.ones_like(self.w)).t()
        delta = torch.einsum("ri,or->io", self.a * SCALE, self.b)
        return features @ (self.w.t() + mask * delta) + self.c


class ScaleLoRA(Pruned):
    """W times a low-rank matrix, element by element; the layer is a 1 x 1 convolution over the tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = (self.w * (self.b @ self.a)).unsqueeze(-1)
        return F.conv1d(x.transpose(1, 2), kernel, self.c).transpose(1, 2)


class Plain(Pruned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w, self.c)


class PlainConvolution(Pruned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.w.unsqueeze(-1), self.c).transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, INPUTS),)


def non_zeros(outcome: Outcome) -> int:
    return sum(int(np.count_nonzero(w)) for w in outcome.weights() if w.ndim > 1)


@each(mask=(MaskLoRA, Plain), einsum=(MaskLoRAByEinsum, Plain), scale=(ScaleLoRA, PlainConvolution))
def test_the_merged_weight_is_as_sparse(module: Any, door: str, record: Any) -> None:
    adapted, base = module
    outcome = through(door, adapted(), inputs())
    is_plain(outcome, plain(base, inputs), 1e-6)
    assert non_zeros(outcome) == int(pruned().count_nonzero())
    record(PAPER, outcome)


class Filling(Pruned):
    """An ordinary LoRA on the pruned layer: merged, its zeros are gone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w, self.c) + SCALE * F.linear(F.linear(x, self.a), self.b)


def test_a_merge_that_fills_zeros_says_so() -> None:
    """The result is right and as fast here; whoever has kernels for 2:4 sparsity must learn that it is lost."""
    outcome = through("torch", Filling(), inputs())
    right(outcome)
    assert any("zero" in note for note in outcome.result.report.notes), outcome.result.report.notes


def test_a_merge_that_keeps_zeros_says_nothing() -> None:
    notes = through("torch", MaskLoRA(), inputs()).result.report.notes
    assert not any("zero" in note for note in notes), notes
