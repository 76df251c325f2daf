"""SHERL: a side path weighs the layers' features by how redundant they are. Its constant gates are in the weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(74, "the temperature of the gates is folded; features and normalisers stay")
WIDTH, LAYERS = 12, 4


class Guidance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Linear(WIDTH, 1), nn.Parameter(torch.zeros(()))

    def forward(self, g: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(features, dim=-1)
        redundancy = F.relu(unit @ unit.mT).sum(-1, keepdim=True)
        w = F.relu(self.a(features * g)) / redundancy
        w = w / w.abs().sum(1, keepdim=True).clamp_min(1e-8)
        return torch.sigmoid(self.gate / 0.1) * (w * features).sum(1, keepdim=True) + g


class GuidanceByEinsum(Guidance):
    def forward(self, g: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        unit = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        redundancy = torch.einsum("nld,nmd->nlm", unit, unit).clamp(min=0).sum(-1)[..., None]
        score = torch.einsum("nld,nd,od->nlo", features, g[:, 0], self.a.weight) + self.a.bias
        w = score.clamp(min=0) / redundancy
        w = w / torch.maximum(w.abs().sum(1, keepdim=True), torch.tensor(1e-8).to(w.dtype))
        return torch.sigmoid(10 * self.gate) * torch.einsum("nlo,nld->nod", w, features) + g


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(3, 1, WIDTH), normal(3, LAYERS, WIDTH, seed=2)


@each(modules=Guidance, einsum=GuidanceByEinsum)
def test_the_gates_are_constants(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Sigmoid=0)
    record(PAPER, outcome)
