"""DivControl: factors of a weight, switched by a condition. With the condition declared constant, a plain layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, is_plain, normal, plain, right, through

PAPER = Paper(58, "a declared condition leaves plain layers; an open one stays factored")
INPUTS, OUTPUTS, COMMON, SPECIFIC, CONDITION = 12, 16, 10, 4, 6


class Diverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.empty(OUTPUTS, COMMON + SPECIFIC)), nn.Parameter(torch.empty(COMMON + SPECIFIC, INPUTS))
        self.s, self.gate, self.bias = nn.Parameter(torch.ones(COMMON + SPECIFIC)), nn.Linear(CONDITION, SPECIFIC), nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([self.s[:COMMON], self.s[COMMON:] * self.gate(c).softmax(-1)])
        return ((x @ self.v.T) * weight) @ self.u.T + self.bias


class TwoParts(Diverted):
    """Common and specific factors apart, as einsums; the condition is a row."""

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        g = torch.softmax(condition[None] @ self.gate.weight.t() + self.gate.bias, 1)[0]
        common = torch.einsum("oc,c,ci->oi", self.u[:, :COMMON], self.s[:COMMON], self.v[:COMMON])
        specific = torch.einsum("...i,si,s,os->...o", image, self.v[COMMON:], self.s[COMMON:] * g, self.u[:, COMMON:])
        return F.linear(image, common, self.bias) + specific


class Convolutions(Diverted):
    """The factors as 1 x 1 convolutions."""

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([self.s[:COMMON], self.s[COMMON:] * F.softmax(self.gate(c), dim=0)])
        y = F.conv1d(x.transpose(1, 2), self.v[..., None]) * weight[:, None]
        return F.conv1d(y, self.u[..., None], self.bias).transpose(1, 2)


class Plain(Diverted):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(OUTPUTS, INPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w, self.bias)


class PlainConvolution(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.w[..., None], self.bias).transpose(1, 2)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(2, 5, INPUTS), normal(CONDITION, seed=3)


def plain_inputs() -> tuple[torch.Tensor]:
    return inputs()[:1]


@each(factors=(Diverted, "c", Plain), einsum=(TwoParts, "condition", Plain), convolutions=(Convolutions, "c", PlainConvolution))
def test_a_declared_condition_leaves_the_plain_layer(module: Any, door: str, record: Any) -> None:
    diverted, name, base = module
    outcome = through(door, awake(diverted()), inputs(), constants={name: inputs()[1].numpy()})
    is_plain(outcome, plain(base, plain_inputs))
    record(PAPER, outcome)


def test_an_open_condition_stays() -> None:
    outcome = through("torch", awake(Diverted()), inputs(), also=[(inputs()[0], -3 * inputs()[1])])
    right(outcome)
    assert len(outcome.result.model.graph.input) == 2


def test_a_condition_for_each_row_stays_factored() -> None:
    class Rows(Diverted):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            weight = torch.cat([self.s[:COMMON].expand(len(c), -1), self.s[COMMON:] * self.gate(c).softmax(-1)], -1)
            return ((x @ self.v.T) * weight[:, None]) @ self.u.T + self.bias

    conditions = normal(2, CONDITION, seed=4)
    outcome = through("torch", awake(Rows()), (inputs()[0], conditions), also=[(inputs()[0], conditions.flip(0))])
    right(outcome)
