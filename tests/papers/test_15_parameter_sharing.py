"""Parameter sharing by hashing: every weight is an entry of one small array. Materialised for speed, kept small for memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, right, through
from zoo import ort

PAPER = Paper(15, "latency: the plain layer; memory: the shared array and no more; the outputs bit-equal")
INPUTS, OUTPUTS, ENTRIES = 160, 128, 4001
PRIME = 2_147_483_647


def hashed(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A place in the array for every (row, column)."""
    return (rows * 7919 + columns * 104_729 + 17) % PRIME % ENTRIES


class Shared(nn.Module):
    """``ENTRIES`` numbers stand for a layer; where each goes is computed, not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(normal(ENTRIES) / INPUTS**0.5)

    def weight(self) -> torch.Tensor:
        return 0.5 * self.m[hashed(torch.arange(OUTPUTS)[:, None], torch.arange(INPUTS))]


class Indexed(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight())


class Signed(Shared):
    """With a hashed sign, gathered by ``index_select``, and used in an einsum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = hashed(torch.arange(OUTPUTS)[:, None], torch.arange(INPUTS)).reshape(-1)
        sign = 2 * ((places * 31 + 5) % 2).to(self.m.dtype) - 1
        w = (self.m.index_select(0, places) * sign).view(OUTPUTS, INPUTS)
        return torch.einsum("ni,oi->no", x, w)


class Plain(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(self.weight().detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w)


def inputs() -> tuple[torch.Tensor]:
    return (normal(INPUTS, INPUTS),)


@each(indexed=Indexed, signed=Signed)
def test_both_objectives(module: Any, door: str, record: Any) -> None:
    fast, small = (through(door, module(), inputs(), objective=o) for o in ("latency", "memory"))
    is_plain(fast, plain(Plain, inputs))
    right(small)
    assert small.weight_bytes <= 1.02 * ENTRIES * 4, f"{small.weight_bytes} bytes\n{small.graph}"
    # Of the identity matrix, the outputs are the weights themselves: kernels may add in another order, the weights are bit-equal.
    weights = [ort.run(each.result.model, ort.feed_of(each.result.model, [torch.eye(INPUTS)]))[0] for each in (fast, small)]
    np.testing.assert_array_equal(*weights)
    record(PAPER, fast)
