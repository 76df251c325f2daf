"""Top-k softmax gates: softmax, choose, renormalise is choose, softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(22, "a softmax over the chosen logits instead of one over all and a division")
WIDTH, EXPERTS, BEST = 12, 16, 3


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Linear(WIDTH, EXPERTS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, i = self.g(x).softmax(-1).topk(BEST)
        return w / w.sum(-1, keepdim=True), i


class GateByEinsum(Gate):
    """The probabilities of the chosen are looked up again."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = (torch.einsum("nd,ed->ne", x, self.g.weight) + self.g.bias).softmax(1)
        i = torch.topk(p, BEST, dim=1).indices
        w = p.gather(1, i)
        return w * (1 / w.sum(1, keepdim=True)), i


class Unnormalised(Gate):
    """Without the division the softmax over all experts must stay."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, i = self.g(x).softmax(-1).topk(BEST)
        return w, i


class WithEpsilon(Gate):
    """With an epsilon in the division it is another function."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w, i = self.g(x).softmax(-1).topk(BEST)
        return w / (w.sum(-1, keepdim=True) + 1e-2), i


def inputs() -> tuple[torch.Tensor]:
    return (normal(1000, WIDTH),)


@each(topk=Gate, gather=GateByEinsum, missing=dict.fromkeys(("topk", "gather"), "a renormalised softmax is not one over the chosen"))
def test_the_softmax_is_over_the_chosen(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Softmax=1, Div=0, Mul=0, ReduceSum=0, TopK=1)
    record(PAPER, outcome)


@each(unnormalised=Unnormalised, epsilon=WithEpsilon)
def test_other_gates_are_right(module: Any, door: str) -> None:
    right(through(door, awake(module()), inputs()))
