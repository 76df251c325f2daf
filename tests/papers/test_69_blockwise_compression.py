"""Block-wise compression: weights in 4 bits with a scale for each block, within a budget of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, normal, through

PAPER = Paper(69, "weights in a seventh of their bytes, within the budget")
WIDTH, HIDDEN = 128, 512


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))


class LayersByEinsum(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(torch.einsum("btd,hd->bth", x, self.up.weight) + self.up.bias)
        return torch.einsum("bth,dh->btd", h, self.down.weight) + self.down.bias


def inputs() -> tuple[torch.Tensor]:
    return (normal(1, 4, WIDTH),)


def calibration() -> list[np.ndarray]:
    return [np.random.default_rng(k).standard_normal((1, 4, WIDTH)).astype(np.float32) for k in range(48)]


@each(modules=Layers, einsum=LayersByEinsum)
def test_weights_become_codes_of_four_bits(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs(), budget=0.2, objective="memory", calibration=calibration())
    report = outcome.result.report
    assert report.after.weight_bytes <= 0.15 * report.before.weight_bytes, report.notes
    assert report.budget is not None and report.budget["metric"]["upper"] <= 0.2
    assert any("4-bit" in r["rule"] or "binary" in r["rule"] for r in report.rewrites), [r["rule"] for r in report.rewrites]
    record(PAPER, outcome)
