"""Experts weights averaging: experts that were trained with averaging become one feed-forward layer, within a budget."""

from __future__ import annotations

import copy
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Outcome, Paper, each, from_onnx, normal, plain, through, truth
from passes.approximate.averaged_experts import AveragedExperts
from passes.approximate.candidate import Candidate, Site, substituted

PAPER = Paper(2, "one expert's multiplications and weights, within the budget")
WIDTH, HIDDEN, EXPERTS = 32, 64, 4

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


class StackOfExperts(Experts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([e(x) for e in self.experts]).mean(0) + x


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


def averaged(module: nn.Module, door: str) -> tuple[Outcome, Candidate, Outcome]:
    """The exact result, the average of all experts in it, and what comes of that alone."""
    found = through(door, module, inputs(), disable=("maps/merge",))
    graph = found.result.ir_model
    candidates = [c for c in AveragedExperts().propose(Site(graph, {})) if isinstance(c, Candidate) and c.rewrite == f"average-experts-{EXPERTS}"]
    assert len(candidates) == 1, found.graph
    alone = ir.to_proto(substituted(graph, candidates))
    return found, candidates[0], from_onnx(alone, [[x.numpy() for x in inputs()]], [truth(module, inputs())])


@each(modules=Experts, functional=FunctionalExperts, stack=StackOfExperts)
def test_close_experts_become_one(module: Any, door: str, record: Any) -> None:
    exact, candidate, outcome = averaged(module(), door)
    base = plain(Plain, inputs, as_built=True)
    assert exact.macs == EXPERTS * base.macs
    assert outcome.macs == base.macs and outcome.ops == base.ops and 0 < outcome.error < 1e-3
    assert outcome.weight_bytes <= 0.3 * exact.weight_bytes and candidate.bytes < 0
    record(PAPER, outcome)


def test_routed_experts_are_far_apart() -> None:
    """Their average is off by many times any budget, and the spread says so beforehand."""
    _, candidate, outcome = averaged(RoutedExperts(), "torch")
    assert outcome.error > 0.05 and float(candidate.bound.split()[-1]) > 1.0
