"""Self-tuning networks: layers that respond to hyper-parameters. With those fixed, a plain layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, at_most, awake, each, is_plain, normal, plain, right, through

PAPER = Paper(19, "hyper-parameters declared constant: plain layers, half of the products")
INPUTS, OUTPUTS, TUNED = 12, 20, 3
LAMBDA = [0.5, -1.25, 2.0]


class Responsive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.q = nn.Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS)
        self.v, self.c = nn.Linear(TUNED, OUTPUTS, bias=False), nn.Linear(TUNED, OUTPUTS, bias=False)

    def forward(self, x: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return self.w(x) + self.v(lam) * F.linear(x, self.q.weight) + self.c(lam) * self.q.bias


class GatedWeight(Responsive):
    """The response is put into the weight, W + diag(V lambda) Q, and used by an einsum."""

    def forward(self, features: torch.Tensor, hyper: torch.Tensor) -> torch.Tensor:
        response = torch.einsum("ok,k->o", self.v.weight, hyper)
        weight = self.w.weight + torch.diag(response) @ self.q.weight
        return torch.einsum("...i,oi->...o", features, weight) + (self.w.bias + self.c(hyper) * self.q.bias)


class Convolved(Responsive):
    """As 1 x 1 convolutions; lambda as a row."""

    def forward(self, x: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)
        gate, shift = (lam[None] @ p.weight.t() for p in (self.v, self.c))
        own, response = (F.conv1d(y, p.weight[..., None], b) for p, b in ((self.w, self.w.bias), (self.q, None)))
        return (own + gate[..., None] * response + (shift * self.q.bias)[..., None]).transpose(1, 2)


class Plain(Responsive):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w(x)


class PlainConvolution(Responsive):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.w.weight[..., None], self.w.bias).transpose(1, 2)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(2, 5, INPUTS), torch.tensor(LAMBDA)


def plain_inputs() -> tuple[torch.Tensor]:
    return inputs()[:1]


@each(linear=(Responsive, Plain), einsum=(GatedWeight, Plain), convolution=(Convolved, PlainConvolution))
def test_fixed_hyper_parameters_fold(module: Any, door: str, record: Any) -> None:
    responsive, base = module
    name = "hyper" if responsive is GatedWeight else "lam"
    outcome = through(door, awake(responsive()), inputs(), constants={name: LAMBDA})
    is_plain(outcome, plain(base, plain_inputs), 1e-6)
    at_most(outcome, 2 * 5 * INPUTS * OUTPUTS)
    record(PAPER, outcome)


def test_an_input_that_is_not_declared_constant_stays() -> None:
    other = (inputs()[0], torch.tensor([-1.0, 0.0, 3.0]))
    outcome = through("torch", awake(Responsive()), inputs(), also=[other])
    right(outcome)
    assert len(outcome.result.model.graph.input) == 2


def test_hyper_parameters_of_each_example_stay() -> None:
    """lambda differs from row to row, as in training: nothing to fold it into."""
    perturbed = normal(2, 5, TUNED, seed=8)
    outcome = through("torch", awake(Responsive()), (inputs()[0], perturbed), also=[(inputs()[0], -perturbed)])
    right(outcome)
