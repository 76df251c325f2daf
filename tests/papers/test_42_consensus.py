"""Consensus sub-networks: gates that training drove to 0 or 1. Where they are constant, the channels that they close go."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, at_most, awake, each, has, normal, right, through

PAPER = Paper(42, "half of the channels are closed: half of both convolutions goes; a live shift before padding is right at the border")
INPUTS, HIDDEN, OUTPUTS, SIZE = 4, 16, 8, 7


def logits() -> torch.Tensor:
    """Polarised: half of the gates are shut."""
    return torch.where(torch.arange(HIDDEN) % 2 == 0, 4.0, -4.0) + normal(HIDDEN, seed=3, scale=0.3)


class Gated(nn.Module):
    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.c1, self.bn = nn.Conv2d(INPUTS, HIDDEN, 3, padding=1, bias=False), nn.BatchNorm2d(HIDDEN)
        self.c2 = nn.Conv2d(HIDDEN, OUTPUTS, 3, padding=padding)
        self.register_buffer("open", torch.zeros(HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = (self.open > 0).to(x.dtype)[:, None, None]
        return self.c2(gate * F.relu(self.bn(self.c1(x))))


class GatedBySigmoid(Gated):
    """The gate as a rounded sigmoid, by einsum; BN written out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.open).round()
        y = self.c1(x)
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        y = (y - self.bn.running_mean[:, None, None]) * scale[:, None, None] + self.bn.bias[:, None, None]
        return self.c2(torch.einsum("nchw,c->nchw", y.clamp(min=0), gate))


class Zeroed(Gated):
    """The gate is in the weights already: closed channels have zero kernels and shifts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.heaviside(self.open, torch.zeros(()).to(x.dtype))
        y = F.conv2d(x, self.c1.weight * gate[:, None, None, None], padding=1)
        y = F.batch_norm(y, self.bn.running_mean * gate, self.bn.running_var, self.bn.weight, self.bn.bias * gate)
        return self.c2(F.relu(y))


class GatedChannels(Gated):
    """A perceptron: products over channels that come last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w1, w2 = self.c1.weight[:, :, 1, 1], self.c2.weight[:, :, 1, 1]
        return F.linear(F.relu(F.linear(x.permute(0, 2, 3, 1), w1)) * (self.open > 0), w2)


def polarised(module: Gated) -> Gated:
    awake(module)
    module.open.copy_(logits())
    return module


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, INPUTS, SIZE, SIZE),)


FULL = 2 * SIZE * SIZE * 9 * (INPUTS * HIDDEN + HIDDEN * OUTPUTS)


@each(mask=Gated, sigmoid=GatedBySigmoid, zeroed=Zeroed)
def test_closed_channels_are_removed(module: Any, door: str, record: Any) -> None:
    outcome = through(door, polarised(module()), inputs())
    right(outcome)
    at_most(outcome, 0.55 * FULL)
    has(outcome, Conv=2, BatchNormalization=0, Mul=0)
    record(PAPER, outcome)


@each(perceptron=GatedChannels)
def test_closed_units_of_a_perceptron_are_removed(module: Any, door: str) -> None:
    outcome = through(door, polarised(module()), inputs())
    right(outcome)
    at_most(outcome, 0.55 * FULL / 9)


class BeforeTheShift(Gated):
    """The gate closes the convolution, not the shift after it: a constant that the next kernel sees, and at the border does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c2(F.relu(self.bn((self.open > 0).to(x.dtype)[:, None, None] * self.c1(x))))


@each(padded=lambda: BeforeTheShift(1), unpadded=lambda: BeforeTheShift(0))
def test_a_live_shift_on_a_closed_channel_is_right_at_the_border(module: Any, door: str) -> None:
    """Folding relu(shift) into the bias is wrong in the outermost pixels only: they are looked at by themselves."""
    module = polarised(module())
    outcome = through(door, module, inputs())
    right(outcome)
    with torch.no_grad():
        want = module(*inputs()).numpy()
    got = outcome.outputs[0]
    for border in (np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., 0], np.s_[..., -1]):
        np.testing.assert_allclose(got[border], want[border], rtol=0, atol=1e-5 * np.abs(want).max())


class Residual(Gated):
    """The closed channels are added to a stream that others read: no channel may go from it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.c1(x)
        return self.c2(stream + (self.open > 0).to(x.dtype)[:, None, None] * F.relu(self.bn(stream)))


class DependsOnTheInput(Gated):
    """The gate is a function of the input: nothing may go, whatever the examples show."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = (self.open * x.mean((2, 3)).sum(1, keepdim=True) > 0).to(x.dtype)[..., None, None]
        return self.c2(gate * F.relu(self.bn(self.c1(x))))


def test_a_stream_that_is_read_whole_stays_whole() -> None:
    right(through("torch", polarised(Residual()), inputs()))


def test_gates_that_depend_on_the_input_stay() -> None:
    """The other sign of the input opens the other half."""
    x = inputs()[0]
    outcome = through("torch", polarised(DependsOnTheInput()), (x,), also=[(-x,)])
    right(outcome)
    assert outcome.macs == FULL
