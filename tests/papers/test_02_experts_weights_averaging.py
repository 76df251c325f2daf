"""Experts weights averaging: experts that were trained with averaging become one feed-forward layer, within a budget."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, normal, plain, through

PAPER = Paper(2, "one expert's multiplications and weights, within the budget")
WIDTH, HIDDEN, EXPERTS = 32, 64, 4
OPTIONS = {"budget": 0.01, "objective": "memory"}
"""For memory: no time that is measured has a part in what is chosen."""


def expert() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))


def close(apart: float = 0.01) -> nn.ModuleList:
    """Experts around one, as training with averaging leaves them."""
    torch.manual_seed(0)
    first = expert()
    made = [copy.deepcopy(first) for _ in range(EXPERTS)]
    for one in made:
        for weight in one.parameters():
            weight.data += apart * weight.std() * torch.randn_like(weight)
    return nn.ModuleList(made)


class Experts(nn.Module):
    """What the paper's random partition of tokens gives on average."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = close()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + sum(e(x) for e in self.experts) / EXPERTS


class FunctionalExperts(Experts):
    """Products with transposed weights, each expert's share added to the stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for first, _, second in self.experts:
            hidden = F.gelu(x @ first.weight.T + first.bias)
            y = y + (F.linear(hidden, second.weight) + second.bias) * (1 / EXPERTS)
        return y


class RoutedExperts(nn.Module):
    """Experts that a router weighs, far apart: each has its own job."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.experts = nn.ModuleList(expert() for _ in range(EXPERTS))
        self.router = nn.Linear(WIDTH, EXPERTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.router(x).softmax(-1)
        return x + sum(gates[..., k : k + 1] * e(x) for k, e in enumerate(self.experts))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expert = expert()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.expert(x)


def inputs() -> tuple[torch.Tensor]:
    return (normal(1, 16, WIDTH),)


def calibration() -> list[np.ndarray]:
    return [np.random.default_rng(k).standard_normal((1, 16, WIDTH)).astype(np.float32) for k in range(48)]


@each(modules=Experts, functional=FunctionalExperts)
def test_close_experts_become_one(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), inputs(), calibration=calibration(), **OPTIONS)
    report = outcome.result.report
    assert any(r["rule"] == "average-experts-4" for r in report.rewrites), report.notes
    assert outcome.macs == plain(Plain, inputs, as_built=True).macs and report.budget is not None
    assert report.after.weight_bytes <= 0.3 * report.before.weight_bytes
    assert 0 < outcome.error < 0.01 and report.budget["metric"]["upper"] <= 0.01
    record(PAPER, outcome)


@pytest.mark.parametrize("door", ["torch"])
def test_routed_experts_are_not_averaged(door: str) -> None:
    """Averaging them would lose ten times the budget, and the report says so."""
    report = through(door, RoutedExperts(), inputs(), calibration=calibration(), **OPTIONS).result.report
    assert not any("average-experts" in r["rule"] for r in report.rewrites)
    said = [d["reason"] for d in report.declined if d["rule"] == "average-experts-4"]
    assert said and "the budget is 0.01" in said[0]
