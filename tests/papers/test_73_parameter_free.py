"""Parameter-free layers: max pooling as the spatial operator. It commutes with ReLU and not with GELU; pooling is not merged into kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(73, "batch norms fold around the pooling; GELU stays where it is; no average pooling is multiplied into a kernel")
INPUTS, WIDTH, SIZE = 4, 6, 8


class Bottleneck(nn.Module):
    """1 x 1, BN, ReLU, max pooling with stride, 1 x 1, BN."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(INPUTS, WIDTH, 1, bias=False), nn.Conv2d(WIDTH, INPUTS, 1, bias=False)
        self.na, self.nb = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(INPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nb(self.b(F.max_pool2d(F.relu(self.na(self.a(x))), 3, 2, 1)))


class BottleneckFunctions(Bottleneck):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("nihw,oi->nohw", x, self.a.weight[..., 0, 0])
        y = F.batch_norm(y, self.na.running_mean, self.na.running_var, self.na.weight, self.na.bias)
        return self.nb(F.conv2d(F.max_pool2d(y.clamp(min=0), 3, 2, 1), self.b.weight))


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, INPUTS, SIZE, SIZE),)


def below_zero() -> tuple[torch.Tensor]:
    """Windows that are negative throughout, where GELU falls before it rises: random inputs have few."""
    return (-normal(2, INPUTS, SIZE, SIZE, seed=7).abs() * 2,)


@each(modules=Bottleneck, functions=BottleneckFunctions)
def test_norms_fold_around_the_pooling(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs(), also=[below_zero()])
    right(outcome)
    has(outcome, BatchNormalization=0, MaxPool=1, Relu=1, Mul=0)
    assert outcome.products == 2, outcome.graph
    record(PAPER, outcome)


class GeluAndPool(nn.Module):
    """Both orders, side by side: they are different functions on windows below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.gelu(F.max_pool2d(x, 3, 1, 1)), F.max_pool2d(F.gelu(x), 3, 1, 1)], 1)


def test_gelu_does_not_commute_with_max_pooling() -> None:
    outcome = through("torch", GeluAndPool(), inputs(), also=[below_zero()])
    right(outcome)
    has(outcome, Gelu=2, MaxPool=2)


class AverageFirst(nn.Module):
    """Average pooling before a convolution: one 6 x 6 kernel would do, at four times the products, and is wrong for odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(INPUTS, WIDTH, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.avg_pool2d(x, 2))


def test_average_pooling_stays_before_its_convolution() -> None:
    for size in (8, 9):
        outcome = through("torch", awake(AverageFirst()), (normal(1, INPUTS, size, size),))
        right(outcome)
        has(outcome, AveragePool=1, Conv=1)
