"""Complex query answering: scores are calibrated by a layer on the relation's embedding. Applied to the table once, it is a look-up."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, right, through

PAPER = Paper(54, "the calibration layer is a table; the score is one product")
ENTITIES, RELATIONS, RANK = 30, 5, 4


class Calibrated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.r, self.c = nn.Embedding(ENTITIES, 2 * RANK), nn.Embedding(RELATIONS, 2 * RANK), nn.Linear(2 * RANK, 2)

    def scores(self, h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        a, b = self.e(h).chunk(2, -1)
        c, d = self.r(r).chunk(2, -1)
        real, imaginary = self.e.weight.chunk(2, -1)
        return (a * c - b * d) @ real.T + (a * d + b * c) @ imaginary.T

    def forward(self, h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        calibration = self.c(self.r(r))
        return torch.sigmoid(self.scores(h, r) * (1 + calibration[:, :1]) + calibration[:, 1:])


class ByIndex(Calibrated):
    """Tables indexed directly, products by einsum, the calibration unpacked."""

    def forward(self, head: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
        rows = self.r.weight.index_select(0, relation)
        slope, shift = (torch.einsum("nk,ok->no", rows, self.c.weight) + self.c.bias).unbind(-1)
        u, v = self.e.weight[head], rows
        a, b, c, d = u[:, :RANK], u[:, RANK:], v[:, :RANK], v[:, RANK:]
        query = torch.cat([a * c - b * d, a * d + b * c], -1)
        return torch.sigmoid(torch.einsum("nk,ek->ne", query, self.e.weight) * (1 + slope[:, None]) + shift[:, None])


class Activated(Calibrated):
    """Any row-wise function of the table is a table: here two layers with an activation."""

    def forward(self, h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        calibration = torch.tanh(self.c(F.relu(self.r(r))))
        return self.scores(h, r) * (1 + calibration[:, :1]) + calibration[:, 1:]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([3, 17, 29, 0]), torch.tensor([0, 4, 2, 2])


SCORES = 4 * ENTITIES * 2 * RANK


@each(embedding=Calibrated, index=ByIndex, activated=Activated)
def test_the_calibration_is_a_table(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    assert outcome.macs <= SCORES, f"more than the product with all entities: {outcome.macs}\n{outcome.graph}"
    record(PAPER, outcome)


class BestFive(Calibrated):
    """The best entities after calibration. Where 1 + slope is negative the order is reversed: no law may pull the affine map out."""

    def forward(self, h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        calibration = self.c(self.r(r))
        return (self.scores(h, r) * (1 + calibration[:, :1]) + calibration[:, 1:]).topk(5).indices


def test_a_negative_slope_keeps_its_order() -> None:
    module = awake(BestFive())
    slopes = (1 + module.c(module.r.weight))[:, 0]
    module.r.weight.data[2] *= 40 * torch.sign(-slopes[2])
    with torch.no_grad():
        slopes = (1 + module.c(module.r.weight))[:, 0]
    assert slopes.min() < 0 < slopes.max(), "the fixture needs both signs"
    outcome = through("torch", module, inputs(), also=[(inputs()[0], torch.arange(4))])
    right(outcome)


class MixesRows(Calibrated):
    """A softmax down the gathered rows is no function of one row: it is not a table."""

    def forward(self, h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return self.scores(h, r) * self.c(self.r(r)).softmax(0)[:, :1]


def test_a_function_that_mixes_the_rows_stays() -> None:
    outcome = through("torch", awake(MixesRows()), inputs(), also=[(inputs()[0], torch.tensor([1, 1, 3, 0]))])
    right(outcome)
    assert outcome.ops["Softmax"] == 1
