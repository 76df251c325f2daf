"""Hourglass: a wide residual stream that narrow layers read and add to. The stream is never needed."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, at_most, awake, each, normal, right, through

PAPER = Paper(48, "the wide stream is gone: four times fewer products, with a norm on it too")
NARROW, LAYERS, ROWS = 8, 5, 16
WIDE = 8 * NARROW
BEFORE = ROWS * (2 * NARROW * WIDE + 2 * LAYERS * NARROW * WIDE)
TOLERANCE = 1e-4
"""S3's: sums of many products are taken in another order."""


class Hourglass(nn.Module):
    """P lifts the input by fixed random weights; each layer reads the stream and adds to it."""

    def __init__(self, narrow: int = NARROW, wide: int = WIDE) -> None:
        super().__init__()
        self.register_buffer("p", torch.zeros(wide, narrow))
        self.a = nn.ModuleList(nn.Linear(wide, narrow) for _ in range(LAYERS))
        self.b = nn.ModuleList(nn.Linear(narrow, wide) for _ in range(LAYERS))
        self.o = nn.Linear(wide, narrow)
        self.g = nn.Parameter(torch.ones(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x @ self.p.T
        for a, b in zip(self.a, self.b, strict=True):
            z = z + b(F.gelu(a(self.read(z))))
        return self.o(z)

    def read(self, z: torch.Tensor) -> torch.Tensor:
        return z


class ByEinsum(Hourglass):
    """Einsums for the layers, the stream added from the other side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.einsum("ni,wi->nw", x, self.p)
        for a, b in zip(self.a, self.b, strict=True):
            h = F.gelu(torch.einsum("nw,hw->nh", z, a.weight) + a.bias)
            z = torch.einsum("nh,wh->nw", h, b.weight) + b.bias + z
        return torch.einsum("nw,ow->no", z, self.o.weight) + self.o.bias


class Normed(Hourglass):
    """Each layer reads the RMS norm of the stream."""

    def read(self, z: torch.Tensor) -> torch.Tensor:
        return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6) * self.g


class NormedByDivision(Hourglass):
    """The same norm as a quotient."""

    def read(self, z: torch.Tensor) -> torch.Tensor:
        return self.g * (z / torch.sqrt((z * z).sum(-1, keepdim=True) / z.shape[-1] + 1e-6))


def inputs() -> tuple[torch.Tensor]:
    return (normal(ROWS, NARROW),)


@each(linear=Hourglass, einsum=ByEinsum)
def test_the_wide_stream_is_gone(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome, TOLERANCE)
    at_most(outcome, BEFORE / 4)
    record(PAPER, outcome)


@each(rms=Normed, quotient=NormedByDivision)
def test_the_wide_stream_under_a_norm_is_gone(module: Any, door: str, record: Any) -> None:
    """The norm's sum of squares is a quadratic form in the narrow activations (the Gram matrix of the stream's maps)."""
    outcome = through(door, awake(module()), inputs())
    right(outcome, TOLERANCE)
    shapes = [line.rsplit("#", 1)[-1] for line in outcome.graph.splitlines() if " = " in line and "weight" not in line]
    assert not any(re.search(rf"\b{WIDE}\b", shape) for shape in shapes), outcome.graph
    record(PAPER, outcome)


class Transformer(Hourglass):
    """The mirror: a narrow stream, wide layers, as in every transformer."""

    def __init__(self) -> None:
        super().__init__(wide=NARROW)
        self.a = nn.ModuleList(nn.Linear(NARROW, 4 * NARROW) for _ in range(LAYERS))
        self.b = nn.ModuleList(nn.Linear(4 * NARROW, NARROW) for _ in range(LAYERS))


def test_a_narrow_stream_with_wide_layers_stays() -> None:
    outcome = through("torch", awake(Transformer()), inputs())
    right(outcome)
    assert outcome.macs <= ROWS * (2 * NARROW * NARROW + LAYERS * 8 * NARROW * NARROW), outcome.graph


class Clamped(Hourglass):
    """The stream is clamped: it must exist."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x @ self.p.T
        for a, b in zip(self.a, self.b, strict=True):
            z = (z + b(F.gelu(a(z)))).clamp(-1, 1)
        return self.o(z)


def test_a_stream_with_an_activation_on_it_stays() -> None:
    right(through("torch", awake(Clamped()), inputs(), also=[(normal(ROWS, NARROW, scale=5.0),)]), TOLERANCE)
