"""CLR: a depthwise convolution and a batch norm after every frozen convolution. The norm folds; the two convolutions must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, is_plain, normal, plain, right, through

PAPER = Paper(72, "batch norms fold; an untrained reprogramming layer vanishes; a 1 x 1 one folds; a 3 x 3 one stays")
INPUTS, OUTPUTS, SIZE = 4, 6, 8


class Reprogrammed(nn.Module):
    """A frozen convolution, a depthwise one of ``k`` x ``k``, BN."""

    def __init__(self, k: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.c = nn.Conv2d(INPUTS, OUTPUTS, 3, padding=1, bias=bias)
        self.d = nn.Conv2d(OUTPUTS, OUTPUTS, k, 1, k // 2, groups=OUTPUTS, bias=False)
        self.bn = nn.BatchNorm2d(OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.d(self.c(x)))


class ReprogrammedFunctions(Reprogrammed):
    """Explicit padding, the depthwise layer channel by channel, BN by its formula."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.c.weight, self.c.bias)
        y = F.conv2d(y, self.d.weight, padding="same", groups=OUTPUTS)
        scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
        return scale[None, :, None, None] * (y - self.bn.running_mean.view(1, -1, 1, 1)) + self.bn.bias[:, None, None]


class PlainPair(Reprogrammed):
    def __init__(self, k: int = 3, bias: bool = False) -> None:
        super().__init__(k, bias)
        self.b = nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.c(x), self.d.weight, self.b, padding=self.d.padding, groups=OUTPUTS)


def plain_pair() -> nn.Module:
    return awake(PlainPair())


def plain_convolution() -> nn.Module:
    return awake(nn.Conv2d(INPUTS, OUTPUTS, 3, padding=1))


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, INPUTS, SIZE, SIZE),)


def untrained(module: Reprogrammed) -> Reprogrammed:
    awake(module)
    nn.init.dirac_(module.d.weight, groups=OUTPUTS)
    return module


@each(modules=Reprogrammed, functions=ReprogrammedFunctions)
def test_the_norm_folds_and_the_convolutions_stay(module: Any, door: str, record: Any) -> None:
    """Merging 3 x 3 with 3 x 3 is wrong at the border, and 2.8 times the products: both kernels stay as they are."""
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(plain_pair, inputs))
    with torch.no_grad():
        want = awake(module())(*inputs()).numpy()
    for border in (np.s_[..., 0, :], np.s_[..., -1]):
        np.testing.assert_allclose(outcome.outputs[0][border], want[border], rtol=0, atol=1e-5 * np.abs(want).max())
    record(PAPER, outcome)


@each(modules=lambda: Reprogrammed(1, True), functions=lambda: ReprogrammedFunctions(1, True))
def test_a_pointwise_reprogramming_layer_folds(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(plain_convolution, inputs))
    record(PAPER, outcome)


@each(modules=Reprogrammed, functions=ReprogrammedFunctions)
def test_an_untrained_reprogramming_layer_vanishes(module: Any, door: str, record: Any) -> None:
    """Its kernels are still Dirac impulses: the identity."""
    outcome = through(door, untrained(module()), inputs())
    is_plain(outcome, plain(plain_convolution, inputs))
    record(PAPER, outcome)


class OneByOneFirst(nn.Module):
    """A 1 x 1 convolution without a bias before a padded one: zero padding commutes with it. With a bias it does not."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(INPUTS, OUTPUTS, 1, bias=bias), nn.Conv2d(OUTPUTS, OUTPUTS, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.c(x))


@each(bias=lambda: OneByOneFirst(True), none=lambda: OneByOneFirst(False))
def test_a_pointwise_convolution_before_padding(module: Any, door: str) -> None:
    right(through(door, awake(module()), inputs()))


def test_one_without_a_bias_merges() -> None:
    outcome = through("torch", awake(OneByOneFirst(False)), inputs())
    right(outcome)
    has(outcome, Conv=1)
