"""Mask tuning: a trained score decides which weights are zero. Constant, and the layer is plain."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, through

PAPER = Paper(49, "thresholded masks are folded into plain layers")
WIDTH, THRESHOLD = 12, 5e-3


class Masked(nn.Module):
    """Scores around the threshold, one of them exactly on it: ``>`` closes it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(normal(WIDTH, WIDTH, seed=2)), nn.Parameter(normal(WIDTH, seed=3))
        scores = normal(WIDTH, WIDTH, seed=4, scale=1e-2)
        scores[0, 0] = THRESHOLD
        self.m = nn.Parameter(scores)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w * (self.m > THRESHOLD), self.c)


class Filled(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w.masked_fill(self.m <= THRESHOLD, 0.0).t() + self.c


class Ternary(Masked):
    """Signs of the scores outside a band: -1, 0, 1; product by einsum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sign = (self.m > THRESHOLD).to(x.dtype) - (self.m < -THRESHOLD).to(x.dtype)
        return torch.einsum("...i,oi->...o", x, self.w * sign) + self.c


class Binarised(Masked):
    """The straight-through form: hard + soft - soft.detach(), on a 1 x 1 convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hard = torch.where(self.m > THRESHOLD, torch.ones_like(self.m), torch.zeros_like(self.m))
        mask = hard + (self.m - self.m.detach())
        return F.conv1d(x.transpose(1, 2), (self.w * mask)[..., None], self.c).transpose(1, 2)


class Plain(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w, self.c)


class PlainConvolution(Masked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), self.w[..., None], self.c).transpose(1, 2)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(product=(Masked, Plain), fill=(Filled, Plain), ternary=(Ternary, Plain), straight_through=(Binarised, PlainConvolution))
def test_the_mask_is_folded(module: Any, door: str, record: Any) -> None:
    masked, base = module
    outcome = through(door, masked(), inputs())
    is_plain(outcome, plain(base, inputs), 1e-6)
    record(PAPER, outcome)


class Soft(Masked):
    """A mask made from the input is none of the weights' business."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w, self.c) * (x > THRESHOLD)


def test_a_mask_from_the_input_stays() -> None:
    outcome = through("torch", Soft(), inputs(), also=[(-inputs()[0],)])
    assert outcome.error <= 1e-5 and outcome.ops["Greater"] == 1, outcome.graph
