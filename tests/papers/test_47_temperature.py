"""Softmax gates with a trained temperature: the temperature is in the gate's weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, is_plain, normal, plain, right, through

PAPER = Paper(47, "the temperature is folded into the gate")
WIDTH, EXPERTS = 12, 6


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.t = nn.Linear(WIDTH, EXPERTS), nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.g(x) / self.t).softmax(-1)


class GateByEinsum(Gate):
    """The inverse temperature on the input, the softmax written out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.einsum("nd,ed->ne", x * (1 / self.t), self.g.weight) + self.g.bias / self.t
        return torch.softmax(z, 1)


class Rectified(Gate):
    """A positive temperature passes a ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (F.relu(self.g(x)) / (self.t.abs() + 0.5)).softmax(-1)


class Squashed(Gate):
    """It does not pass a tanh."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(self.g(x)) / (self.t.abs() + 0.5)).softmax(-1)


class Plain(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.g(x).softmax(-1)


class PlainRectified(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.g(x)).softmax(-1)


def inputs() -> tuple[torch.Tensor]:
    return (normal(7, WIDTH),)


@each(linear=(Gate, Plain), einsum=(GateByEinsum, Plain), relu=(Rectified, PlainRectified))
def test_the_temperature_is_folded(module: Any, door: str, record: Any) -> None:
    gate, base = module
    outcome = through(door, awake(gate()), inputs())
    is_plain(outcome, plain(base, inputs), 1e-6)
    record(PAPER, outcome)


def test_a_temperature_after_a_squashing_activation_stays() -> None:
    outcome = through("torch", awake(Squashed()), inputs())
    right(outcome)
    assert outcome.ops.get("Mul", 0) + outcome.ops.get("Div", 0) == 1, outcome.graph
