"""Normalise-and-project: weights are projected to a norm in every forward, and norms stand between the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Outcome, Paper, awake, each, has, is_plain, normal, plain, right, through

PAPER = Paper(45, "projections and the norms' affine parts are in the weights, with the epsilon rescaled; as many norms as before")
WIDTH, HIDDEN, EPSILON = 12, 20, 1e-2
"""An epsilon that matters: one that is not rescaled shows."""


class Projected(nn.Module):
    """Linear, LayerNorm with scale and shift, Linear; the first weight is projected to its norm at initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(WIDTH, HIDDEN), nn.LayerNorm(HIDDEN, EPSILON), nn.Linear(HIDDEN, WIDTH)
        self.radius = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.first.weight * (self.radius / self.first.weight.norm())
        return self.second(self.norm(F.relu(F.linear(x, w, self.first.bias))))


class WrittenOut(Projected):
    """The norm from its moments, the projection by a sum of squares, the products by einsum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.first.weight
        w = self.radius * w / w.square().sum().sqrt()
        h = F.relu(torch.einsum("ni,oi->no", x, w) + self.first.bias)
        centred = h - h.mean(-1, keepdim=True)
        h = centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt() * self.norm.weight + self.norm.bias
        return h @ self.second.weight.t() + self.second.bias


class Plain(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.layer_norm(F.relu(self.first(x)), (HIDDEN,), eps=EPSILON))


def inputs() -> tuple[torch.Tensor]:
    return (normal(6, WIDTH, scale=0.1),)


@each(modules=Projected, moments=WrittenOut)
def test_projection_and_affine_are_in_the_weights(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(Plain, inputs))
    unscaled(outcome)
    record(PAPER, outcome)


def unscaled(outcome: Outcome) -> None:
    """The norm that is left has scale one and no shift."""
    (norm,) = outcome.nodes("LayerNormalization")
    assert np.all(norm.inputs[1].const_value.numpy() == 1), outcome.graph
    assert len(norm.inputs) == 2 or norm.inputs[2] is None or not norm.inputs[2].const_value.numpy().any(), outcome.graph


class ReluAfter(Projected):
    """The norm's scale is positive and its shift zero: it moves through the ReLU into the second layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gamma = self.norm.weight.abs() + 0.1
        return self.second(F.relu(F.layer_norm(self.first(x), (HIDDEN,), gamma, None, EPSILON)))


class SignedReluAfter(Projected):
    """A negative scale does not: relu(-z) is not -relu(z)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gamma = self.norm.weight * torch.where(torch.arange(HIDDEN) % 2 == 0, 1.0, -1.0).to(x.dtype)
        return self.second(F.relu(F.layer_norm(self.first(x), (HIDDEN,), gamma, None, EPSILON)))


@each(positive=ReluAfter)
def test_a_positive_scale_moves_through_relu(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    unscaled(outcome)
    record(PAPER, outcome)


def test_a_negative_scale_stays_before_relu() -> None:
    right(through("torch", awake(SignedReluAfter()), inputs()))


class Multiple(Projected):
    """A constant factor before the norm: LN_eps(c h) = sign(c) LN_{eps/c^2}(h)."""

    factor = 0.25

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.factor * torch.tanh(self.first(x))))


class NegativeMultiple(Multiple):
    factor = -3.0


class RMSMultiple(Multiple):
    """The same with an RMS norm written out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x)) / 4
        return self.second(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPSILON) * self.norm.weight)


class PlainTanh(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.layer_norm(torch.tanh(self.first(x)), (HIDDEN,), eps=EPSILON))


class PlainRMS(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        return self.second(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPSILON))


@each(layer_norm=(Multiple, PlainTanh), negative=(NegativeMultiple, PlainTanh), rms=(RMSMultiple, PlainRMS))
def test_a_factor_before_a_norm_goes_into_its_epsilon(module: Any, door: str, record: Any) -> None:
    scaled, base = module
    outcome = through(door, awake(scaled()), inputs())
    is_plain(outcome, plain(base, inputs))
    record(PAPER, outcome)


class BiasNotScaled(Projected):
    """Only the weight is projected, not the bias: the factor is in W, and no norm takes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.linear(x, self.first.weight * 5.0, self.first.bias))


def test_a_bias_that_is_not_scaled_with_the_weight() -> None:
    outcome = through("torch", awake(BiasNotScaled()), inputs())
    right(outcome)
    has(outcome, Mul=0)
