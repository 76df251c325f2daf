"""Fire together, wire together: channels switched off for each image by a small predictor. Norms fold around the mask, which stays."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(3, "batch norms fold, the mask of each image stays; skipping the switched-off channels is not there yet")
INPUTS, OUTPUTS, SIZE = 4, 8, 6


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.bn, self.p = nn.Conv2d(INPUTS, OUTPUTS, 3, padding=1, bias=False), nn.BatchNorm2d(OUTPUTS), nn.Conv2d(INPUTS, OUTPUTS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.p(F.adaptive_avg_pool2d(x, 1))
        return F.relu(self.bn(self.c(x))) * (torch.sigmoid(z) > 0.5)


class MaskedFunctions(Masked):
    """The predictor as a linear layer on means, the threshold on the logit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.einsum("ni,oi->no", x.mean((2, 3)), self.p.weight[..., 0, 0]) + self.p.bias
        y = self.bn(F.conv2d(x, self.c.weight, padding=1)).clamp(min=0)
        return torch.where((z > 0)[..., None, None], y, 0.0)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, INPUTS, SIZE, SIZE),)


@each(modules=Masked, functions=MaskedFunctions)
def test_the_norm_folds_beside_the_mask(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs(), also=[(-2 * inputs()[0],)])
    right(outcome)
    has(outcome, BatchNormalization=0)
    assert outcome.products == 2, outcome.graph
    record(PAPER, outcome)
